"""Window attention against plain definitions."""

from __future__ import annotations

import pytest
import torch

from lib.swin import SwinBlock, WindowAttention, shift_mask


def test_shift_mask_separates_what_was_not_adjacent() -> None:
    """Two pixels of a rolled window may attend to each other iff their unrolled window neighbourhood is whole."""
    height, width, window, shift = 8, 12, 4, 2
    rows = torch.arange(height).roll(-shift)
    columns = torch.arange(width).roll(-shift)
    mask = shift_mask(height, width, window, shift, torch.device("cpu"))
    number = 0
    for top in range(0, height, window):
        for left in range(0, width, window):
            pixels = [(rows[top + r], columns[left + c]) for r in range(window) for c in range(window)]
            for i, (y1, x1) in enumerate(pixels):
                for j, (y2, x2) in enumerate(pixels):
                    adjacent = abs(y1 - y2) < window and abs(x1 - x2) < window
                    assert (mask[number, 0, i, j] == 0) == adjacent
            number += 1


def test_window_attention_equals_explicit_softmax() -> None:
    torch.manual_seed(0)
    attention = WindowAttention(dim=16, num_heads=2, window_size=3).eval()
    torch.nn.init.normal_(attention.relative_position_bias_table)
    x = torch.randn(4, 9, 16)  # two images of two windows
    mask = torch.randn(2, 1, 9, 9)
    q, k, v = attention.qkv(x).view(4, 9, 3, 2, 8).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / 8**0.5 + attention.position_bias() + mask.repeat(2, 1, 1, 1)
    expected = attention.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(4, 9, 16))
    torch.testing.assert_close(attention(x, 2, mask), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(7, 7), (5, 9), (1, 1), (15, 14)])
@pytest.mark.parametrize("shift", [0, 3])
def test_block_keeps_the_shape_of_any_map(size: tuple[int, int], shift: int) -> None:
    block = SwinBlock(16, 2, window_size=7, shift=shift, drop_path=0.0)
    assert block(torch.randn(2, *size, 16)).shape == (2, *size, 16)


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


def test_a_mask_made_in_evaluation_serves_training() -> None:
    block = SwinBlock(8, 1, window_size=3, shift=1, drop_path=0.0)
    x = torch.randn(1, 11, 13, 8)  # a size no other test uses, so that its mask is made here
    with torch.inference_mode():
        block(x)
    block(x).sum().backward()
    assert not shift_mask(12, 15, 3, 1, x.device).is_inference()
