"""`--no-target-head`: whether a sentence means anything in the image. No part of the paper's network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.network.precision import at_least_float32


class NoTargetHead(nn.Module):
    """Compares the last text features with the last vision features, both averaged."""

    def __init__(self, text_dim: int, visual_dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(text_dim + visual_dim, text_dim)
        self.classify = nn.Linear(text_dim, 2)

    def forward(self, text: Tensor, attention_mask: Tensor, visual: Tensor) -> Tensor:
        """Return logits (B, 2), float32 at least; channel 1: the sentence means nothing in the image.

        text: (B, N, D). attention_mask: (B, N), 1 for tokens and 0 for padding. visual: (B, H, W, C).
        """
        text, visual = at_least_float32(text), at_least_float32(visual)
        words = attention_mask.to(text.dtype)[:, :, None]  # B, N, 1
        sentence = (text * words).sum(1) / words.sum(1)
        pooled = torch.cat([sentence, visual.mean((1, 2))], dim=1)
        return at_least_float32(self.classify(F.gelu(self.project(pooled))))

    if TYPE_CHECKING:  # PyTorch says of no module what calling it returns
        __call__ = forward
