"""Update the tables in README.md and docs/ from benchmarks/results/, and the Markdown files there.

    python -m benchmarks.tables

Put the JSON file of a run into the folder, and call this. It replaces the text between `<!-- table NAME -->` and `<!--
end NAME -->`. The newest run by the date in its file name is used; quick runs, which only try the command, are not.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from errors import UserError, answer_first, run
from lib.arguments import Parser
from lib.files import ROOT, write_text

if TYPE_CHECKING:
    from benchmarks.compare import Row
    from benchmarks.targets import Results, Target

RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(?P<begin><!-- table (?P<name>[\w-]+) -->\n).*?(?P<end><!-- end (?P=name) -->)", re.DOTALL)
DATE = re.compile(r"\d{4}-\d\d-\d\d")
NOTHING = "Nothing was measured on a GPU yet, and no line of the code has run on one: none was available."


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags; arguments: None for `sys.argv`."""
    parser = Parser("python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    answer_first(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds

from benchmarks import report
from benchmarks.memory import SETTINGS
from benchmarks.targets import TARGETS

MISSING = report.MISSING


class Run(NamedTuple):
    """A file of results."""

    name: str  # of the file, without its suffix
    results: Results

    @property
    def device(self) -> str:
        """The name of the GPU, or of the CPU and whether it has fast bfloat16."""
        environment = self.results.environment
        if self.results.device == "cuda":
            return str(environment["device"])
        fast = " with avx512_bf16" if "avx512_bf16" in environment.get("cpu_flags", []) else ""
        return f"CPU ({environment.get('cpu', environment.get('device'))}{fast})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Update all files, and print the names of those that changed."""
    args = parse_args(arguments)
    runs = read_runs(args.results)
    texts = {page: fill(page.read_text(encoding="utf-8"), runs) for page in pages()}
    texts |= {args.results / f"{one.name}.md": report.markdown(one.results) for one in runs if one.results.rates}
    for path, text in texts.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
            print(path)


def pages() -> list[Path]:
    """Return the files that may have tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def read_runs(folder: Path) -> list[Run]:
    """Return the runs in a folder, the newest first. Raises UserError for a file that is not a run."""
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
    """Return a page with its tables filled from these runs. Raises UserError for an unknown table."""

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise UserError(f"<!-- table {name} --> is unknown: there are {', '.join(TABLES)}")
        return f"{match['begin']}\n{TABLES[name](runs)}\n\n{match['end']}"

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


# ---------------------------------------------------------------- targets


def targets(runs: Sequence[Run]) -> str:
    """Return the table of measured targets, each by its newest run."""
    rows = [cells for target in TARGETS if (cells := target_cells(target, runs))]
    return report.table(("what", "aim", "measured", "verdict", "in"), rows)


def gpu_targets(runs: Sequence[Run]) -> str:
    """Return the table of GPU targets, measured or not."""
    on_gpu = [target for target in TARGETS if target.device == "cuda"]
    rows = [
        target_cells(target, runs) or (target.text, target.aim, MISSING, "unmeasured", MISSING) for target in on_gpu
    ]
    return report.table(("what", "aim", "measured", "verdict", "in"), rows)


def target_cells(target: Target, runs: Sequence[Run]) -> tuple[str, ...] | None:
    """Return the cells of a target by the newest run that measured it; None if there is none."""
    for one in runs:
        measured, verdict = target.verdict(one.results)
        if measured != MISSING:
            return target.text, target.aim, measured, verdict, f"`{one.name}`"
    return None


# ---------------------------------------------------------------- GPUs


def gpu(runs: Sequence[Run]) -> str:
    """Return a summary of the newest run on each GPU; the run's own file has the details."""
    newest = {one.device: one for one in reversed(runs) if one.results.device == "cuda" and one.results.steps}
    if not newest:
        return NOTHING
    return "\n\n".join(part for one in newest.values() for part in card_sections(one))


def card_sections(one: Run) -> Iterator[str]:
    """Yield the sections about a run."""
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
        by_variant = [by_place.get((part, case, name)) for name in names]
        fractions = [row.share("matmul") for row in by_variant if row and row.variant.precision == "bf16"]
        best = f"{100 * max(fractions):.0f} %" if fractions else MISSING
        rows.append((f"{part} {case}", *map(per_image, by_variant), best))
    return report.table(("case", *names, "share, bf16"), rows)


def per_image(row: Row | None) -> str:
    """Return the milliseconds per image."""
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
    "goals": targets,
    "gpu-goals": gpu_targets,
    "gpu": gpu,
}


if __name__ == "__main__":
    run(main)
