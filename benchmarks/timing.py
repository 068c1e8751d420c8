"""How long calls take, measured side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

from lib.files import ROOT

Call = Callable[[], object]
# What a variant may end with without ending the run: memory that does not suffice, a kernel or a graph that cannot be
# compiled (torch's compiler raises RuntimeErrors of many kinds).
FAILURES = (RuntimeError, NotImplementedError, MemoryError)


def seconds(call: Call, device: torch.device) -> float:
    """Return how long the call takes, on a GPU until all it started there is done."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    begin.record()
    call()
    end.record()
    end.synchronize()
    milliseconds: float = begin.elapsed_time(end)
    return milliseconds / 1000


def side_by_side(calls: Mapping[str, Call], repeats: int, device: torch.device) -> dict[str, list[float] | str]:
    """Return the seconds of `repeats` calls of each, or the message of the error that one ended with.

    Every round calls each once, and begins with another one: what else the machine does hits all alike.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    failed: dict[str, str] = {}
    names = list(calls)
    for number in range(repeats):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if name in failed:
                continue
            try:
                times[name].append(seconds(calls[name], device))
            except FAILURES as error:
                failed[name] = describe(error)
    return times | failed


def best_median(times: Mapping[str, list[float]]) -> tuple[str, float]:
    """Return the name and the seconds of what is fastest by the median."""
    medians = {name: median(values) for name, values in times.items()}
    fastest = min(medians, key=medians.__getitem__)
    return fastest, medians[fastest]


def describe(error: BaseException) -> str:
    """Return an error in one short line, without this machine's paths."""
    text = " ".join(str(error).split()).replace(str(ROOT), ".")
    return f"{type(error).__name__}: {text}"[:200]
