"""aRefCOCO: other sentences about objects of RefCOCO and G-Ref, whose files have the masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from errors import UserError, few
from refer.files import Instances, Record, read_json, sentence_record
from refer.mixed import merged
from refer.refer import REFER, Index, Source
from refer.rows import refuse
from refer.splits import MANUAL, splits_of
from utils import log

NAME, FILE = "arefcoco", "arefcoco.json"


def read_arefcoco(root: Path, dataset: str, split_by: str, overlap: str) -> Index:
    """Return the index of the sentences of `test`. Raises UserError with every problem and the number of its record."""
    file, splits = root / NAME / FILE, splits_of(dataset, split_by)
    records = read_json(file).get("annotations")
    if not isinstance(records, list) or not records:
        raise UserError(f"{file} has no list of records where 'annotations' belongs. Get it again: {MANUAL}")
    checked = ((number, _problem(record)) for number, record in enumerate(records))
    refuse([f"{file}: annotations number {number}: {problem}" for number, problem in checked if problem])
    of_split = [(number, record) for number, record in enumerate(records) if record["split"] in splits]
    if others := sorted({record["split"] for record in records} - set(splits)):
        log(f"{file}: {len(records) - len(of_split):,} annotations of split {few(others)} are not read")
    originals = {_original(record): None for _, record in of_split}
    indices = {pair: REFER(root, *pair, overlap) for pair in originals}
    refs: list[Record] = []
    problems: list[str] = []
    sent_id = 0
    for number, record in of_split:
        original = indices[_original(record)].Refs.get(record["ref_id"])
        if original is None:
            path = indices[_original(record)].refs_file
            problems.append(f"{file}: annotations number {number}: ref_id {record['ref_id']} is not in {path}")
            continue
        sentences = []
        for text in record["descriptions"]:
            sent_id += 1
            sentences.append(sentence_record(sent_id, text))
        links = {key: original[key] for key in ("ann_id", "image_id", "category_id")}
        refs.append({"ref_id": len(refs) + 1, "split": record["split"], "sentences": sentences} | links)
    refuse(problems)
    _report_seen(refs, list(indices.values()))
    images = [Path(index.IMAGE_DIR) for index in indices.values()]
    source = Source(NAME, split_by, splits, root, images[0] if images else root, file, file)
    return Index(source, refs, _instances(refs, list(indices.values())), overlap)


def _problem(record: Any) -> str:
    """Return the fault of a record as text; "" for a valid one."""
    if not isinstance(record, dict):
        return f"it is a {type(record).__name__}, not an object"
    for key in ("split", "original_dataset"):
        if not isinstance(record.get(key), str):
            return f"'{key}' must be a text ({record.get(key)!r:.40})"
    if type(record.get("ref_id")) is not int:
        return f"'ref_id' must be a whole number ({record.get('ref_id')!r:.40})"
    texts = record.get("descriptions")
    if not (isinstance(texts, list) and texts and all(isinstance(text, str) and text.strip() for text in texts)):
        return "'descriptions' must be a list of one or more texts, none of them empty"
    return ""


def _original(record: Record) -> tuple[str, str]:
    """Return the data set of a record's object, and its `splitBy`."""
    return ("refcoco", "unc") if record["original_dataset"] == "refcoco" else ("refcocog", "umd")


def _instances(refs: list[Record], indices: list[Index]) -> Instances:
    """Return the images, annotations and categories of the refs, each once."""
    used = {key: {ref[key] for ref in refs} for key in ("image_id", "ann_id")}
    joined = merged([(index.instances_file, index.data) for index in indices])
    return {
        "images": [image for image in joined["images"] if image["id"] in used["image_id"]],
        "annotations": [ann for ann in joined["annotations"] if ann["id"] in used["ann_id"]],
        "categories": joined["categories"],
    }


def _report_seen(refs: list[Record], indices: list[Index]) -> None:
    """Log the number of images that other data sets train on, and how to exclude them."""
    tested = {ref["image_id"] for ref in refs}
    for index in indices:
        seen = tested & {ref["image_id"] for ref in index.data["refs"] if ref["split"] == "train"}
        if seen:
            log(
                f"note: {len(seen):,} of the {len(tested):,} images of {NAME} are in train of {index.dataset} "
                f"({index.splitBy}). A network that was trained on it has seen them. To exclude them, train with "
                f"--dataset {index.dataset},{NAME}"
            )
