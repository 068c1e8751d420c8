"""How fast forward passes and training steps are without torch.compile, what they take, and where their time goes."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.compare import Bench
from benchmarks.gpu.cells import QUICK_REPEATS, REPEATS, eager_cells, measure_cell, quick_case
from benchmarks.gpu.steps import Task
from benchmarks.memory import SETTINGS, Setting, measure
from benchmarks.rates import measure_rates
from benchmarks.timing import FAILURES, describe
from benchmarks.variants import variants
from lib.variants import PRECISIONS

CELL_SECONDS = 8.0  # what must be left to begin with something, on a GPU that the limits are meant for


def run(task: Task) -> None:
    """Measure base in every precision, then its memory, then the other types."""
    repeats = QUICK_REPEATS if task.quick else REPEATS
    rates = measure_rates(list(PRECISIONS), repeats, task.device, quick=task.quick)
    bench = Bench(task.device, variants(PRECISIONS, [False]), rates, repeats)
    cells = eager_cells(quick=task.quick)
    calls = [(str(cell), partial(measure_cell, bench, cell, "eager bf16")) for cell in cells]
    settings = SETTINGS[-1:] if task.quick else SETTINGS
    memory = [(f"memory, {setting.title()}", partial(measure_memory, task, setting)) for setting in settings]
    main = [cell.case.swin_type for cell in cells].count(cells[0].case.swin_type)
    task.each([*calls[:main], *memory, *calls[main:]], CELL_SECONDS)


def measure_memory(task: Task, setting: Setting) -> dict[str, list[Any]]:
    """Measure the peak memory of a training step of one image."""
    swin_type, img_size = quick_case()[:2] if task.quick else ("base", 480)
    row: dict[str, Any] = {"setting": setting.title(), "swin_type": swin_type, "img_size": img_size, "batch_size": 1}
    try:
        row["peak_gib"] = measure(setting, swin_type, img_size, 1, task.device)
    except FAILURES as error:
        row["failure"] = describe(error)
    return {"memory": [row]}
