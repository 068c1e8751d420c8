"""Masks predicted by any model, checked while reading: a folder of PNGs, COCO's JSON of run lengths, or JSON lines.

- A folder: `SENT_ID.png`, or the names of `test.py --save-masks` (`000012_ref7_sent19.png`); pixels that are not black
  are object.
- JSON lines, as `test.py --predictions` writes them: {"sent_id": 19, "segmentation": {"size": [H, W], "counts": "…"}}.
- JSON: a list of such records, or COCO's `annotations` with `images`, as `predict.py --json` writes them.

A record without a `sent_id` is found by the file name of its image and its `text`, as are the lines of
`predict.py --json FILE.jsonl`, which have a `file_name` each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from pycocotools import mask as coco_mask

from errors import UserError
from lib.photo import MAX_PIXELS, ImageError, Places, read_mask
from lib.run_lengths import RunLengths
from lib.texts import read_json_lines, split_lines
from refer.files import Record
from refer.masks import encode_parts
from refer.rows import stored_mask_size

NAME = re.compile(r"(?:\d+_ref\d+_sent)?(\d{1,18})")  # of a PNG, without its suffix

Pair: TypeAlias = tuple[str, str]  # file name of an image, sentence


class Answer(NamedTuple):
    """A predicted mask."""

    where: str  # file and line, for messages
    mask: RunLengths | Path  # run lengths, or the picture
    no_target: bool | None = None  # answer of a no-target head, if there is one

    def load(self) -> Places:
        """Return the mask, (H, W) bool. Raises UserError if the picture cannot be read."""
        if not isinstance(self.mask, Path):
            return coco_mask.decode(self.mask).astype(bool)
        if self.mask.is_symlink():
            raise UserError(f"{self.mask} is a link: only files in the folder itself are read")
        try:
            return read_mask(self.mask)
        except ImageError as error:
            raise UserError(f"the mask {self.mask} cannot be read ({error})") from error

    def same_as(self, other: Answer) -> bool:
        """Return whether two answers are equal."""
        return self.no_target == other.no_target and np.array_equal(self.load(), other.load())


class Predictions(NamedTuple):
    """The answers of a file or folder."""

    by_id: dict[int, list[Answer]]  # by sent_id
    by_pair: dict[Pair, list[Answer]]  # of records without a sent_id; with the file name of the record
    others: list[str]  # files that belong to no sentence, for messages


def read_predictions(path: Path) -> Predictions:
    """Return the predictions in a file or folder. Raises UserError, naming file and line, for invalid ones."""
    predictions = Predictions({}, {}, [])
    if path.is_dir():
        _read_folder(path, predictions)
        return predictions
    for where, record, image in _records(path):
        answer = _answer(where, record)
        if "sent_id" in record:
            predictions.by_id.setdefault(_sent_id(where, record), []).append(answer)
        elif image is not None and isinstance(record.get("text"), str):
            predictions.by_pair.setdefault((image, record["text"]), []).append(answer)
        else:
            raise UserError(f'{where} has no "sent_id", nor an image with a file name and a "text"')
    return predictions


def _read_folder(folder: Path, predictions: Predictions) -> None:
    for path in sorted(folder.iterdir()):
        name = NAME.fullmatch(path.stem)
        if path.suffix.lower() == ".png" and name:
            predictions.by_id.setdefault(int(name[1]), []).append(Answer(str(path), path))
        else:
            predictions.others.append(str(path))
    if not predictions.by_id:
        raise UserError(f"the folder {folder} has no mask: masks are named SENT_ID.png")


def _records(path: Path) -> Iterator[tuple[str, Record, str | None]]:
    """Yield the file and line of every record, the record, and the file name of its image if known."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"the predictions {path} cannot be read ({error.strerror or error})") from error
    lines = split_lines(content, path)
    if _is_json_lines(lines):
        for number, record in read_json_lines(path):
            where = f"{path}, line {number}"
            yield where, _checked(where, record), _image_of(record, {})
        return
    try:
        whole = json.loads("\n".join(lines))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is neither JSON nor JSON lines ({error})") from error
    images: Mapping[Any, str] = {}
    records, name = whole, "record"
    if isinstance(whole, dict):
        records, name, images = whole.get("annotations"), "annotation", _file_names(whole.get("images"))
    if not isinstance(records, list):
        raise UserError(f"{path} has neither a list of records nor COCO's annotations")
    for number, record in enumerate(records, start=1):
        where = f"{path}, {name} {number}"
        yield where, _checked(where, record), _image_of(record, images)


def _is_json_lines(lines: Sequence[str]) -> bool:
    first = next((line for line in lines if line.strip()), "")
    try:
        return isinstance(record := json.loads(first), dict) and "segmentation" in record
    except (ValueError, RecursionError):
        return False


def _file_names(images: Any) -> dict[Any, str]:
    if not isinstance(images, list):
        return {}
    kept = [one for one in images if isinstance(one, dict) and isinstance(one.get("file_name"), str)]
    return {one["id"]: one["file_name"] for one in kept if isinstance(one.get("id"), int)}


def _image_of(record: Record, images: Mapping[Any, str]) -> str | None:
    """Return the file name of a record's image: by its id, or its own, as in the lines of `predict.py`."""
    number, name = record.get("image_id"), record.get("file_name")
    by_id = images.get(number) if isinstance(number, int) else None
    return by_id or (name if isinstance(name, str) else None)


def _checked(where: str, record: Any) -> Record:
    if not isinstance(record, dict):
        raise UserError(f"{where} is a {type(record).__name__}, not an object with a segmentation")
    return record


def _sent_id(where: str, record: Record) -> int:
    number = record["sent_id"]
    if type(number) is not int:
        raise UserError(f"{where}: sent_id is {number!r:.40}, not a whole number")
    return number


def _answer(where: str, record: Record) -> Answer:
    no_target = record.get("no_target")
    if no_target is not None and type(no_target) is not bool:
        raise UserError(f"{where}: no_target is {no_target!r:.40}, not true or false")
    try:
        return Answer(where, _run_lengths(record.get("segmentation")), no_target)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _run_lengths(segmentation: Any) -> RunLengths:
    """Return a mask as compressed run lengths. Raises ValueError unless it is valid run lengths."""
    part = segmentation[0] if isinstance(segmentation, list) and len(segmentation) == 1 else segmentation
    if not isinstance(part, dict):
        raise ValueError('its segmentation is not run lengths, {"size": [H, W], "counts": …}')
    size = stored_mask_size(part)
    if size is None:
        raise ValueError(f"the size of its run lengths is {part.get('size')!r:.40}, not [height, width]")
    width, height = size
    if width * height > MAX_PIXELS:
        raise ValueError(f"its {width}×{height} pixels exceed the limit of {MAX_PIXELS:,}")
    (code,) = encode_parts(part, height, width)
    return code


# ---------------------------------------------------------------- matching answers with expressions


def match(
    predictions: Predictions, sent_ids: Sequence[int], pairs: Sequence[Pair]
) -> tuple[dict[int, list[Answer]], list[str]]:
    """Return the answers by index of the expression, and those of no expression as texts for messages.

    sent_ids, pairs: of all expressions, in order. If several expressions have one pair, each gets its answers.
    """
    by_id = {sent_id: index for index, sent_id in enumerate(sent_ids)}
    by_pair: dict[Pair, list[int]] = {}
    for index, pair in enumerate(pairs):
        by_pair.setdefault(pair, []).append(index)
    files = {file for file, _ in by_pair}
    answers: dict[int, list[Answer]] = {}
    extra = list(predictions.others)
    for sent_id, given in predictions.by_id.items():
        if sent_id in by_id:
            answers.setdefault(by_id[sent_id], []).extend(given)
        else:
            extra += [f"{answer.where}: sent_id {sent_id}" for answer in given]
    for (file, text), given in predictions.by_pair.items():
        indices = by_pair.get((_known(file, files), text), [])
        for index in indices:
            answers.setdefault(index, []).extend(given)
        if not indices:
            extra += [f"{answer.where}: {text!r:.60} about {file}" for answer in given]
    return answers, extra


def _known(file: str, files: set[str]) -> str:
    """Return the longest end of a path that is a file name of the data set; "" if none is."""
    parts = PurePosixPath(file.replace("\\", "/")).parts
    ends = (PurePosixPath(*parts[start:]).as_posix() for start in range(len(parts)))
    return next((end for end in ends if end in files), "")
