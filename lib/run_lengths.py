"""Masks as COCO's compressed run lengths, in the form of JSON files."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from pycocotools import mask as coco_mask

from lib.photo import Pixels, Places


class RunLengths(TypedDict):
    """A mask, or a part of one, in COCO's compressed form."""

    size: list[int]  # height, width
    counts: str | bytes


def encode_mask(mask: Pixels | Places) -> RunLengths:
    """Return a mask (H, W), bool or 0 and 1, as run lengths whose counts are a text."""
    return with_text(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)))


def with_text(code: RunLengths) -> RunLengths:
    """Return run lengths whose counts are a text, for JSON."""
    counts = code["counts"]
    return {"size": list(code["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}
