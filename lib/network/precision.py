"""The floating-point precisions of training and evaluation.

fp32: float32 everywhere; exact enough to compare runs and machines, slowest.
tf32: float32, but matrix products and convolutions read only 10 bits of mantissa on NVIDIA GPUs since Ampere: several
    times as fast there, without saving memory. On the CPU it is the same as fp32.
bf16: matrix products and convolutions in bfloat16, sums and normalisation in float32: faster, with about half the
    activation memory. bfloat16 has the range of float32, so gradients need no scaling. For GPUs since Ampere and CPUs.
fp16: the same in float16, for GPUs older than Ampere. Its range is small: the loss is scaled up before the backward
    pass, and a step whose gradients overflow is skipped.

Weights, gradients and optimizer state are always float32. A float64 network stays float64 in every precision: this
shows its output without float32 rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from lib.variants import PRECISIONS, check_name

AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """One of `PRECISIONS` on one device."""

    def __init__(self, name: str, device: torch.device, *, compiled: bool = False) -> None:
        """Also sets the float32 precision of CUDA in this process. Raises ValueError for an unknown name.

        compiled: the network is compiled, so torch.compile decides what a training step saves for its backward pass.
        """
        check_name("precision", name, PRECISIONS)
        self.name = name
        self.device = device
        self.recomputes_casts = name in AUTOCAST_TYPES and not compiled
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")
        if name == "fp16":
            # If the first step overflows, it is skipped, but the schedule advances, because it follows the position.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        # PyTorch's default is TF32 in convolutions and float32 in matrix products.
        float32 = "tf32" if name == "tf32" else "ieee"
        torch.backends.cuda.matmul.fp32_precision = float32
        torch.backends.cudnn.conv.fp32_precision = float32  # type: ignore[attr-defined]  # made when it is imported

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of matrix products and convolutions."""
        return AUTOCAST_TYPES.get(self.name, torch.float32)

    def autocast(self) -> AbstractContextManager[None]:
        """Return a context for the forward pass; losses and backward passes stay outside it."""
        if self.name not in AUTOCAST_TYPES:
            return nullcontext()
        return torch.autocast(self.device.type, AUTOCAST_TYPES[self.name])

    @contextmanager
    def training(self) -> Iterator[None]:
        """Yield in a context for the forward pass of a training step that saves memory.

        Autocast would keep casts of all weights for the backward pass: 0.4 GiB for base. Here they are freed, and
        recomputed when the backward pass needs them. The results are bit for bit the same.
        """
        if not self.recomputes_casts:
            with self.autocast():
                yield
            return
        with (
            torch.autocast(self.device.type, AUTOCAST_TYPES[self.name], cache_enabled=False),
            saved_tensors_hooks(_pack_cast, _unpack_cast),
        ):
            yield


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x` in float32, or unchanged if it is float64: for operations that half precision is too coarse for."""
    return x if x.dtype == torch.float64 else x.float()


class WeightCast(NamedTuple):
    """A tensor that is a copy of a parameter, or a view of one, in another dtype."""

    parameter: Tensor
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt


def _pack_cast(tensor: Tensor) -> Tensor | WeightCast:
    """Return how to make a tensor again that is a view of a parameter's copy; other tensors as they are."""
    # Only the names of autograd's nodes tell a cast from other operations on a parameter. If a PyTorch version renames
    # them, nothing is packed, the numbers stay the same, and tests/test_precision.py fails.
    whole = tensor if tensor._base is None else tensor._base
    cast = whole.grad_fn
    if cast is None or cast.name() != "ToCopyBackward0":
        return tensor
    source = cast.next_functions[0][0]
    if source is not None and source.name() == "SqueezeBackward1":  # of 1×1 convolutions, in the same order
        source = source.next_functions[0][0]
    parameter = getattr(source, "variable", None)  # of a leaf's accumulator alone
    if parameter is None:
        return tensor
    return WeightCast(parameter, tensor.dtype, tensor.size(), tensor.stride(), tensor.storage_offset())


def _unpack_cast(saved: Tensor | WeightCast) -> Tensor:
    if isinstance(saved, Tensor):
        return saved
    return saved.parameter.detach().to(saved.dtype).as_strided(saved.size, saved.stride, saved.offset)
