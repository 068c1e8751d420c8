"""The sample data set: its layout, its masks, and that every sentence means the one object it is filed under.

The sentences are checked by a reader of its own (`tests.scene_reader`) that knows nothing of how they were written.
"""

from __future__ import annotations

import json
import pickle
import re
from collections import defaultdict
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from transformers import BertTokenizer

from data.sample import expressions, make, records, refcoco, scene
from errors import UserError
from tests.helpers import naming
from tests.scene_reader import RARELY, kinds_of, understand

REFS = {"refcoco": "refs(unc).p", "refcoco+": "refs(unc).p", "refcocog": "refs(umd).p"}
IMAGES = 30
PLACE_WORDS = re.compile(
    r"left(most)?|right(most)?|top(most)?|bottom(most)?|upper|lower|highest|lowest|middle|center|corner|side"
    r"|above|below|under|beneath|behind|front|next|closest|nearest|between|from|near|farthest|partly"
    r"|first|second|third|fourth|1st|2nd|3rd|4th"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small sample data set."""
    folder = tmp_path_factory.mktemp("sample") / "data"
    make.make_sample(folder, images=IMAGES, version=1)
    return folder


@pytest.fixture(scope="module")
def hard_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small hard sample data set."""
    folder = tmp_path_factory.mktemp("hard") / "data"
    make.make_sample(folder, images=IMAGES, hard=True)
    return folder


@pytest.fixture(params=["root", "hard_root"])
def either(request: pytest.FixtureRequest) -> Path:
    """Return the usual and the hard one in turn."""
    return request.getfixturevalue(request.param)


def load_refs(root: Path, dataset: str) -> list[dict[str, Any]]:
    """Read refs(...).p."""
    with (root / dataset / REFS[dataset]).open("rb") as file:
        return pickle.load(file)


def load_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def contents(root: Path) -> dict[str, bytes]:
    """Return every file of a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- layout


@pytest.mark.parametrize("dataset", REFS)
def test_refs_and_instances_agree(root: Path, dataset: str) -> None:
    """Ids meet, sentences are complete, and every image exists in the stated size."""
    instances = load_json(root / dataset / "instances.json")
    annotations = {entry["id"]: entry for entry in instances["annotations"]}
    images = {entry["id"]: entry for entry in instances["images"]}
    assert len(annotations) == len(instances["annotations"]) and len(images) == IMAGES + 3 * 8
    seen_sentences = []
    for ref in load_refs(root, dataset):
        annotation = annotations[ref["ann_id"]]
        assert (annotation["image_id"], annotation["category_id"]) == (ref["image_id"], ref["category_id"])
        stem = images[ref["image_id"]]["file_name"].removesuffix(".jpg")
        assert ref["file_name"] == f"{stem}_{ref['ann_id']}.jpg"
        assert ref["sent_ids"] == [entry["sent_id"] for entry in ref["sentences"]]
        assert 1 <= len(ref["sentences"]) <= 4
        seen_sentences += ref["sent_ids"]
        for entry in ref["sentences"]:
            assert entry["tokens"] == entry["sent"].split() == re.findall(r"\w+", entry["raw"].lower())
    assert len(seen_sentences) == len(set(seen_sentences))
    # An object that nothing tells apart in this kind has no sentence and so no ref.
    spoken_of = {ref["ann_id"] for ref in load_refs(root, dataset)}
    assert len(spoken_of) > 0.5 * len(annotations)


def test_images_have_the_stated_size(root: Path) -> None:
    """Names, sizes and files agree, and the sizes vary within the stated range."""
    aspects = []
    for entry in load_json(root / "refcoco" / "instances.json")["images"]:
        assert entry["file_name"] == f"COCO_train2014_{entry['id']:012d}.jpg"
        with Image.open(root / "images/mscoco/images/train2014" / entry["file_name"]) as image:
            assert image.size == (entry["width"], entry["height"])
        assert 120 <= min(image.size) <= 200
        aspects.append(entry["width"] / entry["height"])
    assert 0.58 < min(aspects) < 0.8 and 1.3 < max(aspects) < 1.72


def test_splits_hold_different_images(root: Path) -> None:
    """No image is in two splits of a set, nor held out in one set and trained on in another."""
    splits: dict[tuple[str, str], set[int]] = defaultdict(set)
    for dataset in REFS:
        for ref in load_refs(root, dataset):
            splits[dataset, ref["split"]].add(ref["image_id"])
    names = {"train", "val", "testA", "testB"}
    assert set(splits) == {(d, s) for d in ("refcoco", "refcoco+") for s in names} | {
        ("refcocog", split) for split in ("train", "val", "test")
    }
    for (dataset, split), ids in splits.items():
        for (other, other_split), other_ids in splits.items():
            if split != other_split and (dataset == other or "train" in (split, other_split)):
                assert not ids & other_ids, (dataset, split, other, other_split)


def test_few_objects_in_testa_and_many_in_testb(root: Path) -> None:
    """testA and testB differ in the number of objects."""
    for image in load_json(root / "scenes.json")["images"]:
        fewest, most = {"testA": (3, 5), "testB": (6, 8)}.get(image["split"], (3, 8))
        assert fewest <= len(image["objects"]) <= most


def test_refs_hold_plain_types(root: Path) -> None:
    """A reader without numpy can load the pickles, which a Python 2 would understand too."""

    def check(value: Any) -> None:
        assert type(value) in (int, str, list, dict)
        if isinstance(value, dict):
            assert all(type(key) is str for key in value)
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(inner)

    for dataset, name in REFS.items():
        assert (root / dataset / name).read_bytes()[:2] == b"\x80\x02"
        check(load_refs(root, dataset))


# ---------------------------------------------------------------- making it


@pytest.mark.slow  # draws three data sets
def test_same_seed_same_bytes(tmp_path: Path) -> None:
    """The same options give the same files, another seed gives others."""
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        make.make_sample(tmp_path / name, images=4, seed=seed)
    one, two, three = (contents(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert one.keys() == three.keys()
    same = {name for name in one if one[name] == three[name]}
    assert same == {"vocab.txt"}


def test_an_image_does_not_depend_on_the_others(root: Path, tmp_path: Path) -> None:
    """Drawn alone, as in another process, an image comes out the same."""
    (tmp_path / make.IMAGE_FOLDER).mkdir(parents=True)
    record = make.make_scene(tmp_path, 0, make.KINDS["refcoco"], IMAGES, "train")
    kept = root / "images/mscoco/images/train2014" / record["file_name"]
    assert (tmp_path / make.IMAGE_FOLDER / record["file_name"]).read_bytes() == kept.read_bytes()
    assert record["objects"] == load_json(root / "scenes.json")["images"][IMAGES - 1]["objects"]


def test_an_existing_sample_is_left_alone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same options find the set there; others are an error; neither changes a file."""
    before = contents(root)
    make.make_sample(root, images=IMAGES, version=1)
    assert "already" in capsys.readouterr().out
    with pytest.raises(UserError, match=r'"seed": 0.*"seed": 1'):
        make.make_sample(root, images=IMAGES, seed=1, version=1)
    assert contents(root) == before


def test_hard_data_are_another_set(root: Path, hard_root: Path) -> None:
    assert load_json(hard_root / "sample.json") == load_json(root / "sample.json") | {"hard": True}
    with naming(hard_root, "--root"):
        make.make_sample(hard_root, images=IMAGES, version=1)
    usual, hard = ((folder / "vocab.txt").read_text().split() for folder in (root, hard_root))
    assert [word for word in hard if not word.startswith("[unused")][: usual.index("[unused0]")] == [
        word for word in usual if not word.startswith("[unused")
    ]
    assert {"crimson", "rhombus"} <= set(hard) - set(usual)


def test_articles_of_hard_data_fit_the_rare_words() -> None:
    said = {expressions.with_rare_words(Random(seed), "a red star left of an orange one") for seed in range(200)}
    assert {"an orange one", "a tangerine one"} == {text.split(" left of ")[1] for text in said}
    said = {expressions.with_rare_words(Random(seed), "a blue star") for seed in range(200)}
    assert said == {"a blue star", "an azure star"}


def test_objects_of_hard_data_look_alike(root: Path, hard_root: Path) -> None:
    """A colour alone, or a shape, tells few objects apart, and relations are longer."""

    def share_alone(folder: Path, name: str) -> float:
        looks = [[found[name] for found in image["objects"]] for image in load_json(folder / "scenes.json")["images"]]
        return fmean([one.count(value) == 1 for one in looks for value in one])

    def words(folder: Path, kind: str) -> float:
        sentences = load_json(folder / "scenes.json")["sentences"]["refcoco"]
        return fmean([len(entry["sent"].split()) for entry in sentences if kind in entry["kinds"]])

    assert share_alone(hard_root, "colour") < 0.3 < 0.5 < share_alone(root, "colour")
    assert share_alone(hard_root, "shape") < 0.3
    assert words(hard_root, "relation") > words(root, "relation") + 0.5
    spoken = {
        word
        for dataset in REFS
        for ref in load_refs(hard_root, dataset)
        for s in ref["sentences"]
        for word in s["tokens"]
    }
    assert len(spoken & set(RARELY)) > 10


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    """Whatever else a folder holds stays as it is."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    for target in (tmp_path / "mine", tmp_path / "mine" / "notes.txt"):
        with naming(target, "--root"):
            make.make_sample(target, images=2)
    with naming(1, 0):
        make.make_sample(tmp_path / "new", images=0)
    assert contents(tmp_path) == {"mine/notes.txt": b"keep me"}


def test_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No half data set is left behind, under the name asked for or another."""

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(refcoco, "write_dataset", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make.make_sample(tmp_path / "data", images=1)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- masks


def test_polygons_cover_what_is_visible(root: Path) -> None:
    """Decoded by REFER's rule, the polygons give the visible pixels; area and box belong to that mask."""
    instances = load_json(root / "refcoco" / "instances.json")
    annotations = defaultdict(list)
    for entry in instances["annotations"]:
        annotations[entry["image_id"]].append(entry)
    for image in load_json(root / "scenes.json")["images"]:
        drawn, _ = records.compose_scene(Random(f"0 {image['image_id']}"), image["split"], make.KINDS["refcoco"])
        front = scene.owners(drawn)
        for index, entry in enumerate(annotations[image["image_id"]]):
            parts = coco_mask.frPyObjects(entry["segmentation"], image["height"], image["width"])
            decoded = coco_mask.decode(parts).sum(axis=2)
            assert decoded.max() == 1, "polygons overlap"
            visible = scene.per_pixel(front == index + 1) > 0.5
            assert (visible & (decoded == 1)).sum() / (visible | (decoded == 1)).sum() >= 0.95
            rows, columns = np.nonzero(decoded)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert entry["area"] == decoded.sum() and entry["bbox"] == box


def test_objects_stay_visible_and_sizes_apart(root: Path) -> None:
    """At least 60 % of an object can be seen, and small and large ones of an image cannot be confused."""
    hidden, both = 0, 0
    for image in load_json(root / "scenes.json")["images"]:
        spans = defaultdict(list)
        for found in image["objects"]:
            share = sum(found["hidden_by"].values())
            assert share <= 0.4
            hidden += share > 0.02
            if not share:
                spans[found["size"]].append(max(found["bbox"][2:]) / min(image["width"], image["height"]))
        assert all(0.14 < span < 0.35 for span in spans["small"])
        assert all(0.27 < span < 0.6 for span in spans["large"])
        if spans["small"] and spans["large"]:
            assert max(spans["small"]) + 0.02 < min(spans["large"])
            both += 1
    assert hidden > 10 and both > 10


@pytest.mark.parametrize("hole", [False, True])
def test_a_part_with_a_hole_is_not_outlined(hole: bool) -> None:
    """A hole would be filled by polygons, so such a scene is drawn anew."""
    visible = np.zeros((20, 20), np.float32)
    visible[2:18, 2:18] = 1
    visible[8:12, 8:12] = 1 - hole
    assert bool(scene.trace(visible, 0, 0)) is not hole


# ---------------------------------------------------------------- sentences


def test_vocabulary_knows_every_word(either: Path) -> None:
    """All words are whole, ids fit into 21, and any other text still has pieces."""
    root = either
    lines = (root / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines)) == 1000 and lines[0] == "[PAD]"
    tokenizer = BertTokenizer(vocab=str(root / "vocab.txt"))
    lengths = []
    for dataset in REFS:
        for ref in load_refs(root, dataset):
            for entry in ref["sentences"]:
                assert tokenizer.tokenize(entry["sent"]) == entry["tokens"]
                ids = tokenizer.encode(entry["raw"])
                assert tokenizer.unk_token_id not in ids
                lengths.append(len(ids))
    assert max(lengths) <= 21
    assert tokenizer.unk_token_id not in tokenizer.encode("Whom? A man's 2nd kayak (red/white) #7!")


def test_refcoco_plus_names_no_place(either: Path) -> None:
    """refcoco+ speaks of appearance alone, the others do not."""
    used = {
        dataset: {word for ref in load_refs(either, dataset) for s in ref["sentences"] for word in s["tokens"]}
        for dataset in REFS
    }
    places = {dataset: set(filter(PLACE_WORDS.fullmatch, words)) for dataset, words in used.items()}
    assert not places["refcoco+"]
    assert len(places["refcoco"]) > 25 and len(places["refcocog"]) > 25


def test_kinds_are_those_of_the_words(either: Path) -> None:
    """scenes.json lists the sentences by id; its kinds follow from the words."""
    truth = load_json(either / "scenes.json")["sentences"]
    for dataset in REFS:
        spoken = [(s["sent_id"], r["ann_id"], s["sent"]) for r in load_refs(either, dataset) for s in r["sentences"]]
        assert spoken == [(entry["sent_id"], entry["ann_id"], entry["sent"]) for entry in truth[dataset]]
        for entry in truth[dataset]:
            assert set(entry["kinds"]) == kinds_of(entry["sent"]), entry


@pytest.mark.parametrize("dataset", REFS)
def test_every_sentence_means_one_object(either: Path, dataset: str) -> None:
    """A reader of its own finds exactly one object, and the right one."""
    images = {image["image_id"]: image for image in load_json(either / "scenes.json")["images"]}
    for ref in load_refs(either, dataset):
        for entry in ref["sentences"]:
            meant = understand(entry["sent"], images[ref["image_id"]])
            assert [found["ann_id"] for found in meant] == [ref["ann_id"]], (ref["image_id"], entry["sent"])
