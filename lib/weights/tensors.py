"""Checks of tensors from files, which may contain tensors that crash PyTorch's kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lib.schema import Kind, Misfit, describe, leaf

# The dtypes of weights; others have no arithmetic on the CPU.
DTYPES = (
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def is_plain(value: Any) -> bool:
    """Return whether a value is a dense tensor of plain numbers, all of them stored in the file.

    Sparse, quantised and meta tensors are not, nor are expanded views, which repeat a few stored numbers.
    """
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.dtype in DTYPES
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Return whether all numbers of all tensors are finite; an empty sequence is.

    A sum with a number that is not finite is not finite either, so a few numbers tell, and a GPU is waited for once. A
    sum may also overflow: then each number is looked at.
    """
    sums: dict[torch.device, list[Tensor]] = {}
    for value in tensors:
        sums.setdefault(value.device, []).append(value.sum().double())
    if all(torch.stack(values).isfinite().all() for values in sums.values()):
        return True
    return all(value.isfinite().all() for value in tensors)


plain_tensor = leaf("a dense tensor of plain numbers", is_plain)


def tensor(dtype: torch.dtype, shape: Sequence[int], *, least: float | None = None) -> Kind:
    """Return the kind of plain tensors of one dtype and shape whose numbers are finite, and not below `least`."""
    expected = f"a {str(dtype).removeprefix('torch.')} tensor of {list(shape)}"

    def kind(value: Any, entry: str) -> None:
        if not is_plain(value) or value.dtype != dtype or value.shape != tuple(shape):
            raise Misfit(entry, expected, describe(value))
        if not all_finite([value]):
            raise Misfit(entry, "finite numbers", f"{describe(value)} with infinite numbers or NaN")
        if least is not None and bool((value < least).any()):
            raise Misfit(entry, f"numbers of at least {least:g}", f"{describe(value)} with smaller numbers")

    return kind
