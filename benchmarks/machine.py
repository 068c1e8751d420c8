"""The description of the machine of a run."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from lib.environment import describe_environment

CPUINFO = Path("/proc/cpuinfo")
# Instruction sets of the CPU that decide the speed of matrix products.
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return plain values: versions, revision, device, and what influences times: CPU, threads and load."""
    environment = describe_environment(device)
    del environment["command"]  # contains paths of this machine; the settings have the same information
    return environment | {
        "cpu": describe_cpu(),
        "cpu_flags": [flag for flag in FLAGS if flag in cpu_lines("flags").split()],
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def describe_cpu() -> str:
    """Return the name of the CPU on Linux, elsewhere its architecture."""
    return cpu_lines("model name") or platform.machine()


def cpu_lines(name: str) -> str:
    """Return a value about the first core; "" if Linux does not provide it."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == name), "")
