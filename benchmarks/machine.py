"""The machine that a run was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from lib.environment import describe_environment

CPUINFO = Path("/proc/cpuinfo")
# Of the CPU's instruction sets those that decide how fast matrix products are.
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return plain values: versions, revision, device, and what of the CPU and its load shows in times."""
    environment = describe_environment(device)
    del environment["command"]  # holds this machine's paths; the settings say the same
    return environment | {
        "cpu": describe_cpu(),
        "cpu_flags": [flag for flag in FLAGS if flag in cpu_lines("flags").split()],
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def describe_cpu() -> str:
    """Return the CPU's name as Linux gives it, or its architecture elsewhere."""
    return cpu_lines("model name") or platform.machine()


def cpu_lines(name: str) -> str:
    """Return a line about the first core; "" where Linux does not say."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == name), "")
