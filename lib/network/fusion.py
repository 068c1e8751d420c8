"""Cross-aware fusion in the vision stages: attention from pixels to words (arXiv 2408.07539)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.network.attention import attend
from lib.network.precision import at_least_float32


class PointwiseConv(nn.Conv1d):
    """A 1×1 Conv1d, as in released weights, for channels-last tokens (B, N, C)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.squeeze(-1), self.bias)


class TokenNorm(nn.Module):
    """InstanceNorm1d without affine parameters for channels-last tokens (B, N, C).

    It normalises each channel of each sample over the N tokens, in training and in evaluation. A single token becomes
    zero, while PyTorch's InstanceNorm1d raises an error in training.
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # Two means, because PyTorch's var_mean is ten times slower over a dimension other than the last.
        # Cast twice: in half precision, this rounds and adds the gradients exactly as in existing trainings.
        centred = at_least_float32(x) - at_least_float32(x).mean(dim=1, keepdim=True)
        variance = centred.square().mean(dim=1, keepdim=True)
        return (centred * torch.rsqrt(variance + self.eps)).to(x.dtype)


class Fusion(nn.Module):
    """Cross-attention from pixels (queries) to words (keys and values).

    A 1×1 projection of the sum of attention output and visual input follows. `inner_dim` is the width of queries, keys
    and values, with one head per 64 channels.
    """

    def __init__(self, visual_dim: int, text_dim: int, inner_dim: int) -> None:
        super().__init__()
        self.num_heads = max(1, inner_dim // 64)
        self.v_q = nn.Sequential(PointwiseConv(visual_dim, inner_dim), TokenNorm())  # visual queries
        self.l_q = nn.Linear(text_dim, inner_dim)  # linguistic keys, in spite of the released name
        self.values_l = nn.Linear(text_dim, inner_dim)
        self.w_v = nn.Sequential(PointwiseConv(inner_dim, visual_dim), TokenNorm())
        self.project_mm = nn.Sequential(PointwiseConv(visual_dim, visual_dim), nn.GELU())

    def forward(self, visual: Tensor, text: Tensor, padding_bias: Tensor) -> Tensor:
        """Return the fused map, (B, H, W, C) like `visual`.

        text: (B, N, D). padding_bias: (B, 1, 1, N), 0 for words and -10⁴ for padding.
        """
        pixels = visual.flatten(1, 2)  # B, HW, C
        queries_keys_values = (self.v_q(pixels), self.l_q(text), self.values_l(text))
        # Always in float32: the attention output is nearly the same for all pixels, and the instance norm after it
        # amplifies the small differences, and with them any rounding error.
        dtype = self.w_v[0].weight.dtype
        with torch.autocast(visual.device.type, enabled=False):
            query, key, value = (self._heads(x.to(dtype)) for x in queries_keys_values)
            attended = attend(query, key, value, padding_bias)
            attended = self.w_v(attended.transpose(1, 2).flatten(2))  # B, HW, C
        return self.project_mm(attended + pixels).view_as(visual)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # B, heads, N, inner/heads


class NoFusion(nn.Module):
    """Replaces `Fusion` in stages without attention from pixels to words; returns the map unchanged."""

    def forward(self, visual: Tensor, text: Tensor, padding_bias: Tensor) -> Tensor:
        """Return `visual`."""
        return visual


class Gate(nn.ModuleList):
    """Adds fused features f to the visual stream x through a gate per channel: x + tanh(W₂·relu(W₁·f)) ⊙ f."""

    def __init__(self, dim: int) -> None:
        super().__init__([nn.Linear(dim, dim, bias=False), nn.ReLU(), nn.Linear(dim, dim, bias=False), nn.Tanh()])

    def forward(self, x: Tensor, fused: Tensor) -> Tensor:
        """Add the gated `fused` to `x`; both (B, H, W, C)."""
        gate = fused
        for layer in self:
            gate = layer(gate)
        return torch.addcmul(x, gate, fused)


class NoGate(nn.Module):
    """Replaces `Gate` in stages without fusion; returns the map unchanged."""

    def forward(self, x: Tensor, fused: Tensor) -> Tensor:
        """Return `x`."""
        return x
