"""Your own data: one object per line, with its sentences and its mask.

    {"image": "photos/1.jpg", "sentences": ["the red cup", "cup on the left"], "polygons": [[12, 7.5, 80, 9, 75, 60]]}
    {"image": "photos/1.jpg", "sentences": ["the spoon"], "rle": {"size": [480, 640], "counts": "…"}, "split": "val"}
    {"image": "photos/2.jpg", "sentences": ["the dog"], "mask": "masks/2_dog.png"}

Paths are relative to the file. polygons: [x0, y0, x1, y1, …] in pixels, one list per part; rle: COCO's run lengths, or
a list of them; mask: an image of the photo's size, black outside the object and not black on it. split: the object's
split; default: the name of the file, such as train.jsonl or val.jsonl.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from errors import UserError, user_message
from lib.outputs import is_same
from lib.photo import ImageError, open_photo, photo_size, read_mask
from lib.run_lengths import RunLengths, encode_mask
from lib.texts import parse_json_line
from lib.texts import read_lines as text_lines
from refer.files import Instances, Record, sentence_record
from refer.masks import box_of, encode_parts
from refer.refer import Index, Source, repeated
from utils import log

MASK_KEYS = ("polygons", "rle", "mask")
THREADS = 4
N_NAMED = 5  # photos or masks that a note lists

Line = tuple[Path, int, Record]  # file, number and record of a line


def read_jsonl(paths: Sequence[str | Path], overlap: str = "background") -> Index:
    """Return the index of one or several files. Image paths in it are relative to the folder of the first file.

    overlap: the label of pixels that several parts of an object cover, one of `refer.refer.OVERLAPS`. Raises UserError
    with file and line if the line is not as described above, or if its image or mask cannot be read.
    """
    files = [Path(path) for path in paths]
    check_named_once(files)
    root = files[0].parent
    lines = [(file, number, record) for file in files for number, record in read_lines(file)]
    images = _number_images(lines, root)
    with ThreadPoolExecutor(THREADS) as pool:  # decoding masks is most of the work
        segmentations = list(pool.map(lambda line: _segmentation(line, images), lines))
    _report_whole_images(lines, segmentations)
    _report_shared_photos(lines)
    refs: list[Record] = []
    annotations: list[Record] = []
    sent_id = 0
    for number, ((file, _, record), segmentation) in enumerate(zip(lines, segmentations, strict=True), start=1):
        image = images[image_of(file, record)]
        sentences = []
        for text in record["sentences"]:
            sent_id += 1
            sentences.append(sentence_record(sent_id, text))
        ids = {"image_id": image["id"], "category_id": 1}
        split = split_of(file, record)
        refs.append({"ref_id": number, "ann_id": number, "split": split, "sentences": sentences} | ids)
        annotations.append({"id": number, "segmentation": segmentation, "bbox": box_of(segmentation)} | ids)
    instances: Instances = {
        "images": list(images.values()),
        "annotations": annotations,
        "categories": [{"id": 1, "name": "object"}],
    }
    splits = tuple(dict.fromkeys(ref["split"] for ref in refs))
    return Index(
        Source("jsonl", "file", splits, root, root, files[0], files[0], as_seen=True), refs, instances, overlap
    )


def check_named_once(files: Sequence[Path]) -> None:
    """Raise UserError if two paths lead to one file."""
    if twice := repeated(os.path.realpath(file) for file in files):
        raise UserError(f"--data names {twice[0]} more than once: its objects would be counted more than once")


def read_lines(file: Path) -> Iterator[tuple[int, Record]]:
    """Yield the number and the checked record of every line that is not empty."""
    for number, record in _try_lines(file):
        if isinstance(record, UserError):
            raise UserError(f"{record}. What a line holds: docs/data.md") from record
        yield number, record


def _try_lines(file: Path) -> Iterator[tuple[int, Record | UserError]]:
    """Yield the number and the checked record of every line that is not empty, or the error about it.

    Raises UserError if the file cannot be read or holds no object.
    """
    lines = [(number, line) for number, line in enumerate(text_lines(file), start=1) if line.strip()]
    if not lines:
        raise UserError(f"--data: {file} holds no object")
    for number, line in lines:
        try:
            yield number, _record(line, f"{file}, line {number}")
        except UserError as error:
            yield number, error


def _record(line: str, where: str) -> Record:
    """Return the checked record of a line. Raises UserError, which names it by `where`."""
    record: Record = parse_json_line(line, where)
    if problem := _problem(record):
        raise UserError(f"{where}: {problem}")
    return record


def _problem(record: Any) -> str:
    """Return what is wrong with the record of a line; "" if nothing is."""
    if not isinstance(record, dict):
        return f"it holds a {type(record).__name__}, not an object"
    if not isinstance(record.get("image"), str):
        return '"image" must be a path'
    sentences = record.get("sentences")
    if not (isinstance(sentences, list) and sentences and all(map(_is_text, sentences))):
        return '"sentences" must be a list of one or more strings, none of them empty'
    if not _is_text(record.get("split", "none")):
        return '"split" must be a string that is not empty'
    given = [key for key in MASK_KEYS if key in record]
    if len(given) != 1:
        return f"it needs exactly one of {', '.join(MASK_KEYS)}, but has {', '.join(given) or 'none'}"
    if "mask" in record and not isinstance(record["mask"], str):
        return '"mask" must be a path'
    if not isinstance(record[given[0]], str | list | dict):
        return f'"{given[0]}" must be a list'
    return ""


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def image_of(file: Path, record: Record) -> Path:
    """Return the photo of a line."""
    return Path(file.parent, record["image"])


def split_of(file: Path, record: Record) -> str:
    """Return the split of a line."""
    split: str = record.get("split", file.stem)
    return split


def _number_images(lines: Sequence[Line], root: Path) -> dict[Path, Record]:
    """Return a COCO record of every image, with the size in its file."""
    images: dict[Path, Record] = {}
    for file, number, record in lines:
        path = image_of(file, record)
        if path not in images:
            width, height = _size(path, f"{file}, line {number}")
            name = _relative(path, root)
            images[path] = {"id": len(images) + 1, "file_name": name, "width": width, "height": height}
    return images


def _relative(path: Path, root: Path) -> str:
    """Return the name that leads from a folder to an existing file, also if a folder on the way is a link."""
    name = os.path.relpath(path, root)
    if is_same(root / name, path):
        return name
    return os.path.relpath(os.path.realpath(path), os.path.realpath(root))  # ".." leads out of the link's target


def _size(path: Path, where: str) -> tuple[int, int]:
    try:
        return photo_size(path)
    except ImageError as error:
        raise UserError(f"{where}: the image {path} cannot be read ({error})") from error


def _segmentation(line: Line, images: dict[Path, Record]) -> list[RunLengths]:
    """Return a line's mask as run lengths of its parts."""
    file, number, record = line
    image = images[image_of(file, record)]
    if "mask" in record:
        parts: Any = _read_mask(file, number, record, image)
    else:
        parts = record["polygons" if "polygons" in record else "rle"]
    try:
        return encode_parts(parts, image["height"], image["width"])
    except ValueError as error:
        raise UserError(f"{file}, line {number} has no mask: {error}") from error


def _read_mask(file: Path, number: int, record: Record, image: Record) -> RunLengths:
    path = file.parent / record["mask"]
    try:
        mask = read_mask(path)
    except ImageError as error:
        raise UserError(f"{file}, line {number}: the mask {path} cannot be read ({error})") from error
    if mask.shape != (image["height"], image["width"]):
        raise UserError(
            f"{file}, line {number}: the mask {path} is {mask.shape[1]}×{mask.shape[0]} pixels, "
            f"but its image {image['width']}×{image['height']}"
        )
    if not mask.any():
        raise UserError(f"{file}, line {number}: the mask {path} is empty: all of it is black or transparent")
    return encode_mask(mask)


# ---------------------------------------------------------------- checking


def check_jsonl(paths: Sequence[str | Path]) -> list[str]:
    """Return all that is wrong in files of own data, with file and line; print how many objects each split has.

    Decodes every photo and mask, and writes nothing. Logs the notes of `read_jsonl` about the valid lines.
    """
    files = [Path(path) for path in paths]
    problems: list[str] = []
    try:
        check_named_once(files)
    except UserError as error:
        problems.append(user_message(error))
    lines: list[Line] = []
    for file in {os.path.realpath(file): file for file in files}.values():
        try:
            for number, record in _try_lines(file):
                if isinstance(record, UserError):
                    problems.append(user_message(record))
                else:
                    lines.append((file, number, record))
        except UserError as error:
            problems.append(user_message(error))
    valid: list[Line] = []
    segmentations: list[list[RunLengths]] = []
    for line, found in zip(lines, _try_masks(lines), strict=True):
        if isinstance(found, UserError):
            problems.append(user_message(found))
        else:
            valid.append(line)
            segmentations.append(found)
    for split, count in sorted(Counter(split_of(file, record) for file, _, record in valid).items()):
        print(f"{split}: {count:,} valid objects")
    _report_whole_images(valid, segmentations)
    _report_shared_photos(valid)
    return problems


def _try_masks(lines: Sequence[Line]) -> list[list[RunLengths] | UserError]:
    """Return the mask of every line, or the error about it or its photo. Decodes every photo once."""
    paths = list(dict.fromkeys(image_of(file, record) for file, _, record in lines))
    with ThreadPoolExecutor(THREADS) as pool:
        photos = dict(zip(paths, pool.map(_try_photo, paths), strict=True))
        return list(pool.map(lambda line: _try_mask(line, photos), lines))


def _try_photo(path: Path) -> Record | UserError:
    """Return the size of a photo as in a COCO record, or why it cannot be decoded."""
    try:
        width, height = open_photo(path).size
    except UserError as error:
        return error
    return {"width": width, "height": height}


def _try_mask(line: Line, photos: Mapping[Path, Record | UserError]) -> list[RunLengths] | UserError:
    file, number, record = line
    path = image_of(file, record)
    photo = photos[path]
    if isinstance(photo, UserError):
        return UserError(f"{file}, line {number}: {user_message(photo)}")
    try:
        return _segmentation(line, {path: photo})
    except UserError as error:
        return error


# ---------------------------------------------------------------- notes


def _report_whole_images(lines: Sequence[Line], segmentations: Sequence[list[RunLengths]]) -> None:
    """Log the mask images that cover their whole photo, for example because their background is not quite black."""
    whole = [
        f"{file}, line {number}: {file.parent / record['mask']}"
        for (file, number, record), (part, *_) in zip(lines, segmentations, strict=True)
        if "mask" in record and coco_mask.area(part) == part["size"][0] * part["size"][1]
    ]
    if whole:
        log(
            f"note: {_count(whole, 'mask covers', 'masks cover')} the whole image ({_first(whole)}). Only black pixels "
            "are outside the object"
        )


def _report_shared_photos(lines: Sequence[Line]) -> None:
    """Log the photos that are in `train` and also in another split, even under another name."""
    splits: dict[Path, set[str]] = {}
    for file, _, record in lines:
        splits.setdefault(image_of(file, record), set()).add(split_of(file, record))
    shared: dict[str, list[str]] = {}
    for paths in _same_files(splits):
        used_in = set().union(*(splits[path] for path in paths))
        for split in sorted(used_in - {"train"}) if "train" in used_in else []:
            shared.setdefault(split, []).append(" = ".join(map(str, paths)))
    for split, names in sorted(shared.items()):
        log(
            f"note: {_count(names, 'photo is', 'photos are')} both in train and in {split} ({_first(names)}): "
            f"scores on {split} do not show how well the network does on unseen photos"
        )


def _same_files(splits: Mapping[Path, set[str]]) -> Iterator[list[Path]]:
    """Yield groups of paths to the same content: to one file, or to copies of it."""
    by_size: dict[int, list[Path]] = {}
    for path in splits:
        by_size.setdefault(path.stat().st_size, []).append(path)
    for paths in by_size.values():
        if len(paths) == 1:
            yield paths
            continue
        by_content: dict[bytes, list[Path]] = {}
        for path in paths:
            by_content.setdefault(hashlib.sha256(path.read_bytes()).digest(), []).append(path)
        yield from by_content.values()


def _count(items: Sequence[str], one: str, many: str) -> str:
    return f"{len(items)} {one if len(items) == 1 else many}"


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else ""
    return ", ".join(names[:N_NAMED]) + more
