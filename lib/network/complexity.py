"""The size of a network: its parameters, and the operations of one forward pass."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lib.variants import MAX_TOKENS


def count_parameters(network: nn.Module) -> int:
    """Return the number of all parameters, including frozen ones."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_flops(network: nn.Module, img_size: int, max_tokens: int = MAX_TOKENS) -> int:
    """Return the operations for one image and sentence in evaluation; runs the network once and does not change it.

    Counts matrix products and convolutions of this code, a multiplication and its addition as two operations. The
    released assembly, which benchmarks/flops.py counts, takes more. img_size: side of the image in pixels.
    """
    weight = next(network.parameters())
    token_ids = torch.ones(1, max_tokens, dtype=torch.int64, device=weight.device)
    image = torch.zeros(1, 3, img_size, img_size, dtype=weight.dtype, device=weight.device)
    training = network.training
    network.eval()
    # Some versions of PyTorch do not count fused attention on CPUs. The backend MATH computes attention as matrix
    # products, which all versions count on all devices.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        network(image, token_ids, torch.ones_like(token_ids))
    network.train(training)
    flops: int = counter.get_total_flops()
    return flops


def describe_size(network: nn.Module, img_size: int, max_tokens: int = MAX_TOKENS) -> str:
    """Return both counts as text."""
    flops = count_flops(network, img_size, max_tokens) / 1e9
    tokens = "" if max_tokens == MAX_TOKENS else f" and {max_tokens} tokens"
    sample = f"an image of {img_size}×{img_size} pixels{tokens}"
    return f"{count_parameters(network):,} parameters; {flops:.4g} GFLOP for {sample}"
