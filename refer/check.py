"""Checking a data set: counts, images and masks. Needs no network."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tqdm import tqdm

from data.photo import ImageError, MissingImageError, opened
from refer.refer import COUNTS, REFER, Record, decode_parts, encode_parts, ref_name
from utils import UserError

SAMPLE_NOTE = "sample.json"  # marks the sample data set


class Task(NamedTuple):
    """An image and the objects in it."""

    path: Path
    width: int
    height: int
    objects: list[tuple[str, Any]]  # name for messages, segmentation


def check(refer: REFER, workers: int) -> list[str]:
    """Return what is wrong with a data set, one line each: counts, then images and masks by file.

    workers: processes that decode; 1 decodes here.
    """
    return [*check_counts(refer), *check_files(refer, workers)]


def check_counts(refer: REFER) -> list[str]:
    """Print how many objects and expressions the splits hold; return where that is not what was published."""
    published = COUNTS.get((refer.dataset, refer.splitBy), {})
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
        if split in published and found != published[split]:
            objects, expressions = published[split]
            problems.append(
                f"{refer.refs_file}: {split} has {found[0]:,} objects and {found[1]:,} expressions, "
                f"published are {objects:,} and {expressions:,}"
            )
    return problems


def check_files(refer: REFER, workers: int) -> list[str]:
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
        for lines in _results(tasks, workers):
            problems += lines
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


def _results(tasks: list[Task], workers: int) -> Iterator[list[str]]:
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


def check_image(task: Task) -> list[str]:
    """Return what is wrong with an image and its masks."""
    problems = []
    try:
        with opened(task.path) as image:
            size = image.size
            image.load()
        if size != (task.width, task.height):
            problems.append(f"{task.path}: is {size[0]}×{size[1]} pixels, not {task.width}×{task.height}")
    except MissingImageError:
        problems.append(f"{task.path}: is missing")
    except ImageError as error:
        problems.append(f"{task.path}: cannot be read ({error})")
    for name, segmentation in task.objects:
        try:
            decode_parts(encode_parts(segmentation, task.height, task.width))
        except ValueError as error:
            problems.append(f"{task.path}: {name} has no mask: {error}")
    return problems
