"""Data sets of a folder of images, a folder of masks and files of lines `NAME phrase…`: RefSegRS, RISBench.

    images/1.tif    masks/1.tif    output_phrase_train.txt: "1 vehicle in the parking area"

`refer.datasets.Lines` tells which pixels of a mask picture are object, and which suffix NAME omits. `refer.prepare`
saves the masks as run lengths (`masks.json`). A saved mask is used only if the files of image and mask have the
recorded sizes and modification times.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from errors import UserError
from lib.files import write_text
from lib.photo import ImageError, MissingImageError, read_above
from lib.run_lengths import RunLengths, encode_mask, with_text
from lib.texts import read_lines
from refer.datasets import DATA_SETS, Lines, image_folder
from refer.masks import covers_nothing, encode_parts
from refer.refer import Index, Source
from refer.rows import THREADS, Row, RowError, Size, build_index, check_file_name, refuse, stamp, stored_size
from refer.splits import MANUAL, splits_of

CONVERTED = "masks.json"
VERSION = 1


class Mask(NamedTuple):
    """A mask picture as run lengths, and the size of its image."""

    stamps: list[int]  # bytes and modification time of the image's file, then of the mask's
    size: Size
    counts: str

    @property
    def parts(self) -> list[RunLengths]:
        """The mask in the form of an index."""
        return [{"size": [self.size[1], self.size[0]], "counts": self.counts}]


class Line(NamedTuple):
    """A parsed line of text."""

    where: str
    split: str
    file_name: str
    phrase: str


def read_lines_data(root: Path, dataset: str, split_by: str, overlap: str) -> Index:
    """Return the index of a data set. Raises UserError with every problem, by file and line."""
    images = image_folder(root, dataset)
    lines, masks = _read_all(images, dataset, split_by)
    rows = [
        Row(line.where, line.split, line.file_name, [line.phrase], mask.parts, mask.size)
        for line in lines
        for mask in [masks[line.file_name]]
    ]
    text = text_files(images.parent, splits_of(dataset, split_by))[0][1]
    source = Source(dataset, split_by, splits_of(dataset, split_by), root, images, text, text)
    return build_index(source, rows, overlap)


def convert_masks(root: Path, dataset: str, split_by: str) -> None:
    """Write the masks of a data set as run lengths next to its folders, so that reading need not decode pictures."""
    images = image_folder(root, dataset)
    masks = _read_all(images, dataset, split_by)[1]
    content = {"version": VERSION, "above": _layout(dataset).above, "masks": masks}
    write_text(images.parent / CONVERTED, json.dumps(content))


def text_files(folder: Path, splits: tuple[str, ...]) -> list[tuple[str, Path]]:
    """Return the existing files of sentences, with their splits."""
    files = [(split, folder / f"output_phrase_{split}.txt") for split in splits]
    return [(split, file) for split, file in files if file.is_file()]


def _layout(dataset: str) -> Lines:
    layout = DATA_SETS[dataset].lines
    assert layout is not None, dataset
    return layout


def _read_all(images: Path, dataset: str, split_by: str) -> tuple[list[Line], dict[str, Mask]]:
    """Return all lines, and the mask of every named image."""
    layout = _layout(dataset)
    files = text_files(images.parent, splits_of(dataset, split_by))
    if not files:
        raise UserError(
            f"there is no output_phrase_train.txt, _val.txt or _test.txt in {images.parent}. The layout is "
            f"DATA_ROOT/{DATA_SETS[dataset].images[0]}, next to it the folder {layout.masks} and these files. {MANUAL}"
        )
    lines: list[Line] = []
    problems: list[str] = []
    for split, file in files:
        _collect(_parse_lines(split, file, layout), lines, problems)
    first: dict[str, Line] = {}
    for line in lines:
        first.setdefault(line.file_name, line)
    known = _read_converted(images.parent / CONVERTED, layout)
    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(lambda line: _read_mask(line, images, layout, known), first.values()))
    problems += [result for result in results if isinstance(result, str)]
    refuse(problems)
    masks = {name: mask for name, mask in zip(first, results, strict=True) if isinstance(mask, Mask)}
    return lines, masks


def _collect(parsed: Iterator[Line | str], lines: list[Line], problems: list[str]) -> None:
    for result in parsed:
        if isinstance(result, Line):
            lines.append(result)
        else:
            problems.append(result)


def _parse_lines(split: str, file: Path, layout: Lines) -> Iterator[Line | str]:
    """Yield the lines of a file that are not empty, or their faults as text."""
    number = 0
    for number, text in enumerate(read_lines(file), start=1):
        name, _, phrase = text.strip().partition(" ")
        where = f"{file}, line {number}"
        try:
            if not name:
                continue
            if not phrase.strip():
                raise RowError(f"{name!r:.100} has no phrase: a line is NAME, a space, and the phrase")
            file_name = name if name.endswith(layout.suffix) else name + layout.suffix
            check_file_name(file_name)
            yield Line(where, split, file_name, phrase.strip())
        except RowError as error:
            yield f"{where}: {error}"
    if not number:
        yield f"{file} is empty"


# ---------------------------------------------------------------- masks


def _read_mask(line: Line, images: Path, layout: Lines, known: dict[str, Mask]) -> Mask | str:
    """Return the mask of a line's image, or its fault as text that begins with file and line."""
    image, picture = images / line.file_name, images.parent / layout.masks / line.file_name
    try:
        stamps = [*stamp(image, "image"), *stamp(picture, "mask")]
        converted = known.get(line.file_name)
        if converted and converted.stamps == stamps:
            return converted
        return Mask(stamps, *_decode(image, picture, layout))
    except RowError as error:
        return f"{line.where}: {error}"


def _decode(image: Path, picture: Path, layout: Lines) -> tuple[Size, str]:
    size = stored_size(image)
    try:
        mask = read_above(picture, layout.above)
    except MissingImageError:
        raise RowError(f"there is no mask {picture}") from None
    except ImageError as error:
        raise RowError(f"the mask {picture} cannot be read ({error})") from error
    if mask.shape != (size[1], size[0]):
        raise RowError(f"the mask {picture} is {mask.shape[1]}×{mask.shape[0]} pixels, its image {size[0]}×{size[1]}")
    code = encode_mask(mask)
    if covers_nothing([code]):
        raise RowError(f"the mask {picture} covers nothing: none of its values is above {layout.above}")
    return size, str(code["counts"])


def _read_converted(path: Path, layout: Lines) -> dict[str, Mask]:
    """Return the masks that were converted before, without damaged ones and those of another version or threshold."""
    try:
        content = json.loads(path.read_bytes())
        if (content["version"], content["above"]) != (VERSION, layout.above):
            return {}
        entries = list(content["masks"].items())
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return {}
    return {name: mask for name, value in entries if (mask := _as_mask(value))}


def _as_mask(value: Any) -> Mask | None:
    with suppress(ValueError, TypeError):
        stamps, (width, height), counts = value
        if type(width) is not int or type(height) is not int:
            return None
        parts = encode_parts({"size": [height, width], "counts": counts}, height, width)
        if not covers_nothing(parts):
            return Mask(stamps, (width, height), str(with_text(parts[0])["counts"]))
    return None
