"""How long calls take, measured side by side.

Only the clock of `torch.utils.benchmark` is used: its `Timer` measures one thing after the other, and calls it three
times for one time, which is too dear for calls that take seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median

from torch.utils.benchmark import timer

from lib.files import ROOT

Call = Callable[[], object]
# What a variant may end with without ending the run: memory that does not suffice, a kernel or a graph that cannot be
# compiled (torch's compiler raises RuntimeErrors of many kinds).
FAILURES = (RuntimeError, NotImplementedError, MemoryError)


def seconds(call: Call) -> float:
    """Return how long the call takes, on a GPU until all it started there is done."""
    start = timer()
    call()
    return timer() - start


def side_by_side(calls: Mapping[str, Call], repeats: int) -> dict[str, list[float] | str]:
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
                times[name].append(seconds(calls[name]))
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
