"""Peak memory of one training step on the CPU, in a separate process.

There are two figures in GiB. `peak_gib` is the peak resident size of the process: Python and its libraries (almost 1
GiB), weights, optimizer state, and the step. `above_gib` is the part that the step adds to the size before it:
activations, gradients and temporary memory.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.cases import Case, build_network, random_batch
from benchmarks.variants import Optimizers, Variant, build_training

T = TypeVar("T")
STATUS, CLEAR_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def in_subprocess(function: Callable[..., T], *arguments: object, seconds: float | None = None) -> T:
    """Return the result of a function in a new process.

    Raises the exceptions of the function, BrokenProcessPool (a RuntimeError) if the process was killed, for example for
    lack of memory, and TimeoutError if it takes longer than `seconds`; it is killed then.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        worker = pool.submit(os.getpid).result()
        future = pool.submit(function, *arguments)
        try:
            return future.result(seconds)
        except TimeoutError:
            if not future.done():
                os.kill(worker, signal.SIGKILL)
            raise


def measure_peak(case: Case, variant: Variant, threads: int) -> dict[str, float]:
    """Return both figures of a training step; call this in a new process, on Linux."""
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    network, batch = build_network(case.swin_type, device), random_batch(*case[1:], device)
    call = build_training(variant, network, batch, Optimizers(network)).call
    call()  # compiles, and makes the optimizer's state
    # Return freed memory to the system: otherwise it would count as part of the size before the step.
    ctypes.CDLL(None).malloc_trim(0)
    before = resident_gib("VmRSS")
    CLEAR_PEAK.write_text("5")
    call()
    peak = resident_gib("VmHWM")
    return {"peak_gib": peak, "above_gib": peak - before}


def resident_gib(name: str) -> float:
    """Return a value of /proc/self/status in GiB: VmRSS, the resident size, or VmHWM, its peak."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 2**20
