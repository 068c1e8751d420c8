"""Tensors on "cuda" on a machine without a GPU: they have shapes, types and devices, but no values.

PyTorch computes what every operator would return, and refuses operands on different devices. Backward passes need a
real GPU, for PyTorch runs them on a stream of the device.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

DEVICE = torch.device("cuda", 0)


class PretendedGPU(FakeTensorMode):
    """In this block, what is made on `DEVICE` is pretended; it meets no real tensor."""

    def __deepcopy__(self, memo: dict[int, object]) -> PretendedGPU:
        # Copies of a network belong to the same block.
        return self


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Let `DEVICE` be there."""
    with pytest.MonkeyPatch.context() as patch:
        # Without these two, autocast and the gradient scaler would switch themselves off.
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        patch.setattr(nn.Module, "_apply", replace_tensors)
        with PretendedGPU(allow_non_fake_inputs=False):
            yield


def replace_tensors(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Do what `nn.Module._apply` does, by replacing tensors: pretended ones cannot be changed in place."""
    for child in module.children() if recurse else ():
        replace_tensors(child, function)
    with torch.no_grad():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(function(value), requires_grad=value.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = function(buffer)
    return module


def on_pretended_gpu(network: nn.Module) -> nn.Module:
    """Return a copy of a real network whose tensors are pretended; call it inside `pretended_gpu`."""
    module = shallow_copy(network)
    return replace_tensors(
        module, lambda value: torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=DEVICE)
    )


def shallow_copy(module: nn.Module) -> nn.Module:
    """Return a copy of all modules that still shares their tensors."""
    own = copy.copy(module)
    own._parameters, own._buffers = dict(module._parameters), dict(module._buffers)
    own._modules = {name: child and shallow_copy(child) for name, child in module._modules.items()}
    return own
