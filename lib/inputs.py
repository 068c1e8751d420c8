"""From photos and token ids to the network's inputs, with NumPy and Pillow alone: `predict_onnx.py` has no PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TypeAlias

import numpy as np
from PIL import Image

from lib.photo import Pixels

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Planes: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"
TokenIds: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.int64]]"


def resize_image(image: Image.Image, size: int) -> Pixels:
    """Return the pixels of an RGB image of any size as a square, (S, S, 3) uint8; the aspect ratio is not kept."""
    # Resized with Pillow, whose bilinear filter is antialiased: the released weights were trained on its pixels.
    return np.array(image.resize((size, size), Image.Resampling.BILINEAR))


def normalized_planes(
    pixels: Pixels, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Planes:
    """Turn pixels (S, S, 3) uint8 into planes (3, S, S) float32, scaled to 0 to 1, less `mean`, divided by `std`.

    Bit for bit equal to torchvision's `to_tensor` and `normalize`.
    """
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32)
    for plane, middle, spread in zip(planes, mean, std, strict=True):
        plane /= np.float32(255)
        plane -= np.float32(middle)
        plane /= np.float32(spread)
    return planes


def padded_ids(sentences: Sequence[Sequence[int]], max_tokens: int) -> tuple[TokenIds, TokenIds]:
    """Return token ids and attention mask of sentences, both (sentences, max_tokens) int64.

    Longer sentences are truncated, which may remove [SEP]: the released weights were trained on ids cut this way.
    Shorter ones are padded with 0, and the mask is 0 there.
    """
    read = [ids[:max_tokens] for ids in sentences]
    lengths = np.fromiter(map(len, read), np.int64, len(read))
    is_token = np.arange(max_tokens) < lengths[:, np.newaxis]
    token_ids = np.zeros(is_token.shape, np.int64)
    token_ids[is_token] = np.fromiter(chain.from_iterable(read), np.int64, lengths.sum())
    return token_ids, is_token.astype(np.int64)
