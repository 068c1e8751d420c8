"""Window attention against plain definitions."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import window_partition, window_reverse

from lib.network.swin import (
    SHIFT_MASK_VALUE,
    SwinBlock,
    ToPixels,
    ToWindows,
    WindowAttention,
    shift_masks,
    window_layout,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(8, 12), (5, 10), (3, 4), (1, 1)])
@pytest.mark.parametrize("shift", [0, 2])
def test_every_pixel_has_the_place_that_padding_and_rolling_give_it(
    batch: int, height: int, width: int, shift: int
) -> None:
    layout = window_layout(batch, height, width, 4, shift, CPU)
    numbers = torch.arange(1, 1 + batch * height * width).view(batch, height, width)  # 0 is padding
    rolled = F.pad(numbers, (0, -width % 4, 0, -height % 4)).roll((-shift, -shift), (1, 2))
    windows = window_partition(rolled[..., None], (4, 4)).flatten(1)
    placed = F.pad(numbers.flatten(), (0, 1))[layout.gather_index].view(-1, 16)
    assert sorted(placed.tolist()) == sorted(windows.tolist())
    assert sum(layout.group_sizes) == len(placed)
    assert torch.equal(placed.flatten()[layout.scatter_index], numbers.flatten())
    assert not placed.flatten()[layout.pad_index].any()
    assert len(layout.pad_index) + batch * height * width == placed.numel()


@pytest.mark.parametrize(("height", "width"), [(8, 12), (5, 10)])
def test_masks_separate_what_was_not_adjacent(height: int, width: int) -> None:
    """Two pixels of a rolled window may attend to each other iff no cut lies between them."""
    window, shift = 4, 2
    layout = window_layout(1, height, width, window, shift, CPU)
    masks = shift_masks(window, shift, torch.float32, CPU)
    kinds = torch.arange(4).repeat_interleave(torch.tensor(layout.group_sizes))
    for kind, pixels in zip(kinds, layout.gather_index.view(-1, window**2), strict=True):
        real = (pixels < height * width).nonzero().flatten().tolist()
        for i in real:
            for j in real:
                (y1, x1), (y2, x2) = (divmod(int(pixels[place]), width) for place in (i, j))
                adjacent = abs(y1 - y2) < window and abs(x1 - x2) < window
                assert (masks[kind, 0, i, j] == 0) == adjacent


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


@pytest.mark.parametrize("size", [(6, 6), (5, 7)])
def test_rows_are_copied_back_and_forth_with_exact_gradients(size: tuple[int, int]) -> None:
    """The gradients written by hand are those that autograd finds for indexing."""
    layout = window_layout(2, *size, 3, 1, CPU)
    index = (layout.gather_index, layout.scatter_index, layout.pad_index)
    pixels = torch.randn(
        2 * size[0] * size[1] + (len(layout.pad_index) > 0), 4, dtype=torch.float64, requires_grad=True
    )
    windows = torch.randn(len(layout.gather_index), 4, dtype=torch.float64, requires_grad=True)
    for ours, plain, rows in (
        (ToWindows.apply(pixels, *index), pixels[layout.gather_index], pixels),
        (ToPixels.apply(windows, *index), windows[layout.scatter_index], windows),
    ):
        assert torch.equal(ours, plain)
        weights = torch.randn_like(ours)
        found, expected = (torch.autograd.grad((out * weights).sum(), rows)[0] for out in (ours, plain))
        assert torch.allclose(found, expected)


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


def test_a_layout_made_in_evaluation_serves_training() -> None:
    block = SwinBlock(8, 1, window_size=3, shift=1, drop_path=0.0)
    x = torch.randn(1, 11, 13, 8)  # a size no other test uses, so that its layout is made here
    with torch.inference_mode():
        block(x)
    block(x).sum().backward()
    assert not window_layout(1, 11, 13, 3, 1, x.device).gather_index.is_inference()
