"""The REFER index: objects ("refs"), the sentences that mean them, and their masks.

    refer = REFER("./refer/data", dataset="refcoco", splitBy="unc")
    ref = refer.loadRefs(refer.getRefIds(split="val"))[0]
    mask = refer.getMask(ref)["mask"]

Names of calls and maps are those of the original API (https://github.com/lichengunc/refer), so scripts written
for it keep working. What each file holds, and what to do about an error: docs/data.md.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypedDict, TypeVar

import numpy as np
from pycocotools import mask as coco_mask

from errors import UserError, few
from lib.photo import Pixels
from lib.texts import IS_POINTER, LFS_POINTER
from lib.variants import check_name
from refer.splits import COCO_IMAGES, MANUAL, OTHER_IMAGES, check_split, in_split, splits_of

Record: TypeAlias = dict[str, Any]  # a ref, sentence, image or annotation, as it stands in the file
Key = TypeVar("Key", bound=Hashable)
Ids: TypeAlias = int | Iterable[int]
Fields: TypeAlias = Mapping[str, type | tuple[type, ...]]  # the type of every key that a record must have


class RunLengths(TypedDict):
    """A mask, or a part of one, in COCO's compressed form."""

    size: list[int]  # height, width
    counts: str | bytes


class Instances(TypedDict):
    """What COCO's format holds of the images."""

    images: list[Record]
    annotations: list[Record]
    categories: list[Record]


class Files(Instances):
    """Everything that an index was made from."""

    dataset: str
    refs: list[Record]


LAYOUT = (
    "DATA_ROOT/DATASET/instances.json, DATA_ROOT/DATASET/refs(SPLITBY).p and "
    f"DATA_ROOT/{COCO_IMAGES} (refclef: DATA_ROOT/{OTHER_IMAGES['refclef']})"
)

# What pixels are where the parts of an object overlap: see `OBJECT_SUM`; `object` makes one part of them all.
OVERLAPS = ("background", "object")

# What the index reads of each record; other keys are kept but never looked at.
REF: Fields = {"ref_id": int, "ann_id": int, "category_id": int, "image_id": int, "split": str, "sentences": list}
SENTENCE: Fields = {"sent_id": int, "raw": str, "tokens": list}
IMAGE: Fields = {"id": int, "file_name": str, "height": int, "width": int}
ANNOTATION: Fields = {"id": int, "image_id": int, "category_id": int, "bbox": list, "segmentation": (list, dict)}
CATEGORY: Fields = {"id": int, "name": str}


class Source(NamedTuple):
    """What an index is of, and where it came from."""

    dataset: str
    split_by: str
    splits: tuple[str, ...]
    root: Path
    images: Path  # folder of the images
    refs_file: Path
    instances_file: Path
    as_seen: bool = False  # whether images are photos of one's own, read as they are seen, not as they are stored


class Index:
    """Objects, their sentences and masks, by id; `REFER` is the index of a data set in its original layout.

    Maps: `Refs, Anns, Imgs, Sents` id → record, `Cats` id → name; `imgToRefs, imgToAnns, catToRefs` id → records;
    `refToAnn, annToRef, sentToRef` id → record; `sentToTokens` id → words. `data` holds the files' own lists under
    `refs`, `images`, `annotations`, `categories`; `IMAGE_DIR` is the images' folder; `overlap` is one of `OVERLAPS`.
    `as_seen` is explained at `Source`. Ids are given singly or as a list; none at all means no filter. Answers keep the
    files' order, or that of the image ids asked for.
    """

    def __init__(self, source: Source, refs: list[Record], instances: Instances, overlap: str = "background") -> None:
        """overlap: see `OVERLAPS`. Raises UserError for a ref whose mask or image is not among the instances, and for
        ids that stand twice.
        """
        check_name("overlap", overlap, OVERLAPS)
        self.overlap = overlap
        self.dataset, self.splitBy, self.splits = source.dataset, source.split_by, source.splits
        self.ROOT_DIR, self.IMAGE_DIR = str(source.root), str(source.images)
        self.DATA_DIR = str(source.refs_file.parent)
        self.refs_file, self.instances_file = source.refs_file, source.instances_file
        self.as_seen = source.as_seen
        self.data: Files = {"dataset": source.dataset, "refs": refs, **instances}
        self._check_ids()
        self._index_instances()
        self._index_refs()

    def _check_ids(self) -> None:
        """Of two records with one id the index would keep the last, and objects would get each other's masks."""
        instances, refs = self.instances_file, self.data["refs"]
        owned = [(sentence["sent_id"], ref["ref_id"]) for ref in refs for sentence in ref["sentences"]]
        of_sentence: dict[int, list[int]] = {sent_id: [] for sent_id in repeated(sent_id for sent_id, _ in owned)}
        for sent_id, ref_id in owned:
            if sent_id in of_sentence:
                of_sentence[sent_id].append(ref_id)
        found = [
            (instances, "id of an image", repeated(image["id"] for image in self.data["images"])),
            (instances, "id of an annotation", repeated(ann["id"] for ann in self.data["annotations"])),
            (instances, "id of a category", repeated(category["id"] for category in self.data["categories"])),
            (self.refs_file, "ref_id", repeated(ref["ref_id"] for ref in refs)),
            (self.refs_file, "sent_id", [f"{key} (of ref_id {few(owners)})" for key, owners in of_sentence.items()]),
        ]
        lines = [f"{path}: {kind} stands more than once: {few(ids)}" for path, kind, ids in found if ids]
        if lines:
            advice = "Nobody can tell which record is meant: get the file again, or give every record an id of its own."
            raise UserError("\n".join([*lines, f"{advice} {MANUAL}"]))

    def _index_instances(self) -> None:
        self.Imgs = {image["id"]: image for image in self.data["images"]}
        self.Anns = {ann["id"]: ann for ann in self.data["annotations"]}
        self.Cats = {category["id"]: category["name"] for category in self.data["categories"]}
        self.imgToAnns = _group(self.data["annotations"], "image_id")

    def _index_refs(self) -> None:
        refs = self.data["refs"]
        for ref in refs:
            self._check_links(ref)
        self.Refs = {ref["ref_id"]: ref for ref in refs}
        self.imgToRefs = _group(refs, "image_id")
        self.catToRefs = _group(refs, "category_id")
        self.annToRef = {ref["ann_id"]: ref for ref in refs}
        self.refToAnn = {ref["ref_id"]: self.Anns[ref["ann_id"]] for ref in refs}
        self.Sents = {sent["sent_id"]: sent for ref in refs for sent in ref["sentences"]}
        self.sentToRef = {sent["sent_id"]: ref for ref in refs for sent in ref["sentences"]}
        self.sentToTokens = {sent_id: sent["tokens"] for sent_id, sent in self.Sents.items()}

    def _check_links(self, ref: Record) -> None:
        for key, known in (("ann_id", self.Anns), ("image_id", self.Imgs)):
            if ref[key] not in known:
                raise UserError(
                    f"{ref_name(ref)} has no mask: {key} {ref[key]} is not in {self.instances_file}, so "
                    f"{self.refs_file.name} and {self.instances_file.name} are not of one data set. {MANUAL}"
                )

    # ------------------------------------------------------------ ids

    def getRefIds(self, image_ids: Ids = (), cat_ids: Ids = (), ref_ids: Ids = (), split: str = "") -> list[int]:
        """Return the ids of the refs that pass every filter given.

        split: one of the data set's splits, or `test` where it has several of them. Raises UserError for another.
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
        of_refs = [ref["ann_id"] for ref in self.loadRefs(ref_ids)]
        anns = _keep(_keep(anns, "category_id", cat_ids), "id", of_refs)
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
        """Return the refs with these ids; UserError names an id that is not there. So do the next three."""
        return _load(self.Refs, ref_ids, "ref", self.refs_file)

    def loadAnns(self, ann_ids: Ids = ()) -> list[Record]:
        """Return the annotations with these ids."""
        return _load(self.Anns, ann_ids, "annotation", self.instances_file)

    def loadImgs(self, image_ids: Ids = ()) -> list[Record]:
        """Return the images' records (file_name, height, width) with these ids."""
        return _load(self.Imgs, image_ids, "image", self.instances_file)

    def loadCats(self, cat_ids: Ids = ()) -> list[str]:
        """Return the names of the categories with these ids."""
        return _load(self.Cats, cat_ids, "category", self.instances_file)

    def getRefBox(self, ref_id: int) -> list[float]:
        """Return the object's box [x, y, w, h] in pixels, x and y its upper left corner."""
        (ref,) = self.loadRefs(ref_id)
        box: list[float] = self.refToAnn[ref["ref_id"]]["bbox"]
        return box

    def getMask(self, ref: Record) -> dict[str, Any]:
        """Return {"mask": (H, W) uint8 at the image's own size, 1 on the object; "area": its pixels, int}.

        Raises UserError where the object's segmentation holds no mask.
        """
        mask = decode_parts(self.encode_mask(ref))
        return {"mask": mask, "area": int(mask.sum())}

    def encode_mask(self, ref: Record) -> list[RunLengths]:
        """Return the parts of the object's mask as `decode_parts` takes them: a few hundred bytes in all.

        Raises UserError where the object's segmentation holds no mask.
        """
        image, ann = self.Imgs[ref["image_id"]], self.refToAnn[ref["ref_id"]]
        try:
            parts = encode_parts(ann["segmentation"], image["height"], image["width"])
        except ValueError as error:
            raise UserError(f"{ref_name(ref)} in {self.instances_file} has no mask: {error}. {MANUAL}") from error
        return [coco_mask.merge(parts)] if self.overlap == "object" else parts


class REFER(Index):
    """One data set under one way of splitting it, in the files of `LAYOUT`.

    data_root: their folder. dataset, splitBy: a row of `SPLITS`. overlap: see `OVERLAPS`. Raises UserError for any
    other row, and where a file is missing, damaged or not what the index reads.
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
        images = root / OTHER_IMAGES.get(dataset, COCO_IMAGES)
        source = Source(dataset, splitBy, splits, root, images, refs_file, instances_file)
        super().__init__(source, read_refs(refs_file), read_instances(instances_file), overlap)


# ---------------------------------------------------------------- ids and splits


def ref_name(ref: Record) -> str:
    """Return how messages name an object."""
    return f"object ref_id {ref['ref_id']} (ann_id {ref['ann_id']}, image_id {ref['image_id']})"


def repeated(ids: Iterable[Key]) -> list[Key]:
    """Return the ids that stand more than once, each one time, in their order."""
    return [key for key, count in Counter(ids).items() if count > 1]


def _listed(ids: Ids) -> list[int]:
    return list(ids) if isinstance(ids, Iterable) and not isinstance(ids, str) else [ids]


def _load(records: Mapping[int, Any], ids: Ids, kind: str, path: Path) -> list[Any]:
    wanted = _listed(ids)
    if missing := [key for key in wanted if key not in records]:
        raise UserError(f"{path} has no {kind} with id {missing[0]!r}")
    return [records[key] for key in wanted]


def _of_images(image_ids: Ids, by_image: Mapping[int, list[Record]], everything: list[Record]) -> list[Record]:
    wanted = dict.fromkeys(_listed(image_ids))
    return [record for key in wanted for record in by_image.get(key, ())] if wanted else everything


def _keep(records: list[Record], key: str, ids: Ids) -> list[Record]:
    wanted = set(_listed(ids))
    return [record for record in records if record[key] in wanted] if wanted else records


def _group(records: Iterable[Record], key: str) -> dict[int, list[Record]]:
    groups: dict[int, list[Record]] = {}
    for record in records:
        groups.setdefault(record[key], []).append(record)
    return groups


# ---------------------------------------------------------------- masks

# Where the parts of an object overlap, their sum is 2 and the pixel counts as background. That is hardly what the
# annotators meant, but the published numbers were measured against masks made this way. An index with the overlap
# `object` departs from that by joining the parts beforehand.
OBJECT_SUM = 1


def encode_parts(segmentation: Sequence[Any] | Mapping[str, Any], height: int, width: int) -> list[RunLengths]:
    """Return the parts of a mask as COCO's compressed run lengths.

    segmentation: a list of polygons [x0, y0, x1, y1, …] in pixels, a list of run lengths, or one run-length dict;
    run lengths as COCO's string, its bytes, or numbers. Raises ValueError saying what is wrong with it.
    """
    parts = [segmentation] if isinstance(segmentation, dict) else segmentation
    if any(isinstance(part, list) and part and isinstance(part[0], list) for part in parts):
        raise ValueError("a polygon holds its points as nested pairs [[x, y], …]: write them flat, [x0, y0, x1, y1, …]")
    # Fewer than three points enclose no pixel; COCO's own code stumbles over them in first place.
    parts = [part for part in parts if not (isinstance(part, list) and len(part) < 6)]
    if not parts:
        raise ValueError("its segmentation is empty")
    if min(height, width) < 1 or height * width >= 2**32:  # the count of COCO's C code
        raise ValueError(f"its image would be {width}×{height} pixels")
    return [_encode_part(part, height, width) for part in parts]


def decode_parts(parts: list[RunLengths]) -> Pixels:
    """Return the mask (H, W) uint8 with 1 where exactly `OBJECT_SUM` part covers the pixel, 0 elsewhere."""
    covered = coco_mask.decode(parts).sum(axis=2, dtype=np.int32)
    return np.ascontiguousarray(covered == OBJECT_SUM, dtype=np.uint8)


def covers_nothing(parts: list[RunLengths]) -> bool:
    """Tell whether `decode_parts` would return a mask without a pixel; mostly without drawing it."""
    areas, union = coco_mask.area(parts), int(coco_mask.area(coco_mask.merge(parts)))
    # Pixels that are all covered twice or more make the areas twice the union or more.
    return union == 0 or (int(areas.sum()) >= 2 * union and not decode_parts(parts).any())


def _encode_part(part: Any, height: int, width: int) -> RunLengths:
    if isinstance(part, list):
        _check_polygon(part, height, width)
        return compress([part], height, width)[0]
    if isinstance(part, dict):
        runs = {"size": [height, width], "counts": _read_runs(part, height, width)}
        return compress([runs], height, width)[0]
    raise ValueError(f"its segmentation holds a {type(part).__name__}, neither polygon nor run lengths")


def compress(parts: Any, height: int, width: int) -> list[RunLengths]:
    """Return polygons or plain run lengths as compressed ones.

    parts: a list of either. Of any type, because polygons of fractions and plain runs are missing in the stubs.
    """
    compressed: list[RunLengths] = coco_mask.frPyObjects(parts, height, width)
    return compressed


def _check_polygon(polygon: list[Any], height: int, width: int) -> None:
    """COCO's C code trusts its numbers: points that are NaN or far outside crash the process."""
    try:
        points = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("a polygon holds something that is no number") from None
    if points.ndim != 1 or len(points) % 2:
        raise ValueError(f"a polygon is no list of x, y pairs ({len(polygon)} entries)")
    if not (np.abs(points) <= 10 * max(height, width)).all():
        raise ValueError(f"a polygon has points far outside its image of {width}×{height} pixels")


def _read_runs(part: Record, height: int, width: int) -> list[int]:
    """Return the run lengths, column by column; runs that do not fill the image would decode to stray memory."""
    if part.get("size") not in ([height, width], (height, width)):
        raise ValueError(f"its run lengths are for size {part.get('size')}, its image for {[height, width]} (H, W)")
    counts = part.get("counts")
    if isinstance(counts, str):
        counts = counts.encode("ascii", "replace")
    runs = _expand_counts(counts) if isinstance(counts, bytes) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise ValueError("its run lengths are damaged")
    if sum(runs) != height * width:
        raise ValueError(f"its run lengths cover {sum(runs)} pixels, its image has {height * width}")
    return runs


def _expand_counts(counts: bytes) -> list[int]:
    """Return the numbers in COCO's run-length string.

    A number is five bits a character, lowest first, 48 added, bit 5 set where more follow, sign in the last one's
    bit 4; from the fourth number on it is the difference to the one two before (pycocotools, `rleFrString`).
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = character - 48
        if not 0 <= bits < 64:
            raise ValueError("its run lengths are damaged")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs


# ---------------------------------------------------------------- files


class _PlainUnpickler(pickle.Unpickler):
    """Builds lists, dicts, strings and numbers; a pickle that asks for any class or function is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only plain data is read")


def read_refs(path: Path) -> list[Record]:
    """Return the refs of a `refs(...).p`, a pickle of Python 2 or 3. Nothing in the file is ever run.

    Where `refer.prepare` has left the same refs as JSON (`refs(...).json`), they are read from there; the JSON alone
    is enough, and one made from another pickle than the one beside it is passed over.
    Python 2 kept text as bytes; they are read as UTF-8, of which the ASCII of the published files is a part.
    Raises UserError, naming the file, where it is missing, damaged, holds code, or is no list of refs.
    """
    json_path = path.with_suffix(".json")
    if not path.exists() and json_path.exists():
        return _read_refs_json(json_path, source=None)
    content = _read_file(path)
    if json_path.exists():
        # The pickle is still there to say what the refs are, whatever has happened to the copy.
        with suppress(UserError):
            return _read_refs_json(json_path, source=content)
    try:
        refs = _PlainUnpickler(BytesIO(content), encoding="utf-8").load()
    except Exception as error:  # damaged pickles fail in any way: IndexError, KeyError, MemoryError, …
        raise _damaged(path, f"is no pickle of plain data ({str(error) or type(error).__name__})") from error
    return _check_refs(refs, path)


def refs_as_json(path: Path) -> bytes:
    """Return the refs of a pickle as `read_refs` takes them from JSON, marked with the pickle's SHA-256.

    Raises UserError as `read_refs` does, and ValueError where JSON cannot hold the very same refs.
    """
    refs = read_refs(path)
    try:
        content = json.dumps({"pickle_sha256": _sha256(path.read_bytes()), "refs": refs}, separators=(",", ":"))
    except TypeError as error:
        raise ValueError(f"{path} holds what JSON cannot ({error})") from error
    if json.loads(content)["refs"] != refs:
        raise ValueError(f"{path} holds what JSON cannot, such as tuples or numbers as keys")
    return content.encode()


def _read_refs_json(path: Path, source: bytes | None) -> list[Record]:
    """Return the refs in the JSON file; UserError where it was made from another pickle than `source`."""
    content = _read_json(path)
    if source is not None and content.get("pickle_sha256") != _sha256(source):
        raise _damaged(path, "was made from another pickle")
    return _check_refs(content.get("refs"), path)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _check_refs(refs: Any, path: Path) -> list[Record]:
    checked = _check_records(refs, REF, path, "ref")
    for ref in checked:
        if ref["sentences"]:  # one that has none can be left out, see data/dataset_refer_bert.py
            _check_records(ref["sentences"], SENTENCE, path, f"sentence of ref_id {ref['ref_id']}")
    return checked


def read_instances(path: Path) -> Instances:
    """Return images, annotations and categories of an `instances.json` in COCO's format.

    Raises UserError, naming the file, where it is missing, damaged or of another format.
    """
    instances = _read_json(path)
    return {
        "images": _check_records(instances.get("images"), IMAGE, path, "images"),
        "annotations": _check_records(instances.get("annotations"), ANNOTATION, path, "annotations"),
        "categories": _check_records(instances.get("categories"), CATEGORY, path, "categories"),
    }


def _read_json(path: Path) -> Record:
    content = _read_file(path)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise _damaged(path, f"holds a {type(value).__name__} where a dict was expected")
    return value


def _read_file(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"there is no file {path}. The layout is {LAYOUT}. {MANUAL} for where to get it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). {MANUAL}") from error
    if content.startswith(LFS_POINTER):
        raise UserError(f"{path} {IS_POINTER}")
    return content


def _check_records(records: Any, fields: Fields, path: Path, kind: str) -> list[Record]:
    """Return `records`; UserError unless they are a non-empty list of dicts with these keys, each of its type."""
    if not isinstance(records, list) or not records:
        raise _damaged(path, f"has no list of records where '{kind}' belongs")
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise _damaged(path, f"has a {type(record).__name__} as {kind} number {number}, not a dict")
        for key, expected in fields.items():
            if not isinstance(record.get(key), expected):
                raise _damaged(path, f"has no valid '{key}' in {kind} number {number} ({record.get(key)!r:.60})")
    return records


def _damaged(path: Path, problem: str) -> UserError:
    return UserError(f"{path} {problem}. Get the file again: {MANUAL[0].lower() + MANUAL[1:]}")
