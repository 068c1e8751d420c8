"""Scenes as plain records: how all kinds of sample data draw one, and its entries in their files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from data.sample import scene
from data.sample.expressions import View

COCO_IMAGES = Path("images/mscoco/images/train2014")

Record: TypeAlias = dict[str, Any]  # a scene, object or sentence in plain types


@dataclass(frozen=True)
class Kind:
    """How a kind of sample data differs from the others. Its functions can be sent to other processes.

    n_objects: minimum and maximum number of objects in a scene, by split. image: path of an image in the folder, with a
    field for its number. compose: draws a scene with a minimum and maximum number of objects. write_sentences: about a
    view in a split, for `sentences` of the record. write_files: all files except the images. words: what `vocab.txt`
    has after the words of all kinds.
    """

    n_objects: Mapping[str, tuple[int, int]]
    image: str
    compose: Callable[[Random, int, int], scene.Scene]
    write_sentences: Callable[[Random, View, str], Any]
    write_files: Callable[[Path, list[Record]], None]
    words: Sequence[str] = ()


def make_scene(root: Path, seed: int, kind: Kind, number: int, split: str) -> Record:
    """Draw image `number` of the set; return its content and sentences as plain types.

    All randomness comes from the seed and the number, so that any process draws the same image.
    """
    rng = Random(f"{seed} {number}")
    composed, seen = compose_scene(rng, split, kind)
    path = root / kind.image.format(number)
    pixels = scene.draw_scene(composed, np.random.default_rng(rng.getrandbits(64)))
    Image.fromarray(pixels).save(path, quality=90)

    record = {"image_id": number, "file_name": path.name, "split": split}
    record |= {"width": composed.width, "height": composed.height, "background": composed.background}
    record["objects"] = [object_entry(number, depth, part) for depth, part in enumerate(seen)]
    record["polygons"] = [part.polygons for part in seen]
    record["sentences"] = kind.write_sentences(rng, View(composed.width, composed.height, seen), split)
    return record


def compose_scene(rng: Random, split: str, kind: Kind) -> tuple[scene.Scene, list[scene.Seen]]:
    """Return a scene of the split whose objects can all be outlined, and their visible parts."""
    while True:
        composed = kind.compose(rng, *kind.n_objects[split])
        seen = scene.look_at(composed)
        if seen:
            return composed, seen


def object_entry(number: int, depth: int, seen: scene.Seen) -> Record:
    """Return an object's entry in scenes.json."""
    return {
        "ann_id": annotation_id(number, depth),
        "depth": depth,
        **vars(seen.look),
        "centre": list(seen.centre),
        "bbox": seen.bbox,
        "area": seen.area,
        "hidden_by": {str(annotation_id(number, nearer)): fraction for nearer, fraction in seen.hidden_by.items()},
    }


def annotation_id(number: int, depth: int) -> int:
    """Return the id of an object of image `number`, unique among all images of up to ten objects."""
    return 10 * number + depth


# ---------------------------------------------------------------- entries of files


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def write_scenes(folder: Path, scenes: list[Record], sentences: dict[str, list[Record]]) -> None:
    """Write scenes.json: the content of the images, and by data set the sentences in the order of their ids."""
    images = [{k: v for k, v in record.items() if k not in ("polygons", "sentences")} for record in scenes]
    write_json(folder / "scenes.json", {"images": images, "sentences": sentences})


def instances(scenes: list[Record], version: int = 1) -> Record:
    """Return the content of instances.json in COCO's format; the categories are the shapes."""
    annotations = [
        {
            "id": entry["ann_id"],
            "image_id": record["image_id"],
            "category_id": category_id(entry),
            "segmentation": polygons,
            "area": entry["area"],
            "bbox": entry["bbox"],
            "iscrowd": 0,
        }
        for record in scenes
        for entry, polygons in zip(record["objects"], record["polygons"], strict=True)
    ]
    fields = {"id": "image_id", "file_name": "file_name", "height": "height", "width": "width"}
    categories = enumerate(scene.SHAPES, start=1)
    return {
        "info": {"description": "sample of drawn scenes", "version": str(version)},
        "licenses": [],
        "images": [{key: record[source] for key, source in fields.items()} for record in scenes],
        "annotations": annotations,
        "categories": [{"id": i, "name": name, "supercategory": "shape"} for i, name in categories],
    }


def category_id(entry: Record) -> int:
    """Return the COCO category of an object: its shape, counted from 1."""
    return scene.SHAPES.index(entry["shape"]) + 1


def sentence(sent_id: int, text: Record) -> Record:
    """Return a sentence in REFER's format."""
    tokens = text["sent"].split()
    return {"raw": text["raw"], "sent": text["sent"], "sent_id": sent_id, "tokens": tokens}
