"""What the project means to reach, and whether a run reached it; every figure is a ratio inside that run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from benchmarks.cases import Case
from benchmarks.compare import Row
from benchmarks.end_to_end import ONE_AT_A_TIME, Evaluation, Training
from benchmarks.rates import Rate


@dataclass
class Results:
    """All that a run measured."""

    device: str  # "cpu" or "cuda"
    environment: dict[str, Any]
    settings: dict[str, Any]
    rates: list[Rate] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)  # forward passes and training steps
    evaluations: list[Evaluation] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    # Plain values that `benchmarks.gpu` alone measures; what they hold, its steps say.
    steps: list[dict[str, Any]] = field(default_factory=list)
    tests: list[dict[str, Any]] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)
    whole: list[dict[str, Any]] = field(default_factory=list)
    profiles: list[dict[str, Any]] = field(default_factory=list)


class Found(NamedTuple):
    """A figure, and what it was measured on."""

    value: float
    where: str


class Goal(NamedTuple):
    """A figure to reach."""

    text: str
    device: str  # that it is meant for
    target: float
    measure: Callable[[Results], Found | None]
    at_most: bool = False  # else at least
    percent: bool = False  # else a ratio

    @property
    def aim(self) -> str:
        """What to reach, as text."""
        return f"{'≤' if self.at_most else '≥'} {self.format(self.target)}"

    def format(self, value: float) -> str:
        """Return a figure as text."""
        return f"{100 * value:.1f} %" if self.percent else f"{value:.2f}×"

    def verdict(self, results: Results) -> tuple[str, str]:
        """Return what was measured, and whether that is enough."""
        if results.device != self.device:
            return "–", f"unmeasured: needs {'a GPU' if self.device == 'cuda' else 'a run on the CPU'}"
        found = self.measure(results)
        if found is None:
            return "–", "unmeasured"
        reached = found.value <= self.target if self.at_most else found.value >= self.target
        return f"{self.format(found.value)} ({found.where})", "reached" if reached else "not reached"


def speedup(part: str, swin_type: str, batch_size: int | None, precision: str, *ways: bool) -> Callable[..., Any]:
    """Return a measure: plain time over own time of the fastest of these ways (compiled or not) at 480 pixels.

    batch_size: None for the best of all.
    """

    def measure(results: Results) -> Found | None:
        found = []
        for row in own_rows(results, part, swin_type, batch_size, precision, ways):
            plain = plain_row(results, part, row.case)
            if plain:
                found.append(Found(plain.median / row.median, describe(row)))
        return max(found, default=None)

    return measure


def share(part: str, swin_type: str, batch_size: int | None, precision: str, *ways: bool) -> Callable[..., Any]:
    """Return a measure: the largest share of the best matrix-product rate; arguments as those of `speedup`."""

    def measure(results: Results) -> Found | None:
        rows = own_rows(results, part, swin_type, batch_size, precision, ways)
        return max((Found(row.share("matmul"), describe(row)) for row in rows), default=None)

    return measure


def memory(swin_type: str, batch_size: int, precision: str, figure: str) -> Callable[..., Any]:
    """Return a measure: peak memory of a training step over that of the plain one; figure: see benchmarks/peak.py."""

    def measure(results: Results) -> Found | None:
        found = []
        for row in own_rows(results, "training", swin_type, batch_size, precision, (False, True)):
            plain = plain_row(results, "training", row.case)
            if plain and plain.memory and row.memory:
                found.append(Found(row.memory[figure] / plain.memory[figure], describe(row)))
        return min(found, default=None)

    return measure


def throughput(results: Results) -> Found | None:
    """Return the best samples/s of base at 480 over those of the plain assembly one image at a time."""
    plain = plain_row(results, "forward", Case("base", 480, 1))
    rows = [row for row in results.rows if row.part == "forward" and row.case[:2] == ("base", 480) and row.seconds]
    own = [row for row in rows if not row.variant.plain]
    if not plain or not own:
        return None
    best = max(own, key=lambda row: row.samples_per_second)
    return Found(best.samples_per_second / plain.samples_per_second, describe(best))


def evaluation(part: str) -> Callable[..., Any]:
    """Return a measure: how much faster the fastest float32 `test.py` is than one sentence at a time."""

    def measure(results: Results) -> Found | None:
        done = {row.name: row for row in results.evaluations if row.seconds[part] and not row.failure}
        own = [row for row in done.values() if row.name == "test.py"]
        if ONE_AT_A_TIME not in done or not own:
            return None
        return Found(done[ONE_AT_A_TIME].median(part) / own[0].median(part), f"{own[0].n_expressions} sentences")

    return measure


def waiting(results: Results) -> Found | None:
    """Return the share of time that training with a cache waits for data."""
    runs = [run for run in results.trainings if "--cache" in run.name and len(run.epochs) > 1 and not run.failure]
    return Found(runs[0].settled("data_wait"), f"{len(runs[0].epochs) - 1} epochs") if runs else None


def own_rows(
    results: Results, part: str, swin_type: str, batch_size: int | None, precision: str, ways: Iterable[bool]
) -> list[Row]:
    """Return the timed rows of the project's own variants that match, at 480 pixels."""
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
    """Return which row a figure is of."""
    return f"{row.variant}, batch {row.case.batch_size}"


EITHER = (False, True)
GOALS = (
    Goal("forward base@480 batch 1, fp32 eager : plain", "cpu", 1.08, speedup("forward", "base", 1, "fp32", False)),
    Goal("forward base@480 batch 1, fp32 compiled : plain", "cpu", 1.2, speedup("forward", "base", 1, "fp32", True)),
    Goal("forward base@480 batch 1, bf16 : plain fp32", "cpu", 2.8, speedup("forward", "base", 1, "bf16", *EITHER)),
    Goal(
        "forward base@480 batch 1, bf16, share of the matrix-product rate",
        "cpu",
        0.9,
        share("forward", "base", 1, "bf16", *EITHER),
        percent=True,
    ),
    Goal(
        "training step tiny@480 batch 2, bf16 : plain fp32", "cpu", 2.2, speedup("training", "tiny", 2, "bf16", *EITHER)
    ),
    Goal(
        "peak memory above what was held, training step tiny@480 batch 2, bf16 : plain fp32",
        "cpu",
        0.6,
        memory("tiny", 2, "bf16", "above_gib"),
        at_most=True,
    ),
    Goal(
        "peak resident memory, weights and Python included, the same step",
        "cpu",
        0.6,
        memory("tiny", 2, "bf16", "peak_gib"),
        at_most=True,
    ),
    Goal("evaluation of the sample test sets, without the start of Python", "cpu", 3.0, evaluation("main")),
    Goal("the same, whole commands", "cpu", 3.0, evaluation("command")),
    Goal("waiting for data, training with cache and 2 workers", "cpu", 0.03, waiting, at_most=True, percent=True),
    Goal(
        "training base@480, bf16 compiled : plain fp32, same batch",
        "cuda",
        6.0,
        speedup("training", "base", None, "bf16", True),
    ),
    Goal(
        "training base@480, bf16 compiled, share of the matrix-product rate",
        "cuda",
        0.4,
        share("training", "base", None, "bf16", True),
        percent=True,
    ),
    Goal("evaluation base@480 : plain fp32 batch 1, samples/s", "cuda", 12.0, throughput),
)
