"""The environment of the other steps: packages, GPU, and the best rates of its matrix products and convolutions."""

from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement

from benchmarks.gpu.packages import REQUIREMENTS, required, version_of
from benchmarks.gpu.steps import Task, Work
from benchmarks.machine import describe_machine
from benchmarks.roofline import measure_rates
from lib.variants import PRECISIONS

RATE_SECONDS = 4.0  # for a precision


def run(task: Task) -> None:
    """Describe the machine, then measure."""
    task.sheet.add(environment=describe_machine(task.device) | {"packages_missing": unmet()} | describe_card(task))
    task.each(Work(f"rates in {name}", RATE_SECONDS, partial(measure, name, task)) for name in PRECISIONS)


def measure(precision: str, task: Task) -> dict[str, list[Any]]:
    """Return the best rates in a precision."""
    rates = measure_rates([precision], repeats=3 if task.quick else 10, device=task.device, quick=task.quick)
    return {"rates": [rate.record() for rate in rates]}


def describe_card(task: Task) -> dict[str, Any]:
    """Return the properties of the GPU that decide its speed, and its driver; {} on the CPU."""
    if task.device.type != "cuda":
        return {}
    card = torch.cuda.get_device_properties(task.device)
    return {
        "memory_gib": round(card.total_memory / 2**30, 1),
        "multiprocessors": card.multi_processor_count,
        "capability": f"{card.major}.{card.minor}",
        "driver": driver(),
    }


def driver() -> str | None:
    """Return the version of the driver; None if nvidia-smi does not report it."""
    line = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(line, capture_output=True, text=True, check=True, timeout=10).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return None


def unmet(path: Path = REQUIREMENTS) -> list[str]:
    """Return the lines of a requirements file that the installed packages do not meet."""
    return [line for line in required(path) if not _is_met(line)]


def _is_met(line: str) -> bool:
    version = version_of(line)
    return version is not None and Requirement(line).specifier.contains(version, prereleases=True)
