"""What the other steps run on: packages, card, and the best rates of its matrix products and convolutions."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement

from benchmarks.gpu.steps import Task
from benchmarks.machine import describe_machine
from benchmarks.rates import measure_rates
from lib.environment import ROOT
from lib.variants import PRECISIONS


def run(task: Task) -> None:
    """Describe the machine, then measure."""
    task.sheet.add(environment=describe_machine(task.device) | {"packages_missing": unmet()} | describe_card(task))
    for precision in PRECISIONS:
        rates = measure_rates([precision], repeats=3 if task.quick else 10, device=task.device, quick=task.quick)
        task.sheet.add(rates=[rate.record() for rate in rates])


def describe_card(task: Task) -> dict[str, Any]:
    """Return what decides how fast a GPU is, and its driver; nothing on the CPU."""
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
    """Return the driver's version; None if nvidia-smi does not say."""
    line = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(line, capture_output=True, text=True, check=True, timeout=10).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return None


def unmet(path: Path = ROOT / "requirements.txt") -> list[str]:
    """Return the lines of a requirements file that the installed packages do not meet."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    return [line for line in lines if line and not line.startswith(("#", "-")) and not _is_met(Requirement(line))]


def missing(path: Path = ROOT / "requirements.txt") -> list[str]:
    """Return those of `unmet` that are not installed in any version."""
    return [line for line in unmet(path) if _version(Requirement(line)) is None]


def _is_met(requirement: Requirement) -> bool:
    version = _version(requirement)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _version(requirement: Requirement) -> str | None:
    try:
        return metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return None
