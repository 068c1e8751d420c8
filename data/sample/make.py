"""Writes the sample data set: drawn scenes and what is said of them, laid out exactly as the real ones."""

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

# Raised when the same options give other files than before.
VERSION = 1
# Records the options in the folder.
NOTE = "sample.json"
IMAGE_FOLDER = Path("images/mscoco/images/train2014")
REFS = {"refcoco": "refs(unc).p", "refcoco+": "refs(unc).p", "refcocog": "refs(umd).p"}
# Fewest and most objects of a scene.
CROWD = {"train": (3, 8), "val": (3, 8), "testA": (3, 5), "testB": (6, 8)}
VOCABULARY_SIZE = 1000


def make_sample(root: str | Path, images: int = 2000, seed: int = 0, *, hard: bool = False) -> None:
    """Write the sample data set into the folder `root`, which must be missing, empty or already hold it.

    images: number of training images; val, testA and testB get a tenth each, at least 8. hard: see above.
    """
    root = Path(os.path.realpath(root))
    options = json.dumps({"version": VERSION, "images": images, "seed": seed} | ({"hard": True} if hard else {})) + "\n"
    if images < 1:
        raise UserError(f"the sample data set needs at least 1 training image, not {images}")
    with complaining(root):
        if is_there(root, options):
            print(f"{root} already holds this sample data set; left as it is")
            return
        check_folder(root, "--root")
        with replacing(root) as folder:
            scenes = write_all(folder, options, images, seed, hard=hard)
    print(f"{root}: {len(scenes)} images, {sum(len(s['objects']) for s in scenes)} objects")


def write_all(folder: Path, options: str, images: int, seed: int, *, hard: bool) -> list[dict[str, Any]]:
    """Write the data set into a new folder; return its scenes. options: what the folder will say of itself."""
    (folder / IMAGE_FOLDER).mkdir(parents=True)
    scenes = make_scenes(folder / IMAGE_FOLDER, images, seed, hard)
    write_json(folder / "scenes.json", truth(scenes))
    write_json(folder / "instances.json", instances(scenes))
    for dataset in REFS:
        write_dataset(folder, dataset, references(dataset, scenes))
    (folder / "instances.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(vocabulary(hard=hard)) + "\n", encoding="utf-8")
    (folder / NOTE).write_text(options, encoding="utf-8")
    return scenes


def is_there(root: Path, options: str) -> bool:
    """Say whether the folder holds the data set made with these very options; anything else is an error."""
    if root.is_mount():
        raise UserError(f"{root} is a disk's root, which nothing can be renamed to; give a folder in it as --root")
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    note = root / NOTE
    if not note.is_file():
        raise UserError(f"{root} is not an empty folder and holds no sample data set; give another --root")
    found = note.read_text(encoding="utf-8", errors="replace")
    if found != options:
        raise UserError(
            f"{root} holds a sample data set made with {found.strip()[:200]}, not {options.strip()}; "
            "remove it or give another --root"
        )
    return True


@contextmanager
def complaining(root: Path) -> Iterator[None]:
    """Turn a full disk, a name that is too long and the like into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--root {root} cannot be written ({error.strerror or error}); give another") from error


# ---------------------------------------------------------------- scenes


def make_scenes(folder: Path, images: int, seed: int, hard: bool) -> list[dict[str, Any]]:
    """Draw every image into the folder; return one record per image, as `make_scene` does."""
    other = max(8, round(images / 10))
    counts = {"train": images, "val": other, "testA": other, "testB": other}
    splits = [split for split, count in counts.items() for _ in range(count)]
    make = partial(make_scene, folder, seed, hard)
    numbers = range(1, len(splits) + 1)
    # A small set is made before a second process has started.
    if len(splits) < 200:
        return list(map(make, numbers, splits))
    with ProcessPoolExecutor(2) as pool:
        return list(pool.map(make, numbers, splits, chunksize=50))


def make_scene(folder: Path, seed: int, hard: bool, number: int, split: str) -> dict[str, Any]:
    """Draw image `number` of the set; return what is in it and what is said about it, in plain types.

    All chance comes from the seed and the number, so it does not matter which process draws it.
    """
    rng = Random(f"{seed} {number}")
    plan, seen = find_scene(rng, split, hard)
    name = f"COCO_train2014_{number:012d}.jpg"
    pixels = scene.draw_scene(plan, np.random.default_rng(rng.getrandbits(64)))
    Image.fromarray(pixels).save(folder / name, quality=90)

    view = expressions.View(plan.width, plan.height, seen)
    record = {"image_id": number, "file_name": name, "split": split}
    record |= {"width": plan.width, "height": plan.height, "background": plan.background}
    record["objects"] = [object_entry(number, depth, one) for depth, one in enumerate(seen)]
    record["polygons"] = [one.polygons for one in seen]
    record["sentences"] = {
        dataset: [
            [said(rng, phrase) for phrase in expressions.write_sentences(rng, view, target, dataset, hard=hard)]
            for target in range(len(seen))
        ]
        for dataset in REFS
    }
    return record


def find_scene(rng: Random, split: str, hard: bool = False) -> tuple[scene.Scene, list[scene.Seen]]:
    """Return a scene of the split's size whose objects can all be outlined, and their visible parts."""
    while True:
        plan = scene.compose(rng, *CROWD[split], alike=hard)
        seen = scene.look_at(plan)
        if seen:
            return plan, seen


def object_entry(number: int, depth: int, seen: scene.Seen) -> dict[str, Any]:
    """Return an object's entry in scenes.json."""
    return {
        "ann_id": annotation_id(number, depth),
        "depth": depth,
        **vars(seen.look),
        "centre": list(seen.centre),
        "bbox": seen.bbox,
        "area": seen.area,
        "hidden_by": {str(annotation_id(number, nearer)): share for nearer, share in seen.hidden_by.items()},
    }


def annotation_id(number: int, depth: int) -> int:
    """Return the id of an object of image `number`, unique over all images."""
    return 10 * number + depth


def said(rng: Random, phrase: expressions.Phrase) -> dict[str, Any]:
    """Return a sentence as typed, cleaned, and the kinds of information in it."""
    kinds = [kind for kind in expressions.KINDS if kind in phrase.kinds]
    return {"raw": expressions.as_typed(rng, phrase.text), "sent": phrase.text, "kinds": kinds}


# ---------------------------------------------------------------- files


def write_json(path: Path, content: Any) -> None:
    """Write content as JSON."""
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def write_dataset(folder: Path, dataset: str, refs: list[dict[str, Any]]) -> None:
    """Write refs(...).p of one data set and copy instances.json, the same for all, beside it."""
    (folder / dataset).mkdir()
    shutil.copy(folder / "instances.json", folder / dataset)
    # Through JSON and back: the bytes of a pickle depend on which equal strings are one object.
    plain = json.loads(json.dumps(refs))
    with (folder / dataset / REFS[dataset]).open("wb") as file:
        pickle.dump(plain, file, protocol=2)


def instances(scenes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return all images, objects and shapes as COCO does."""
    annotations = [
        {
            "id": found["ann_id"],
            "image_id": one["image_id"],
            "category_id": category_id(found),
            "segmentation": polygons,
            "area": found["area"],
            "bbox": found["bbox"],
            "iscrowd": 0,
        }
        for one in scenes
        for found, polygons in zip(one["objects"], one["polygons"], strict=True)
    ]
    fields = {"id": "image_id", "file_name": "file_name", "height": "height", "width": "width"}
    categories = enumerate(scene.SHAPES, start=1)
    return {
        "info": {"description": "sample of drawn scenes", "version": str(VERSION)},
        "licenses": [],
        "images": [{key: one[source] for key, source in fields.items()} for one in scenes],
        "annotations": annotations,
        "categories": [{"id": i, "name": name, "supercategory": "shape"} for i, name in categories],
    }


def category_id(found: dict[str, Any]) -> int:
    """Return the COCO category of an object: its shape, counted from 1."""
    return scene.SHAPES.index(found["shape"]) + 1


def spoken_of(
    dataset: str, scenes: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]]:
    """Go through the objects of which a data set speaks: each with its scene and its sentences."""
    for one in scenes:
        for found, texts in zip(one["objects"], one["sentences"][dataset], strict=True):
            if texts:
                yield one, found, texts


def references(dataset: str, scenes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the objects and sentences of a data set as REFER does; ids count from 0."""
    refs: list[dict[str, Any]] = []
    sent_id = 0
    for one, found, texts in spoken_of(dataset, scenes):
        sentences = [sentence(i, text) for i, text in enumerate(texts, start=sent_id)]
        sent_id += len(texts)
        refs.append(
            {
                "ref_id": len(refs),
                "ann_id": found["ann_id"],
                "category_id": category_id(found),
                "image_id": one["image_id"],
                "file_name": one["file_name"].replace(".jpg", f"_{found['ann_id']}.jpg"),
                "split": split_name(dataset, one["split"]),
                "sent_ids": [entry["sent_id"] for entry in sentences],
                "sentences": sentences,
            }
        )
    return refs


def split_name(dataset: str, split: str) -> str:
    """Return what a data set calls a split: refcocog has one test split only."""
    return "test" if dataset == "refcocog" and split.startswith("test") else split


def sentence(sent_id: int, text: dict[str, Any]) -> dict[str, Any]:
    """Return a sentence as REFER does."""
    tokens = text["sent"].split()
    return {"raw": text["raw"], "sent": text["sent"], "sent_id": sent_id, "tokens": tokens}


def truth(scenes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the content of scenes.json; the sentences of a data set stand in the order of their ids."""
    images = [{k: v for k, v in one.items() if k not in ("polygons", "sentences")} for one in scenes]
    sentences = {
        dataset: [
            {"ann_id": found["ann_id"], "sent": text["sent"], "kinds": text["kinds"]}
            for _, found, texts in spoken_of(dataset, scenes)
            for text in texts
        ]
        for dataset in REFS
    }
    for entries in sentences.values():
        for sent_id, entry in enumerate(entries):
            entry["sent_id"] = sent_id
    return {"images": images, "sentences": sentences}


def vocabulary(*, hard: bool = False) -> list[str]:
    """Return a BERT uncased WordPiece vocabulary: specials, characters, the words of the sentences."""
    characters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    known += [word for word in expressions.words() if word not in characters]
    # Last, so that all other words have one number in all vocabularies.
    known += expressions.rare_words() if hard else []
    return known + [f"[unused{i}]" for i in range(VOCABULARY_SIZE - len(known))]
