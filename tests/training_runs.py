"""Short trainings on the sample data, and how two of them compare; shared by tests and the fault drill."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import torch

from tests import warm
from tests.helpers import free_port

ROOT = Path(__file__).parent.parent
TORCHRUN = "torch.distributed.run"
# Flags of the launcher for workers that are forks of it: if it is itself a fork of a warm process, they import nothing.
FORKING = "--run-path --start-method fork"

# Numbers of the log that measure the machine rather than the training.
TIMES = ("seconds", "samples_per_second", "data_wait", "memory_gib", "time", "host")
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
    """Return the names of entries in which two training states differ; nothing if they are equal to the last bit."""
    one, other = (torch.load(path, weights_only=False) for path in (first, second))  # twice as fast, and our own files
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


def command(n_processes: int, *words: object, module: str = TORCHRUN, launcher: str = "") -> list[str]:
    """Return the command line that runs a script in one process, or in several under torch's launcher."""
    if n_processes == 1 and not launcher:
        return [sys.executable, *map(str, words)]
    address = launcher.split() or ["--master_port", str(free_port())]
    return [sys.executable, "-m", module, "--nproc_per_node", str(n_processes), *address, *map(str, words)]


def environment() -> dict[str, str]:
    """Return the environment of a script: the repository's modules, one thread per process."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def world(n_processes: int) -> list[dict[str, str]]:
    """Return what a launcher on one machine sets in each process's environment; nothing for one process."""
    if n_processes == 1:
        return [{}]
    shared = {"WORLD_SIZE": str(n_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(n_processes)]


def launch(n_processes: int, *words: object, timeout: float = 300) -> CompletedProcess[str]:
    """Run a script to its end in one or more processes forked from a warm one (`tests/warm.py`).

    No launcher is there to end the others after one has failed: they must notice. The exit code is that of the first
    to fail, by rank.
    """
    return warm.run(words, [environment() | member for member in world(n_processes)], timeout=timeout)


def start(n_processes: int, *words: object, output: Path) -> list[warm.Script]:
    """Start a script in one or more forked processes; output and errors go to a file."""
    return [warm.Script(words, environment() | member, output, output) for member in world(n_processes)]


def as_module(line: Sequence[str]) -> list[str]:
    """Return a command line `python -m MODULE …` as words for `warm.Script`."""
    python, dash_m, module, *flags = line
    assert (python, dash_m) == (sys.executable, "-m")
    return ["-c", f"import runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)", *flags]


def start_launcher(n_processes: int, *words: object, output: Path, launcher: str = "", **more: str) -> warm.Script:
    """Start torch's launcher in a forked process; it starts a script in new Pythons. more: for their environment.

    launcher: its flags; with `FORKING` it forks the workers, too.
    """
    line = command(n_processes, *words, launcher=launcher or f"--master_port {free_port()}")
    return warm.Script(as_module(line), environment() | more, output, output)


def launch_anew(n_processes: int, *words: object, module: str = TORCHRUN, launcher: str = "") -> CompletedProcess[str]:
    """Run a script to its end in new Pythons: one, or several under torch's launcher, whose flags `launcher` gives."""
    line = command(n_processes, *words, module=module, launcher=launcher)
    return subprocess.run(line, capture_output=True, text=True, check=False, env=environment(), timeout=300)


def launch_by_forks(
    n_processes: int, *words: object, module: str = TORCHRUN, launcher: str = ""
) -> CompletedProcess[str]:
    """Run a script to its end in forks of torch's launcher, which is a fork itself; launcher: its flags."""
    flags = f"{launcher or f'--master_port {free_port()}'} {FORKING}"
    line = command(n_processes, *words, module=module, launcher=flags)
    return warm.run(as_module(line), [environment()], timeout=300)


def start_under_launcher(n_processes: int, *words: object, output: Path) -> list[warm.Script]:
    """Start a script in new Pythons under torch's launcher, which is a fork."""
    return [start_launcher(n_processes, *words, output=output)]
