"""Checking a data set: counts, images and masks. Needs no network access."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pycocotools import mask as coco_mask
from tqdm import tqdm

from errors import UserError, cut, few, few_lines
from lib.photo import ImageError, MissingImageError, opened
from refer.datasets import DATA_SETS, is_drawn
from refer.files import Record
from refer.masks import covers_nothing, encode_parts
from refer.refer import Index, ref_name
from refer.splits import counts_of, in_split, total_of

N_MISSING = 100  # missing images that are named

# Common causes of a problem that every image has.
CAUSES = {
    "missing": "none of the {count:,} images is in {folder}: they are elsewhere, or not downloaded yet. Link that "
    "folder to the images, name another --refer_data_root, or call this without --check",
    "size": "all of the {count:,} images differ in size from their records: they were resized, or are other images",
    "unreadable": "none of the {count:,} images can be read, the first one because: {first}",
}


class Problem(NamedTuple):
    """One problem of a data set."""

    kind: str  # problems of one kind are listed together
    text: str  # begins with the file


class Task(NamedTuple):
    """An image and the objects in it."""

    path: Path
    width: int
    height: int
    objects: list[tuple[str, Any]]  # name for messages, segmentation
    overlap: str = "background"  # of an object's parts, see `refer.refer.OVERLAPS`


def check_dataset(refer: Index, workers: int) -> list[str]:
    """Return the problems of a data set as text: a few lines of each kind, and how many more there are.

    A cause that explains all problems of a kind, such as a wrong folder, comes first. workers: processes that decode
    images; 1 decodes in this process.
    """
    problems = [*check_counts(refer), *check_refs(refer), *check_repeats(refer), *check_files(refer, workers)]
    by_kind: dict[str, list[str]] = {}
    for problem in problems:
        by_kind.setdefault(problem.kind, []).append(problem.text)
    causes, count = [], len(needed_images(refer))
    for kind, cause in CAUSES.items():
        if len(texts := by_kind.get(kind, [])) == count > 1:
            causes.append(cause.format(count=count, folder=refer.IMAGE_DIR, first=texts[0]))
    lines = []
    for kind, texts in by_kind.items():
        # Whoever must copy missing images by hand needs their names.
        by_name = kind == "missing" and len(texts) < count
        lines += few_lines(texts, N_MISSING) if by_name else few_lines(texts)
    return causes + lines


def check_counts(refer: Index) -> list[Problem]:
    """Print the numbers of objects and expressions of all splits; return those that differ from the published ones."""
    published, total = counts_of(refer.dataset, refer.splitBy), total_of(refer.dataset)
    n_images = DATA_SETS[refer.dataset].n_images if refer.dataset in DATA_SETS else {}
    if is_drawn(refer.ROOT_DIR):
        print("this is the sample data set: its counts are not compared")
        published, total, n_images = {}, None, {}
    elif not published and total is None:
        print(f"no counts were published for {refer.dataset} ({refer.splitBy}): they are not compared")
    for note in few_lines(refer.resized, N_MISSING):
        print(f"note: {note}")
    problems, found = [], 0
    for split in refer.splits:
        refs = refer.loadRefs(refer.getRefIds(split=split))
        counts = len(refs), sum(len(ref["sentences"]) for ref in refs), len({ref["image_id"] for ref in refs})
        print(f"{split}: {counts[0]:,} objects, {counts[1]:,} expressions, {counts[2]:,} images")
        found += counts[1]
        expected = *published.get(split, (None, None)), n_images.get(split)
        compared = zip(expected, counts, ("objects", "expressions", "images"), strict=True)
        known = [(number, count, kind) for number, count, kind in compared if number is not None]
        if any(number != count for number, count, _ in known):
            text = (
                f"{split} has {counts[0]:,} objects, {counts[1]:,} expressions and {counts[2]:,} images, published are "
            )
            text += " and ".join(f"{number:,} {kind}" for number, _, kind in known)
            problems.append(Problem("counts", f"{refer.refs_file}: {text}"))
    if total not in (None, found):
        text = f"all splits have {found:,} expressions, published are {total:,} expressions in all"
        problems.append(Problem("counts", f"{refer.refs_file}: {text}"))
    return problems


def check_refs(refer: Index) -> list[Problem]:
    """Return the problems in the links from objects to sentences and annotations."""
    problems = []
    for ref in refer.data["refs"]:
        if not ref["sentences"]:
            problems.append(Problem("no sentence", f"{refer.refs_file}: {ref_name(ref)} has no sentence"))
        if blank := [sentence["sent_id"] for sentence in ref["sentences"] if not sentence["raw"].strip()]:
            text = f"{refer.refs_file}: {ref_name(ref)} has an empty sentence, sent_id {few(blank)}"
            problems.append(Problem("no word", text))
        if not any(in_split(ref["split"], split) for split in refer.splits):
            text = f"{refer.refs_file}: {ref_name(ref)} is in split {ref['split']!r:.40}, which does not exist"
            problems.append(Problem("no split", text))
        for image_id in {ann["image_id"] for ann in refer.objects_of(ref)} - {ref["image_id"]}:
            text = f"{refer.refs_file}: the mask of {ref_name(ref)} is on another image, image_id {image_id}"
            problems.append(Problem("other image", text))
    return problems


def check_repeats(refer: Index) -> list[Problem]:
    """Return repeated sentences of one object, and images in two splits, for data sets that should have neither."""
    if refer.dataset not in DATA_SETS or DATA_SETS[refer.dataset].repeats:
        return []
    problems = []
    said: dict[tuple[int, str, str], Record] = {}
    shown: dict[int, str] = {}
    for ref in refer.data["refs"]:
        # An object may appear twice with different ids, so it is identified by its mask.
        mask = json.dumps([ann["segmentation"] for ann in refer.objects_of(ref)], default=repr)
        for sentence in ref["sentences"]:
            first = said.setdefault((ref["image_id"], mask, sentence["raw"]), ref)
            if first is not ref:
                text = f"{refer.refs_file}: {ref_name(ref)} repeats {ref_name(first)}, {cut(sentence['raw'], 40)}"
                problems.append(Problem("duplicate", text))
        if (split := shown.setdefault(ref["image_id"], ref["split"])) != ref["split"]:
            name = refer.Imgs[ref["image_id"]]["file_name"]
            problems.append(Problem("two splits", f"{refer.refs_file}: {name} is in {split} and in {ref['split']}"))
    return problems


def check_files(refer: Index, workers: int) -> list[Problem]:
    """Decode every image and mask of the data set; return the problems, file by file."""
    tasks = [
        Task(
            image_path(refer, image),
            image["width"],
            image["height"],
            _masks_in(refer, image),
            refer.overlap,
        )
        for image in needed_images(refer)
    ]
    hidden = not sys.stderr.isatty()
    with tqdm(total=len(tasks), desc="checking images and masks", unit="image", disable=hidden, leave=False) as bar:
        problems = []
        for image_problems in _results(tasks, workers):
            problems += image_problems
            bar.update()
    return problems


def _masks_in(refer: Index, image: Record) -> list[tuple[str, Any]]:
    """Return the masks of an image's objects, each once, however many refs mean it."""
    refs = refer.imgToRefs[image["id"]]
    masks = {ann["id"]: (ref_name(ref), ann["segmentation"]) for ref in refs for ann in refer.objects_of(ref)}
    return list(masks.values())


def needed_images(refer: Index) -> list[Record]:
    """Return the records of the images that have objects."""
    return refer.loadImgs(refer.getImgIds(refer.getRefIds()))


def image_path(refer: Index, image: Record) -> Path:
    """Return the path of an image; UserError if its name leads out of the image folder."""
    name = PurePosixPath(image["file_name"])
    if name.is_absolute() or ".." in name.parts or not name.parts or set("\\:\0") & set(image["file_name"]):
        raise UserError(f"{refer.instances_file} names an image {image['file_name']!r:.100}, outside its folder")
    return Path(refer.IMAGE_DIR, name)


def _results(tasks: list[Task], workers: int) -> Iterator[list[Problem]]:
    if workers == 1:
        yield from map(check_image, tasks)
        return
    with ProcessPoolExecutor(workers) as pool:
        try:
            yield from pool.map(check_image, tasks, chunksize=16)
        except BrokenProcessPool as error:
            raise UserError(
                "a process that checked images was killed, perhaps for lack of memory: try fewer --workers"
            ) from error


def check_image(task: Task) -> list[Problem]:
    """Return the problems of an image and its masks."""
    problems = []
    try:
        with opened(task.path) as image:
            size = image.size
            image.load()
        if size != (task.width, task.height):
            text = f"{task.path}: is {size[0]}×{size[1]} pixels, not {task.width}×{task.height}"
            problems.append(Problem("size", text))
    except MissingImageError:
        problems.append(Problem("missing", f"{task.path}: is missing"))
    except ImageError as error:
        problems.append(Problem("unreadable", f"{task.path}: cannot be read ({error})"))
    return problems + [
        Problem(problem.kind, f"{task.path}: {name} {problem.text}")
        for name, segmentation in task.objects
        for problem in check_mask(segmentation, task.height, task.width, task.overlap)
    ]


def check_mask(segmentation: Any, height: int, width: int, overlap: str = "background") -> list[Problem]:
    """Return the problem of an object's mask, if there is one."""
    try:
        parts = encode_parts(segmentation, height, width)
    except ValueError as error:
        return [Problem("no mask", f"has no mask: {error}")]
    if not covers_nothing([coco_mask.merge(parts)] if overlap == "object" else parts):
        return []
    reason = (
        "its parts cover each other, and overlap is background"
        if coco_mask.area(parts).any()
        else "too small or outside"
    )
    return [Problem("no pixel", f"covers no pixel of its image ({reason})")]
