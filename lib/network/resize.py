"""Upsampling, and the predicted mask of logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from lib.photo import Pixels


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (B, C, H, W) to `size` (height, width): bilinear with aligned corners, as everywhere in this project."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def predicted_object(logits: Tensor) -> Tensor:
    """Return the predicted mask (B, H, W) bool of logits (B, 2, H, W); a tie is background."""
    return logits[:, 1] > logits[:, 0]


def predicted_mask(logits: Tensor, size: Sequence[int]) -> Pixels:
    """Return the mask of logits (2, H, W) at `size` (height, width), uint8 with 1 on the object."""
    return predicted_object(upsample(logits[None], size))[0].cpu().numpy().astype(np.uint8)
