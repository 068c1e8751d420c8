"""torch.compile for training and evaluation: one graph, one shape."""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn


def check_compiler(device: torch.device) -> None:
    """Raise torch's or Triton's error if there is no C++ or C compiler; they would raise it after a minute of tracing.

    `utils.run` says what to do about both.
    """
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler

        get_cpp_compiler()
    elif not any(map(shutil.which, [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"])):
        raise RuntimeError("Failed to find C compiler")


def compile_training(model: nn.Module, device: torch.device) -> nn.Module:
    """Compile a network, or its distributed wrapper, in place, for batches of one shape; names of weights stay."""
    check_compiler(device)
    model.compile(dynamic=False)
    return model


def compile_for_inference(network: nn.Module, device: torch.device) -> nn.Module:
    """Compile a network whose weights will not change, in place.

    On the CPU weights become constants, packed for its kernels. On CUDA whole batches are replayed as CUDA graphs.
    """
    check_compiler(device)
    # Dynamo reads this at the first call, when the options of compile() are no longer in effect. It has no effect on
    # training, where weights need gradients.
    from torch._inductor import config as inductor_config

    inductor_config.freezing = device.type == "cpu"
    network.compile(fullgraph=True, dynamic=False, options={"triton.cudagraphs": device.type == "cuda"})
    return network
