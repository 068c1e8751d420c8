"""Writes the sample data set: drawn scenes and sentences about them, in the layout of the real data sets."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import string
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from data.sample import expressions, scene
from errors import UserError
from lib.files import replacing
from lib.outputs import check_folder

VERSION = 1  # to be increased whenever the same options give other files
NOTE = "sample.json"  # holds the options
IMAGE_FOLDER = Path("images/mscoco/images/train2014")
REFS = {"refcoco": "refs(unc).p", "refcoco+": "refs(unc).p", "refcocog": "refs(umd).p"}
# Minimum and maximum number of objects in a scene.
N_OBJECTS = {"train": (3, 8), "val": (3, 8), "testA": (3, 5), "testB": (6, 8)}
VOCABULARY_SIZE = 1000


def make_sample(root: str | Path, images: int = 2000, seed: int = 0, *, hard: bool = False) -> None:
    """Write the sample data set into the folder `root`, which must be missing, empty or already hold it.

    images: number of training images; val, testA and testB get a tenth each, at least 8. hard: see `data.sample`.
    Raises UserError if the folder holds something else or cannot be written.
    """
    root = Path(os.path.realpath(root))
    options = json.dumps({"version": VERSION, "images": images, "seed": seed} | ({"hard": True} if hard else {})) + "\n"
    if images < 1:
        raise UserError(f"the sample data set needs at least 1 training image, not {images}")
    with os_errors_as_user_errors(root):
        if is_complete(root, options):
            print(f"{root} already holds this sample data set; left as it is")
            return
        check_folder(root, "--root")
        with replacing(root) as folder:
            scenes = write_all(folder, options, images, seed, hard=hard)
    print(f"{root}: {len(scenes)} images, {sum(len(s['objects']) for s in scenes)} objects")


def write_all(folder: Path, options: str, images: int, seed: int, *, hard: bool) -> list[dict[str, Any]]:
    """Write the data set into a new folder; return its scenes. options: content of `sample.json`."""
    (folder / IMAGE_FOLDER).mkdir(parents=True)
    scenes = make_scenes(folder / IMAGE_FOLDER, images, seed, hard)
    write_json(folder / "scenes.json", describe_scenes(scenes))
    write_json(folder / "instances.json", instances(scenes))
    for dataset in REFS:
        write_dataset(folder, dataset, references(dataset, scenes))
    (folder / "instances.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(vocabulary(hard=hard)) + "\n", encoding="utf-8")
    (folder / NOTE).write_text(options, encoding="utf-8")
    return scenes


def is_complete(root: Path, options: str) -> bool:
    """Return whether the folder already holds the data set of these options; UserError if it holds anything else."""
    if root.is_mount():
        raise UserError(f"{root} is the root of a disk and cannot be replaced; give a folder in it as --root")
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    note = root / NOTE
    if not note.is_file():
        raise UserError(f"{root} is not an empty folder and holds no sample data set; give another --root")
    present = note.read_text(encoding="utf-8", errors="replace")
    if present != options:
        raise UserError(
            f"{root} holds a sample data set made with {present.strip()[:200]}, not {options.strip()}; "
            "remove it or give another --root"
        )
    return True


@contextmanager
def os_errors_as_user_errors(root: Path) -> Iterator[None]:
    """Turn an OSError, as from a full disk or a name that is too long, into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--root {root} cannot be written ({error.strerror or error}); give another") from error


# ---------------------------------------------------------------- scenes


def make_scenes(folder: Path, images: int, seed: int, hard: bool) -> list[dict[str, Any]]:
    """Draw every image into the folder; return one record per image, see `make_scene`."""
    other = max(8, round(images / 10))
    counts = {"train": images, "val": other, "testA": other, "testB": other}
    splits = [split for split, count in counts.items() for _ in range(count)]
    make = partial(make_scene, folder, seed, hard)
    numbers = range(1, len(splits) + 1)
    # A small set takes less time than starting processes.
    if len(splits) < 200:
        return list(map(make, numbers, splits))
    with ProcessPoolExecutor(2) as pool:
        return list(pool.map(make, numbers, splits, chunksize=50))


def make_scene(folder: Path, seed: int, hard: bool, number: int, split: str) -> dict[str, Any]:
    """Draw image `number` of the set; return its content and sentences as plain types.

    All randomness comes from the seed and the number, so that any process draws the same image.
    """
    rng = Random(f"{seed} {number}")
    composed, seen = compose_scene(rng, split, hard)
    name = f"COCO_train2014_{number:012d}.jpg"
    pixels = scene.draw_scene(composed, np.random.default_rng(rng.getrandbits(64)))
    Image.fromarray(pixels).save(folder / name, quality=90)

    view = expressions.View(composed.width, composed.height, seen)
    record = {"image_id": number, "file_name": name, "split": split}
    record |= {"width": composed.width, "height": composed.height, "background": composed.background}
    record["objects"] = [object_entry(number, depth, part) for depth, part in enumerate(seen)]
    record["polygons"] = [part.polygons for part in seen]
    record["sentences"] = {
        dataset: [
            [
                sentence_entry(rng, phrase)
                for phrase in expressions.write_sentences(rng, view, target, dataset, hard=hard)
            ]
            for target in range(len(seen))
        ]
        for dataset in REFS
    }
    return record


def compose_scene(rng: Random, split: str, hard: bool = False) -> tuple[scene.Scene, list[scene.Seen]]:
    """Return a scene of the split whose objects can all be outlined, and their visible parts."""
    while True:
        composed = scene.compose(rng, *N_OBJECTS[split], alike=hard)
        seen = scene.look_at(composed)
        if seen:
            return composed, seen


def object_entry(number: int, depth: int, seen: scene.Seen) -> dict[str, Any]:
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
    """Return the id of an object of image `number`, unique among all images."""
    return 10 * number + depth


def sentence_entry(rng: Random, phrase: expressions.Phrase) -> dict[str, Any]:
    """Return a sentence as typed, as cleaned, and the kinds of information in it."""
    kinds = [kind for kind in expressions.KINDS if kind in phrase.kinds]
    return {"raw": expressions.as_typed(rng, phrase.text), "sent": phrase.text, "kinds": kinds}


# ---------------------------------------------------------------- files


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def write_dataset(folder: Path, dataset: str, refs: list[dict[str, Any]]) -> None:
    """Write refs(...).p of one data set, and copy instances.json, the same for all, next to it."""
    (folder / dataset).mkdir()
    shutil.copy(folder / "instances.json", folder / dataset)
    # Through JSON and back: the bytes of a pickle depend on which equal strings are the same object.
    plain = json.loads(json.dumps(refs))
    with (folder / dataset / REFS[dataset]).open("wb") as file:
        pickle.dump(plain, file, protocol=2)


def instances(scenes: list[dict[str, Any]]) -> dict[str, Any]:
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
        "info": {"description": "sample of drawn scenes", "version": str(VERSION)},
        "licenses": [],
        "images": [{key: record[source] for key, source in fields.items()} for record in scenes],
        "annotations": annotations,
        "categories": [{"id": i, "name": name, "supercategory": "shape"} for i, name in categories],
    }


def category_id(entry: dict[str, Any]) -> int:
    """Return the COCO category of an object: its shape, counted from 1."""
    return scene.SHAPES.index(entry["shape"]) + 1


def described_objects(
    dataset: str, scenes: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]]:
    """Yield every object that has sentences in a data set: the record of its scene, its entry, and its sentences."""
    for record in scenes:
        for entry, texts in zip(record["objects"], record["sentences"][dataset], strict=True):
            if texts:
                yield record, entry, texts


def references(dataset: str, scenes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the refs of a data set in REFER's format; ids count from 0."""
    refs: list[dict[str, Any]] = []
    sent_id = 0
    for record, entry, texts in described_objects(dataset, scenes):
        sentences = [sentence(i, text) for i, text in enumerate(texts, start=sent_id)]
        sent_id += len(texts)
        refs.append(
            {
                "ref_id": len(refs),
                "ann_id": entry["ann_id"],
                "category_id": category_id(entry),
                "image_id": record["image_id"],
                "file_name": record["file_name"].replace(".jpg", f"_{entry['ann_id']}.jpg"),
                "split": split_name(dataset, record["split"]),
                "sent_ids": [item["sent_id"] for item in sentences],
                "sentences": sentences,
            }
        )
    return refs


def split_name(dataset: str, split: str) -> str:
    """Return the name of a split in a data set: refcocog has only one test split."""
    return "test" if dataset == "refcocog" and split.startswith("test") else split


def sentence(sent_id: int, text: dict[str, Any]) -> dict[str, Any]:
    """Return a sentence in REFER's format."""
    tokens = text["sent"].split()
    return {"raw": text["raw"], "sent": text["sent"], "sent_id": sent_id, "tokens": tokens}


def describe_scenes(scenes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the content of scenes.json; the sentences of a data set are in the order of their ids."""
    images = [{k: v for k, v in record.items() if k not in ("polygons", "sentences")} for record in scenes]
    sentences = {
        dataset: [
            {"ann_id": entry["ann_id"], "sent": text["sent"], "kinds": text["kinds"]}
            for _, entry, texts in described_objects(dataset, scenes)
            for text in texts
        ]
        for dataset in REFS
    }
    for items in sentences.values():
        for sent_id, item in enumerate(items):
            item["sent_id"] = sent_id
    return {"images": images, "sentences": sentences}


def vocabulary(*, hard: bool = False) -> list[str]:
    """Return a BERT uncased WordPiece vocabulary: special tokens, characters, the words of the sentences."""
    characters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    known += [word for word in expressions.vocabulary() if word not in characters]
    # Last, so that all other words have the same id in both vocabularies.
    known += expressions.rare_words() if hard else []
    return known + [f"[unused{i}]" for i in range(VOCABULARY_SIZE - len(known))]
