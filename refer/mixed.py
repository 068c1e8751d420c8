"""Several data sets as one, for training on all of them without the test images of any of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from errors import UserError
from refer.datasets import photos_of
from refer.files import Instances, Record
from refer.grefer import SetIndex
from refer.refer import Index, Source, ref_name

# Offset between the ids of two data sets. COCO has fewer sentences, so the ids never collide.
IDS_APART = 10_000_000

Kind: TypeAlias = Literal["images", "annotations", "categories"]
FIELDS: Mapping[Kind, tuple[str, ...]] = {  # in which the records of one id must agree
    "images": ("file_name", "height", "width"),
    "annotations": ("image_id", "segmentation"),
    "categories": ("name",),
}


class Part(NamedTuple):
    """The records of one of the data sets, with ids that no other one uses for something else."""

    source: Index
    refs: list[Record]
    instances: Instances


def mix(indices: Sequence[Index]) -> tuple[Index, dict[str, int]]:
    """Return data sets as one, and the numbers of images and objects that it leaves out of `train`.

    `train` has the training objects of all data sets, except those on an image that any of them has in another split.
    Ids of objects and sentences are offset by IDS_APART from one data set to the next, and ids of images, annotations
    and categories from one collection of images to the next. If the images lie in several folders, `IMAGE_DIR` is the
    root, and names of images begin with their folder. Raises UserError if data sets on the same images use an id of an
    image, annotation or category for different ones.
    """
    first = indices[0]
    parts = with_own_ids(indices)
    held_out = {ref["image_id"] for part in parts for ref in part.refs if ref["split"] != "train"}
    refs: list[Record] = []
    left_out: list[Record] = []
    for part in parts:
        for ref in part.refs:
            (left_out if ref["split"] == "train" and ref["image_id"] in held_out else refs).append(ref)
    instances = merged([(part.source.instances_file, part.instances) for part in parts])
    images = Path(first.IMAGE_DIR)
    if any(index.IMAGE_DIR != first.IMAGE_DIR for index in indices):
        images = Path(first.ROOT_DIR)
        instances["images"] = _named_from(images, parts, instances["images"])
    names = ",".join(index.dataset for index in indices), ",".join(index.splitBy for index in indices)
    splits = tuple(dict.fromkeys(split for index in indices for split in index.splits))
    files = first.refs_file, first.instances_file
    source = Source(*names, splits, Path(first.ROOT_DIR), images, *files, first.as_seen, _namer(indices))
    counts = {"images": len({ref["image_id"] for ref in left_out}), "objects": len(left_out)}
    kind = SetIndex if any(isinstance(index, SetIndex) for index in indices) else Index
    return kind(source, refs, instances, first.overlap), counts


def _namer(indices: Sequence[Index]) -> Callable[[Record], str]:
    """Return the function that names a ref of a mix by the ids and the file that its data set has."""

    def name(ref: Record) -> str:
        number, ref_id = divmod(ref["ref_id"], IDS_APART)
        index = indices[number]
        return f"{ref_name(index.Refs[ref_id])} in {index.instances_file}"

    return name


def merged(sources: Sequence[tuple[Path, Instances]]) -> Instances:
    """Return the records of several files, each id once; UserError if the records of an id differ in one of `FIELDS`.

    sources: each file's name, for messages, and its records.
    """
    return _of_each_kind(lambda kind: _merged(kind, [(file, instances[kind]) for file, instances in sources]))


def _of_each_kind(records: Callable[[Kind], list[Record]]) -> Instances:
    return {"images": records("images"), "annotations": records("annotations"), "categories": records("categories")}


def _merged(kind: Kind, sources: Sequence[tuple[Path, list[Record]]]) -> list[Record]:
    records: dict[int, Record] = {}
    origin: dict[int, Path] = {}
    for file, found in sources:
        for record in found:
            first = records.setdefault(record["id"], record)
            first_file = origin.setdefault(record["id"], file)
            different = [field for field in FIELDS[kind] if first[field] != record[field]]
            if different:
                raise UserError(
                    f"id {record['id']} of the {kind} in {first_file} and {file} means different ones: another "
                    f"{', '.join(different)}. These data sets cannot be mixed"
                )
    return list(records.values())


def with_own_ids(indices: Sequence[Index]) -> list[Part]:
    """Return the records of data sets, each id offset so that it means one thing."""
    collections = list(dict.fromkeys(photos_of(index.dataset) for index in indices))
    parts = []
    for number, index in enumerate(indices):
        offset = collections.index(photos_of(index.dataset)) * IDS_APART
        refs = [_renumbered(ref, number * IDS_APART, offset) for ref in index.data["refs"]]
        parts.append(Part(index, refs, _shifted_instances(index.data, offset)))
    return parts


def _shifted_instances(instances: Instances, offset: int) -> Instances:
    if not offset:
        return instances
    return _of_each_kind(lambda kind: [_shifted(record, offset) for record in instances[kind]])


def _renumbered(ref: Record, offset: int, others: int) -> Record:
    """Return a ref with other ids; others: offset of the ids of image, annotations and categories."""
    sentences = [sentence | {"sent_id": sentence["sent_id"] + offset} for sentence in ref["sentences"]]
    return _shifted(ref, others) | {"ref_id": ref["ref_id"] + offset, "sentences": sentences}


def _shifted(record: Record, offset: int) -> Record:
    """Return a record with an offset to its ids of image, annotations and categories; those below 0 mean none."""
    new = {}
    for key in ("id", "image_id", "ann_id", "category_id"):
        if key in record:
            ids = record[key] if isinstance(record[key], list) else [record[key]]
            moved = [one + offset if one >= 0 else one for one in ids]
            new[key] = moved if isinstance(record[key], list) else moved[0]
    return record | new


def _named_from(root: Path, parts: Sequence[Part], images: Sequence[Record]) -> list[Record]:
    """Return images named from the root, in the folder of the first data set that has them."""
    folders: dict[int, Path] = {}
    for part in parts:
        folder = Path(part.source.IMAGE_DIR).relative_to(root)
        for image in part.instances["images"]:
            folders.setdefault(image["id"], folder)
    return [image | {"file_name": (folders[image["id"]] / image["file_name"]).as_posix()} for image in images]
