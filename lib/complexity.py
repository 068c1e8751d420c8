"""How large a network is: its parameters, and the arithmetic of one forward pass."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

TOKENS = 21  # of a sentence, padding among them


def count_parameters(network: nn.Module) -> int:
    """Return the number of all parameters, frozen ones among them."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_flops(network: nn.Module, img_size: int) -> int:
    """Return the operations of one image and sentence in evaluation; the network is run once, and not changed.

    Matrix products and convolutions, two operations for a multiplication and the addition behind it, as this code does
    them: fewer than the published assembly takes, which benchmarks/flops.py counts.
    """
    device = next(network.parameters()).device
    words = torch.ones(1, TOKENS, dtype=torch.int64, device=device)
    training = network.training
    network.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, img_size, img_size, device=device), words, words)
    network.train(training)
    return counter.get_total_flops()


def describe_size(network: nn.Module, img_size: int) -> str:
    """Return both counts for a reader."""
    flops = count_flops(network, img_size) / 1e9
    return f"{count_parameters(network):,} parameters; {flops:.4g} GFLOP for an image of {img_size}×{img_size} pixels"
