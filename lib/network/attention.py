"""The attention of windows, words and pixels: softmax(QKᵀ/√d + bias)·V."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

HALVES = (torch.bfloat16, torch.float16)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return what the queries (B, heads, N, d) gather from the values (B, heads, M, d), like `query`.

    key: (B, heads, M, d). bias: float, added to the scores, (B or 1, heads or 1, N or 1, M); it must have four
    dimensions, because PyTorch's fused kernels take no other on the CPU.
    """
    if bias is not None:
        bias = bias.to(query.dtype)
    if query.device.type == "cpu" and (query.dtype in HALVES or (bias is not None and bias.requires_grad)):
        return _attend_step_by_step(query, key, value, bias)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def _attend_step_by_step(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    # PyTorch's CPU kernel takes almost twice as long in bfloat16, and where the bias needs a gradient, which it does
    # not give, PyTorch computes in float32 and searches for rows that are masked as a whole.
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if bias is not None:
        scores += bias
    return scores.softmax(dim=-1) @ value
