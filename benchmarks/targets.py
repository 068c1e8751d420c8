"""The performance targets of the project, and whether a run reached them; all figures are ratios within that run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from benchmarks.cases import Case
from benchmarks.compare import Row
from benchmarks.end_to_end import ONE_AT_A_TIME, Evaluation, Training
from benchmarks.roofline import Rate


@dataclass
class Results:
    """All measurements of a run."""

    device: str  # "cpu" or "cuda"
    environment: dict[str, Any]
    settings: dict[str, Any]
    rates: list[Rate] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)  # forward passes and training steps
    evaluations: list[Evaluation] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    # Plain values that only `benchmarks.gpu` measures; its steps define their content.
    steps: list[dict[str, Any]] = field(default_factory=list)
    tests: list[dict[str, Any]] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)
    whole: list[dict[str, Any]] = field(default_factory=list)
    profiles: list[dict[str, Any]] = field(default_factory=list)


class Measurement(NamedTuple):
    """A figure, and the row that it was measured on."""

    value: float
    row: str


class Target(NamedTuple):
    """A performance target."""

    text: str
    device: str  # "cpu" or "cuda"
    target: float
    measure: Callable[[Results], Measurement | None]
    at_most: bool = False  # else at least
    percent: bool = False  # else a ratio

    @property
    def aim(self) -> str:
        """The target value as text."""
        return f"{'≤' if self.at_most else '≥'} {self.format(self.target)}"

    def format(self, value: float) -> str:
        """Return a figure as text."""
        return f"{100 * value:.1f} %" if self.percent else f"{value:.2f}×"

    def verdict(self, results: Results) -> tuple[str, str]:
        """Return the measured figure, and whether it reaches the target."""
        if results.device != self.device:
            return "–", f"unmeasured: needs {'a GPU' if self.device == 'cuda' else 'a run on the CPU'}"
        measured = self.measure(results)
        if measured is None:
            return "–", "unmeasured"
        reached = measured.value <= self.target if self.at_most else measured.value >= self.target
        return f"{self.format(measured.value)} ({measured.row})", "reached" if reached else "not reached"


def speedup(part: str, swin_type: str, batch_size: int | None, precision: str, *ways: bool) -> Callable[..., Any]:
    """Return a measure: the speedup over plain of the fastest of these ways (compiled or not) at 480 pixels.

    batch_size: None for the best of all.
    """

    def measure(results: Results) -> Measurement | None:
        found = []
        for row in our_rows(results, part, swin_type, batch_size, precision, ways):
            plain = plain_row(results, part, row.case)
            if plain:
                found.append(Measurement(plain.median / row.median, describe(row)))
        return max(found, default=None)

    return measure


def share(part: str, swin_type: str, batch_size: int | None, precision: str, *ways: bool) -> Callable[..., Any]:
    """Return a measure: the largest fraction of the best matrix-product rate; arguments as for `speedup`."""

    def measure(results: Results) -> Measurement | None:
        rows = our_rows(results, part, swin_type, batch_size, precision, ways)
        return max((Measurement(row.share("matmul"), describe(row)) for row in rows), default=None)

    return measure


def memory(swin_type: str, batch_size: int, precision: str, figure: str) -> Callable[..., Any]:
    """Return a measure: the ratio of peak memory to that of plain; figure: see benchmarks/peak_memory.py."""

    def measure(results: Results) -> Measurement | None:
        found = []
        for row in our_rows(results, "training", swin_type, batch_size, precision, (False, True)):
            plain = plain_row(results, "training", row.case)
            if plain and plain.memory and row.memory:
                found.append(Measurement(row.memory[figure] / plain.memory[figure], describe(row)))
        return min(found, default=None)

    return measure


def throughput(results: Results) -> Measurement | None:
    """Return the ratio of the best samples/s of base at 480 to those of plain with one image at a time."""
    plain = plain_row(results, "forward", Case("base", 480, 1))
    rows = [row for row in results.rows if row.part == "forward" and row.case[:2] == ("base", 480) and row.seconds]
    own = [row for row in rows if not row.variant.plain]
    if not plain or not own:
        return None
    best = max(own, key=lambda row: row.samples_per_second)
    return Measurement(best.samples_per_second / plain.samples_per_second, describe(best))


def evaluation(part: str) -> Callable[..., Any]:
    """Return a measure: the speedup of float32 `test.py` over one sentence at a time."""

    def measure(results: Results) -> Measurement | None:
        done = {row.name: row for row in results.evaluations if row.seconds[part] and not row.failure}
        own = [row for row in done.values() if row.name == "test.py"]
        if ONE_AT_A_TIME not in done or not own:
            return None
        return Measurement(done[ONE_AT_A_TIME].median(part) / own[0].median(part), f"{own[0].n_expressions} sentences")

    return measure


def waiting(results: Results) -> Measurement | None:
    """Return the fraction of time that training with a cache waits for data."""
    runs = [run for run in results.trainings if "--cache" in run.name and len(run.epochs) > 1 and not run.failure]
    return Measurement(runs[0].settled("data_wait"), f"{len(runs[0].epochs) - 1} epochs") if runs else None


def our_rows(
    results: Results, part: str, swin_type: str, batch_size: int | None, precision: str, ways: Iterable[bool]
) -> list[Row]:
    """Return the timed rows of the project's variants that match, at 480 pixels."""
    return [
        row
        for row in results.rows
        if (row.part, *row.case[:2]) == (part, swin_type, 480)
        and batch_size in (None, row.case.batch_size)
        and row.variant.precision == precision
        and row.variant.compiled in ways
        and not row.variant.plain
        and row.seconds
    ]


def plain_row(results: Results, part: str, case: Case) -> Row | None:
    """Return the timed row of the plain assembly on the same case."""
    rows = (row for row in results.rows if row.part == part and row.case == case and row.variant.plain and row.seconds)
    return next(rows, None)


def describe(row: Row) -> str:
    """Return the variant and batch size of a row as text."""
    return f"{row.variant}, batch {row.case.batch_size}"


EITHER = (False, True)
TARGETS = (
    Target("forward base@480 batch 1, fp32 eager : plain", "cpu", 1.08, speedup("forward", "base", 1, "fp32", False)),
    Target("forward base@480 batch 1, fp32 compiled : plain", "cpu", 1.2, speedup("forward", "base", 1, "fp32", True)),
    Target("forward base@480 batch 1, bf16 : plain fp32", "cpu", 2.8, speedup("forward", "base", 1, "bf16", *EITHER)),
    Target(
        "forward base@480 batch 1, bf16, share of the matrix-product rate",
        "cpu",
        0.9,
        share("forward", "base", 1, "bf16", *EITHER),
        percent=True,
    ),
    Target(
        "training step tiny@480 batch 2, bf16 : plain fp32", "cpu", 2.2, speedup("training", "tiny", 2, "bf16", *EITHER)
    ),
    Target(
        "peak memory above what was held, training step tiny@480 batch 2, bf16 : plain fp32",
        "cpu",
        0.6,
        memory("tiny", 2, "bf16", "above_gib"),
        at_most=True,
    ),
    Target(
        "peak resident memory, weights and Python included, the same step",
        "cpu",
        0.6,
        memory("tiny", 2, "bf16", "peak_gib"),
        at_most=True,
    ),
    Target("evaluation of the sample test sets, without the start of Python", "cpu", 3.0, evaluation("main")),
    Target("the same, whole commands", "cpu", 3.0, evaluation("command")),
    Target("waiting for data, training with cache and 2 workers", "cpu", 0.03, waiting, at_most=True, percent=True),
    Target(
        "training base@480, bf16 compiled : plain fp32, same batch",
        "cuda",
        6.0,
        speedup("training", "base", None, "bf16", True),
    ),
    Target(
        "training base@480, bf16 compiled, share of the matrix-product rate",
        "cuda",
        0.4,
        share("training", "base", None, "bf16", True),
        percent=True,
    ),
    Target("evaluation base@480 : plain fp32 batch 1, samples/s", "cuda", 12.0, throughput),
)
