"""The measured networks and batch sizes in their order, and the tiny case for trying the command."""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.cases import Case
from benchmarks.compare import Bench
from benchmarks.gpu.profiling import profile
from benchmarks.timing import FAILURES, describe
from benchmarks.variants import Variant
from lib.variants import PRECISIONS

PARTS = ("forward", "training")
SIZES = {"forward": (1, 8, 32), "training": (6, 12, 24)}  # of batches
MIDDLE = {"forward": 8, "training": 12}  # what is profiled, and measured first if time is short
OTHERS = ("tiny", "small", "large")  # measured at one batch size each
OTHER_SIZE = 8
REPEATS, QUICK_REPEATS = 10, 2


class Cell(NamedTuple):
    """A part, "forward" or "training", of a case for one variant, and whether to profile it."""

    part: str
    case: Case
    variant: Variant = Variant()
    profiled: bool = False

    def __str__(self) -> str:
        return f"{self.part} {self.case}"


def eager_cells(*, quick: bool) -> list[Cell]:
    """Return the cells of the eager step, each of which covers all precisions."""
    if quick:
        return [Cell(part, quick_case(), profiled=True) for part in PARTS]
    base = [
        Cell(part, Case("base", 480, size), profiled=size == MIDDLE[part]) for part in PARTS for size in SIZES[part]
    ]
    return base + [Cell(part, Case(name, 480, OTHER_SIZE)) for name in OTHERS for part in PARTS]


def compiled_cells(*, quick: bool) -> list[Cell]:
    """Return the cells of the compiled step, the most important first, because each compiles for a minute or two."""
    if quick:
        return [Cell(part, quick_case(), Variant("bf16", compiled=True), profiled=True) for part in PARTS]
    precisions = ["bf16", *(name for name in PRECISIONS if name != "bf16")]
    cells = [
        Cell(part, Case("base", 480, size), Variant(name, compiled=True), name == "bf16" and size == MIDDLE[part])
        for name in precisions
        for part in ("training", "forward")
        for size in (MIDDLE[part], *(size for size in SIZES[part] if size != MIDDLE[part]))
    ]
    cells.sort(key=lambda cell: (not cell.profiled, cell.variant.precision != "bf16", not _is_middle(cell)))
    variant = Variant("bf16", compiled=True)
    return cells + [Cell(part, Case(name, 480, OTHER_SIZE), variant) for name in OTHERS for part in PARTS]


def _is_middle(cell: Cell) -> bool:
    return cell.case.batch_size == MIDDLE[cell.part]


def quick_case() -> Case:
    """Return the tiny case."""
    return Case("nano", 40, 2)


def measure_cell(bench: Bench, cell: Cell, profiled: str) -> dict[str, list[Any]]:
    """Time a cell in all variants of the bench, and profile the named one if the cell asks for it."""
    rows = bench.forward(cell.case) if cell.part == "forward" else bench.training(cell.case)
    found = {"rows": [row.record() for row in rows]}
    if cell.profiled and profiled in bench.calls:
        of = {"part": cell.part, **cell.case._asdict(), "variant": profiled}
        with bench.turn():
            found["profiles"] = [of | _profile(bench, profiled)]
    return found


def _profile(bench: Bench, name: str) -> dict[str, Any]:
    try:
        return profile(bench.calls[name], bench.device)
    except FAILURES as error:
        return {"failure": describe(error)}
