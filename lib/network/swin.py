"""Swin transformer blocks as the released CrossVLT runs them.

Source: Liu et al., "Swin Transformer", ICCV 2021, arXiv 2103.14030, section 3.2. timm's block is not used because
its numbers differ: it rolls the map before padding it and shrinks windows on small maps. Here the normalised map
is padded first and rolled after, and the window never shrinks.

Neither padding nor rolling happens to a map here: which pixel stands where in which window is an index, made once per
shape, and one copy of rows brings every pixel to its place. Padding is zero, so its queries, keys and values are the
bias of their projection, computed once for all of it.
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
    """Where the pixels of a batch of maps stand in their windows.

    Windows of one kind lie together: those that no cut goes through, then the ones that the cut between rolled-in and
    own pixels divides into left and right, upper and lower, and both. Without a shift there is only the first kind.
    """

    pixels: Tensor  # (windows·N,) int64: row of the pixel at each place; padding has the row after the last pixel
    places: Tensor  # (B·H·W,) int64: place of each pixel, the inverse
    padding: Tensor  # (places without a pixel,) int64
    kinds: tuple[int, ...]  # windows of each kind


def window_layout(
    batch: int, height: int, width: int, window_size: int, shift: int, device: torch.device
) -> WindowLayout:
    """Return the layout of (batch, height, width) maps, padded to whole windows and then rolled by -shift."""
    return _make_layout(batch, height, width, window_size, shift, device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # a layout first made in an evaluation must serve a later training step, too
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
    if shift:  # the cuts go through the last row and the last column of windows
        upper, lower = windows[:, :-1], windows[:, -1:]
        parts = [upper[:, :, :-1], upper[:, :, -1:], lower[:, :, :-1], lower[:, :, -1:]]
    parts = [part.flatten(0, 2) for part in parts]
    pixels = torch.cat(parts).flatten()
    order = pixels.argsort(stable=True)
    return WindowLayout(pixels, order[:n_pixels], order[n_pixels:], tuple(len(part) for part in parts))


def shift_masks(window_size: int, shift: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the masks that keep rolled-in pixels from attending to their new neighbours, one per kind of window.

    Shape (kinds, 1, N, N), N = window_size²: 0 for pixels on one side of all cuts, -100 elsewhere.
    """
    return _make_masks(window_size, shift, dtype, device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _make_masks(window_size: int, shift: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    if not shift:
        return torch.zeros(1, 1, window_size**2, window_size**2, dtype=dtype, device=device)
    rolled_in = torch.arange(window_size, device=device) >= window_size - shift
    lower, right = rolled_in.repeat_interleave(window_size), rolled_in.repeat(window_size)  # of each place, (N,)
    sides = torch.stack([0 * right, 1 * right, 2 * lower, 2 * lower + right])  # kinds, N
    different = sides[:, None, :] != sides[:, :, None]
    return (different.to(dtype) * SHIFT_MASK_VALUE).unsqueeze(1)


class Context(Protocol):
    """What a function here keeps for its backward pass."""

    padded: bool  # whether any place has no pixel

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]: ...

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class ToWindows(torch.autograd.Function):
    """Copy rows of pixels (B·H·W, C), with a last one for padding where there is any, to their places.

    Autograd's own backward pass of such a copy adds row by row; but this one has an inverse.
    """

    @staticmethod
    def forward(ctx: Context, rows: Tensor, pixels: Tensor, places: Tensor, padding: Tensor) -> Tensor:
        ctx.save_for_backward(places, padding)
        return rows.index_select(0, pixels)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        places, padding = ctx.saved_tensors
        rows = grad.index_select(0, places)
        if len(padding):
            rows = torch.cat([rows, grad.index_select(0, padding).sum(0, keepdim=True)])
        return rows, None, None, None


class ToPixels(torch.autograd.Function):
    """Copy the windows' rows (windows·N, C) back to (B·H·W, C); what stands in padding is left out."""

    @staticmethod
    def forward(ctx: Context, rows: Tensor, pixels: Tensor, places: Tensor, padding: Tensor) -> Tensor:
        ctx.save_for_backward(pixels)
        ctx.padded = len(padding) > 0
        return rows.index_select(0, places)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        (pixels,) = ctx.saved_tensors
        if ctx.padded:
            grad = F.pad(grad, (0, 0, 0, 1))
        return grad.index_select(0, pixels), None, None, None


@torch.no_grad()
def fill_normal_(tensor: Tensor) -> None:
    """Draw from a normal distribution of deviation 0.02, bounded by ±2, as Swin's own code does.

    By inverting its integral, as PyTorch did once: newer versions of `nn.init.trunc_normal_` draw other numbers.
    """
    tensor.uniform_(-1, 1).erfinv_().mul_(0.02 * math.sqrt(2)).clamp_(-2, 2)


def relative_position_index(window_size: int) -> Tensor:
    """Return which row of the bias table each pair of a window's pixels has: (N, N) int64, N = window_size²."""
    rows, columns = (places.flatten() for places in torch.meshgrid(*2 * [torch.arange(window_size)], indexing="ij"))
    down, right = (places[:, None] - places[None, :] + window_size - 1 for places in (rows, columns))
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
        self.kept_biases: tuple[Tensor, ...] = ()
        fill_normal_(self.relative_position_bias_table)

    def keep_biases(self, dtype: torch.dtype) -> None:
        """Compute the biases once and for all, for a network whose weights will not change any more."""
        self.kept_biases = tuple(bias.to(dtype) for bias in self.biases())

    def biases(self) -> tuple[Tensor, ...]:
        """Return what is added to the scores in windows of each kind, (1, heads, N, N) each."""
        if self.kept_biases:
            return self.kept_biases
        n_tokens = self.window_size**2
        bias = F.embedding(self.relative_position_index.flatten(), self.relative_position_bias_table)
        bias = bias.view(n_tokens, n_tokens, self.num_heads).permute(2, 0, 1).contiguous()
        return (bias + shift_masks(self.window_size, self.shift, bias.dtype, bias.device)).split(1)

    def forward(self, x: Tensor) -> Tensor:
        """Attend inside the windows of the map (B, H, W, C), padded and rolled by -shift; return the same shape."""
        batch, height, width, dim = x.shape
        layout: WindowLayout = window_layout(batch, height, width, self.window_size, self.shift, x.device)
        index = (layout.pixels, layout.places, layout.padding)

        rows = x.flatten(0, 2)
        if len(layout.padding):
            rows = F.pad(rows, (0, 0, 0, 1))
        rows = ToWindows.apply(self.qkv(rows), *index)  # B·windows·N, 3C
        query, key, value = rows.view(-1, self.window_size**2, 3, self.num_heads, dim // self.num_heads).unbind(2)

        parts = zip(*(part.transpose(1, 2).split(layout.kinds) for part in (query, key, value)), strict=True)
        attended = [attend(q, k, v, bias) for (q, k, v), bias in zip(parts, self.biases(), strict=True) if len(q)]
        rows = torch.cat([part.transpose(1, 2) for part in attended]).reshape(-1, dim)  # B·windows·N, C
        return self.proj(ToPixels.apply(rows, *index)).view(x.shape)


class DropPath(nn.Module):
    """Leave a residual branch out for a share `rate` of the samples in training, and scale up the others."""

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
