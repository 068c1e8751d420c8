"""Swin transformer blocks as the released CrossVLT runs them.

Source: Liu et al., "Swin Transformer", ICCV 2021, arXiv 2103.14030, section 3.2. timm's block is not used because its
results differ: it rolls the map before padding it, and shrinks windows on small maps. Here the normalised map is padded
first and rolled afterwards, and the window never shrinks.

Padding and rolling are folded into a gather index that is cached per shape: one `index_select` moves every pixel into
its window. Padding is zero, so its queries, keys and values equal the bias of the projection; it is one row, shared by
all padded positions.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.network.attention import attend

SHIFT_MASK_VALUE = -100.0


class WindowLayout(NamedTuple):
    """The positions of the pixels of a batch of maps in their windows.

    Windows are grouped by their shift mask, in this order (letters mark pixels that may attend to each other):

        interior    last column    last row    corner
        a a a a       a a b b      a a a a     a a b b
        a a a a       a a b b      a a a a     a a b b
        a a a a       a a b b      c c c c     c c d d
        a a a a       a a b b      c c c c     c c d d

    Without a shift there is only the first group. N = window_size².
    """

    gather_index: Tensor  # (windows·N,) int64: row of the pixel at each position; padding: the row after the last pixel
    scatter_index: Tensor  # (B·H·W,) int64: position of each pixel, the inverse of `gather_index`
    pad_index: Tensor  # (padded positions,) int64
    group_sizes: tuple[int, ...]  # number of windows in each group


def window_layout(
    batch: int, height: int, width: int, window_size: int, shift: int, device: torch.device
) -> WindowLayout:
    """Return the layout of (batch, height, width) maps, padded to whole windows and then rolled by -shift."""
    return _make_layout(batch, height, width, window_size, shift, device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # a layout that is cached in an evaluation must also work in a later training step
def _make_layout(
    batch: int, height: int, width: int, window_size: int, shift: int, device: torch.device
) -> WindowLayout:
    n_pixels = batch * height * width
    pixels = torch.arange(n_pixels, device=device).view(batch, height, width)
    pixels = F.pad(pixels, (0, -width % window_size, 0, -height % window_size), value=n_pixels)
    pixels = pixels.roll((-shift, -shift), dims=(1, 2))
    rows, columns = pixels.shape[1] // window_size, pixels.shape[2] // window_size
    windows = pixels.view(batch, rows, window_size, columns, window_size).transpose(2, 3).flatten(3)
    parts = [windows]
    if shift:  # the last row and the last column of windows contain rolled-in pixels
        upper, lower = windows[:, :-1], windows[:, -1:]
        parts = [upper[:, :, :-1], upper[:, :, -1:], lower[:, :, :-1], lower[:, :, -1:]]
    parts = [part.flatten(0, 2) for part in parts]
    pixels = torch.cat(parts).flatten()
    order = pixels.argsort(stable=True)
    return WindowLayout(pixels, order[:n_pixels], order[n_pixels:], tuple(len(part) for part in parts))


def shift_masks(window_size: int, shift: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the shift masks of all groups of windows, which keep rolled-in pixels apart from their new neighbours.

    Shape (groups, 1, N, N), N = window_size²: 0 for pairs of pixels that may attend to each other, else -100.
    """
    return _make_masks(window_size, shift, dtype, device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _make_masks(window_size: int, shift: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    if not shift:
        return torch.zeros(1, 1, window_size**2, window_size**2, dtype=dtype, device=device)
    rolled_in = torch.arange(window_size, device=device) >= window_size - shift
    lower, right = rolled_in.repeat_interleave(window_size), rolled_in.repeat(window_size)  # (N,) each
    sides = torch.stack([0 * right, 1 * right, 2 * lower, 2 * lower + right])  # groups, N
    different = sides[:, None, :] != sides[:, :, None]
    return (different.to(dtype) * SHIFT_MASK_VALUE).unsqueeze(1)


class Context(Protocol):
    """The autograd context of the functions below."""

    padded: bool  # whether any position is padding

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]: ...

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class ToWindows(torch.autograd.Function):
    """Gathers rows of pixels (B·H·W, C), plus one row for padding if there is any, into windows (windows·N, C).

    The index is a permutation, so the backward pass gathers with its inverse. PyTorch's would scatter row by row.
    """

    @staticmethod
    def forward(ctx: Context, rows: Tensor, gather_index: Tensor, scatter_index: Tensor, pad_index: Tensor) -> Tensor:
        ctx.save_for_backward(scatter_index, pad_index)
        return rows.index_select(0, gather_index)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        scatter_index, pad_index = ctx.saved_tensors
        rows = grad.index_select(0, scatter_index)
        if len(pad_index):
            rows = torch.cat([rows, grad.index_select(0, pad_index).sum(0, keepdim=True)])
        return rows, None, None, None


class ToPixels(torch.autograd.Function):
    """Gathers the rows of windows (windows·N, C) back into pixels (B·H·W, C), without the padding."""

    @staticmethod
    def forward(ctx: Context, rows: Tensor, gather_index: Tensor, scatter_index: Tensor, pad_index: Tensor) -> Tensor:
        ctx.save_for_backward(gather_index)
        ctx.padded = len(pad_index) > 0
        return rows.index_select(0, scatter_index)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gather_index,) = ctx.saved_tensors
        if ctx.padded:
            grad = F.pad(grad, (0, 0, 0, 1))
        return grad.index_select(0, gather_index), None, None, None


@torch.no_grad()
def fill_normal_(tensor: Tensor) -> None:
    """Fill with a normal distribution of standard deviation 0.02, truncated at ±2, as Swin's code does.

    Uses the inverse error function, as PyTorch once did: newer versions of `nn.init.trunc_normal_` draw other numbers.
    """
    tensor.uniform_(-1, 1).erfinv_().mul_(0.02 * math.sqrt(2)).clamp_(-2, 2)


def relative_position_index(window_size: int) -> Tensor:
    """Return the row of the bias table for each pair of pixels in a window: (N, N) int64, N = window_size²."""
    rows, columns = (axis.flatten() for axis in torch.meshgrid(*2 * [torch.arange(window_size)], indexing="ij"))
    down, right = (axis[:, None] - axis[None, :] + window_size - 1 for axis in (rows, columns))
    return down * (2 * window_size - 1) + right


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows with a learned relative position bias."""

    def __init__(self, dim: int, num_heads: int, window_size: int, shift: int) -> None:
        super().__init__()
        self.relative_position_index: Tensor
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift = shift
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(window_size))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.cached_bias: tuple[Tensor, ...] = ()
        fill_normal_(self.relative_position_bias_table)

    def cache_attention_bias(self, dtype: torch.dtype) -> None:
        """Compute the attention biases in advance, for a network whose weights will not change."""
        self.cached_bias = tuple(bias.to(dtype) for bias in self.biases())

    def biases(self) -> tuple[Tensor, ...]:
        """Return the sum of position bias and shift mask for each group of windows, (1, heads, N, N) each."""
        if self.cached_bias:
            return self.cached_bias
        n_tokens = self.window_size**2
        bias = F.embedding(self.relative_position_index.flatten(), self.relative_position_bias_table)
        bias = bias.view(n_tokens, n_tokens, self.num_heads).permute(2, 0, 1).contiguous()
        return (bias + shift_masks(self.window_size, self.shift, bias.dtype, bias.device)).split(1)

    def forward(self, x: Tensor) -> Tensor:
        """Attend inside the windows of the map (B, H, W, C), padded and rolled by -shift. Return the same shape."""
        batch, height, width, dim = x.shape
        layout: WindowLayout = window_layout(batch, height, width, self.window_size, self.shift, x.device)
        index = (layout.gather_index, layout.scatter_index, layout.pad_index)

        rows = x.flatten(0, 2)
        if len(layout.pad_index):
            rows = F.pad(rows, (0, 0, 0, 1))
        rows = ToWindows.apply(self.qkv(rows), *index)  # B·windows·N, 3C
        query, key, value = rows.view(-1, self.window_size**2, 3, self.num_heads, dim // self.num_heads).unbind(2)

        parts = zip(*(part.transpose(1, 2).split(layout.group_sizes) for part in (query, key, value)), strict=True)
        attended = [attend(q, k, v, bias) for (q, k, v), bias in zip(parts, self.biases(), strict=True) if len(q)]
        rows = torch.cat([part.transpose(1, 2) for part in attended]).reshape(-1, dim)  # B·windows·N, C
        return self.proj(ToPixels.apply(rows, *index)).view(x.shape)


class DropPath(nn.Module):
    """Stochastic depth: in training, drops the residual branch of each sample with probability `rate`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, …) to the same shape."""
        if not self.training or self.rate == 0:
            return x
        kept = x.new_empty((len(x),) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * kept.div_(1 - self.rate)


class Mlp(nn.Module):
    """The feed-forward of a block."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, C) to the same shape."""
        return self.fc2(self.act(self.fc1(x)))


class SwinBlock(nn.Module):
    """One Swin block; `shift` is 0 or window_size // 2."""

    def __init__(self, dim: int, num_heads: int, *, window_size: int, shift: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window_size, shift)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden_dim=4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape, for any H and W."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))
