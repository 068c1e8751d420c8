"""Detect calls that let the CPU wait for a GPU, also on tensors of the CPU and on simulated ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What reads values: a number for Python, or how large a result is.
READING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive"}
INDEXING = {"index", "index_put", "index_put_"}
MOVING = {"_to_copy", "copy_"}


class WaitingError(AssertionError):
    """A call would let the CPU wait; the message names the operator."""


class NoWaiting(TorchDispatchMode):
    """Raise WaitingError if an operator would wait for the device, in forward and backward passes."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        masks = name in INDEXING and any(index.dtype in (torch.bool, torch.uint8) for index in tensors(args[1]))
        if name in READING or masks:
            raise WaitingError(f"{func} reads values of a tensor")
        result = func(*args, **kwargs)
        if name in MOVING and moved_and_waited(func, result, args, kwargs):
            raise WaitingError(f"{func} copies between devices and waits for it")
        return result


def moved_and_waited(func: Any, result: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether a copy went to another device, and back to the CPU or without `non_blocking`."""
    source = args[1] if func.overloadpacket.__name__ == "copy_" else args[0]
    if source.device.type == result.device.type:
        return False
    non_blocking = kwargs.get("non_blocking", len(args) > 2 and args[2])
    return result.device.type == "cpu" or not non_blocking


def tensors(values: Any) -> list[Tensor]:
    """Return the tensors among values."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Fail if the block waits for the device: detected by CUDA on a GPU, by `NoWaiting` elsewhere."""
    if device.type != "cuda":
        with NoWaiting():
            yield
        return
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def found_waiting(call: Callable[[], object], device: torch.device) -> bool:
    """Return whether the watch finds that a call waits."""
    try:
        with no_waiting(device):
            call()
    except (WaitingError, RuntimeError) as error:
        if isinstance(error, WaitingError) or "synchronizing" in str(error):
            return True
        raise
    return False
