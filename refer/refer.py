"""The REFER index: objects ("refs"), the sentences that refer to them, and their masks.

    refer = REFER("./refer/data", dataset="refcoco", splitBy="unc")
    ref = refer.loadRefs(refer.getRefIds(split="val"))[0]
    mask = refer.getMask(ref)["mask"]

Methods and maps have the names of the original API (https://github.com/lichengunc/refer), so scripts written for it
keep working, but for one thing: the polygons of an annotation are arrays of numbers (`array.array`) where they were
lists, which takes a quarter of the memory; `polygon.tolist()` makes a list. File formats and error messages are
explained in docs/data.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

from pycocotools import mask as coco_mask

from errors import UserError, few
from lib.run_lengths import RunLengths
from lib.variants import check_name
from refer.datasets import image_folder
from refer.files import Instances, Record, read_instances, read_refs
from refer.masks import decode_parts, encode_parts
from refer.splits import MANUAL, check_split, in_split, splits_of

Key = TypeVar("Key", bound=Hashable)
Ids: TypeAlias = int | Iterable[int]


class Files(Instances):
    """All records of an index."""

    dataset: str
    refs: list[Record]


# The label of pixels that several parts of an object cover: see `OBJECT_SUM` in refer/masks.py; `object` merges them.
OVERLAPS = ("background", "object")


class Source(NamedTuple):
    """The data set of an index, and its files."""

    dataset: str
    split_by: str
    splits: tuple[str, ...]
    root: Path
    images: Path  # folder of the images
    refs_file: Path
    instances_file: Path
    as_seen: bool = False  # the images are the user's own photos: apply EXIF rotation etc., see `lib.photo`
    name: Callable[[Record], str] | None = None  # names a ref and its file in messages, if they have other ids here


class Index:
    """Objects, their sentences and masks, by id; `REFER` is the index of a data set in its original layout.

    Maps: `Refs, Anns, Imgs, Sents` id → record, `Cats` id → name; `imgToRefs, imgToAnns, catToRefs` id → records;
    `refToAnn, annToRef, sentToRef` id → record; `sentToTokens` id → words. `data` has the lists of the files under
    `refs`, `images`, `annotations`, `categories`. `IMAGE_DIR` is the folder of the images, `overlap` one of `OVERLAPS`;
    for `as_seen` see `Source`. Methods take one id or several; no ids mean no filter. Results are in the order of the
    files, or in that of the given image ids.
    """

    def __init__(self, source: Source, refs: list[Record], instances: Instances, overlap: str = "background") -> None:
        """overlap: see `OVERLAPS`. Raises UserError for repeated ids, and for a ref without annotation or image."""
        check_name("overlap", overlap, OVERLAPS)
        self.overlap = overlap
        self.dataset, self.splitBy, self.splits = source.dataset, source.split_by, source.splits
        self.ROOT_DIR, self.IMAGE_DIR = str(source.root), str(source.images)
        self.DATA_DIR = str(source.refs_file.parent)
        self.refs_file, self.instances_file = source.refs_file, source.instances_file
        self.as_seen = source.as_seen
        self._name = source.name or (lambda ref: f"{ref_name(ref)} in {source.instances_file}")
        self.resized: list[str] = []  # notes about masks that were resized to their images
        self.data: Files = {"dataset": source.dataset, "refs": refs, **instances}
        self._check_ids()
        self._index_instances()
        self._index_refs()

    def _check_ids(self) -> None:
        """Raise UserError for repeated ids. The index would keep only the last record, and mix up masks."""
        instances, refs = self.instances_file, self.data["refs"]
        pairs = [(sentence["sent_id"], ref["ref_id"]) for ref in refs for sentence in ref["sentences"]]
        ref_ids: dict[int, list[int]] = {sent_id: [] for sent_id in repeated(sent_id for sent_id, _ in pairs)}
        for sent_id, ref_id in pairs:
            if sent_id in ref_ids:
                ref_ids[sent_id].append(ref_id)
        checks = [
            (instances, "id of an image", repeated(image["id"] for image in self.data["images"])),
            (instances, "id of an annotation", repeated(ann["id"] for ann in self.data["annotations"])),
            (instances, "id of a category", repeated(category["id"] for category in self.data["categories"])),
            (self.refs_file, "ref_id", repeated(ref["ref_id"] for ref in refs)),
            (self.refs_file, "sent_id", [f"{sent_id} (of ref_id {few(ids)})" for sent_id, ids in ref_ids.items()]),
        ]
        lines = [f"{path}: {kind} occurs more than once: {few(ids)}" for path, kind, ids in checks if ids]
        if lines:
            advice = "It is ambiguous which record is meant: get the file again, or give every record another id."
            raise UserError("\n".join([*lines, f"{advice} {MANUAL}"]))

    def _index_instances(self) -> None:
        self.Imgs = {image["id"]: image for image in self.data["images"]}
        self.Anns: dict[int, Any] = {ann["id"]: ann for ann in self.data["annotations"]}
        self.Cats = {category["id"]: category["name"] for category in self.data["categories"]}

    def _index_refs(self) -> None:
        refs = self.data["refs"]
        for ref in refs:
            self._check_links(ref)
        self.Refs = {ref["ref_id"]: ref for ref in refs}
        self._link_annotations()

    # Maps that reading a split does not need, made when they are first asked for.

    @cached_property
    def imgToAnns(self) -> dict[int, list[Record]]:
        """Annotations by the id of their image."""
        return _group(self.data["annotations"], "image_id")

    @cached_property
    def imgToRefs(self) -> dict[int, list[Record]]:
        """Refs by the id of their image."""
        return _group(self.data["refs"], "image_id")

    @cached_property
    def catToRefs(self) -> dict[int, list[Record]]:
        """Refs by the id of their category."""
        return _group(self.data["refs"], "category_id")

    @cached_property
    def Sents(self) -> dict[int, Record]:
        """Sentences by their id."""
        return {sent["sent_id"]: sent for ref in self.data["refs"] for sent in ref["sentences"]}

    @cached_property
    def sentToRef(self) -> dict[int, Record]:
        """The ref of a sentence by the sentence's id."""
        return {sent["sent_id"]: ref for ref in self.data["refs"] for sent in ref["sentences"]}

    @cached_property
    def sentToTokens(self) -> dict[int, list[str]]:
        """The words of a sentence by its id."""
        return {sent_id: sent["tokens"] for sent_id, sent in self.Sents.items()}

    def _link_annotations(self) -> None:
        refs = self.data["refs"]
        self.annToRef: dict[int, Any] = {ref["ann_id"]: ref for ref in refs}
        self.refToAnn: dict[int, Any] = {ref["ref_id"]: self.Anns[ref["ann_id"]] for ref in refs}

    def _annotation_ids(self, ref: Record) -> list[int]:
        """Return the ids of the annotations that a ref means."""
        return [ref["ann_id"]]

    def _check_links(self, ref: Record) -> None:
        named = [("ann_id", ann_id, self.Anns) for ann_id in self._annotation_ids(ref)]
        for key, value, known in (*named, ("image_id", ref["image_id"], self.Imgs)):
            if value not in known:
                raise UserError(
                    f"{ref_name(ref)} has no mask: {key} {value} is not in {self.instances_file}, so "
                    f"{self.refs_file.name} and {self.instances_file.name} are of different data sets. {MANUAL}"
                )

    # ------------------------------------------------------------ ids

    def getRefIds(self, image_ids: Ids = (), cat_ids: Ids = (), ref_ids: Ids = (), split: str = "") -> list[int]:
        """Return the ids of the refs that pass every given filter.

        split: a split of the data set, or `test` if it has several test splits. Raises UserError for any other.
        """
        refs = _of_images(image_ids, self.imgToRefs, self.data["refs"])
        refs = _keep(_keep(refs, "category_id", cat_ids), "ref_id", ref_ids)
        if split:
            check_split(self.dataset, self.splitBy, self.splits, split)
            refs = [ref for ref in refs if in_split(ref["split"], split)]
        return [ref["ref_id"] for ref in refs]

    def getAnnIds(self, image_ids: Ids = (), cat_ids: Ids = (), ref_ids: Ids = ()) -> list[int]:
        """Return the ids of the annotations that pass every filter given; ref_ids keeps those of these refs."""
        anns = _of_images(image_ids, self.imgToAnns, self.data["annotations"])
        anns = _keep(anns, "category_id", cat_ids)
        if refs := self.loadRefs(ref_ids):
            of_refs = {ann_id for ref in refs for ann_id in self._annotation_ids(ref)}
            anns = [ann for ann in anns if ann["id"] in of_refs]
        return [ann["id"] for ann in anns]

    def getImgIds(self, ref_ids: Ids = ()) -> list[int]:
        """Return the ids of the images of these refs, each once; of all images without ref_ids."""
        refs = self.loadRefs(ref_ids)
        return list(dict.fromkeys(ref["image_id"] for ref in refs)) if refs else list(self.Imgs)

    def getCatIds(self) -> list[int]:
        """Return the ids of all categories."""
        return list(self.Cats)

    # ------------------------------------------------------------ records

    def loadRefs(self, ref_ids: Ids = ()) -> list[Record]:
        """Return the refs with these ids. UserError if an id does not exist; likewise for the next three methods."""
        return _load(self.Refs, ref_ids, "ref", self.refs_file)

    def loadAnns(self, ann_ids: Ids = ()) -> list[Record]:
        """Return the annotations with these ids."""
        return _load(self.Anns, ann_ids, "annotation", self.instances_file)

    def loadImgs(self, image_ids: Ids = ()) -> list[Record]:
        """Return the records of the images (file_name, height, width) with these ids."""
        return _load(self.Imgs, image_ids, "image", self.instances_file)

    def loadCats(self, cat_ids: Ids = ()) -> list[str]:
        """Return the names of the categories with these ids."""
        return _load(self.Cats, cat_ids, "category", self.instances_file)

    def getRefBox(self, ref_id: int) -> list[float]:
        """Return the object's box [x, y, w, h] in pixels; (x, y) is its upper left corner."""
        (ref,) = self.loadRefs(ref_id)
        box: list[float] = self.refToAnn[ref["ref_id"]]["bbox"]
        return box

    def getMask(self, ref: Record) -> dict[str, Any]:
        """Return {"mask": (H, W) uint8 at the image's size, 1 on the object; "area": its number of pixels, int}.

        Raises UserError if the object's segmentation is not valid.
        """
        mask = decode_parts(self.encode_mask(ref))
        return {"mask": mask, "area": int(mask.sum())}

    def meant(self, ref: Record) -> int | tuple[int, ...]:
        """Return the id of the annotation that a ref means; a tuple of ids in data sets of any number of objects."""
        ann_id: int = ref["ann_id"]
        return ann_id

    def objects_of(self, ref: Record) -> list[Record]:
        """Return the annotations that make a ref's mask: one, except in data sets of any number of objects."""
        return [self.Anns[ref["ann_id"]]]

    def has_target(self, ref: Record) -> bool:
        """Tell whether the ref means anything in its image, as all do except in data sets of any number of objects."""
        return True

    def encode_mask(self, ref: Record) -> list[RunLengths]:
        """Return the parts of the object's mask for `decode_parts`, a few hundred bytes in all.

        Raises UserError if the object's segmentation is not valid.
        """
        (ann,) = self.objects_of(ref)
        return self._encode_object(ann, ref["image_id"], self._name(ref))

    def _encode_object(self, ann: Record, image_id: int, name: str) -> list[RunLengths]:
        """Return the parts of an annotation's mask in an image; name: of the object and its file, for messages."""
        image = self.Imgs[image_id]
        try:
            parts = encode_parts(ann["segmentation"], image["height"], image["width"])
        except ValueError as error:
            raise UserError(f"{name} has no mask: {error}. {MANUAL}") from error
        return [coco_mask.merge(parts)] if self.overlap == "object" else parts


class REFER(Index):
    """The index of one data set and one way to split it, in the file layout `LAYOUT`.

    data_root: folder of all data sets. dataset, splitBy: keys of `DATA_SETS`. overlap: see `OVERLAPS`. Raises UserError
    for other keys, and if a file is missing, damaged or has another format.
    """

    def __init__(
        self,
        data_root: str | Path = "./refer/data",
        dataset: str = "refcoco",
        splitBy: str = "unc",
        overlap: str = "background",
    ) -> None:
        splits, root = splits_of(dataset, splitBy), Path(data_root)
        refs_file, instances_file = root / dataset / f"refs({splitBy}).p", root / dataset / "instances.json"
        source = Source(dataset, splitBy, splits, root, image_folder(root, dataset), refs_file, instances_file)
        super().__init__(source, read_refs(refs_file), read_instances(instances_file), overlap)


# ---------------------------------------------------------------- ids and splits


def ref_name(ref: Record) -> str:
    """Return the name of an object for messages."""
    return f"object ref_id {ref['ref_id']} (ann_id {ref['ann_id']}, image_id {ref['image_id']})"


def repeated(ids: Iterable[Key]) -> list[Key]:
    """Return each id that occurs more than once, in order of first occurrence."""
    return [key for key, count in Counter(ids).items() if count > 1]


def listed(ids: Ids) -> list[int]:
    """Return ids that are given singly or as a list as a list."""
    return list(ids) if isinstance(ids, Iterable) and not isinstance(ids, str) else [ids]


def _load(records: Mapping[int, Any], ids: Ids, kind: str, path: Path) -> list[Any]:
    wanted = listed(ids)
    if missing := [key for key in wanted if key not in records]:
        raise UserError(f"{path} has no {kind} with id {missing[0]!r}")
    return [records[key] for key in wanted]


def _of_images(image_ids: Ids, by_image: Mapping[int, list[Record]], everything: list[Record]) -> list[Record]:
    wanted = dict.fromkeys(listed(image_ids))
    return [record for key in wanted for record in by_image.get(key, ())] if wanted else everything


def _keep(records: list[Record], key: str, ids: Ids) -> list[Record]:
    wanted = set(listed(ids))
    return [record for record in records if not wanted.isdisjoint(listed(record[key]))] if wanted else records


def _group(records: Iterable[Record], key: str) -> dict[int, list[Record]]:
    groups: dict[int, list[Record]] = {}
    for record in records:
        for value in dict.fromkeys(listed(record[key])):
            groups.setdefault(value, []).append(record)
    return groups
