"""Short trainings on the sample data, and how two of them compare; shared by tests and the fault drill."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent

# Numbers of the log that measure the machine rather than the training.
TIMES = ("seconds", "samples_per_second", "data_wait", "memory_gib")
# Dropout and drop path stay on: an interrupted run must draw what the uninterrupted one draws.
NANO = "--swin_type nano --bert_type nano --img_size 32 --lr 1e-3 --device cpu --print-freq 2"


def training_flags(root: Path, out: Path, *more: object) -> list[str]:
    """Return the command line of `train.py` for a nano network on a sample data set."""
    data = ["--refer_data_root", root, "--bert_tokenizer", root / "vocab.txt", "--output-dir", out]
    return [*NANO.split(), *map(str, data), *map(str, more)]


def timeless(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a log's lines without what measures the machine."""
    return [{name: value for name, value in record.items() if name not in TIMES} for record in records]


def differences(first: Path, second: Path) -> list[str]:
    """Return where two training states differ, by name; nothing where they are equal to the last bit."""
    one, other = (torch.load(path, weights_only=True) for path in (first, second))
    for state in (one, other):
        state["log"] = timeless(state["log"])
        state["meter"] = {"rows": state["meter"]["rows"]}
        del state["args"]
    return _differences(one, other, "")


def _differences(one: Any, other: Any, name: str) -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in _differences(one[key], other[key], f"{name}.{key}")]
    if isinstance(one, list | tuple) and type(one) is type(other) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for number, pair in pairs for found in _differences(*pair, f"{name}[{number}]")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [name]
    return [] if one == other else [name]


def command(n_processes: int, *words: object, module: str = "torch.distributed.run", launcher: str = "") -> list[str]:
    """Return the command line that runs a script in one process, or in several under torch's launcher."""
    if n_processes == 1 and not launcher:
        return [sys.executable, *map(str, words)]
    address = launcher.split() or ["--master_port", str(free_port())]
    return [sys.executable, "-m", module, "--nproc_per_node", str(n_processes), *address, *map(str, words)]


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment() -> dict[str, str]:
    """Return the environment of a script: the repository's modules, one thread per process."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def launch(n_processes: int, *words: object, module: str = "torch.distributed.run") -> subprocess.CompletedProcess:
    """Run a script to its end in one or more processes."""
    line = command(n_processes, *words, module=module)
    return subprocess.run(line, capture_output=True, text=True, check=False, env=environment(), timeout=300)
