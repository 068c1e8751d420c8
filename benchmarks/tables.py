"""Fill the tables of README.md and docs/ that show what benchmarks/results/ holds, and make its Markdown files.

    python -m benchmarks.tables

Put a run's JSON file into the folder, and call this. A table stands between `<!-- table NAME -->` and `<!-- end NAME
-->`; what is between them is replaced, and nothing else is touched. The newest run counts, by the date in its file's
name; quick runs, which try the command itself, do not.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from errors import UserError, run
from lib.arguments import Parser
from lib.files import ROOT, write_text

if TYPE_CHECKING:
    from benchmarks.compare import Row
    from benchmarks.reach import Goal, Results

RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(?P<begin><!-- table (?P<name>[\w-]+) -->\n).*?(?P<end><!-- end (?P=name) -->)", re.DOTALL)
DATE = re.compile(r"\d{4}-\d\d-\d\d")
NOTHING = "Nothing was measured on a GPU yet, and no line of the code has run on one: none was at hand."


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags; arguments: None for those of the command line."""
    parser = Parser("python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds

from benchmarks import report
from benchmarks.memory import SETTINGS
from benchmarks.reach import GOALS

MISSING = report.MISSING


class Run(NamedTuple):
    """A file of results."""

    name: str  # of the file, without its suffix
    results: Results

    @property
    def device(self) -> str:
        """The card's name, or the CPU's with what decides how fast its bfloat16 is."""
        environment = self.results.environment
        if self.results.device == "cuda":
            return str(environment["device"])
        fast = " with avx512_bf16" if "avx512_bf16" in environment.get("cpu_flags", []) else ""
        return f"CPU ({environment.get('cpu', environment.get('device'))}{fast})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Bring everything up to date, and name what changed."""
    args = parse_args(arguments)
    runs = read_runs(args.results)
    texts = {page: fill(page.read_text(encoding="utf-8"), runs) for page in pages()}
    texts |= {args.results / f"{one.name}.md": report.markdown(one.results) for one in runs if one.results.rates}
    for path, text in texts.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
            print(path)


def pages() -> list[Path]:
    """Return the files that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def read_runs(folder: Path) -> list[Run]:
    """Return the runs of a folder, the newest first. Raises UserError for a file that is none."""
    runs = []
    for path in folder.glob("*.json"):
        try:
            results = report.read(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no result of `python -m benchmarks` or `benchmarks.gpu` ({error!r})") from error
        if not results.settings.get("quick"):
            runs.append(Run(path.stem, results))
    if not runs:
        raise UserError(f"--results {folder} holds no result, and without one the tables would be emptied")
    return sorted(runs, key=lambda one: (DATE.findall(one.name), one.name), reverse=True)


def fill(text: str, runs: Sequence[Run]) -> str:
    """Return a page with its tables made of these runs. Raises UserError for a table that nobody makes."""

    def block(found: re.Match[str]) -> str:
        name = found["name"]
        if name not in TABLES:
            raise UserError(f"<!-- table {name} -->: there are {', '.join(TABLES)}")
        return f"{found['begin']}\n{TABLES[name](runs)}\n\n{found['end']}"

    return BLOCK.sub(block, text)


# ---------------------------------------------------------------- memory


def memory(runs: Sequence[Run]) -> str:
    """Return the peak memory of a training step of one image of base at 480 pixels, by setting and device."""
    found: dict[str, dict[str, str]] = {}
    for one in runs:
        for row in one.results.memory:
            if (row["swin_type"], row["img_size"], row["batch_size"]) == ("base", 480, 1):
                *_, cell = report.memory_cells(row)
                found.setdefault(one.device, {}).setdefault(row["setting"], cell)
    devices = sorted(found, key=lambda name: (not name.startswith("CPU"), name))
    rows = [
        (f"`{as_flags(title)}`", *(found[device].get(title, MISSING) for device in devices))
        for title in (setting.title() for setting in SETTINGS)
        if any(title in cells for cells in found.values())
    ]
    return report.table(("setting", *(f"{device}, GiB" for device in devices)), rows)


def as_flags(setting: str) -> str:
    """Return the flags of `train.py` that make a setting."""
    return "--precision " + setting.replace(" + ", " --").replace("_", "-")


# ---------------------------------------------------------------- goals


def goals(runs: Sequence[Run]) -> str:
    """Return the goals that were measured, by the newest run of each."""
    rows = [cells for goal in GOALS if (cells := goal_cells(goal, runs))]
    return report.table(("what", "aim", "measured", "verdict", "in"), rows)


def gpu_goals(runs: Sequence[Run]) -> str:
    """Return the goals of a GPU, measured or not."""
    mine = [goal for goal in GOALS if goal.device == "cuda"]
    rows = [goal_cells(goal, runs) or (goal.text, goal.aim, MISSING, "unmeasured", MISSING) for goal in mine]
    return report.table(("what", "aim", "measured", "verdict", "in"), rows)


def goal_cells(goal: Goal, runs: Sequence[Run]) -> tuple[str, ...] | None:
    """Return a goal as the newest run that measured it says."""
    for one in runs:
        measured, verdict = goal.verdict(one.results)
        if measured != MISSING:
            return goal.text, goal.aim, measured, verdict, f"`{one.name}`"
    return None


# ---------------------------------------------------------------- GPUs


def gpu(runs: Sequence[Run]) -> str:
    """Return what was measured on GPUs, by the newest run on each card; all of it is in that run's own file."""
    newest = {one.device: one for one in reversed(runs) if one.results.device == "cuda" and one.results.steps}
    if not newest:
        return NOTHING
    return "\n\n".join(part for one in newest.values() for part in card_sections(one))


def card_sections(one: Run) -> Iterator[str]:
    """Yield what a page says of a run."""
    results = one.results
    versions, driver = results.environment["versions"], results.environment.get("driver")
    yield f"### {one.device}"
    yield (
        f"PyTorch {versions['torch']}, CUDA {results.environment['cuda']}, driver {driver}. "
        f"{report.tests_text(results)} Everything, profiles included: `benchmarks/results/{one.name}.md`."
    )
    yield "Milliseconds per image, and the share of the best bf16 matrix product of the run that bf16 reaches:"
    yield speed_table(results)
    yield report.whole_table(results.whole)
    yield "Where the time goes:"
    header = ("call", "ms", "between kernels, ms", "launches", "copies, ms", "longest kernel")
    yield report.table(header, (profile_cells(row) for row in results.profiles if "failure" not in row))


def speed_table(results: Results) -> str:
    """Return a row for each case, a column for each variant."""
    cases = list(dict.fromkeys((row.part, row.case) for row in results.rows))
    names = list(dict.fromkeys(str(row.variant) for row in results.rows))
    names.sort(key=lambda name: (not name.startswith("plain"), name.startswith("compiled")))
    by_place = {(row.part, row.case, str(row.variant)): row for row in results.rows if row.seconds}
    rows = []
    for part, case in cases:
        own = [by_place.get((part, case, name)) for name in names]
        shares = [row.share("matmul") for row in own if row and row.variant.precision == "bf16"]
        best = f"{100 * max(shares):.0f} %" if shares else MISSING
        rows.append((f"{part} {case}", *map(per_image, own), best))
    return report.table(("case", *names, "share, bf16"), rows)


def per_image(row: Row | None) -> str:
    """Return the milliseconds of an image."""
    return f"{1000 / row.samples_per_second:.1f}" if row else MISSING


def profile_cells(profile: dict[str, Any]) -> tuple[str, ...]:
    """Return a profile's cells."""
    longest = f"{profile['top'][0]['name']}, {100 * profile['top'][0]['share']:.0f} %" if profile["top"] else MISSING
    name = f"{profile['part']} {profile['swin_type']}@{profile['img_size']} batch {profile['batch_size']}"
    times = (f"{profile[key]:.1f}" for key in ("span_ms", "gaps_ms"))
    copies = f"{profile['copies']['count']}, {profile['copies']['ms']:.1f}"
    return f"{name}, {profile['variant']}", *times, str(profile["launches"]), copies, longest


TABLES: dict[str, Callable[[Sequence[Run]], str]] = {
    "memory": memory,
    "goals": goals,
    "gpu-goals": gpu_goals,
    "gpu": gpu,
}


if __name__ == "__main__":
    run(main)
