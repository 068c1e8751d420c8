"""Make an index from rows, for data sets whose files have an image's name and a mask for every sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from errors import UserError, few_lines
from lib.files import write_atomically
from lib.photo import ImageError, MissingImageError, opened, resize_mask
from lib.run_lengths import RunLengths, encode_mask
from refer.files import Instances, Record, sentence_record
from refer.masks import box_of, decode_parts, encode_parts
from refer.refer import Index, Source
from refer.splits import MANUAL

THREADS = 8
N_NAMED = 100  # problems listed in a message
KEPT = "sizes.json"  # beside a folder of images: by name bytes, time of change, width, height
Size = tuple[int, int]  # width, height


class RowError(Exception):
    """A fault of a row. Its message does not name file and line."""


class Row(NamedTuple):
    """One sentence, or several, about one object."""

    where: str  # file and line, for messages
    split: str
    file_name: str  # of the image
    sentences: list[str]
    parts: list[RunLengths]
    size: Size  # of the image
    category: str = "object"


def build_index(source: Source, rows: Sequence[Row], overlap: str) -> Index:
    """Return the index of rows, numbered in order; rows with the same image and mask share an annotation."""
    images: dict[str, Record] = {}
    annotations: dict[tuple[str, str], Record] = {}
    categories = {name: number for number, name in enumerate(dict.fromkeys(row.category for row in rows), start=1)}
    refs: list[Record] = []
    sent_id = 0
    for number, row in enumerate(rows, start=1):
        width, height = row.size
        image = {"id": len(images) + 1, "file_name": row.file_name, "width": width, "height": height}
        image = images.setdefault(row.file_name, image)
        ids = {"image_id": image["id"], "category_id": categories[row.category]}
        ann = {"id": len(annotations) + 1, "segmentation": row.parts, "bbox": box_of(row.parts)} | ids
        ann = annotations.setdefault((row.file_name, repr(row.parts)), ann)
        sentences = []
        for text in row.sentences:
            sent_id += 1
            sentences.append(sentence_record(sent_id, text))
        refs.append({"ref_id": number, "ann_id": ann["id"], "split": row.split, "sentences": sentences} | ids)
    instances: Instances = {
        "images": list(images.values()),
        "annotations": list(annotations.values()),
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }
    return Index(source, refs, instances, overlap)


def refuse(problems: Sequence[str], count: int = N_NAMED) -> None:
    """Raise UserError with all problems of a data set, if there are any."""
    if problems:
        raise UserError("\n".join([*few_lines(problems, count), MANUAL]))


def image_sizes(folder: Path, names: Sequence[str]) -> dict[str, Size | str]:
    """Return the stored width and height of each image, or its fault as text.

    A file is opened only if `keep_sizes` has not seen it, or if it has changed since.
    """
    sizes: dict[str, Size | str] = {}
    sizes |= _unchanged(folder)
    other = [name for name in dict.fromkeys(names) if name not in sizes]
    with ThreadPoolExecutor(THREADS) as pool:
        sizes |= zip(other, pool.map(lambda name: _size_of(folder / name), other), strict=True)
    return {name: sizes[name] for name in names}


def _size_of(path: Path) -> Size | str:
    try:
        return stored_size(path)
    except RowError as error:
        return str(error)


def keep_sizes(folder: Path, names: Sequence[str]) -> None:
    """Write the sizes of images into a file beside their folder, so that reading need not open every image."""
    kept = {}
    for name, size in image_sizes(folder, names).items():
        with suppress(RowError):
            if not isinstance(size, str):
                kept[name] = [*stamp(folder / name, "image"), *size]
    write_atomically(folder.parent / KEPT, lambda file: file.write(json.dumps(kept).encode()))


def _unchanged(folder: Path) -> dict[str, Size]:
    """Return the sizes that `keep_sizes` wrote, of the files that are as they were; what is damaged is left out."""
    try:
        kept = json.loads((folder.parent / KEPT).read_bytes())
        found = {entry.name: entry.stat() for entry in os.scandir(folder) if entry.name in kept}
    except (OSError, ValueError, RecursionError, TypeError):
        return {}
    sizes = {}
    for name, file in found.items():
        with suppress(ValueError, TypeError):
            n_bytes, changed, width, height = kept[name]
            if [n_bytes, changed] == [file.st_size, file.st_mtime_ns] and _is_side(width) and _is_side(height):
                sizes[name] = (width, height)
    return sizes


def _is_side(value: object) -> bool:
    return type(value) is int and value > 0


def stamp(path: Path, kind: str) -> list[int]:
    """Return bytes and time of change of a file; RowError, naming its kind, if it is missing or cannot be read."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise RowError(f"there is no {kind} {path}") from None
    except OSError as error:
        raise RowError(f"the {kind} {path} cannot be read ({error.strerror})") from error
    return [found.st_size, found.st_mtime_ns]


def stored_size(path: Path) -> Size:
    """Return the stored width and height of an image. Raises RowError if it cannot be read."""
    try:
        with opened(path) as image:
            return image.size
    except MissingImageError:
        raise RowError(f"there is no image {path}") from None
    except ImageError as error:
        raise RowError(f"the image {path} cannot be read ({error})") from error


def check_file_name(name: str) -> None:
    """Raise RowError for a name that leads out of its folder."""
    if name in ("", ".", "..") or set("/\\:\0") & set(name):
        raise RowError(f"{name!r:.100} is no name of a file in the folder of the images")


def stored_mask_size(segmentation: Any) -> Size | None:
    """Return the width and height of run lengths; None for polygons and damaged segmentations."""
    part = segmentation[0] if isinstance(segmentation, list) and segmentation else segmentation
    size = part.get("size") if isinstance(part, dict) else None
    if isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size):
        return size[1], size[0]
    return None


def resize_segmentation(segmentation: Any, size: Size) -> list[RunLengths]:
    """Return a mask resized to its image by nearest neighbour, as run lengths; size: width, height of the image.

    Raises ValueError for an invalid segmentation.
    """
    width, height = stored_mask_size(segmentation) or size
    mask = decode_parts(encode_parts(segmentation, height, width))
    return [encode_mask(resize_mask(mask, (size[1], size[0])))]
