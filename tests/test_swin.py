"""Window attention against plain definitions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import window_partition, window_reverse

from lib.network.swin import SHIFT_MASK_VALUE, SwinBlock, WindowAttention


@pytest.mark.parametrize(("height", "width"), [(8, 12), (5, 10), (3, 4)])
@pytest.mark.parametrize("shift", [0, 2])
def test_pixels_attend_to_their_neighbours_in_a_window_alone(height: int, width: int, shift: int) -> None:
    """A pixel's output depends on another pixel iff they are in one window and no cut is between them."""
    torch.manual_seed(0)
    window = 4
    attention = WindowAttention(dim=1, num_heads=1, window_size=window, shift=shift).double()
    x = torch.randn(1, height, width, 1, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda own: attention(own).flatten(), x)
    depends = jacobian.reshape(height * width, height * width).abs() > 1e-30  # a mask leaves e⁻¹⁰⁰ of it

    places = [torch.arange(size) for size in (height, width)]
    sizes = [window * math.ceil(size / window) for size in (height, width)]  # padded
    rolled = [(place - shift) % size for place, size in zip(places, sizes, strict=True)]
    together = [
        (own[:, None] // window == own // window) & ((place[:, None] < shift) == (place < shift))
        for own, place in zip(rolled, places, strict=True)
    ]
    expected = together[0][:, None, :, None] & together[1][None, :, None, :]
    assert torch.equal(depends, expected.reshape(depends.shape))


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("size", [(5, 7), (6, 9), (2, 7), (1, 1)])
def test_window_attention_equals_explicit_softmax(size: tuple[int, int], shift: int, frozen: bool) -> None:
    """Against the definition: pad, roll, cut into windows, attend, and the same way back."""
    torch.manual_seed(0)
    attention = WindowAttention(dim=16, num_heads=2, window_size=3, shift=shift).eval()
    torch.nn.init.normal_(attention.relative_position_bias_table)
    torch.nn.init.normal_(attention.qkv.bias)  # what padding looks like to the others
    attention.requires_grad_(not frozen)  # which decides on how the CPU attends
    height, width = size
    x = torch.randn(2, height, width, 16)

    rolled = F.pad(x, (0, 0, 0, -width % 3, 0, -height % 3)).roll((-shift, -shift), (1, 2))
    padded = rolled.shape[1:3]
    windows = window_partition(rolled, (3, 3)).flatten(1, 2)  # of 9 pixels each
    q, k, v = attention.qkv(windows).view(-1, 9, 3, 2, 8).permute(2, 0, 3, 1, 4)
    bias = attention.relative_position_bias_table[attention.relative_position_index].permute(2, 0, 1)
    scores = q @ k.transpose(-1, -2) / 8**0.5 + bias
    if shift:
        scores = scores + explicit_mask(padded[0], padded[1], 3, 1).repeat(2, 1, 1, 1)
    attended = (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 3, 3, 16)
    expected = window_reverse(attended, (3, 3), *padded).roll((shift, shift), (1, 2))[:, :height, :width]
    torch.testing.assert_close(attention(x), attention.proj(expected), atol=1e-5, rtol=1e-5)


def explicit_mask(height: int, width: int, window: int, shift: int) -> torch.Tensor:
    """The mask of every window of a map, (windows, 1, N, N), from the bands that the Swin paper numbers."""
    bands = [(slice(0, -window)), slice(-window, -shift), slice(-shift, None)]
    numbers = torch.zeros(1, height, width, 1)
    for number, (rows, columns) in enumerate(itertools.product(bands, bands)):
        numbers[:, rows, columns] = number
    windows = window_partition(numbers, (window, window)).flatten(1)
    return ((windows[:, None] != windows[:, :, None]) * SHIFT_MASK_VALUE).unsqueeze(1)


@pytest.mark.parametrize("size", [(7, 7), (5, 9), (1, 1), (15, 14)])
@pytest.mark.parametrize("shift", [0, 3])
def test_block_keeps_the_shape_of_any_map(size: tuple[int, int], shift: int) -> None:
    block = SwinBlock(16, 2, window_size=7, shift=shift, drop_path=0.0)
    assert block(torch.randn(2, *size, 16)).shape == (2, *size, 16)


@pytest.mark.parametrize("size", [(1, 2), (2, 9), (7, 8), (15, 14)])
def test_one_copy_pads_and_rolls(size: tuple[int, int]) -> None:
    """Also maps that are smaller than the shift, whose padding is rolled in with them."""
    attention = WindowAttention(dim=4, num_heads=1, window_size=7, shift=3)
    torch.nn.init.normal_(attention.qkv.bias)
    qkv = torch.randn(2, *size, 12)
    whole = attention._padded(qkv).roll((-3, -3), (1, 2))
    assert torch.equal(attention._padded_and_rolled(qkv), whole)
    assert torch.equal(attention._rolled_back(whole, *size), qkv)


def test_padding_comes_before_rolling() -> None:
    """In a 4×4 map with windows of 3 and shift 1, pixel (0, 0) meets the padding of the far corner, masked away:
    it attends to itself alone, so other pixels do not change it."""
    torch.manual_seed(0)
    block = SwinBlock(8, 1, window_size=3, shift=1, drop_path=0.0).eval()
    x = torch.randn(1, 4, 4, 8)
    changed = x.clone()
    changed[:, 1:, :] += 1.0
    changed[:, :, 1:] += 1.0
    torch.testing.assert_close(block(x)[:, 0, 0], block(changed)[:, 0, 0])
