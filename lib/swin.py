"""Swin transformer blocks as the released CrossVLT runs them.

Source: Liu et al., "Swin Transformer", ICCV 2021, arXiv 2103.14030, section 3.2. timm's block is not used because
its numbers differ: it rolls the map before padding it and shrinks windows on small maps. Here the normalised map
is padded first and rolled after, and the window never shrinks.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, trunc_normal_
from timm.models.swin_transformer import get_relative_position_index, window_partition, window_reverse
from torch import Tensor, nn

SHIFT_MASK_VALUE = -100.0


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # a mask first made in an evaluation must serve a later training step, too
def shift_mask(height: int, width: int, window_size: int, shift: int, device: torch.device) -> Tensor:
    """Return the additive mask that keeps rolled-in pixels from attending to their new neighbours.

    `height` and `width` are those of the padded map. Shape (windows, 1, N, N) float32 with N = window_size²: 0 where
    both pixels come from the same side of the cut, -100 elsewhere.
    """
    rows = torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    region = 3 * _side(rows, height, window_size, shift)[:, None] + _side(columns, width, window_size, shift)
    windows = window_partition(region[None, :, :, None], (window_size, window_size)).flatten(1)  # windows, N
    different = windows[:, None, :] != windows[:, :, None]
    return (different.float() * SHIFT_MASK_VALUE).unsqueeze(1)


def _side(position: Tensor, length: int, window_size: int, shift: int) -> Tensor:
    """Number the three bands a rolled axis falls into: whole windows, rest of the last one, rolled in."""
    return (position >= length - window_size).long() + (position >= length - shift).long()


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows with a learned relative position bias."""

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", get_relative_position_index(window_size, window_size))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        trunc_normal_(self.relative_position_bias_table, std=0.02)

    def position_bias(self) -> Tensor:
        """Return the bias of every pair of pixels, shape (heads, N, N)."""
        n_tokens = self.window_size**2
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        return bias.view(n_tokens, n_tokens, self.num_heads).permute(2, 0, 1)

    def forward(self, x: Tensor, n_windows: int, mask: Tensor | None) -> Tensor:
        """Attend inside each window.

        x: (B·windows, N, C), the windows of one image in a row. mask: (windows, 1, N, N) or None.
        """
        rows, n_tokens, dim = x.shape
        batch = rows // n_windows
        # Windows are folded into the head axis, so that the mask broadcasts over the batch instead of being copied.
        shape = (batch, n_windows, n_tokens, 3, self.num_heads, dim // self.num_heads)
        q, k, v = self.qkv(x).view(shape).permute(3, 0, 1, 4, 2, 5).flatten(2, 3)  # B, windows·heads, N, C/heads
        bias = self.position_bias()
        bias = bias.repeat(n_windows, 1, 1) if mask is None else (bias + mask).flatten(0, 1)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        x = x.unflatten(1, (n_windows, self.num_heads)).transpose(2, 3)  # B, windows, N, heads, C/heads
        return self.proj(x.reshape(rows, n_tokens, dim))


class SwinBlock(nn.Module):
    """One Swin block; `shift` is 0 or window_size // 2."""

    def __init__(self, dim: int, num_heads: int, *, window_size: int, shift: int, drop_path: float) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift = shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window_size)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden_features=4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape, for any H and W."""
        x = x + self.drop_path(self._windows(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _windows(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        window, shift = self.window_size, self.shift

        # pad, then roll: the order decides which pixels share a window
        x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        _, padded_height, padded_width, _ = x.shape
        mask = None
        if shift:
            x = x.roll((-shift, -shift), dims=(1, 2))
            mask = shift_mask(padded_height, padded_width, window, shift, x.device)

        # attend
        n_windows = (padded_height // window) * (padded_width // window)
        x = window_partition(x, (window, window)).flatten(1, 2)
        x = self.attn(x, n_windows, mask).unflatten(1, (window, window))
        x = window_reverse(x, (window, window), padded_height, padded_width)

        # roll back, crop
        if shift:
            x = x.roll((shift, shift), dims=(1, 2))
        return x[:, :height, :width]
