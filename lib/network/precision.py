"""The number formats that the network computes in.

fp32: float32 everywhere; exact enough to compare runs and machines, slowest.
tf32: float32 whose matrix products and convolutions on NVIDIA GPUs since Ampere read 10 bits of mantissa: several times
    as fast there, no memory saved. On the CPU the same as fp32.
bf16: matrix products and convolutions in bfloat16, everything that sums or normalises in float32: faster, and about
    half the activations' memory. Has float32's range, so gradients need no scaling. GPUs since Ampere, and CPUs.
fp16: the same in float16, for GPUs older than Ampere. Its range is small: the loss is scaled up before the backward
    pass, and a step whose gradients overflow is left out.

Weights, their gradients and the optimizer's state are float32 in all of them. A network of float64 stays float64 in all
of them: this shows what it computes without float32's rounding.
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
        """Set how this process computes float32 on CUDA, too. Raises ValueError for an unknown name.

        compiled: torch.compile decides what a training step keeps.
        """
        check_name("precision", name, PRECISIONS)
        self.name = name
        self.device = device
        self.forgets_copies = name in AUTOCAST_TYPES and not compiled
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")
        if name == "fp16":
            # A first step that overflows is left out, while the schedule, which follows the position, goes on.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        # PyTorch's own default is TF32 in convolutions and float32 in matrix products.
        float32 = "tf32" if name == "tf32" else "ieee"
        torch.backends.cuda.matmul.fp32_precision = float32
        torch.backends.cudnn.conv.fp32_precision = float32  # type: ignore[attr-defined]  # made when it is imported

    @property
    def dtype(self) -> torch.dtype:
        """What matrix products and convolutions read."""
        return AUTOCAST_TYPES.get(self.name, torch.float32)

    def autocast(self) -> AbstractContextManager[None]:
        """Return a context for the forward pass; losses and backward passes stay outside it."""
        if self.name not in AUTOCAST_TYPES:
            return nullcontext()
        return torch.autocast(self.device.type, AUTOCAST_TYPES[self.name])

    @contextmanager
    def training(self) -> Iterator[None]:
        """Yield in a context for the forward pass of a training step, which keeps less for the backward pass.

        Autocast would keep its copies of all weights: of base 0.4 GiB. They are freed at once, and made again when the
        backward pass needs them; the numbers are the same to the last bit.
        """
        if not self.forgets_copies:
            with self.autocast():
                yield
            return
        with (
            torch.autocast(self.device.type, AUTOCAST_TYPES[self.name], cache_enabled=False),
            saved_tensors_hooks(_forget_copy, _copy_again),
        ):
            yield


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x` in float32, or as it is if it is float64: for what half precision cannot sum or compare."""
    return x if x.dtype == torch.float64 else x.float()


class WeightCopy(NamedTuple):
    """What a tensor is that shows a copy of a parameter in another type."""

    parameter: Tensor
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt


def _forget_copy(tensor: Tensor) -> Tensor | WeightCopy:
    """Return how to make a tensor again that is a view of a parameter's copy; other tensors as they are."""
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
    return WeightCopy(parameter, tensor.dtype, tensor.size(), tensor.stride(), tensor.storage_offset())


def _copy_again(saved: Tensor | WeightCopy) -> Tensor:
    if isinstance(saved, Tensor):
        return saved
    return saved.parameter.detach().to(saved.dtype).as_strided(saved.size, saved.stride, saved.offset)
