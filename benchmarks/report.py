"""Writing the results of a run as Markdown and JSON, and reading them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.compare import Row
from benchmarks.end_to_end import ONE_AT_A_TIME, Evaluation, Training
from benchmarks.roofline import Rate
from benchmarks.targets import TARGETS, Results, plain_row
from lib.files import write_text
from lib.outputs import complete
from lib.texts import markdown_table

MISSING = "–"
MORE = ("steps", "tests", "memory", "whole", "profiles")  # of a run on a GPU
ROWS_NOTE = """
Variants: *plain* is the baseline, the same layers assembled the obvious way (`benchmarks/plain.py`); *eager* and
*compiled* are the project's own. Every one is checked against plain fp32 before it is timed; "difference" says how far
off it is. GFLOP/s counts what the plain assembly multiplies and adds; the shares are of the best matrix product and the
best 3×3 convolution in that precision, measured in the same rounds.
""".strip()
MEMORY_NOTE = """
Memory: *peak* is all that is in use at the worst moment of a step. On the CPU that is the resident size of a process
that does nothing else, Python and its libraries (almost 1 GiB) included; on a GPU it is what PyTorch allocates there.
*Above* is the part that the step itself takes, on top of weights and optimizer state: activations and gradients.
""".strip()


def write(results: Results, stem: Path) -> None:
    """Write `stem`.md and `stem`.json."""
    texts = {".md": markdown(results), ".json": as_json(results)}
    complete(*(partial(write_text, stem.with_name(stem.name + suffix), text) for suffix, text in texts.items()))


def as_json(results: Results) -> str:
    """Return all measurements, including every single time."""
    names = ("goal", "target", "measured", "verdict")
    goals = target_rows(results) if results.rates else []  # `benchmarks.memory` has no part in them
    content = {
        "device": results.device,
        "environment": results.environment,
        "settings": results.settings,
        "goals": [dict(zip(names, cells, strict=True)) for cells in goals],
        "rates": [rate.record() for rate in results.rates],
        "rows": [row.record() for row in results.rows],
        "evaluations": [asdict(row) for row in results.evaluations],
        "trainings": [asdict(run) for run in results.trainings],
    }
    content |= {name: value for name in MORE if (value := getattr(results, name))}
    return json.dumps(content, indent=1) + "\n"


def read(path: Path) -> Results:
    """Return the results in a file of `write`."""
    content = json.loads(path.read_text())
    return Results(
        device=content.get("device", "cpu"),  # missing in old files
        environment=content["environment"],
        settings=content["settings"],
        rates=[Rate(**rate) for rate in content["rates"]],
        rows=[Row.of(row) for row in content["rows"]],
        evaluations=[Evaluation(**row) for row in content["evaluations"]],
        trainings=[Training(**run) for run in content["trainings"]],
        **{name: content.get(name, []) for name in MORE},
    )


def markdown(results: Results) -> str:
    """Return the whole report."""
    sections = [
        "# Benchmarks",
        f"`python -m {'benchmarks.gpu' if results.steps else 'benchmarks'}` measured all this in one run, the variants "
        "of a case in turn. Times are medians.",
        environment_list(results),
        "## Reach",
        table(("goal", "target", "measured", "verdict"), target_rows(results)),
        "## Best rates of the device",
        table(("operation", "precision", "GFLOP/s", "reached by"), map(rate_cells, results.rates)),
        "## Forward pass, as evaluation runs it",
        ROWS_NOTE,
        rows_table(results, "forward"),
        "## Training step",
        MEMORY_NOTE,
        rows_table(results, "training"),
        "## `test.py` on the sample test sets",
        evaluations_table(results.evaluations),
        "## `train.py` on the sample data",
        trainings_table(results.trainings),
        *gpu_sections(results),
    ]
    return "\n\n".join(sections) + "\n"


def gpu_sections(results: Results) -> list[str]:
    """Return the sections of a run on a GPU: steps and tests, memory, whole scripts, profiles."""
    if not results.steps:
        return []
    sections = ["## Steps", table(("step", "s", "ended"), map(step_cells, results.steps))]
    others = [test for test in results.tests if test["outcome"] != "passed"]
    sections += ["## Tests", tests_text(results)]
    if others:
        sections.append(
            table(("test", "ended", "message"), ((test["test"], test["outcome"], test["message"]) for test in others))
        )
    header = ("setting", "network", "peak GiB")
    sections += ["## Peak memory of a training step of one image", table(header, map(memory_cells, results.memory))]
    sections += ["## Whole scripts, bf16", whole_table(results.whole)]
    for profile in results.profiles:
        sections += profile_section(profile)
    return sections


def tests_text(results: Results) -> str:
    """Return how many tests passed, and how many did not end in time."""
    passed = sum(test["outcome"] == "passed" for test in results.tests)
    n_tests = max([len(results.tests), *(step.get("n_tests", 0) for step in results.steps)])
    unknown = n_tests - len(results.tests)
    return f"{passed} of {n_tests} tests passed." + (f" {unknown} did not end in time." if unknown else "")


def step_cells(step: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of a step, with the parts that it skipped for lack of time."""
    ended = f"**failed** {step['failure']}" if step["failure"] else "well"
    if step["left_out"]:
        ended += f"; no time was left for {', '.join(step['left_out'])}"
    return step["name"], f"{step['seconds']:.0f}", ended


def memory_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of a memory setting."""
    peak = f"**failed** {row['failure']}" if "failure" in row else f"{row['peak_gib']:.2f}"
    return row["setting"], f"{row['swin_type']}@{row['img_size']}", peak


def whole_table(rows: Iterable[dict[str, Any]]) -> str:
    """Return the table of `train.py` and `test.py` as a whole."""
    header = ("script", "workers", "cache", "samples/s", "waiting for data", "s in all")
    return table(header, map(whole_cells, rows))


def whole_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return a script's cells."""
    first = (f"{row['script']}.py", str(row["workers"]), "yes" if row["cached"] else "no")
    if row["failure"]:
        return (*first, f"**failed** {row['failure']}", MISSING, MISSING)
    return (*first, f"{row['samples_per_second']:.1f}", f"{100 * row['data_wait']:.1f} %", f"{row['seconds']:.1f}")


def profile_section(profile: dict[str, Any]) -> list[str]:
    """Return the section of a profile."""
    title = f"## Profile: {profile['part']} {Case(*(profile[name] for name in Case._fields))}, {profile['variant']}"
    if "failure" in profile:
        return [title, f"**failed** {profile['failure']}"]
    copies = profile["copies"]
    text = (
        f"{profile['span_ms']:.1f} ms from the first kernel to the last, {profile['gaps_ms']:.1f} ms of them between "
        f"kernels; {profile['launches']} launches; {copies['count']} copies, {copies['ms']:.1f} ms."
    )
    return [title, text, table(("kernel", "calls", "ms", "share"), map(kernel_cells, profile["top"]))]


def kernel_cells(kernel: dict[str, Any]) -> tuple[str, ...]:
    """Return a kernel's cells."""
    return kernel["name"], str(kernel["calls"]), f"{kernel['ms']:.2f}", f"{100 * kernel['share']:.1f} %"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, or "Not measured." if it has no rows."""
    lines = [[cell.replace("|", "/") for cell in cells] for cells in rows]
    return markdown_table(header, lines) if lines else "Not measured."


def environment_list(results: Results) -> str:
    """Return the machine's description."""
    return "\n".join(f"- {name}: {as_text(value)}" for name, value in (results.environment | results.settings).items())


def as_text(value: object) -> str:
    """Return a value of the description on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def target_rows(results: Results) -> list[tuple[str, str, str, str]]:
    """Return the cells of every target."""
    return [(goal.text, goal.aim, *goal.verdict(results)) for goal in TARGETS]


def rate_cells(rate: Rate) -> tuple[str, ...]:
    """Return a rate's cells."""
    return rate.operation, rate.precision, f"{rate.flops_per_second / 1e9:.0f}", rate.best


def rows_table(results: Results, part: str) -> str:
    """Return the table of forward passes or training steps."""
    rows = [row for row in results.rows if row.part == part]
    header = ["case", "variant", "ms", "min–max", "ms per image", "plain : this", "samples/s", "GFLOP/s"]
    header += ["of matrix product", "of convolution", "first call, s", "difference", "peak GiB", "above GiB"]
    return table(header, (row_cells(row, plain_row(results, part, row.case)) for row in rows))


def row_cells(row: Row, plain: Row | None) -> list[str]:
    """Return the cells of a row; plain: the baseline of its case, None if it failed."""
    cells = [str(row.case), str(row.variant)]
    if row.failure:
        cells += [f"**failed** {row.failure}", *[MISSING] * 7]
    else:
        cells += [
            f"{1000 * row.median:.1f}",
            f"{1000 * min(row.seconds):.1f}–{1000 * max(row.seconds):.1f}",
            f"{1000 / row.samples_per_second:.1f}",
            f"{plain.median / row.median:.2f}×" if plain else MISSING,
            f"{row.samples_per_second:.2f}",
            f"{row.flops / row.median / 1e9:.0f}",
            f"{100 * row.share('matmul'):.0f} %",
            f"{100 * row.share('conv'):.0f} %",
        ]
    first = MISSING if row.first_seconds is None else f"{row.first_seconds:.1f}"
    peaks = [f"{row.memory[name]:.2f}" if name in row.memory else MISSING for name in ("peak_gib", "above_gib")]
    if row.memory_failure:
        peaks[0] = f"**failed** {row.memory_failure}"
    return [*cells, first, check_text(row), *peaks]


def check_text(row: Row) -> str:
    """Return the difference of a row's outcome from the plain assembly as text."""
    if row.variant.plain:
        return "is the reference"
    if not row.check:
        return "unchecked"
    if "agreement" in row.check:
        return f"logits {row.check['logits']:.1g}, classes agree {100 * row.check['agreement']:.2f} %"
    return f"loss {100 * row.check['loss']:.2g} %, gradient norm {100 * row.check['gradient_norm']:.2g} %"


def evaluations_table(rows: Sequence[Evaluation]) -> str:
    """Return the table of whole evaluations."""
    plain = next((row for row in rows if row.name == ONE_AT_A_TIME and not row.failure), None)
    header = ["evaluation", "whole command, s", "ratio", "without the start of Python, s", "ratio", "loop alone, s"]
    header += ["ratio", "sentences/s", "scores"]
    return table(header, (evaluation_cells(row, plain) for row in rows))


def evaluation_cells(row: Evaluation, plain: Evaluation | None) -> list[str]:
    """Return the cells of an evaluation; plain: the baseline, None if it failed."""
    if row.failure:
        return [row.name, f"**failed** {row.failure}", *[MISSING] * 7]
    cells = [row.name]
    for part in row.seconds:
        ratio = f"{plain.median(part) / row.median(part):.2f}×" if plain else MISSING
        cells += [f"{row.median(part):.2f}", ratio]
    return [*cells, f"{row.n_expressions / row.median('evaluate'):.1f}", scores_text(row, plain)]


def scores_text(row: Evaluation, plain: Evaluation | None) -> str:
    """Return whether the scores equal those of the baseline in all printed digits, as text."""
    overall = ", ".join(f"{split} {scores['overall_iou']:.2f}" for split, scores in row.scores.items())
    if plain is None or row is plain:
        return f"overall IoU {overall}"
    return "all equal" if row.scores == plain.scores else f"**different**, overall IoU {overall}"


def trainings_table(runs: Sequence[Training]) -> str:
    """Return the table of trainings."""
    header = ("training", "whole command, s", "samples/s", "waiting for data", "the same in the first epoch")
    return table(header, map(training_cells, runs))


def training_cells(run: Training) -> list[str]:
    """Return the cells of a training; samples/s and waiting are medians over the epochs after the first."""
    if run.failure:
        return [run.name, f"**failed** {run.failure}", *[MISSING] * 3]
    first = run.epochs[0]
    return [
        run.name,
        f"{run.command_seconds:.1f}",
        f"{run.settled('samples_per_second'):.1f}",
        f"{100 * run.settled('data_wait'):.1f} %",
        f"{first['samples_per_second']:.1f} samples/s, {100 * first['data_wait']:.1f} %",
    ]
