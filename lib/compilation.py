"""torch.compile, as the scripts use it: one graph, one shape."""

from __future__ import annotations

import torch
from torch import nn


def compile_training(model: nn.Module) -> nn.Module:
    """Compile a network, or its distributed wrapper, in place, for batches of one shape; its names stay as they are."""
    model.compile(dynamic=False)
    return model


def compile_prepared(network: nn.Module, device: torch.device) -> nn.Module:
    """Compile a network whose weights will not change any more, in place.

    On the CPU weights become constants, packed for its kernels; on CUDA whole batches are replayed as CUDA graphs.
    """
    options = {"triton.cudagraphs": True} if device.type == "cuda" else {"freezing": True}
    network.compile(fullgraph=True, dynamic=False, options=options)
    return network
