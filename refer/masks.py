"""The mask of an object: from the polygons and run lengths of annotations to pixels."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from lib.photo import Pixels
from lib.run_lengths import RunLengths
from refer.files import Record

# Where parts of an object overlap, their sum is 2 and the pixel counts as background. The annotators did not intend
# this, but the published numbers were measured with such masks. An index with the overlap `object` merges the parts
# first instead.
OBJECT_SUM = 1
POLYGONS = (list, array)  # types of the numbers of a polygon


def encode_parts(segmentation: Sequence[Any] | Mapping[str, Any], height: int, width: int) -> list[RunLengths]:
    """Return the parts of a mask as COCO's compressed run lengths.

    segmentation: a list of polygons [x0, y0, x1, y1, …] in pixels, a list of run lengths, or one run-length dict;
    run lengths are COCO's string, its bytes, or numbers. height, width: of the image in pixels. Raises ValueError with
    the problem if the segmentation is not valid.
    """
    parts = [segmentation] if isinstance(segmentation, dict) else segmentation
    if any(isinstance(part, list) and part and isinstance(part[0], list) for part in parts):
        raise ValueError("a polygon holds its points as nested pairs [[x, y], …]: write them flat, [x0, y0, x1, y1, …]")
    # Fewer than three points enclose no pixel, and COCO's code fails if they come first.
    parts = [part for part in parts if not (isinstance(part, POLYGONS) and len(part) < 6)]
    if not parts:
        raise ValueError("its segmentation is empty")
    _check_size(height, width)
    return [_encode_part(part, height, width) for part in parts]


def encode_nothing(height: int, width: int) -> RunLengths:
    """Return a part without a pixel; ValueError for an image of an impossible size."""
    _check_size(height, width)
    return compress([{"size": [height, width], "counts": [height * width]}], height, width)[0]


def _check_size(height: int, width: int) -> None:
    if min(height, width) < 1 or height * width >= 2**32:  # COCO's C code counts in 32 bits
        raise ValueError(f"its image would be {width}×{height} pixels")


def decode_parts(parts: list[RunLengths]) -> Pixels:
    """Return the mask (H, W) uint8: 1 where exactly `OBJECT_SUM` part covers the pixel, 0 elsewhere."""
    covered = coco_mask.decode(parts).sum(axis=2, dtype=np.int32)
    return np.ascontiguousarray(covered == OBJECT_SUM, dtype=np.uint8)


def covers_nothing(parts: list[RunLengths]) -> bool:
    """Return whether the mask of `decode_parts` would be empty; mostly without decoding it."""
    areas = coco_mask.area(parts)
    if len(parts) == 1:
        return int(areas[0]) == 0
    union = int(coco_mask.area(coco_mask.merge(parts)))
    # The mask can only be empty if all pixels are covered at least twice, so the areas are at least twice the union.
    return union == 0 or (int(areas.sum()) >= 2 * union and not decode_parts(parts).any())


def _encode_part(part: Any, height: int, width: int) -> RunLengths:
    if isinstance(part, POLYGONS):
        _check_polygon(part, height, width)
        return compress([part], height, width)[0]
    if isinstance(part, dict):
        runs = {"size": [height, width], "counts": _read_runs(part, height, width)}
        return compress([runs], height, width)[0]
    raise ValueError(f"its segmentation has a {type(part).__name__}, which is neither a polygon nor run lengths")


def compress(parts: Any, height: int, width: int) -> list[RunLengths]:
    """Return polygons or uncompressed run lengths as compressed run lengths.

    parts: a list of either. Its type is Any because the stubs lack polygons of floats and uncompressed runs.
    """
    compressed: list[RunLengths] = coco_mask.frPyObjects(parts, height, width)
    return compressed


def _check_polygon(polygon: Sequence[Any], height: int, width: int) -> None:
    """Raise ValueError for points that would crash COCO's C code, such as NaN or far outside the image."""
    try:
        points = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("a polygon has an entry that is not a number") from None
    if points.ndim != 1 or len(points) % 2:
        raise ValueError(f"a polygon is not a list of x, y pairs ({len(polygon)} entries)")
    if not (np.abs(points) <= 10 * max(height, width)).all():
        raise ValueError(f"a polygon has points far outside its image of {width}×{height} pixels")


def _read_runs(part: Record, height: int, width: int) -> list[int]:
    """Return the run lengths, column by column. ValueError if they do not fill the image, as COCO does not check."""
    if part.get("size") not in ([height, width], (height, width)):
        raise ValueError(f"its run lengths are for size {part.get('size')}, but its image is {[height, width]} (H, W)")
    counts = part.get("counts")
    if isinstance(counts, str):
        counts = counts.encode("utf-8", "surrogatepass")
    runs = _expand_counts(counts) if isinstance(counts, bytes) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise ValueError("its run lengths are damaged")
    if sum(runs) != height * width:
        raise ValueError(f"its run lengths cover {sum(runs)} pixels, but its image has {height * width}")
    return runs


def _expand_counts(counts: bytes) -> list[int]:
    """Return the numbers in COCO's run-length string (pycocotools, `rleFrString`).

    Each character holds five bits of a number, lowest bits first, plus 48. Bit 5 is set if more characters follow, and
    bit 4 of the last one is the sign. From the fourth number on, the difference to the second last number is stored.
    """
    digits = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    if not len(digits):
        return []
    if not ((digits >= 0) & (digits < 64)).all() or digits[-1] & 32:  # the last number must end
        raise ValueError("its run lengths are damaged")
    ends = np.flatnonzero((digits & 32) == 0)  # the last character of every number
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 12:  # 60 bits: no image has as many pixels
        raise ValueError("its run lengths are damaged")
    places = np.arange(ends[-1] + 1) - np.repeat(starts, lengths)
    values = np.add.reduceat((digits[: ends[-1] + 1] & 31) << (5 * places), starts)
    values -= np.where(digits[ends] & 16, np.int64(1) << (5 * lengths), 0)
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    runs: list[int] = values.tolist()
    return runs


def box_of(parts: list[RunLengths]) -> list[float]:
    """Return the box [x, y, w, h] around all parts, in pixels."""
    return [float(value) for value in coco_mask.toBbox(coco_mask.merge(parts))]
