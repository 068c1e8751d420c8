"""RefCOCO-M: part of RefCOCO's val with new masks, from the parquet files of its owners.

`refer.prepare` converts them once into REFER's files; nothing else needs pyarrow. `--splitBy unc` has the new masks,
`--splitBy old` RefCOCO's masks of the same objects with the same sentences. About half of RefCOCO's objects are not in
RefCOCO-M, so its scores cannot be compared with those on the whole of val.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from errors import UserError
from lib.files import write_atomically, write_text
from lib.photo import ImageError, opened
from lib.run_lengths import with_text
from refer.datasets import image_folder
from refer.files import Instances, Record, sentence_record
from refer.masks import box_of, covers_nothing, encode_parts
from refer.refer import REFER, Index, Source
from refer.rows import RowError, Size, check_file_name, refuse
from refer.splits import MANUAL, splits_of

NAME, OLD = "refcocom", "old"
COLUMNS = ("image", "image_id", "file_name", "samples")
OTHER_IDS = 2_000_000_000  # ids of the new masks and categories begin here: none is an id of COCO


class TooFewError(UserError):
    """Parquet files are missing."""


def parquet_files(root: Path) -> list[Path]:
    """Return the owners' files, in the data set's folder or in `data` inside it."""
    return sorted([*(root / NAME).glob("*.parquet"), *(root / NAME / "data").glob("*.parquet")])


def read_refcocom(root: Path, dataset: str, split_by: str, overlap: str) -> Index:
    """Return the index of the converted files; for "old" with RefCOCO's masks. Raises UserError as REFER does."""
    if not (root / NAME / "instances.json").exists():
        raise UserError(
            f"there is no {root / NAME / 'instances.json'}: python -m refer.prepare --dataset {NAME} downloads the "
            f"parquet files and converts them. {MANUAL}"
        )
    new = REFER(root, dataset, "unc", overlap)
    return _with_old_masks(new, REFER(root, "refcoco", "unc", overlap)) if split_by == OLD else new


def _with_old_masks(new: Index, old: Index) -> Index:
    """Return the refs of RefCOCO-M with the masks of the same objects in RefCOCO."""
    partners = {ref["ref_id"]: _partner(ref, new, old) for ref in new.data["refs"]}
    lost = [ref_id for ref_id, partner in partners.items() if partner is None]
    refuse([f"{new.refs_file}: ref_id {key} has no sentence of an object in {old.refs_file}" for key in lost])
    links = {key: {name: ref[name] for name in ("ann_id", "category_id")} for key, ref in partners.items() if ref}
    kept = {link["ann_id"] for link in links.values()}
    instances: Instances = {
        "images": new.data["images"],
        "annotations": [ann for ann in old.data["annotations"] if ann["id"] in kept],
        "categories": old.data["categories"],
    }
    folders, files = (Path(new.ROOT_DIR), Path(new.IMAGE_DIR)), (new.refs_file, old.instances_file)
    source = Source(NAME, OLD, splits_of(NAME, OLD), *folders, *files)
    return Index(source, [ref | links[ref["ref_id"]] for ref in new.data["refs"]], instances, old.overlap)


def _partner(ref: Record, new: Index, old: Index) -> Record | None:
    """Return the corresponding ref of RefCOCO: on the same image, with the most sentences in common.

    If several have equally many, the one with the highest IoU of the boxes.
    """
    sentences = _normalized_sentences(ref)
    candidates = [other for other in old.imgToRefs.get(ref["image_id"], []) if other["split"] == "val"]
    shared = [(len(sentences & _normalized_sentences(other)), other) for other in candidates]
    most = max((count for count, _ in shared), default=0)
    best = [other for count, other in shared if count == most > 0]
    box = new.getRefBox(ref["ref_id"])
    return max(best, key=lambda other: _iou(box, old.getRefBox(other["ref_id"])), default=None)


def _normalized_sentences(ref: Record) -> set[str]:
    return {" ".join(sentence["raw"].lower().split()) for sentence in ref["sentences"]}


def _iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the IoU of two boxes [x, y, w, h]; 0 if either is invalid."""
    try:
        (x0, y0, w0, h0), (x1, y1, w1, h1) = one, other
        width, height = min(x0 + w0, x1 + w1) - max(x0, x1), min(y0 + h0, y1 + h1) - max(y0, y1)
        shared = max(width, 0) * max(height, 0)
        return shared / (w0 * h0 + w1 * h1 - shared)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return 0.0


# ---------------------------------------------------------------- conversion


def convert(root: Path, least: int = 1) -> None:
    """Convert the parquet files to REFER's, and extract their images unless they exist.

    Raises TooFewError before writing REFER's files if there are fewer objects than `least`; UserError if pyarrow is
    missing, and for every invalid entry, with file and id.
    """
    refs: list[Record] = []
    images: dict[int, Record] = {}
    annotations: list[Record] = []
    categories: dict[str, int] = {}
    problems: list[str] = []
    for file in parquet_files(root):
        for row in _rows(file):
            try:
                image, content = _image(row)
                if images.setdefault(image["id"], image) != image:
                    raise RowError("the image appears twice, with different names or sizes")
                for sample in row["samples"]:
                    number = len(refs) + 1
                    ref, ann = _object(sample, image, number, categories)
                    refs.append(ref)
                    annotations.append(ann)
                _put_image(image_folder(root, NAME) / image["file_name"], content)
            except RowError as error:
                problems.append(f"{file}: image_id {row.get('image_id')!r:.40}: {error}")
    refuse(problems)
    if len(refs) < least:
        raise TooFewError(
            f"the parquet files in {root / NAME} hold {len(refs):,} of {least:,} objects: files are missing"
        )
    _number_sentences(refs)
    instances: Instances = {
        "images": list(images.values()),
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }
    write_text(root / NAME / "refs(unc).json", json.dumps({"refs": refs}))
    write_text(root / NAME / "instances.json", json.dumps(instances))


def _number_sentences(refs: Sequence[Record]) -> None:
    sentences = [sentence for ref in refs for sentence in ref["sentences"]]
    for sent_id, sentence in enumerate(sentences, start=1):
        sentence["sent_id"] = sent_id


def _rows(file: Path) -> Iterator[Record]:
    """Yield the rows of a parquet file. Raises UserError, naming the column, if one is missing."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{file} is read with pyarrow, which is not installed: pip install pyarrow") from error
    try:
        table = pyarrow.parquet.ParquetFile(file)
        names = table.schema_arrow.names
        if absent := [name for name in COLUMNS if name not in names]:
            raise UserError(f"{file} has no column {', '.join(absent)}, only {', '.join(names)}. {MANUAL}")
        for batch in table.iter_batches(batch_size=16, columns=list(COLUMNS)):
            yield from batch.to_pylist()
    except UserError:
        raise
    except Exception as error:  # damaged files make pyarrow raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{file} cannot be read as parquet ({reason}). Get it again. {MANUAL}") from error


def _image(row: Record) -> tuple[Record, bytes]:
    name, image_id, picture = row["file_name"], row["image_id"], row["image"]
    if type(image_id) is not int or not isinstance(name, str):
        raise RowError("its image_id is not a whole number, or its file_name is not a text")
    check_file_name(name)
    content = picture.get("bytes") if isinstance(picture, dict) else None
    if not isinstance(content, bytes):
        raise RowError("its column image has no bytes of a picture")
    if not isinstance(row["samples"], list) or not all(isinstance(sample, dict) for sample in row["samples"]):
        raise RowError("its column samples is not a list of objects")
    width, height = _size(content)
    return {"id": image_id, "file_name": name, "width": width, "height": height}, content


def _size(content: bytes) -> Size:
    try:
        with opened(BytesIO(content)) as image:
            return image.size
    except ImageError as error:
        raise RowError(f"its picture cannot be read ({error})") from error


def _object(sample: Mapping[str, Any], image: Record, number: int, categories: dict[str, int]) -> tuple[Record, Record]:
    """Return the ref and the annotation of a sample."""
    name = f"sample id {sample.get('id')!r:.40}"
    texts = [text for text in map(_text, sample.get("sentences") or []) if text]
    if not texts or len(texts) < len(sample["sentences"]):
        raise RowError(f"{name} has no sentence, or an empty one")
    mask = sample.get("mask")
    size = [image["height"], image["width"]]
    try:
        if not isinstance(mask, dict) or list(mask.get("size") or []) != size:
            raise ValueError(f"its size is not {size} (H, W), that of its image")
        parts = encode_parts({"size": size, "counts": mask.get("counts")}, *size)
    except ValueError as error:
        raise RowError(f"{name} has no mask: {error}") from error
    if covers_nothing(parts):
        raise RowError(f"{name}: its mask covers nothing")
    category = categories.setdefault(str(sample.get("category") or "object"), OTHER_IDS + len(categories) + 1)
    ids = {"image_id": image["id"], "category_id": category}
    ann_id = OTHER_IDS + number
    sentences = [sentence_record(0, text) for text in texts]
    ref = {"ref_id": number, "ann_id": ann_id, "split": "val", "sentences": sentences, "sample_id": sample.get("id")}
    return ref | ids, {"id": ann_id, "segmentation": [with_text(parts[0])], "bbox": box_of(parts)} | ids


def _text(sentence: object) -> str:
    """Return a sentence, given as text or as a record of REFER; "" if it is neither."""
    if isinstance(sentence, dict):
        sentence = sentence.get("raw") or sentence.get("sent")
    return sentence.strip() if isinstance(sentence, str) else ""


def _put_image(path: Path, content: bytes) -> None:
    if not path.exists():
        write_atomically(path, lambda file: file.write(content))
