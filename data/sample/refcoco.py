"""Sample data laid out as RefCOCO, RefCOCO+ and G-Ref are: every sentence means one object."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

from data.sample import expressions, expressions_v2, scene, scene_v2
from data.sample.expressions import View
from data.sample.records import (
    COCO_IMAGES,
    Kind,
    Record,
    category_id,
    instances,
    sentence,
    write_json,
    write_scenes,
)

REFS = {"refcoco": "refs(unc).p", "refcoco+": "refs(unc).p", "refcocog": "refs(umd).p"}
SAID = ("sent", "kinds", "kind")  # of a sentence, in scenes.json; version 1 has no "kind"
N_OBJECTS = {"train": (3, 8), "val": (3, 8), "testA": (3, 5), "testB": (6, 8)}
IMAGE = str(COCO_IMAGES / "COCO_train2014_{:012d}.jpg")


def write_sentences(rng: Random, view: View, split: str, *, hard: bool) -> dict[str, list[list[Record]]]:
    """Return the sentences about a scene: for every data set, those of every object."""
    return {
        dataset: [
            [
                sentence_entry(rng, phrase)
                for phrase in expressions.write_sentences(rng, view, target, dataset, hard=hard)
            ]
            for target in range(len(view.objects))
        ]
        for dataset in REFS
    }


def write_sentences_v2(rng: Random, view: View, split: str) -> dict[str, list[list[Record]]]:
    """Return the sentences of version 2 about a scene, as `write_sentences` does."""
    view = expressions_v2.LooksView(view.width, view.height, view.objects)
    return {
        dataset: [
            [told_entry(rng, told) for told in expressions_v2.write_sentences(rng, view, target, dataset)]
            for target in range(len(view.objects))
        ]
        for dataset in REFS
    }


def told_entry(rng: Random, told: expressions_v2.Told) -> Record:
    """Return a sentence of version 2: as typed, as cleaned, the kinds of information in it, and its own kind."""
    kinds = [kind for kind in (*expressions.KINDS, "negation") if kind in told.kinds]
    return {"raw": expressions.as_typed(rng, told.text), "sent": told.text, "kinds": kinds, "kind": told.kind}


def sentence_entry(rng: Random, phrase: expressions.Phrase) -> Record:
    """Return a sentence as typed, as cleaned, and the kinds of information in it."""
    kinds = [kind for kind in expressions.KINDS if kind in phrase.kinds]
    return {"raw": expressions.as_typed(rng, phrase.text), "sent": phrase.text, "kinds": kinds}


def write_files(folder: Path, scenes: list[Record], version: int = 1) -> None:
    """Write the three data sets and scenes.json."""
    write_scenes(folder, scenes, {dataset: described_sentences(dataset, scenes) for dataset in REFS})
    write_json(folder / "instances.json", instances(scenes, version))
    for dataset in REFS:
        write_dataset(folder, dataset, references(dataset, scenes))
    (folder / "instances.json").unlink()


def write_dataset(folder: Path, dataset: str, refs: list[Record]) -> None:
    """Write refs(...).p of one data set, and copy instances.json, the same for all, next to it."""
    (folder / dataset).mkdir()
    shutil.copy(folder / "instances.json", folder / dataset)
    # Through JSON and back: the bytes of a pickle depend on which equal strings are the same object.
    plain = json.loads(json.dumps(refs))
    with (folder / dataset / REFS[dataset]).open("wb") as file:
        pickle.dump(plain, file, protocol=2)


def described_objects(dataset: str, scenes: list[Record]) -> Iterator[tuple[Record, Record, list[Record]]]:
    """Yield every object that has sentences in a data set: the record of its scene, its entry, and its sentences."""
    for record in scenes:
        for entry, texts in zip(record["objects"], record["sentences"][dataset], strict=True):
            if texts:
                yield record, entry, texts


def references(dataset: str, scenes: list[Record]) -> list[Record]:
    """Return the refs of a data set in REFER's format; ids count from 0."""
    refs: list[Record] = []
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


def described_sentences(dataset: str, scenes: list[Record]) -> list[Record]:
    """Return the sentences of a data set for scenes.json."""
    pairs = ((entry, text) for _, entry, texts in described_objects(dataset, scenes) for text in texts)
    return [
        {"ann_id": entry["ann_id"]} | {key: text[key] for key in SAID if key in text} | {"sent_id": sent_id}
        for sent_id, (entry, text) in enumerate(pairs)
    ]


def kind(*, hard: bool) -> Kind:
    """Return the kind of version 1; hard: objects that look alike, longer relations, rarer words."""
    return Kind(
        n_objects=N_OBJECTS,
        image=IMAGE,
        compose=partial(scene.compose, alike=hard),
        write_sentences=partial(write_sentences, hard=hard),
        write_files=write_files,
        words=expressions.rare_words() if hard else (),
    )


KIND_V2 = Kind(
    n_objects=N_OBJECTS,
    image=IMAGE,
    compose=scene_v2.compose,
    write_sentences=write_sentences_v2,
    write_files=partial(write_files, version=2),
    words=expressions_v2.words(),
)
