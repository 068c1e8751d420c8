"""Checking a data set: counts, images and masks. Needs no network."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pycocotools import mask as coco_mask
from tqdm import tqdm

from errors import UserError, few, few_lines
from lib.photo import ImageError, MissingImageError, opened
from refer.files import Record
from refer.masks import covers_nothing, encode_parts
from refer.refer import REFER, ref_name
from refer.splits import counts_of, in_split

SAMPLE_NOTE = "sample.json"  # marks the sample data set


# What can be wrong with every image at once, and what it then means.
CAUSES = {
    "missing": "none of the {count:,} images is in {folder}: they lie elsewhere, or were not fetched yet. Link that "
    "folder to where they are, name another --refer_data_root, or call this without --check",
    "size": "every one of the {count:,} images has another size than its record: they were resized, or are other ones",
    "unreadable": "none of the {count:,} images can be read, the first one because: {first}",
}


class Problem(NamedTuple):
    """One thing that is wrong."""

    kind: str  # problems of one kind are counted together
    text: str  # file first


class Task(NamedTuple):
    """An image and the objects in it."""

    path: Path
    width: int
    height: int
    objects: list[tuple[str, Any]]  # name for messages, segmentation


def check_dataset(refer: REFER, workers: int) -> list[str]:
    """Return what is wrong with a data set, for a reader: a few lines of each kind, and how many more there are.

    What explains all of a kind, such as a folder that lies elsewhere, comes first. workers: processes that decode; 1
    decodes here.
    """
    problems = [*check_counts(refer), *check_refs(refer), *check_files(refer, workers)]
    by_kind: dict[str, list[str]] = {}
    for problem in problems:
        by_kind.setdefault(problem.kind, []).append(problem.text)
    causes, count = [], len(needed_images(refer))
    for kind, cause in CAUSES.items():
        if len(found := by_kind.get(kind, [])) == count > 1:
            causes.append(cause.format(count=count, folder=refer.IMAGE_DIR, first=found[0]))
    return causes + [line for texts in by_kind.values() for line in few_lines(texts)]


def check_counts(refer: REFER) -> list[Problem]:
    """Print how many objects and expressions the splits hold; return where that is not what was published."""
    published = counts_of(refer.dataset, refer.splitBy)
    if Path(refer.ROOT_DIR, SAMPLE_NOTE).is_file():
        print("this is the sample data set: its counts are not compared")
        published = {}
    elif not published:
        print(f"no counts were published for {refer.dataset} ({refer.splitBy}): they are not compared")
    problems = []
    for split in refer.splits:
        refs = refer.loadRefs(refer.getRefIds(split=split))
        found = len(refs), sum(len(ref["sentences"]) for ref in refs)
        print(f"{split}: {found[0]:,} objects, {found[1]:,} expressions")
        counted = zip(published.get(split, ()), found, ("objects", "expressions"), strict=False)
        known = [(count, own, kind) for count, own, kind in counted if count is not None]
        if any(count != own for count, own, _ in known):
            expected = " and ".join(f"{count:,} {kind}" for count, _, kind in known)
            text = f"{split} has {found[0]:,} objects and {found[1]:,} expressions, published are {expected}"
            problems.append(Problem("counts", f"{refer.refs_file}: {text}"))
    return problems


def check_refs(refer: REFER) -> list[Problem]:
    """Return what is wrong with the links of objects to sentences and annotations."""
    problems = []
    for ref in refer.data["refs"]:
        if not ref["sentences"]:
            problems.append(Problem("no sentence", f"{refer.refs_file}: {ref_name(ref)} has no sentence"))
        if blank := [sentence["sent_id"] for sentence in ref["sentences"] if not sentence["raw"].strip()]:
            text = f"{refer.refs_file}: {ref_name(ref)} has a sentence without a word, sent_id {few(blank)}"
            problems.append(Problem("no word", text))
        if not any(in_split(ref["split"], split) for split in refer.splits):
            text = f"{refer.refs_file}: {ref_name(ref)} is in split {ref['split']!r:.40}, which is none that is read"
            problems.append(Problem("no split", text))
        of_mask = refer.refToAnn[ref["ref_id"]]["image_id"]
        if of_mask != ref["image_id"]:
            text = f"{refer.refs_file}: the mask of {ref_name(ref)} was drawn on another image, image_id {of_mask}"
            problems.append(Problem("other image", text))
    return problems


def check_files(refer: REFER, workers: int) -> list[Problem]:
    """Decode every image and mask that the data set needs; return what is wrong, by file."""
    tasks = [
        Task(
            image_path(refer, image),
            image["width"],
            image["height"],
            [(ref_name(ref), refer.refToAnn[ref["ref_id"]]["segmentation"]) for ref in refer.imgToRefs[image["id"]]],
        )
        for image in needed_images(refer)
    ]
    hidden = not sys.stderr.isatty()
    with tqdm(total=len(tasks), desc="checking images and masks", unit="image", disable=hidden, leave=False) as bar:
        problems = []
        for found in _results(tasks, workers):
            problems += found
            bar.update()
    return problems


def needed_images(refer: REFER) -> list[Record]:
    """Return the records of the images that an object is in."""
    return refer.loadImgs(refer.getImgIds(refer.getRefIds()))


def image_path(refer: REFER, image: Record) -> Path:
    """Return where an image belongs; UserError where its name leads out of the images' folder."""
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
                "a process that checked images was ended, perhaps for memory: try fewer --workers"
            ) from error


def check_image(task: Task) -> list[Problem]:
    """Return what is wrong with an image and its masks."""
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
        for problem in check_mask(segmentation, task.height, task.width)
    ]


def check_mask(segmentation: Any, height: int, width: int) -> list[Problem]:
    """Return what is wrong with an object's mask: nothing, or one thing."""
    try:
        parts = encode_parts(segmentation, height, width)
    except ValueError as error:
        return [Problem("no mask", f"has no mask: {error}")]
    if not covers_nothing(parts):
        return []
    why = (
        "its parts cover each other, and overlap is background"
        if coco_mask.area(parts).any()
        else "too small or outside"
    )
    return [Problem("no pixel", f"covers no pixel of its image ({why})")]
