"""The number formats that the network computes in.

fp32: float32 everywhere; exact enough to compare runs and machines, slowest.
tf32: float32 whose matrix products and convolutions on NVIDIA GPUs since Ampere read 10 bits of mantissa: several times
    as fast there, no memory saved. On the CPU the same as fp32.
bf16: matrix products and convolutions in bfloat16, everything that sums or normalises in float32: faster, and about
    half the activations' memory. Has float32's range, so gradients need no scaling. GPUs since Ampere, and CPUs.
fp16: the same in float16, for GPUs older than Ampere. Its range is small: the loss is scaled up before the backward
    pass, and a step whose gradients overflow is left out.

Weights, their gradients and the optimizer's state are float32 in all of them.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch

AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("fp32", "tf32", *AUTOCAST_TYPES)


class Precision:
    """One of `PRECISIONS` on one device."""

    def __init__(self, name: str, device: torch.device) -> None:
        """Set how this process computes float32 on CUDA, too. Raises ValueError for an unknown name."""
        if name not in PRECISIONS:
            raise ValueError(f"unknown precision {name!r}: expected one of {', '.join(PRECISIONS)}")
        self.name = name
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")
        if name == "fp16":
            # A first step that overflows is left out, while the schedule, which follows the position, goes on.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        # PyTorch's own default is TF32 in convolutions and float32 in matrix products.
        float32 = "tf32" if name == "tf32" else "ieee"
        torch.backends.cuda.matmul.fp32_precision = float32
        torch.backends.cudnn.conv.fp32_precision = float32

    @property
    def dtype(self) -> torch.dtype:
        """What matrix products and convolutions read."""
        return AUTOCAST_TYPES.get(self.name, torch.float32)

    def autocast(self) -> AbstractContextManager[None]:
        """Return a context for the forward pass; losses and backward passes stay outside it."""
        if self.name not in AUTOCAST_TYPES:
            return nullcontext()
        return torch.autocast(self.device.type, AUTOCAST_TYPES[self.name])
