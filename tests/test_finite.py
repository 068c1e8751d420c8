"""Numbers that are infinite or NaN are noticed in any tensor, and large ones are not taken for them."""

from __future__ import annotations

import math

import pytest
import torch

from lib.weights.tensors import DTYPES, all_finite

FLOATS = [dtype for dtype in DTYPES if dtype.is_floating_point]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_one_number_is_noticed(dtype: torch.dtype, value: float) -> None:
    values = torch.ones(2, 3, dtype=dtype)
    values[1, 2] = value
    assert not all_finite([torch.ones(4), values, torch.ones(2, dtype=torch.int64)])


def test_infinities_of_both_signs_do_not_cancel() -> None:
    assert not all_finite([torch.tensor([math.inf]), torch.tensor([-math.inf])])


@pytest.mark.parametrize("dtype", FLOATS)
def test_numbers_whose_sum_overflows_are_finite(dtype: torch.dtype) -> None:
    assert all_finite([torch.full((9,), torch.finfo(dtype).max, dtype=dtype)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_kinds_of_numbers_may_stand_beside_each_other(dtype: torch.dtype) -> None:
    assert all_finite([torch.ones(3, dtype=dtype), torch.zeros(0, dtype=dtype), torch.tensor(2.0)])


def test_nothing_is_finite() -> None:
    assert all_finite([])
