"""What the network returns: the contract between `CrossVLT.py` and everything that reads it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Output(NamedTuple):
    """What the network says about a batch, in training and in evaluation alike."""

    logits: Tensor  # (B, 2, H, W) at the image's size; channel 1 is the object
    # Four maps (B, 1, H_i, W_i): cosine of pixel and sentence over temperature. () in evaluation, unless asked for.
    alignment: tuple[Tensor, ...]
