"""What is missing of a data set, found at once and without decoding images: for `--dry-run`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from errors import UserError, few, user_message
from refer.datasets import COCO_FOLDERS, DATA_SETS, image_folder
from refer.jsonl import image_of, read_lines, split_of
from refer.obtain import OBTAINED, advice
from refer.open import open_data_set
from refer.refer import Index
from refer.splits import MANUAL, in_split

NO_SPLIT = "only its annotations, by which its images are left out of train"
COCO_ARCHIVE = "http://images.cocodataset.org/zips/train2014.zip (13 GB)"


class Present(NamedTuple):
    """What there is of a data set."""

    text: str  # about the splits that are needed
    n_images: int  # of all splits, as a cache stores them
    n_masks: int  # one for each object


def check_present(
    root: Path, dataset: str, split_by: str, splits: Sequence[str], overlap: str, *, every_image: bool = False
) -> Present:
    """Return what there is of a data set; splits: those that must be there; none of a part of a mix for evaluation.
    every_image: the images of all splits must be there.

    Reads the annotations, and looks for the images that they name. Raises UserError with all that is missing, where to
    get it, and where it belongs.
    """
    problems, index = [], None
    if DATA_SETS[dataset].layout == "refer" and not DATA_SETS[dataset].passed_on:
        files = [root / dataset / name for name in (f"refs({split_by}).p", "instances.json")]
        problems = [f"there is no file {file}" for file in files if not file.exists()]
    if not problems:
        try:
            index = open_data_set(root, dataset, split_by, overlap)
        except UserError as error:
            problems = [user_message(error)]
    images = image_folder(root, dataset)
    if index is not None:
        problems = missing_images(index, index.splits if every_image else splits)
    elif not images.is_dir():
        problems.append(f"there is no folder of images {images}")
    if problems:
        raise UserError("\n".join([*problems, where_to_get(root, dataset, split_by)]))
    assert index is not None
    text = f"{describe_splits(index, splits)}; all of their images are in {index.IMAGE_DIR}" if splits else NO_SPLIT
    return Present(text, len({ref["image_id"] for ref in index.Refs.values()}), len(index.Refs))


def where_to_get(root: Path, dataset: str, split_by: str) -> str:
    """Return the command that gets a data set, and the addresses from which it can be had by hand."""
    command = f"python -m refer.prepare --dataset {dataset} --splitBy {split_by} --refer_data_root {root}"
    if dataset in OBTAINED:
        return f"{advice(root, dataset)}\nThen: {command}"
    is_coco = DATA_SETS[dataset].images == COCO_FOLDERS
    by_hand = f"; images by hand: {COCO_ARCHIVE} to {image_folder(root, dataset)}" if is_coco else ""
    return f"To download it: {command}{by_hand}. {MANUAL}"


def missing_images(index: Index, splits: Sequence[str]) -> list[str]:
    """Return how many images of some splits are not in the folder, in one line; none if all are."""
    refs = [ref for ref in index.data["refs"] if any(in_split(ref["split"], split) for split in splits)]
    names = list(dict.fromkeys(index.Imgs[ref["image_id"]]["file_name"] for ref in refs))
    folder = Path(index.IMAGE_DIR)
    missing = [name for name in names if not (folder / name).exists()]
    if not missing:
        return []
    return [f"{len(missing):,} of {len(names):,} images are not in {folder}: {few(missing)}"]


def describe_splits(index: Index, splits: Sequence[str]) -> str:
    """Return the number of objects in each split."""
    counts = {split: len(index.getRefIds(split=split)) for split in splits}
    if empty := [split for split, count in counts.items() if not count]:
        raise UserError(f"{index.refs_file} has no object in split {', '.join(empty)}. {MANUAL}")
    return ", ".join(f"{split} {count:,} objects" for split, count in counts.items())


def check_own_data(files: Sequence[str], splits: Sequence[str]) -> Present:
    """Return what there is of own data; splits: those that must have an object.

    Raises UserError with all files, photos and masks that are missing.
    """
    missing: list[str] = []
    counts = Counter[str]()
    images: set[Path] = set()
    for file in map(Path, files):
        try:
            for _, record in read_lines(file):
                counts[split_of(file, record)] += 1
                images.add(image_of(file, record))
                needed = [image_of(file, record), *([file.parent / record["mask"]] if "mask" in record else [])]
                missing += [str(path) for path in needed if not path.exists()]
        except UserError as error:
            missing.append(user_message(error))
    if not missing:
        missing = [f"objects of split {one}" for one in splits if not any(in_split(name, one) for name in counts)]
    if missing := list(dict.fromkeys(missing)):
        raise UserError(f"{len(missing):,} are missing or invalid: {few(missing)}. {MANUAL}")
    text = f"{counts.total():,} objects; all of their photos and masks exist"
    return Present(text, len(images), counts.total())
