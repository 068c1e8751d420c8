"""Networks with the reference weights, which are drawn once: that takes longer than most tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

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
    with skipped_initialisation():
        model = SegModel("nano", "nano", **{"vocab_size": 1000, "dropout": 0.0, "drop_path": 0.0} | options)
    fill(model.state_dict())
    return model


@contextmanager
def skipped_initialisation() -> Iterator[None]:
    """Leave new weights as they are: they are replaced anyway."""
    names = ("normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_")
    own = [f"lib.network.{module}.fill_normal_" for module in ("swin", "vision_stage")]
    with ExitStack() as stack:
        for name in (*own, *(f"torch.nn.init.{name}" for name in names)):
            stack.enter_context(patch(name, lambda tensor, *_, **__: tensor))
        yield
