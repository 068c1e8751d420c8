"""torch.compile, as the scripts use it: one graph, one shape."""

from __future__ import annotations

import torch
from torch import nn

from lib.network import swin


def _keep_layouts() -> None:
    """Let graphs hold what follows from shapes alone; marked here, because marking imports the compiler: a second."""
    for function in (swin.window_layout, swin.shift_masks):
        torch.compiler.assume_constant_result(function)


def compile_training(model: nn.Module) -> nn.Module:
    """Compile a network, or its distributed wrapper, in place, for batches of one shape; its names stay as they are."""
    _keep_layouts()
    model.compile(dynamic=False)
    return model


def compile_prepared(network: nn.Module, device: torch.device) -> nn.Module:
    """Compile a network whose weights will not change any more, in place.

    On the CPU weights become constants, packed for its kernels; on CUDA whole batches are replayed as CUDA graphs.
    """
    # Dynamo asks for this at the first call, when options given to compile() are out of its sight. Training, whose
    # weights need gradients, is not touched by it.
    from torch._inductor import config as inductor_config

    inductor_config.freezing = device.type == "cpu"
    _keep_layouts()
    network.compile(fullgraph=True, dynamic=False, options={"triton.cudagraphs": device.type == "cuda"})
    return network
