"""The best rates of matrix products and 3×3 convolutions on this device, by precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import FAILURES, Call, best_median, describe, side_by_side
from lib.network.linear import can_pack
from lib.network.precision import Precision

# (rows, inputs, outputs) of products: squares, and the widening layers of base's four stages on one 480 px image.
SQUARES = {"cpu": (1024, 2048), "cuda": (2048, 4096, 8192)}
PRODUCTS = ((14400, 128, 512), (3600, 256, 1024), (900, 512, 2048), (225, 1024, 4096))
# (inputs, outputs, side of the map) of base's decoder on one 480 px image.
CONVOLUTIONS = ((1536, 512, 30), (512, 512, 30), (768, 512, 60), (512, 512, 60), (640, 512, 120), (512, 512, 120))
# A smaller set for quick runs, which says little about the device.
QUICK_SQUARES, QUICK_CONVOLUTIONS = (256,), ((64, 64, 30),)
# Of one measurement, which repeats the operation that often; quick runs do it once.
LEAST_FLOPS = {"cpu": 1e9, "cuda": 2e11}


@dataclass(frozen=True)
class Rate:
    """The best rate of one operation in one precision."""

    operation: str  # "matmul" or "conv"
    precision: str
    best: str  # the fastest form and shape
    flops_per_second: float
    all: dict[str, list[float] | str]  # by form and shape: FLOP/s of every repeat, or what it failed with
    probe: Call | None = None  # runs the best one, None if it ran in another process
    probe_flops: float = 0.0  # which takes as many operations

    def record(self) -> dict[str, object]:
        """Return plain values for a file."""
        fields = ("operation", "precision", "best", "flops_per_second", "all")
        return {name: getattr(self, name) for name in fields}


def measure_rates(precisions: list[str], repeats: int, device: torch.device, *, quick: bool = False) -> list[Rate]:
    """Return the best rates of both operations for every precision."""
    rates = []
    for name in precisions:
        for operation, candidates in (("matmul", products), ("conv", convolutions)):
            rates.append(measure(operation, name, candidates(name, device, quick=quick), repeats))
    return rates


def measure(operation: str, name: str, candidates: dict[str, tuple[Call, float]], repeats: int) -> Rate:
    """Return the rate of the candidate with the best median; candidates: a call and its operations, by title."""
    calls, failed = {}, {}
    for title, (call, _) in candidates.items():
        try:
            call()
            calls[title] = call
        except FAILURES as error:
            failed[title] = describe(error)
    times = side_by_side(calls, repeats)
    rates = {
        title: [candidates[title][1] / second for second in values]
        for title, values in times.items()
        if not isinstance(values, str)
    }
    per_flop = {title: [1 / rate for rate in values] for title, values in rates.items()}
    best, second = best_median(per_flop)
    return Rate(operation, name, best, 1 / second, {**rates, **failed}, *candidates[best])


def products(name: str, device: torch.device, *, quick: bool) -> dict[str, tuple[Call, float]]:
    """Return matrix products as torch.mm, as linear layers and, on the CPU, also with packed weights."""
    squares = [(side, side, side) for side in (QUICK_SQUARES if quick else SQUARES[device.type])]
    candidates: dict[str, tuple[Call, float]] = {}
    for rows, inputs, outputs in squares if quick else [*squares, *PRODUCTS]:
        x, weight = tensors(name, device, (rows, inputs), (outputs, inputs))
        forms: dict[str, Callable[[], Tensor]] = {
            "mm": partial(torch.mm, x, weight.t().contiguous()),
            "linear": partial(F.linear, x, weight),
        }
        if can_pack(weight.dtype, device):
            packed = torch.ops.mkldnn._reorder_linear_weight(weight)
            forms["packed linear"] = partial(torch.ops.mkldnn._linear_pointwise, x, packed, None, "none", [], "")
        flops = 2 * rows * inputs * outputs
        times = repetitions(flops, device, quick=quick)
        candidates |= repeated(forms, f"{rows}×{inputs}×{outputs}", flops, times, name, device)
    return candidates


def convolutions(name: str, device: torch.device, *, quick: bool) -> dict[str, tuple[Call, float]]:
    """Return the decoder's 3×3 convolutions, with channels first and channels last."""
    candidates: dict[str, tuple[Call, float]] = {}
    for inputs, outputs, side in QUICK_CONVOLUTIONS if quick else CONVOLUTIONS:
        x, weight = tensors(name, device, (1, inputs, side, side), (outputs, inputs, 3, 3))
        forms: dict[str, Callable[[], Tensor]] = {}
        for title, layout in (("NCHW", torch.contiguous_format), ("channels last", torch.channels_last)):
            arranged = x.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)
            forms[title] = partial(F.conv2d, *arranged, padding=1)
        flops = 2 * 9 * inputs * outputs * side * side
        times = repetitions(flops, device, quick=quick)
        candidates |= repeated(forms, f"{inputs}→{outputs} at {side}×{side}", flops, times, name, device)
    return candidates


def tensors(name: str, device: torch.device, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Return random tensors in the dtype of a precision."""
    dtype = Precision(name, device).dtype
    return [torch.randn(shape, device=device).to(dtype) for shape in shapes]


def repetitions(flops: int, device: torch.device, *, quick: bool) -> int:
    """Return how often an operation is repeated to be long enough to be timed."""
    return 1 if quick else max(1, round(LEAST_FLOPS[device.type] / flops))


def repeated(
    forms: dict[str, Callable[[], Tensor]], shape: str, flops: int, times: int, name: str, device: torch.device
) -> dict[str, tuple[Call, float]]:
    """Return calls that repeat an operation `times` times, by form and shape, each with its operations."""

    @torch.inference_mode()
    def run(call: Callable[[], Tensor]) -> None:
        Precision(name, device)  # sets the float32 precision of this process
        for _ in range(times):
            call()

    return {f"{form} {shape}": (partial(run, call), float(times * flops)) for form, call in forms.items()}
