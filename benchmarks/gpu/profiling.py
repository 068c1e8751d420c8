"""The profile of a call: the longest kernels, the gaps between kernels, and the copies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

TOP = 10  # kernels that are named
NAME_LENGTH = 100  # of their names, which C++ templates make long


class Interval(NamedTuple):
    """A kernel or copy on the device, with its start and end in microseconds."""

    name: str
    start: float
    end: float


def profile(call: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Call twice, profile the second call, and return the result of `summarise`; on the CPU of operators."""
    call()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with torch.profiler.profile(activities=activities) as watched:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return summarise(intervals(watched.events(), device))


def intervals(events: Iterable[Any], device: torch.device) -> list[Interval]:
    """Return the device intervals of profiler events; on the CPU those of operators, without nested ones."""
    if device.type != "cuda":
        operators = [event for event in events if event.name.startswith("aten::")]
        begins = [event.time_range.start for event in operators]
        return [
            Interval(event.name, begin, begin + event.self_cpu_time_total)
            for event, begin in zip(operators, begins, strict=True)
        ]
    kernels = [event for event in events if event.device_type == DeviceType.CUDA and not _is_mark(event)]
    return [Interval(event.name, event.time_range.start, event.time_range.end) for event in kernels]


def _is_mark(event: Any) -> bool:
    """Return whether an event is a named range, which only repeats the events inside it."""
    return bool(getattr(event, "is_user_annotation", False))


def summarise(ran: list[Interval]) -> dict[str, Any]:
    """Return figures in milliseconds: span, from the first to the last; gaps, of it, in which nothing ran; the longest.

    launches: how many ran. copies: those between memories, and what sets memory.
    """
    if not ran:
        return {"span_ms": 0.0, "gaps_ms": 0.0, "launches": 0, "copies": {"count": 0, "ms": 0.0}, "top": []}
    span = max(item.end for item in ran) - min(item.start for item in ran)
    copies = [item for item in ran if item.name.lower().startswith(("memcpy", "memset", "aten::copy_"))]
    return {
        "span_ms": span / 1000,
        "gaps_ms": (span - _covered(ran)) / 1000,
        "launches": len(ran),
        "copies": {"count": len(copies), "ms": _total(copies)},
        "top": _longest(ran),
    }


def _covered(ran: list[Interval]) -> float:
    """Return the microseconds in which at least one ran."""
    covered, until = 0.0, float("-inf")
    for item in sorted(ran, key=lambda item: item.start):
        covered += max(0.0, item.end - max(until, item.start))
        until = max(until, item.end)
    return covered


def _longest(ran: list[Interval]) -> list[dict[str, Any]]:
    groups: dict[str, list[Interval]] = defaultdict(list)
    for item in ran:
        groups[item.name[:NAME_LENGTH]].append(item)
    total = _total(ran) or 1.0
    rows: list[dict[str, Any]] = [
        {"name": name, "calls": len(group), "ms": _total(group), "share": _total(group) / total}
        for name, group in groups.items()
    ]
    return sorted(rows, key=lambda row: -row["ms"])[:TOP]


def _total(ran: list[Interval]) -> float:
    """Return the sum of milliseconds."""
    return sum(item.end - item.start for item in ran) / 1000
