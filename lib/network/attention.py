"""Scaled dot-product attention with a bias: softmax(QKᵀ/√d + bias)·V."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

HALVES = (torch.bfloat16, torch.float16)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the attention output (B, heads, N, d).

    query: (B, heads, N, d). key, value: (B, heads, M, d). bias: float, added to the scores, (B or 1, heads or 1,
    N or 1, M); it must have four dimensions, as PyTorch's fused CPU kernels require.
    """
    if bias is not None:
        bias = bias.to(query.dtype)
    if query.device.type == "cpu" and (query.dtype in HALVES or (bias is not None and bias.requires_grad)):
        return _attend_step_by_step(query, key, value, bias)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def _attend_step_by_step(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    # PyTorch's CPU kernel is almost twice as slow in bfloat16. It has no gradient for the bias: if one is needed,
    # PyTorch falls back to float32 and also searches for fully masked rows.
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if bias is not None:
        scores += bias
    return scores.softmax(dim=-1) @ value
