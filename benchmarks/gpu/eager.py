"""Speed, memory and profiles of forward passes and training steps without torch.compile."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.cases import Case
from benchmarks.compare import Bench
from benchmarks.flops import count_flops
from benchmarks.gpu.cells import QUICK_REPEATS, REPEATS, Cell, eager_cells, measure_cell, quick_case
from benchmarks.gpu.steps import Task, Work
from benchmarks.memory import SETTINGS, Setting, measure, record
from benchmarks.roofline import Rate, measure_rates
from benchmarks.variants import PLAIN, variants
from lib.variants import PRECISIONS

CELL_SECONDS, MEMORY_SECONDS = 4.0, 5.0  # overhead of a cell without its calls; time of a memory setting


def run(task: Task) -> None:
    """Measure memory, which is fast, then base in every precision, then the other types."""
    repeats = QUICK_REPEATS if task.quick else REPEATS
    rates = measure_rates(list(PRECISIONS), repeats, task.device, quick=task.quick)
    bench = Bench(task.device, variants(PRECISIONS, [False]), rates, repeats)
    task.each(
        Work(f"memory, {setting.title()}", MEMORY_SECONDS, partial(measure_memory, task, setting))
        for setting in (SETTINGS[-1:] if task.quick else SETTINGS)
    )
    task.each(
        Work(str(cell), seconds_of(cell, rates, repeats), partial(measure_cell, bench, cell, "eager bf16"))
        for cell in eager_cells(quick=task.quick)
    )


def seconds_of(cell: Cell, rates: Sequence[Rate], repeats: int) -> float:
    """Return an estimate of the time of a cell: its calls in all precisions at half of the best rate of each."""
    best = {rate.precision: rate.flops_per_second for rate in rates if rate.operation == "matmul"}
    flops = count_flops(cell.case, training=cell.part == "training")
    calls = repeats + 2  # to warm up
    return CELL_SECONDS + calls * sum(2 * flops / best[name] for name in (PLAIN.precision, *PRECISIONS))


def measure_memory(task: Task, setting: Setting) -> dict[str, list[Any]]:
    """Measure the peak memory of a training step of one image."""
    case = (quick_case() if task.quick else Case("base", 480, 1))._replace(batch_size=1)
    return {"memory": [record(setting, case, partial(measure, setting, *case, task.device))]}
