"""Networks with the reference weights, which are drawn once: that takes longer than most tests."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from CrossVLT import SegModel
from tests.reference.weights import values


@cache
def _drawn(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.from_numpy(values(name, shape, seed))


@torch.no_grad()
def fill(state_dict: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Do the same as `tests.reference.weights.fill`, and keep what was drawn: not for large networks."""
    for name, tensor in state_dict.items():
        if tensor.is_floating_point():
            tensor.copy_(_drawn(name, tuple(tensor.shape), seed))
    return state_dict


def reference_nano(**options: Any) -> SegModel:
    """Return a nano network with the reference weights, no dropout, in training; no random number is drawn for it.

    options: more arguments of `SegModel`, or others than these.
    """
    chosen = {"vocab_size": 1000, "dropout": 0.0, "drop_path": 0.0} | options
    model = SegModel.unfilled(swin_type="nano", bert_type="nano", **chosen)
    fill(model.state_dict())
    return model
