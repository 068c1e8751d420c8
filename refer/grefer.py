"""Data sets whose sentences refer to any number of objects: gRefCOCO and Ref-ZOM.

    refer = G_REFER("./refer/data", dataset="grefcoco", splitBy="unc")
    ref = refer.loadRefs(refer.getRefIds(split=["val"]))[0]
    merged = refer.getMaskByRef(ref, merge=True)
    merged["mask"], merged["empty"]

Calls and maps have the names and results of gRefCOCO's API (https://github.com/henghuiding/gRefCOCO): a list of objects
where `REFER` has one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from errors import UserError, few
from lib.run_lengths import RunLengths, encode_mask
from refer.datasets import DATA_SETS, Place, image_folder
from refer.files import Record, read_instances, read_sets
from refer.masks import decode_parts, encode_nothing
from refer.refer import Ids, Index, Source, listed, ref_name, repeated
from refer.splits import MANUAL, splits_of
from utils import log

NOTHING = -1  # the `ann_id` of a gRefCOCO ref without a target
ZERO = "zero"  # Ref-ZOM's `source` of such refs


class SetIndex(Index):
    """An index whose refs have any number of objects.

    `refToAnn` gives a list of annotations, `annToRef` a list of refs. A ref's `ann_id` is a list of ids or one id. It
    has no target if `ann_id` is [] or [-1], or if `source` is "zero". `Anns[-1]` is None. The mask of a ref is the
    union of its objects, without annotations of crowds.
    """

    def _link_annotations(self) -> None:
        if NOTHING in self.Anns:
            raise UserError(f"{self.instances_file} has an annotation with id {NOTHING}, which means no object")
        self.Anns[NOTHING] = None
        self._encoded: dict[tuple[int, int], list[RunLengths]] = {}  # by annotation and image: many refs share one
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
        """Return the ids of a ref's annotations; () if it has no target."""
        return tuple(self._annotation_ids(ref))

    def has_target(self, ref: Record) -> bool:
        """Return whether a ref has a target in its image."""
        return bool(self._annotation_ids(ref))

    def objects_of(self, ref: Record) -> list[Record]:
        """Return the annotations whose union is a ref's mask: all but crowds."""
        return [ann for ann in map(self.Anns.__getitem__, self._annotation_ids(ref)) if not ann.get("iscrowd")]

    def encode_mask(self, ref: Record) -> list[RunLengths]:
        """Return the parts of a ref's mask for `decode_parts`; one empty part if it has no target.

        Raises UserError if an object's segmentation is invalid.
        """
        image_id, name = ref["image_id"], self._name(ref)
        objects = [self._encode_object(ann, image_id, name) for ann in self.objects_of(ref)]
        if len(objects) == 1:
            return objects[0]
        if objects:
            return [coco_mask.merge([_as_one(parts) for parts in objects])]
        image = self.Imgs[image_id]
        try:
            return [encode_nothing(image["height"], image["width"])]
        except ValueError as error:
            raise UserError(f"{name} has no mask: {error}. {MANUAL}") from error

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
        """Return the boxes [x, y, w, h] of all objects of a ref, in pixels."""
        (ref,) = self.loadRefs(ref_id)
        return [self.Anns[ann_id]["bbox"] for ann_id in self._annotation_ids(ref)]

    def getMask(self, ref: Record | None) -> dict[str, Any] | None:  # type: ignore[override]
        """Return {"mask": (H, W) uint8, "area": its pixels} of a ref or, as in gRefCOCO's API, of an annotation.

        None for None, which means no object. Raises UserError for an annotation of a crowd, and if a segmentation is
        invalid.
        """
        if ref is None:
            return None
        if "ref_id" in ref:
            return super().getMask(ref)
        if ref.get("iscrowd"):
            raise UserError(f"annotation {ref['id']} in {self.instances_file} is a crowd: it has no mask of its own")
        mask = decode_parts(
            self._encode_object(ref, ref["image_id"], f"annotation {ref['id']} in {self.instances_file}")
        )
        return {"mask": mask, "area": int(mask.sum())}

    def getMaskByRef(
        self, ref: Record | None = None, ref_id: int | None = None, merge: bool = False
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Return the masks of all objects of a ref, as `getMask` does, or with `merge` their union.

        The union is {"mask": (H, W) uint8, "empty": bool}; so is the result for a ref without a target.
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
    If several refs have one id, the last one is used, with a note in the log. Raises UserError for any other data set,
    and if a file is missing, damaged or of another layout.
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
    """Return the file of a data set's refs. Raises UserError, naming the possible files, if none exists."""
    files = [root / folder / name.format(split_by) for folder in place.folders for name in place.refs]
    refs_file = next((file for file in files if file.exists()), None)
    if refs_file is None:
        names = " or ".join(map(str, files))
        raise UserError(f"there is no file {names}. {MANUAL} for where to get it and where it belongs")
    return refs_file


def read_any_number(path: Path) -> list[Record]:
    """Return the refs of a file, each ref_id once. Raises UserError, naming the ref, for invalid annotation ids."""
    refs = read_sets(path)
    for ref in refs:
        _check_ids_of(ref, path)
    if twice := repeated(ref["ref_id"] for ref in refs):
        log(f"{path}: several refs have ref_id {few(twice)}; the last ref of each id is used")
    last: Mapping[int, int] = {ref["ref_id"]: number for number, ref in enumerate(refs)}
    _name_annotations_once(refs, path)
    _report_zero_objects(refs, path)
    return [ref for number, ref in enumerate(refs) if last[ref["ref_id"]] == number]


def _check_ids_of(ref: Record, path: Path) -> None:
    """Raise UserError unless `ann_id` and `category_id` are ids or lists of ids; -1 must be the only id of a list."""
    for key in ("ann_id", "category_id"):
        ids = listed(ref[key])
        if not all(type(one) is int for one in ids):
            raise UserError(f"{path}: {ref_name(ref)} has no list of ids as '{key}'. {MANUAL}")
    ids = listed(ref["ann_id"])
    if NOTHING in ids and len(ids) > 1:
        raise UserError(f"{path}: {ref_name(ref)} has objects, but also {NOTHING}, which means no object. {MANUAL}")


def _name_annotations_once(refs: list[Record], path: Path) -> None:
    """Remove repeated annotations from every ref, with a note in the log."""
    changed = []
    for ref in refs:
        if isinstance(ref["ann_id"], list) and repeated(ref["ann_id"]):
            changed.append(ref["ref_id"])
            ref["ann_id"] = list(dict.fromkeys(ref["ann_id"]))
    if changed:
        log(f"{path}: refs that name an annotation more than once, which counts once: ref_id {few(changed)}")


def _report_zero_objects(refs: list[Record], path: Path) -> None:
    zero = [ref for ref in refs if ref.get("source") == ZERO]
    with_objects = [ref["ref_id"] for ref in zero if listed(ref["ann_id"]) not in ([], [NOTHING])]
    if with_objects:
        log(f"{path}: refs of source '{ZERO}' with objects, which are ignored: ref_id {few(with_objects)}")


def _as_one(parts: list[RunLengths]) -> RunLengths:
    """Return an object's mask as one part, by the rule of `decode_parts`."""
    return parts[0] if len(parts) == 1 else encode_mask(decode_parts(parts))
