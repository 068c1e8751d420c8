"""From logits to where the object is: one way to resize, one rule."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (B, C, H, W) to `size` (height, width) as the whole project does: bilinear, corners aligned."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def predicted_object(logits: Tensor) -> Tensor:
    """Return where logits (B, 2, H, W) see the object, (B, H, W) bool; a tie is background."""
    return logits[:, 1] > logits[:, 0]
