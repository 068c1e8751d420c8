"""Remote-sensing data sets as other groups distribute them: one `DATASET_SPLIT.jsonl` for each split.

    {"file_name": "1.jpg", "sent": "a red car", "segmentation": {"size": [800, 800], "counts": "…"}, "category": "car"}

The images are in the owners' folder. These files are read only if the owners' files are missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lib.texts import read_json_lines
from refer.datasets import DATA_SETS, image_folder
from refer.masks import covers_nothing, encode_parts
from refer.refer import Index, Source
from refer.rows import (
    Row,
    RowError,
    Size,
    build_index,
    check_file_name,
    image_sizes,
    refuse,
    resize_segmentation,
    stored_mask_size,
)
from refer.splits import splits_of

File = tuple[str, Path]  # split and file


def find_files(root: Path, dataset: str, split_by: str) -> list[File]:
    """Return the existing files of a data set's splits."""
    folders = (root / dataset, root, image_folder(root, dataset).parent)
    existing = []
    for split in splits_of(dataset, split_by):
        files = [folder / f"{dataset}_{split}.jsonl" for folder in folders]
        existing += [(split, file) for file in files if file.is_file()][:1]
    return existing


def read_passed_on(root: Path, dataset: str, split_by: str, overlap: str) -> Index:
    """Return the index of the files of `find_files`. Raises UserError with every problem, by file and line."""
    files, images = find_files(root, dataset, split_by), image_folder(root, dataset)
    lines = [(split, f"{file}, line {n}", value) for split, file in files for n, value in read_json_lines(file)]
    problems = [f"{where}: {problem}" for _, where, value in lines for problem in _problems(value)]
    refuse(problems)
    sizes = image_sizes(images, list(dict.fromkeys(value["file_name"] for _, _, value in lines)))
    fits_masks = DATA_SETS[dataset].fits_masks
    rows: list[Row] = []
    resized: list[str] = []
    for split, where, value in lines:
        try:
            row, note = _row(split, where, value, sizes, fits_masks=fits_masks)
        except RowError as error:
            problems.append(f"{where}: {error}")
            continue
        rows.append(row)
        resized += [note] if note else []
    refuse(problems)
    text = files[0][1]
    index = build_index(
        Source(dataset, split_by, splits_of(dataset, split_by), root, images, text, text), rows, overlap
    )
    index.resized = resized
    return index


def _problems(value: Any) -> Iterator[str]:
    """Yield the faults of a line's value, without opening image or mask."""
    if not isinstance(value, dict):
        yield f"it holds a {type(value).__name__}, not an object"
        return
    for key in ("file_name", "sent"):
        if not (isinstance(value.get(key), str) and value[key].strip()):
            yield f'"{key}" must be a text, and not empty'
            return
    if not isinstance(value.get("segmentation"), dict | list):
        yield '"segmentation" must be run lengths, or a list with one'
    if not isinstance(value.get("category", ""), str):
        yield '"category" must be a text'
    try:
        check_file_name(value["file_name"])
    except RowError as error:
        yield str(error)


def _row(
    split: str, where: str, value: Mapping[str, Any], sizes: Mapping[str, Size | str], *, fits_masks: bool
) -> tuple[Row, str]:
    """Return a line's row, and a note if its mask was resized, otherwise ""."""
    name, segmentation, size = value["file_name"], value["segmentation"], sizes[value["file_name"]]
    if isinstance(size, str):
        raise RowError(size)
    mask_size, note = stored_mask_size(segmentation), ""
    try:
        if fits_masks and mask_size not in (None, size):
            parts, note = resize_segmentation(segmentation, size), describe_resized(where, name, mask_size, size)
        else:
            parts = encode_parts(segmentation, size[1], size[0])
    except ValueError as error:
        raise RowError(f"it has no mask: {error}") from error
    if covers_nothing(parts):
        raise RowError("its mask covers nothing")
    category = value.get("category", "").strip() or "object"
    return Row(where, split, name, [value["sent"].strip()], parts, size, category), note


def describe_resized(where: str, image: str, mask_size: Size | None, size: Size) -> str:
    """Return the note about a mask that was resized to its image."""
    mask = f"{mask_size[0]}×{mask_size[1]}" if mask_size else "of another size"
    return f"{where}: the image {image} is {size[0]}×{size[1]} pixels, its mask {mask}: it is resized to the image"
