"""Data sets whose sentences mean any number of objects: gRefCOCO and Ref-ZOM.

    refer = G_REFER("./refer/data", dataset="grefcoco", splitBy="unc")
    ref = refer.loadRefs(refer.getRefIds(split=["val"]))[0]
    merged = refer.getMaskByRef(ref, merge=True)
    merged["mask"], merged["empty"]

Names of calls and maps are those of gRefCOCO's API (https://github.com/henghuiding/gRefCOCO), and what they return is
what that returns: a list of objects where `REFER` has one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from errors import UserError, few
from lib.run_lengths import RunLengths
from refer.datasets import DATA_SETS, Place, image_folder
from refer.files import Record, read_instances, read_sets
from refer.masks import decode_parts, encode_nothing
from refer.refer import Ids, Index, Source, listed, ref_name, repeated
from refer.splits import MANUAL, splits_of
from utils import log

NOTHING = -1  # stands in gRefCOCO where the id of an annotation would: the sentence means nothing in the image
ZERO = "zero"  # Ref-ZOM's `source` of such refs


class SetIndex(Index):
    """An index whose refs mean any number of objects.

    `refToAnn` gives a list of annotations, `annToRef` a list of refs. A ref's `ann_id` is a list of ids or one id; it
    means nothing if that is [] or [-1], or if its `source` is "zero". `Anns[-1]` is None. The mask of a ref is the
    union of its objects, without annotations of crowds.
    """

    def _link_annotations(self) -> None:
        if NOTHING in self.Anns:
            raise UserError(f"{self.instances_file} has an annotation with id {NOTHING}, which stands for no object")
        self.Anns[NOTHING] = None
        self._encoded: dict[tuple[int, int], list[RunLengths]] = {}  # by annotation and image: many refs mean the same
        self.annToRef = {}
        self.refToAnn = {}
        for ref in self.data["refs"]:
            ids = listed(ref["ann_id"])
            self.refToAnn[ref["ref_id"]] = [self.Anns.get(ann_id) for ann_id in ids]
            for ann_id in ids:
                self.annToRef.setdefault(ann_id, []).append(ref)

    def _annotation_ids(self, ref: Record) -> list[int]:
        ids = listed(ref["ann_id"])
        return [] if ids == [NOTHING] or ref.get("source") == ZERO else ids

    def meant(self, ref: Record) -> tuple[int, ...]:
        """Return the ids of the annotations that a ref means; () if it means nothing in its image."""
        return tuple(self._annotation_ids(ref))

    def has_target(self, ref: Record) -> bool:
        """Tell whether a ref means anything in its image."""
        return bool(self._annotation_ids(ref))

    def objects_of(self, ref: Record) -> list[Record]:
        """Return the annotations whose union is a ref's mask: what it means, but for crowds."""
        return [ann for ann in map(self.Anns.__getitem__, self._annotation_ids(ref)) if not ann.get("iscrowd")]

    def encode_mask(self, ref: Record) -> list[RunLengths]:
        """Return the parts of a ref's mask as `decode_parts` takes them; a part without a pixel if it means nothing.

        Raises UserError where an object's segmentation holds no mask.
        """
        image_id, name = ref["image_id"], ref_name(ref)
        objects = [self._encode_object(ann, image_id, name) for ann in self.objects_of(ref)]
        if len(objects) == 1:
            return objects[0]
        if objects:
            return [coco_mask.merge([_as_one(parts) for parts in objects])]
        image = self.Imgs[image_id]
        try:
            return [encode_nothing(image["height"], image["width"])]
        except ValueError as error:
            raise UserError(f"{name} in {self.instances_file} has no mask: {error}. {MANUAL}") from error

    def _encode_object(self, ann: Record, image_id: int, name: str) -> list[RunLengths]:
        key = ann["id"], image_id
        if key not in self._encoded:
            self._encoded[key] = super()._encode_object(ann, image_id, name)
        return self._encoded[key]

    # ------------------------------------------------------------ gRefCOCO's own calls

    def getRefIds(
        self, image_ids: Ids = (), cat_ids: Ids = (), ref_ids: Ids = (), split: str | Iterable[str] = ""
    ) -> list[int]:
        """Return the ids of the refs that pass every filter given; split: one name, or several."""
        if isinstance(split, str):
            return super().getRefIds(image_ids, cat_ids, ref_ids, split)
        found = {key for name in split for key in super(SetIndex, self).getRefIds(image_ids, cat_ids, ref_ids, name)}
        every = super().getRefIds(image_ids, cat_ids, ref_ids)
        return [key for key in every if key in found] if split else every

    def getRefBox(self, ref_id: int) -> list[list[float]]:  # type: ignore[override]  # a list, as in gRefCOCO's API
        """Return the boxes [x, y, w, h] of all objects that a ref means, in pixels."""
        (ref,) = self.loadRefs(ref_id)
        return [self.Anns[ann_id]["bbox"] for ann_id in self._annotation_ids(ref)]

    def getMask(self, ref: Record | None) -> dict[str, Any] | None:  # type: ignore[override]
        """Return {"mask": (H, W) uint8, "area": its pixels} of a ref or, as in gRefCOCO's API, of an annotation.

        None for None, which stands for no object. Raises UserError for an annotation of a crowd, and where a
        segmentation holds no mask.
        """
        if ref is None:
            return None
        if "ref_id" in ref:
            return super().getMask(ref)
        if ref.get("iscrowd"):
            raise UserError(f"annotation {ref['id']} in {self.instances_file} is a crowd: it has no mask of its own")
        mask = decode_parts(self._encode_object(ref, ref["image_id"], f"annotation {ref['id']}"))
        return {"mask": mask, "area": int(mask.sum())}

    def getMaskByRef(
        self, ref: Record | None = None, ref_id: int | None = None, merge: bool = False
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Return the masks of all objects that a ref means, as `getMask` does, or their union if they are to `merge`.

        The union is {"mask": (H, W) uint8, "empty": bool}; so is the answer for a ref that means nothing.
        """
        if ref is None:
            if ref_id is None:
                raise UserError("getMaskByRef needs a ref, or the id of one")
            (ref,) = self.loadRefs(ref_id)
        if merge or not self.has_target(ref):
            return {"mask": decode_parts(self.encode_mask(ref)), "empty": not self.has_target(ref)}
        masks = [self.getMask(ann) for ann in self.objects_of(ref)]
        return [mask for mask in masks if mask is not None]


class G_REFER(SetIndex):
    """A data set of layout "sets", such as gRefCOCO or Ref-ZOM, in the files of its owners.

    data_root: folder of all data sets. dataset, splitBy: a row of `DATA_SETS`. overlap: see `refer.refer.OVERLAPS`.
    Of refs with one id the last one counts, which the log says. Raises UserError for any other data set, and where a
    file is missing, damaged or not what the index reads.
    """

    def __init__(
        self,
        data_root: str | Path = "./refer/data",
        dataset: str = "grefcoco",
        splitBy: str = "unc",
        overlap: str = "object",
    ) -> None:
        splits, root = splits_of(dataset, splitBy), Path(data_root)
        if DATA_SETS[dataset].layout != "sets":
            names = ", ".join(name for name, entry in DATA_SETS.items() if entry.layout == "sets")
            raise UserError(f"{dataset} has one object for each sentence: REFER reads it. Here: {names}")
        refs_file = find_refs(root, DATA_SETS[dataset].place or Place((dataset,)), splitBy)
        instances_file = refs_file.parent / "instances.json"
        source = Source(dataset, splitBy, splits, root, image_folder(root, dataset), refs_file, instances_file)
        super().__init__(source, read_any_number(refs_file), read_instances(instances_file), overlap)


def find_refs(root: Path, place: Place, split_by: str) -> Path:
    """Return the file of a data set's refs; UserError, naming where it may lie, if there is none."""
    files = [root / folder / name.format(split_by) for folder in place.folders for name in place.refs]
    found = next((file for file in files if file.exists()), None)
    if found is None:
        names = " or ".join(map(str, files))
        raise UserError(f"there is no file {names}. {MANUAL} for where to get it and where it belongs")
    return found


def read_any_number(path: Path) -> list[Record]:
    """Return the refs of a file, each ref_id once; UserError names a ref whose ids of annotations are none."""
    refs = read_sets(path)
    for ref in refs:
        _check_ids_of(ref, path)
    if twice := repeated(ref["ref_id"] for ref in refs):
        one = len(twice) == 1
        log(f"{path}: ref_id {few(twice)} stand{'s' if one else ''} more than once; the last ref of an id counts")
    last: Mapping[int, int] = {ref["ref_id"]: number for number, ref in enumerate(refs)}
    _name_annotations_once(refs, path)
    _report_zero_objects(refs, path)
    return [ref for number, ref in enumerate(refs) if last[ref["ref_id"]] == number]


def _check_ids_of(ref: Record, path: Path) -> None:
    """UserError unless `ann_id` is an id, or a list of ids in which -1 stands alone; so `category_id`."""
    for key in ("ann_id", "category_id"):
        ids = listed(ref[key])
        if not all(type(one) is int for one in ids):
            raise UserError(f"{path}: {ref_name(ref)} has no list of ids as '{key}'. {MANUAL}")
    ids = listed(ref["ann_id"])
    if NOTHING in ids and len(ids) > 1:
        raise UserError(f"{path}: {ref_name(ref)} means objects, but also {NOTHING}, which stands for none. {MANUAL}")


def _name_annotations_once(refs: list[Record], path: Path) -> None:
    """Let every ref name each annotation once; the log says of which refs some were left out."""
    found = []
    for ref in refs:
        if isinstance(ref["ann_id"], list) and repeated(ref["ann_id"]):
            found.append(ref["ref_id"])
            ref["ann_id"] = list(dict.fromkeys(ref["ann_id"]))
    if found:
        log(f"{path}: an annotation that a ref means more than once counts once: ref_id {few(found)}")


def _report_zero_objects(refs: list[Record], path: Path) -> None:
    zero = [ref for ref in refs if ref.get("source") == ZERO]
    found = [ref["ref_id"] for ref in zero if listed(ref["ann_id"]) not in ([], [NOTHING])]
    if found:
        log(f"{path}: of source '{ZERO}', but with objects, which do not count: ref_id {few(found)}")


def _as_one(parts: list[RunLengths]) -> RunLengths:
    """Return an object's mask as one part, by the rule of `decode_parts`."""
    return parts[0] if len(parts) == 1 else coco_mask.encode(np.asfortranarray(decode_parts(parts)))
