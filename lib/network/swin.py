"""Swin transformer blocks as the released CrossVLT runs them.

Source: Liu et al., "Swin Transformer", ICCV 2021, arXiv 2103.14030, section 3.2. timm's block is not used because its
results differ: it rolls the map before padding it, and shrinks windows on small maps. Here the normalised map is padded
first and rolled afterwards, and the window never shrinks.

Windows of four kinds, in a map of 3×3 windows that was rolled by half a window: the pixels right of and below the
dotted cuts come from the opposite edges of the map, and pixels on different sides of a cut must not attend to each
other. Windows of one kind share one mask. Without a shift, all windows are of kind 1.

    ┌─────┬─────┬──┬──┐
    │  1  │  1  │ 2┊  │
    │     │     │  ┊  │
    ├─────┼─────┼──┼──┤
    │  1  │  1  │ 2┊  │
    │     │     │  ┊  │
    ├─────┼─────┼──┼──┤
    │┄┄3┄┄│┄┄3┄┄│┄4┼┄┄│
    │     │     │  ┊  │
    └─────┴─────┴──┴──┘
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.network.attention import attend

Span: TypeAlias = "slice[int | None, int | None, None]"

SHIFT_MASK_VALUE = -100.0


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


def shift_masks(window_size: int, shift: int) -> Tensor:
    """Return what is added to the scores of each kind of window: (kinds, 1, N, N), N = window_size².

    0 for pairs of pixels that may attend to each other, -100 for others. Kinds: see the module's drawing.
    """
    if not shift:
        return torch.zeros(1, 1, window_size**2, window_size**2)
    rolled_in = torch.arange(window_size) >= window_size - shift
    lower, right = rolled_in.repeat_interleave(window_size), rolled_in.repeat(window_size)  # (N,) each
    sides = torch.stack([0 * right, 1 * right, 2 * lower, 2 * lower + right])  # kinds, N
    different = sides[:, None, :] != sides[:, :, None]
    return (different.float() * SHIFT_MASK_VALUE).unsqueeze(1)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows with a learned relative position bias."""

    def __init__(self, dim: int, num_heads: int, window_size: int, shift: int) -> None:
        super().__init__()
        self.relative_position_index: Tensor
        self.shift_masks: Tensor
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift = shift
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(window_size))
        self.register_buffer("shift_masks", shift_masks(window_size, shift), persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.cached_bias: tuple[Tensor, ...] = ()
        fill_normal_(self.relative_position_bias_table)

    def cache_attention_bias(self, dtype: torch.dtype) -> None:
        """Compute the attention biases in advance, for a network whose weights will not change."""
        self.cached_bias = tuple(bias.to(dtype) for bias in self.biases())

    def biases(self) -> tuple[Tensor, ...]:
        """Return the sum of position bias and shift mask for each kind of window, (1, heads, N, N) each."""
        if self.cached_bias:
            return self.cached_bias
        n_tokens = self.window_size**2
        bias = F.embedding(self.relative_position_index.flatten(), self.relative_position_bias_table)
        bias = bias.view(n_tokens, n_tokens, self.num_heads).permute(2, 0, 1).contiguous()
        return (bias + self.shift_masks).split(1)

    def forward(self, x: Tensor) -> Tensor:
        """Attend inside the windows of the map (B, H, W, C), padded and rolled by -shift. Return the same shape."""
        height, width = x.shape[1:3]
        qkv = self.qkv(x)
        attended = self._attended(self._padded_and_rolled(qkv) if self.shift else self._padded(qkv))
        x = self._rolled_back(attended, height, width) if self.shift else attended[:, :height, :width].contiguous()
        return self.proj(x)

    def _attended(self, qkv: Tensor) -> Tensor:
        """Attend inside the windows of (B, rows, columns, 3C): (B, rows, columns, C)."""
        # Copied one by one: training keeps keys and values, and would keep the queries with them.
        query, key, value = (one.flatten(4, 5) for one in self._windows(qkv, 3))  # B, rows, columns, heads, N, C/heads
        attended = torch.empty_like(qkv[..., : qkv.shape[3] // 3], memory_format=torch.contiguous_format)
        windows = self._windows(attended, 1)[0]
        for (rows, columns), bias in zip(self._kinds(), self.biases(), strict=True):
            q, k, v = (one[:, rows, columns] for one in (query, key, value))
            if q.numel():
                found = attend(q.flatten(0, 2), k.flatten(0, 2), v.flatten(0, 2), bias)
                windows[:, rows, columns] = found.view_as(q).unflatten(4, (self.window_size, self.window_size))
        return attended

    def _padded(self, qkv: Tensor) -> Tensor:
        """Pad (B, H, W, 3C) to whole windows with the projection of zeros, which is its bias."""
        batch, height, width, _ = qkv.shape
        below, right = -height % self.window_size, -width % self.window_size
        if not (below or right):
            return qkv
        padded = self.qkv.bias.to(qkv.dtype).repeat(batch, height + below, width + right, 1)
        padded[:, :height, :width] = qkv
        return padded

    def _padded_and_rolled(self, qkv: Tensor) -> Tensor:
        """Return what `roll` by -shift makes of the padded map, in one copy per axis: (B, rows, columns, 3C)."""
        bias = self.qkv.bias.to(qkv.dtype)
        for axis in (1, 2):
            size = qkv.shape[axis]
            first = min(self.shift, size)
            behind = self.shift - first  # padding that is rolled in, too, as the map is smaller than the shift
            shape = list(qkv.shape)
            shape[axis] = -size % self.window_size - behind
            parts = [qkv.narrow(axis, first, size - first), bias.expand(shape), qkv.narrow(axis, 0, first)]
            shape[axis] = behind
            qkv = torch.cat([*parts, bias.expand(shape)], axis)
        return qkv

    def _rolled_back(self, x: Tensor, height: int, width: int) -> Tensor:
        """Undo `_padded_and_rolled`: (B, rows, columns, C) to (B, H, W, C)."""
        for axis, size in ((1, height), (2, width)):
            first = min(self.shift, size)
            x = torch.cat([x.narrow(axis, x.shape[axis] - self.shift, first), x.narrow(axis, 0, size - first)], axis)
        return x

    def _windows(self, x: Tensor, parts: int) -> Tensor:
        """View (B, H, W, parts·C) as windows: (parts, B, rows, columns, heads, window_size, window_size, C/heads)."""
        x = x.unflatten(3, (parts, self.num_heads, -1))
        x = x.unflatten(2, (-1, self.window_size)).unflatten(1, (-1, self.window_size))
        return x.permute(5, 0, 1, 3, 6, 2, 4, 7)

    def _kinds(self) -> list[tuple[Span, Span]]:
        """Return rows and columns of the windows of each kind."""
        if not self.shift:
            return [(slice(None), slice(None))]
        first, last = slice(None, -1), slice(-1, None)
        return [(first, first), (first, last), (last, first), (last, last)]


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
