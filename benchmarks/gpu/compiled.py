"""The speed of forward passes and training steps with torch.compile.

Every cell is a process of its own, for compiling takes minutes and may end badly. While one is measured, the next is
compiled already; they take turns on the device.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from benchmarks.compare import Bench, Row
from benchmarks.flops import count_flops
from benchmarks.gpu.cells import QUICK_REPEATS, REPEATS, Cell, compiled_cells, measure_cell
from benchmarks.gpu.steps import Task
from benchmarks.peak_memory import in_subprocess
from benchmarks.roofline import measure_rates
from benchmarks.timing import FAILURES, describe
from benchmarks.variants import PLAIN

AT_A_TIME = 2  # processes; with two large batches in float32 there would not be enough memory
CELL_SECONDS = 20.0  # minimum time left for starting a cell


def run(task: Task) -> None:
    """Measure as many cells as the time allows."""
    writing = Lock()

    def measure(cell: Cell) -> None:
        if task.left() < CELL_SECONDS:
            with writing:
                task.sheet.add(left_out=[f"{cell}, {cell.variant}"])
            return
        found = measure_in_subprocess(cell, task)
        with writing:
            print(f"  {cell}, {cell.variant}", flush=True)
            task.sheet.add(**found)

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        list(pool.map(measure, compiled_cells(quick=task.quick)))


def measure_in_subprocess(cell: Cell, task: Task) -> dict[str, list[Any]]:
    """Measure a cell in a separate process. A failure is in its row; a cell that takes too long is listed."""
    try:
        return in_subprocess(measure_compiled, cell, task.device, task.quick, task.folder / "turn", seconds=task.left())
    except TimeoutError:
        return {"left_out": [f"{cell}, {cell.variant}"]}
    except FAILURES as error:
        row = Row(cell.part, cell.case, cell.variant, count_flops(cell.case, training=cell.part == "training"))
        row.failure = describe(error)
        return {"rows": [row.record()]}


def measure_compiled(cell: Cell, device: torch.device, quick: bool, turn: Path) -> dict[str, list[Any]]:
    """Compile, check against the plain assembly and time."""
    if quick:  # without the compiler, which would take minutes
        torch.compiler.set_stance("force_eager")
    repeats, precisions = QUICK_REPEATS if quick else REPEATS, sorted({PLAIN.precision, cell.variant.precision})
    with in_turn(turn):
        rates = measure_rates(precisions, repeats, device, quick=quick)
    bench = Bench(device, [PLAIN, cell.variant], rates, repeats, partial(in_turn, turn))
    found = measure_cell(bench, cell, str(cell.variant))
    return found | {"rows": [row for row in found["rows"] if not row["plain"]]}  # the eager step has it


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Let only one process at a time into this block; free cached memory afterwards."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            torch.cuda.empty_cache()
