"""The mask of an object: from polygons and run lengths, as annotations have them, to pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from pycocotools import mask as coco_mask

from lib.photo import Pixels
from refer.files import Record


class RunLengths(TypedDict):
    """A mask, or a part of one, in COCO's compressed form."""

    size: list[int]  # height, width
    counts: str | bytes


# Where the parts of an object overlap, their sum is 2 and the pixel counts as background. That is hardly what the
# annotators meant, but the published numbers were measured against masks made this way. An index with the overlap
# `object` departs from that by joining the parts beforehand.
OBJECT_SUM = 1


def encode_parts(segmentation: Sequence[Any] | Mapping[str, Any], height: int, width: int) -> list[RunLengths]:
    """Return the parts of a mask as COCO's compressed run lengths.

    segmentation: a list of polygons [x0, y0, x1, y1, …] in pixels, a list of run lengths, or one run-length dict;
    run lengths as COCO's string, its bytes, or numbers. Raises ValueError saying what is wrong with it.
    """
    parts = [segmentation] if isinstance(segmentation, dict) else segmentation
    if any(isinstance(part, list) and part and isinstance(part[0], list) for part in parts):
        raise ValueError("a polygon holds its points as nested pairs [[x, y], …]: write them flat, [x0, y0, x1, y1, …]")
    # Fewer than three points enclose no pixel; COCO's own code stumbles over them in first place.
    parts = [part for part in parts if not (isinstance(part, list) and len(part) < 6)]
    if not parts:
        raise ValueError("its segmentation is empty")
    if min(height, width) < 1 or height * width >= 2**32:  # the count of COCO's C code
        raise ValueError(f"its image would be {width}×{height} pixels")
    return [_encode_part(part, height, width) for part in parts]


def decode_parts(parts: list[RunLengths]) -> Pixels:
    """Return the mask (H, W) uint8 with 1 where exactly `OBJECT_SUM` part covers the pixel, 0 elsewhere."""
    covered = coco_mask.decode(parts).sum(axis=2, dtype=np.int32)
    return np.ascontiguousarray(covered == OBJECT_SUM, dtype=np.uint8)


def covers_nothing(parts: list[RunLengths]) -> bool:
    """Tell whether `decode_parts` would return a mask without a pixel; mostly without drawing it."""
    areas, union = coco_mask.area(parts), int(coco_mask.area(coco_mask.merge(parts)))
    # Pixels that are all covered twice or more make the areas twice the union or more.
    return union == 0 or (int(areas.sum()) >= 2 * union and not decode_parts(parts).any())


def _encode_part(part: Any, height: int, width: int) -> RunLengths:
    if isinstance(part, list):
        _check_polygon(part, height, width)
        return compress([part], height, width)[0]
    if isinstance(part, dict):
        runs = {"size": [height, width], "counts": _read_runs(part, height, width)}
        return compress([runs], height, width)[0]
    raise ValueError(f"its segmentation holds a {type(part).__name__}, neither polygon nor run lengths")


def compress(parts: Any, height: int, width: int) -> list[RunLengths]:
    """Return polygons or plain run lengths as compressed ones.

    parts: a list of either. Of any type, because polygons of fractions and plain runs are missing in the stubs.
    """
    compressed: list[RunLengths] = coco_mask.frPyObjects(parts, height, width)
    return compressed


def _check_polygon(polygon: list[Any], height: int, width: int) -> None:
    """COCO's C code trusts its numbers: points that are NaN or far outside crash the process."""
    try:
        points = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("a polygon holds something that is no number") from None
    if points.ndim != 1 or len(points) % 2:
        raise ValueError(f"a polygon is no list of x, y pairs ({len(polygon)} entries)")
    if not (np.abs(points) <= 10 * max(height, width)).all():
        raise ValueError(f"a polygon has points far outside its image of {width}×{height} pixels")


def _read_runs(part: Record, height: int, width: int) -> list[int]:
    """Return the run lengths, column by column; runs that do not fill the image would decode to stray memory."""
    if part.get("size") not in ([height, width], (height, width)):
        raise ValueError(f"its run lengths are for size {part.get('size')}, its image for {[height, width]} (H, W)")
    counts = part.get("counts")
    if isinstance(counts, str):
        counts = counts.encode("ascii", "replace")
    runs = _expand_counts(counts) if isinstance(counts, bytes) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise ValueError("its run lengths are damaged")
    if sum(runs) != height * width:
        raise ValueError(f"its run lengths cover {sum(runs)} pixels, its image has {height * width}")
    return runs


def _expand_counts(counts: bytes) -> list[int]:
    """Return the numbers in COCO's run-length string.

    A number is five bits a character, lowest first, 48 added, bit 5 set where more follow, sign in the last one's
    bit 4; from the fourth number on it is the difference to the one two before (pycocotools, `rleFrString`).
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = character - 48
        if not 0 <= bits < 64:
            raise ValueError("its run lengths are damaged")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs
