"""The environment of a run: versions, code revision, machine, memory."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lib.files import ROOT

PACKAGES = ("torch", "torchvision", "tokenizers", "numpy", "pillow", "scikit-image", "pycocotools")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return plain values: command, versions, git revision (None outside a checkout) and device."""
    return {
        "command": sys.argv,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "git": git_revision(),
        "device": device_name(device),
        **time_and_host(),
    }


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or the kind of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def time_and_host() -> dict[str, str]:
    """Return the clock time with its offset from UTC, to the second, and the name of this machine."""
    return {"time": datetime.now().astimezone().isoformat(timespec="seconds"), "host": platform.node()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_revision(folder: Path = ROOT) -> dict[str, Any] | None:
    """Return the revision of a checkout and whether its files are modified; None if it is not a git checkout."""
    try:
        revision = _git(folder, "rev-parse", "HEAD").strip()
        modified = bool(_git(folder, "status", "--porcelain", "--untracked-files=no").strip())
    except (OSError, subprocess.SubprocessError):
        return None
    return {"revision": revision, "modified": modified}


def _git(folder: Path, *command: str) -> str:
    # Only a repository of this very folder: files unpacked inside another checkout have no revision.
    result = subprocess.run(
        ["git", "-C", str(folder), f"--git-dir={folder / '.git'}", f"--work-tree={folder}", *command],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    return result.stdout


def peak_memory_gib(device: torch.device) -> float:
    """Return the peak memory of this process so far, in GiB: allocated on the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
