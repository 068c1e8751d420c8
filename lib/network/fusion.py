"""Cross-aware fusion, pixels to words: the vision half of what the paper is named for (arXiv 2408.07539)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.network.attention import attend
from lib.network.precision import at_least_float32


class PointwiseConv(nn.Conv1d):
    """A 1×1 Conv1d (the name and shape in released weights) on channels-last tokens (B, N, C)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.squeeze(-1), self.bias)


class TokenNorm(nn.Module):
    """InstanceNorm1d without affine on channels-last tokens: each channel of each sample over its N tokens.

    The statistics are always the sample's own, in evaluation too. A single token becomes zero, where PyTorch's
    InstanceNorm1d refuses to train.
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # Two plain means: PyTorch's var_mean is ten times slower over a dimension that is not the last.
        # Cast twice: in half precision the gradients of both casts are rounded and added as they were trained with.
        centred = at_least_float32(x) - at_least_float32(x).mean(dim=1, keepdim=True)
        variance = centred.square().mean(dim=1, keepdim=True)
        return (centred * torch.rsqrt(variance + self.eps)).to(x.dtype)


class Fusion(nn.Module):
    """Every pixel gathers the words that concern it.

    Attention with visual queries and linguistic keys and values, then a 1×1 projection of its sum with the visual
    input. `inner_dim` is the width of queries, keys and values; one head per 64 channels.
    """

    def __init__(self, visual_dim: int, text_dim: int, inner_dim: int) -> None:
        super().__init__()
        self.num_heads = max(1, inner_dim // 64)
        self.v_q = nn.Sequential(PointwiseConv(visual_dim, inner_dim), TokenNorm())  # visual queries
        self.l_q = nn.Linear(text_dim, inner_dim)  # linguistic keys, whatever the released name says
        self.values_l = nn.Linear(text_dim, inner_dim)
        self.w_v = nn.Sequential(PointwiseConv(inner_dim, visual_dim), TokenNorm())
        self.project_mm = nn.Sequential(PointwiseConv(visual_dim, visual_dim), nn.GELU())

    def forward(self, visual: Tensor, text: Tensor, padding_bias: Tensor) -> Tensor:
        """Return the fused map, (B, H, W, C) like `visual`.

        text: (B, N, D). padding_bias: (B, 1, 1, N), 0 for words and -10⁴ for padding.
        """
        pixels = visual.flatten(1, 2)  # B, HW, C
        queries_keys_values = (self.v_q(pixels), self.l_q(text), self.values_l(text))
        # In float32 under autocast, too: what pixels gather is nearly the same everywhere, and the instance norm
        # behind it enlarges the small differences together with all rounding.
        dtype = self.w_v[0].weight.dtype
        with torch.autocast(visual.device.type, enabled=False):
            query, key, value = (self._heads(x.to(dtype)) for x in queries_keys_values)
            words = attend(query, key, value, padding_bias)
            words = self.w_v(words.transpose(1, 2).flatten(2))  # B, HW, C
        return self.project_mm(words + pixels).view_as(visual)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # B, heads, N, inner/heads


class NoFusion(nn.Module):
    """In the place of `Fusion` where pixels do not look at the text: the map stays as it is."""

    def forward(self, visual: Tensor, text: Tensor, padding_bias: Tensor) -> Tensor:
        """Return `visual`."""
        return visual


class Gate(nn.ModuleList):
    """How much of the fused features each channel lets into the visual stream: x + tanh(W₂·relu(W₁·f)) ⊙ f."""

    def __init__(self, dim: int) -> None:
        super().__init__([nn.Linear(dim, dim, bias=False), nn.ReLU(), nn.Linear(dim, dim, bias=False), nn.Tanh()])

    def forward(self, x: Tensor, fused: Tensor) -> Tensor:
        """Add the gated `fused` to `x`; both (B, H, W, C)."""
        share = fused
        for layer in self:
            share = layer(share)
        return torch.addcmul(x, share, fused)


class NoGate(nn.Module):
    """In the place of `Gate` where nothing was fused that it could let in."""

    def forward(self, x: Tensor, fused: Tensor) -> Tensor:
        """Return `x`."""
        return x
