"""Several data sets as one, for training on all of them without the test images of any of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from errors import UserError
from refer.files import Instances, Record
from refer.grefer import SetIndex
from refer.refer import Index, Source

# Offset between the ids of two data sets. COCO has fewer sentences, so the ids never collide.
IDS_APART = 10_000_000

Kind: TypeAlias = Literal["images", "annotations", "categories"]


def mix(indices: Sequence[Index]) -> tuple[Index, dict[str, int]]:
    """Return data sets on the same images as one, and the numbers of images and objects that it leaves out of `train`.

    `train` has the training objects of all data sets, except those on an image that any of them has in another split.
    Ids of objects and sentences are offset by IDS_APART. Raises UserError if the data sets have different images, or if
    they use an id of an image, annotation or category for different ones.
    """
    first = indices[0]
    for index in indices[1:]:
        if index.IMAGE_DIR != first.IMAGE_DIR:
            raise UserError(
                f"{first.dataset} and {index.dataset} cannot be mixed: their images are in {first.IMAGE_DIR} and "
                f"{index.IMAGE_DIR}, so the same image id may mean different images"
            )
    held_out = {ref["image_id"] for index in indices for ref in index.data["refs"] if ref["split"] != "train"}
    refs: list[Record] = []
    left_out: list[Record] = []
    for number, index in enumerate(indices):
        for ref in index.data["refs"]:
            if ref["split"] == "train" and ref["image_id"] in held_out:
                left_out.append(ref)
            else:
                refs.append(_renumbered(ref, number * IDS_APART))
    instances: Instances = {
        "images": merged(indices, "images", ("file_name", "height", "width")),
        "annotations": merged(indices, "annotations", ("image_id", "segmentation")),
        "categories": merged(indices, "categories", ("name",)),
    }
    names = ",".join(index.dataset for index in indices), ",".join(index.splitBy for index in indices)
    splits = tuple(dict.fromkeys(split for index in indices for split in index.splits))
    folders = Path(first.ROOT_DIR), Path(first.IMAGE_DIR)
    source = Source(*names, splits, *folders, first.refs_file, first.instances_file, first.as_seen)
    counts = {"images": len({ref["image_id"] for ref in left_out}), "objects": len(left_out)}
    kind = SetIndex if any(isinstance(index, SetIndex) for index in indices) else Index
    return kind(source, refs, instances, first.overlap), counts


def merged(indices: Sequence[Index], kind: Kind, fields: Sequence[str]) -> list[Record]:
    """Return the records of all data sets, each id once; UserError if records of an id differ in one of `fields`."""
    records: dict[int, Record] = {}
    origin: dict[int, Index] = {}
    for index in indices:
        for record in index.data[kind]:
            first = records.setdefault(record["id"], record)
            first_index = origin.setdefault(record["id"], index)
            different = [field for field in fields if first[field] != record[field]]
            if different:
                raise UserError(
                    f"id {record['id']} of the {kind} in {first_index.instances_file} and {index.instances_file} means "
                    f"different ones: another {', '.join(different)}. These data sets cannot be mixed"
                )
    return list(records.values())


def _renumbered(ref: Record, offset: int) -> Record:
    sentences = [sentence | {"sent_id": sentence["sent_id"] + offset} for sentence in ref["sentences"]]
    return ref | {"ref_id": ref["ref_id"] + offset, "sentences": sentences}
