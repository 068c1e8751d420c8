"""How large a network is: its parameters, and the arithmetic of one forward pass."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lib.variants import MAX_TOKENS


def count_parameters(network: nn.Module) -> int:
    """Return the number of all parameters, frozen ones among them."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_flops(network: nn.Module, img_size: int) -> int:
    """Return the operations of one image and sentence in evaluation; the network is run once, and not changed.

    Matrix products and convolutions, two operations for a multiplication and the addition behind it, as this code does
    them: fewer than the published assembly takes, which benchmarks/flops.py counts.
    """
    weight = next(network.parameters())
    words = torch.ones(1, MAX_TOKENS, dtype=torch.int64, device=weight.device)
    image = torch.zeros(1, 3, img_size, img_size, dtype=weight.dtype, device=weight.device)
    training = network.training
    network.eval()
    # PyTorch's counter has no formula for the fused attention of CPUs, and counts nothing there in some versions. The
    # backend MATH does attention as matrix products, which all versions count, on all devices.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        network(image, words, words)
    network.train(training)
    flops: int = counter.get_total_flops()
    return flops


def describe_size(network: nn.Module, img_size: int) -> str:
    """Return both counts for a reader."""
    flops = count_flops(network, img_size) / 1e9
    return f"{count_parameters(network):,} parameters; {flops:.4g} GFLOP for an image of {img_size}×{img_size} pixels"
