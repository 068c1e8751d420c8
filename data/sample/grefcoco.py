"""Sample data laid out as gRefCOCO is: a sentence means one object, several or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

from data.sample import expressions_v2, scene, scene_v2, sets, sets_v2
from data.sample.draws import Weighted
from data.sample.expressions import View, as_typed
from data.sample.records import COCO_IMAGES, Kind, Record, category_id, instances, sentence, write_json, write_scenes

FOLDER = "grefcoco"
REFS = "grefs(unc).json"
NOTHING = [-1]  # the ids of a sentence that means nothing
# By split, how many of 1000 sentences mean nothing, one object, two, or more: as in gRefCOCO. It publishes nothing
# about testB, which is taken to be like testA.
SHARES = {
    "train": (91, 577, 324, 8),
    "val": (626, 0, 330, 44),
    "testA": (232, 308, 309, 151),
    "testB": (232, 308, 309, 151),
}
# Fewest and most sentences of a scene.
SENTENCES = (8, 12)
# How many scenes are of few colours and shapes, which share out among several objects each.
ALIKE = 0.6


def compose(rng: Random, fewest: int, most: int) -> scene.Scene:
    """Return a scene of `fewest` to `most` objects, mostly of few colours and shapes."""
    return scene.compose(rng, fewest, most, alike=rng.random() < ALIKE)


def write_sentences(
    rng: Random, view: View, split: str, written: Mapping[int, Weighted[sets.Writer]] = sets.WRITTEN
) -> list[Record]:
    """Return the sentences of a scene: as typed, cleaned, the objects meant (by depth), and the form."""
    found: dict[str, sets.SetPhrase] = {}
    for _ in range(rng.randint(*SENTENCES)):
        count = rng.choices(range(4), SHARES[split])[0]
        # What was said already does not count, or rare sets would come too seldom.
        phrases = filter(None, (sets.write(rng, view, count, written) for _ in range(3)))
        for phrase in phrases:
            key = phrase.text.removeprefix("the ")
            if key not in found:
                found[key] = phrase
                break
    return [
        {"raw": as_typed(rng, one.text), "sent": one.text, "meant": list(one.meant), "form": one.form}
        for one in found.values()
    ]


def write_sentences_v2(rng: Random, view: View, split: str) -> list[Record]:
    """Return the sentences of version 2."""
    own = expressions_v2.LooksView(view.width, view.height, view.objects)
    return write_sentences(rng, own, split, sets_v2.WRITTEN)


def write_files(folder: Path, scenes: list[Record], version: int = 1) -> None:
    """Write the data set and scenes.json."""
    (folder / FOLDER).mkdir()
    refs = references(scenes)
    write_json(folder / FOLDER / "instances.json", instances(scenes, version))
    write_json(folder / FOLDER / REFS, refs)
    forms = {(one["image_id"], text["sent"]): text["form"] for one in scenes for text in one["sentences"]}
    truth = [
        {
            "ann_ids": [] if ref["ann_id"] == NOTHING else ref["ann_id"],
            "sent": entry["sent"],
            "form": forms[ref["image_id"], entry["sent"]],
            "sent_id": entry["sent_id"],
        }
        for ref in refs
        for entry in ref["sentences"]
    ]
    write_scenes(folder, scenes, {FOLDER: truth})


def references(scenes: list[Record]) -> list[Record]:
    """Return the sets of objects and their sentences as gRefCOCO does; ids count from 0."""
    refs: list[Record] = []
    sent_id = 0
    for one in scenes:
        for meant, texts in by_meaning(one["sentences"]):
            sentences = [sentence(i, text) for i, text in enumerate(texts, start=sent_id)]
            sent_id += len(texts)
            found = [one["objects"][depth] for depth in meant]
            refs.append(
                {
                    "ref_id": len(refs),
                    "ann_id": [entry["ann_id"] for entry in found] or NOTHING,
                    "category_id": [category_id(entry) for entry in found] or NOTHING,
                    "image_id": one["image_id"],
                    "file_name": one["file_name"].replace(".jpg", f"_{len(refs)}.jpg"),
                    "split": one["split"],
                    "sent_ids": [entry["sent_id"] for entry in sentences],
                    "sentences": sentences,
                }
            )
    return refs


def by_meaning(texts: list[Record]) -> list[tuple[list[int], list[Record]]]:
    """Return the sets of objects spoken of, each with its sentences; one that means nothing stands alone."""
    found: dict[tuple[int, ...], list[Record]] = {}
    for text in texts:
        found.setdefault(tuple(text["meant"]), []).append(text)
    nothing = found.pop((), [])
    return [(list(meant), own) for meant, own in found.items()] + [([], [text]) for text in nothing]


KIND = Kind(
    n_objects={"train": (3, 8), "val": (3, 8), "testA": (3, 5), "testB": (6, 8)},
    image=str(COCO_IMAGES / "COCO_train2014_{:012d}.jpg"),
    compose=compose,
    write_sentences=write_sentences,
    write_files=write_files,
    words=sets.words(),
)
KIND_V2 = replace(
    KIND,
    compose=scene_v2.compose,
    write_sentences=write_sentences_v2,
    write_files=partial(write_files, version=2),
    words=sorted({*KIND.words, *expressions_v2.words()}),
)
