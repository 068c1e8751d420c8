"""Sample data like gRefCOCO and like RISBench: their layouts, and that every sentence means exactly its objects.

The sentences are checked by a reader of its own (`tests.scene_reader`) that knows nothing of how they were written.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import BertTokenizer

import test as script
import train
from data.sample import make, records, scene
from data.sample.__main__ import LIKE, parse_args
from errors import UserError
from refer.masks import decode_parts
from refer.open import open_data_set
from tests.scene_reader import SAYS, SINGULAR, understand_long, understand_set
from tests.training_runs import training_flags

IMAGES = 40
# Of gRefCOCO's expressions, the share that means nothing, one object, two, or more; in percent.
PUBLISHED = {"train": (9.1, 57.6, 32.4, 0.8), "val": (62.6, 0, 37.4), "testA": (23.2, 30.8, 30.9, 15.1)}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return small data like gRefCOCO."""
    folder = tmp_path_factory.mktemp("several") / "data"
    make.make_sample(folder, images=IMAGES, like="grefcoco", version=1)
    return folder


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return small data like RISBench."""
    folder = tmp_path_factory.mktemp("tiles") / "data"
    make.make_sample(folder, images=IMAGES, like="risbench")
    return folder


def load_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def load_refs(root: Path) -> list[dict[str, Any]]:
    """Read grefs(unc).json."""
    refs: list[dict[str, Any]] = load_json(root / "grefcoco" / "grefs(unc).json")
    return refs


def scenes_of(root: Path) -> dict[int, dict[str, Any]]:
    """Return the scenes by the id of their image."""
    return {image["image_id"]: image for image in load_json(root / "scenes.json")["images"]}


def lines_of(root: Path, split: str) -> list[tuple[str, str]]:
    """Return the names and phrases of a split."""
    text = (root / "RISBench_dataset" / f"output_phrase_{split}.txt").read_text(encoding="utf-8")
    return [(name, phrase) for name, phrase in (line.split(" ", 1) for line in text.splitlines())]


def cleaned(phrase: str) -> str:
    """Return a phrase as it was before somebody typed it."""
    return phrase.lower().removesuffix(".")


# ---------------------------------------------------------------- like gRefCOCO


def test_refs_of_sets_and_instances_agree(several: Path) -> None:
    instances = load_json(several / "grefcoco" / "instances.json")
    annotations = {entry["id"]: entry for entry in instances["annotations"]}
    images = {entry["id"]: entry for entry in instances["images"]}
    refs = load_refs(several)
    for ref in refs:
        assert isinstance(ref["ann_id"], list) and ref["split"] in ("train", "val", "testA", "testB")
        found = [annotations[i] for i in ref["ann_id"] if i != -1]
        assert {entry["image_id"] for entry in found} <= {ref["image_id"]}
        assert ref["category_id"] == ([entry["category_id"] for entry in found] or [-1])
        assert ref["file_name"].startswith(images[ref["image_id"]]["file_name"].removesuffix(".jpg") + "_")
        assert ref["sent_ids"] == [entry["sent_id"] for entry in ref["sentences"]] != []
    ids = [i for ref in refs for i in ref["sent_ids"]]
    assert ids == list(range(len(ids))) and len({ref["ref_id"] for ref in refs}) == len(refs)
    assert all((several / make.IMAGE_FOLDER / entry["file_name"]).is_file() for entry in images.values())


def test_kinds_of_targets_are_as_frequent_as_in_grefcoco(several: Path) -> None:
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for ref in load_refs(several):
        objects = len([i for i in ref["ann_id"] if i != -1])
        counts[ref["split"]][min(objects, 3)] += len(ref["sentences"])
    for split, shares in PUBLISHED.items():
        own = [100 * counts[split][n] / counts[split].total() for n in range(4)]
        own = [*own[:2], own[2] + own[3]] if len(shares) == 3 else own
        assert np.allclose(own, shares, atol=5 if split == "train" else 12), (split, own)
    assert counts["val"][1] == 0


def test_every_sentence_means_exactly_its_set(several: Path) -> None:
    scenes = scenes_of(several)
    for ref in load_refs(several):
        for entry in ref["sentences"]:
            meant = understand_set(entry["sent"], scenes[ref["image_id"]])
            assert ([found["ann_id"] for found in meant] or [-1]) == ref["ann_id"], (ref["image_id"], entry["sent"])


def test_scenes_list_the_sentences_of_sets(several: Path) -> None:
    spoken = [
        (s["sent_id"], s["sent"], [i for i in r["ann_id"] if i != -1])
        for r in load_refs(several)
        for s in r["sentences"]
    ]
    truth = load_json(several / "scenes.json")["sentences"]["grefcoco"]
    assert spoken == [(entry["sent_id"], entry["sent"], entry["ann_ids"]) for entry in truth]
    forms = {entry["form"] for entry in truth}
    assert forms >= {"one", "group", "half", "direction", "rank", "exception", "union", "absent", "absent at side"}


def test_colour_or_shape_alone_does_not_say_that_nothing_is_meant(several: Path) -> None:
    """Mostly every word of such a sentence fits some object of the scene, and some word always does."""
    scenes, known, absent = scenes_of(several), 0, 0
    for ref in load_refs(several):
        there = {
            value for found in scenes[ref["image_id"]]["objects"] for value in found.values() if type(value) is str
        }
        for entry in ref["sentences"] if ref["ann_id"] == [-1] else ():
            words = [SINGULAR.get(word, word) for word in entry["tokens"]]
            named = {SAYS[word][1] for word in words if word in SAYS}
            assert named & there, entry["sent"]
            absent += 1
            known += named <= there
    assert 0.7 < known / absent < 0.99


# ---------------------------------------------------------------- like RISBench


def test_lines_images_and_masks_agree(tiles: Path) -> None:
    folder = tiles / "RISBench_dataset"
    names = [name for split in ("train", "val", "test") for name, _ in lines_of(tiles, split)]
    assert len(names) == len(set(names)) == IMAGES + 2 * 8
    assert sorted(path.name for path in (folder / "img_rgb").iterdir()) == sorted(names)
    assert sorted(path.name for path in (folder / "mask").iterdir()) == sorted(names)
    levels = set()
    for name in names:
        with Image.open(folder / "img_rgb" / name) as image, Image.open(folder / "mask" / name) as mask:
            assert (image.mode, mask.mode) == ("RGB", "L") and image.size == mask.size == (192, 192)
            levels |= set(np.unique(np.asarray(mask)))
    assert len(levels) > 5 and min(levels - {0}) < 50  # anything above 0 counts


def test_masks_cover_all_objects_meant(tiles: Path) -> None:
    """As drawn again: the visible pixels of every object, but for the smoothing of outlines."""
    truth = {
        entry["file_name"]: entry["ann_ids"] for entry in load_json(tiles / "scenes.json")["sentences"]["risbench"]
    }
    for image in list(scenes_of(tiles).values())[:: IMAGES // 10]:
        number = image["image_id"]
        drawn, _ = records.compose_scene(Random(f"0 {number}"), image["split"], make.KINDS["risbench"])
        depths = [found["depth"] + 1 for found in image["objects"] if found["ann_id"] in truth[image["file_name"]]]
        visible = scene.per_pixel(np.isin(scene.owners(drawn), depths)) > 0.5
        mask = np.asarray(Image.open(tiles / "RISBench_dataset" / "mask" / image["file_name"])) > 0
        assert (visible & mask).sum() / (visible | mask).sum() > 0.93
    assert max(map(len, truth.values())) >= 5 and sum(len(ids) > 1 for ids in truth.values()) > 0.4 * len(truth)


def test_every_long_sentence_means_exactly_its_objects(tiles: Path) -> None:
    """And what it says besides is true."""
    scenes = {image["file_name"]: image for image in scenes_of(tiles).values()}
    truth = {entry["file_name"]: entry for entry in load_json(tiles / "scenes.json")["sentences"]["risbench"]}
    for split in ("train", "val", "test"):
        for name, phrase in lines_of(tiles, split):
            assert scenes[name]["split"] == split and cleaned(phrase) == truth[name]["sent"]
            meant = understand_long(cleaned(phrase), scenes[name])
            assert [found["ann_id"] for found in meant] == truth[name]["ann_ids"], (name, phrase)


# ---------------------------------------------------------------- both


def test_vocabularies_know_every_word(several: Path, tiles: Path) -> None:
    """All words are whole, and the ids fit into what the users of these data sets read."""
    phrases = {
        several: [entry["raw"] for ref in load_refs(several) for entry in ref["sentences"]],
        tiles: [phrase for split in ("train", "val", "test") for _, phrase in lines_of(tiles, split)],
    }
    for (root, raws), (shortest, longest) in zip(phrases.items(), ((16, 20), (38, 50)), strict=True):
        tokenizer = BertTokenizer(vocab=str(root / "vocab.txt"))
        for raw in raws:
            assert tokenizer.tokenize(raw) == cleaned(raw).replace(",", " ,").split() + ["."] * raw.endswith(".")
        ids = [tokenizer.encode(raw) for raw in raws]
        assert not [one for one in ids if tokenizer.unk_token_id in one]
        assert shortest <= max(map(len, ids)) <= longest
        usual, own = make.vocabulary(), (root / "vocab.txt").read_text(encoding="utf-8").splitlines()
        count = usual.index("[unused0]")
        assert own[:count] == usual[:count] and len(own) == len(set(own)) == 1000


@pytest.mark.parametrize("like", ["grefcoco", "risbench"])
def test_same_seed_same_scene_and_sentences(request: pytest.FixtureRequest, tmp_path: Path, like: str) -> None:
    """Drawn alone, as in another process, a scene comes out the same to the byte, with the same sentences."""
    root, kind = request.getfixturevalue("several" if like == "grefcoco" else "tiles"), make.KINDS[like]
    (tmp_path / kind.image).parent.mkdir(parents=True)
    record = records.make_scene(tmp_path, 0, kind, IMAGES, "train")
    name = kind.image.format(IMAGES)
    assert (tmp_path / name).read_bytes() == (root / name).read_bytes()
    truth = load_json(root / "scenes.json")
    image = truth["images"][IMAGES - 1]
    assert record["objects"] == image["objects"]
    ids = {found["ann_id"] for found in image["objects"]}
    said = {entry["sent"] for entry in truth["sentences"][like] if ids & set(entry["ann_ids"])}
    assert said and said == {text["sent"] for text in record["sentences"] if text["meant"]}


def test_no_other_kind_goes_into_the_folder(several: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in several.rglob("*")}
    make.make_sample(several, images=IMAGES, like="grefcoco", version=1)
    assert "already" in capsys.readouterr().out
    for other in ("refcoco", "risbench"):
        with pytest.raises(UserError, match="like"):
            make.make_sample(several, images=IMAGES, like=other)
    assert {path: path.stat().st_mtime_ns for path in several.rglob("*")} == before


def test_flags_name_the_kinds_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(LIKE) == set(make.KINDS) and LIKE[0] == "refcoco"
    for wrong in (["--like", "coco"], ["--like", "grefcoco", "--hard"]):
        with pytest.raises(SystemExit):
            parse_args(["--root", "new", *wrong])
    assert "--hard" in capsys.readouterr().err


# ---------------------------------------------------------------- reading and training


@pytest.mark.parametrize(("like", "split_by"), [("grefcoco", "unc"), ("risbench", "phrases")])
def test_what_is_drawn_is_read_as_it_is_meant(request: pytest.FixtureRequest, like: str, split_by: str) -> None:
    """The masks of the index have the pixels of the objects meant, and its sentences are those drawn."""
    root = request.getfixturevalue("several" if like == "grefcoco" else "tiles")
    index = open_data_set(root, like, split_by)
    images = load_json(root / "scenes.json")["images"]
    area = {found["ann_id"]: found["area"] for image in images for found in image["objects"]}
    means = defaultdict(list)
    for entry in load_json(root / "scenes.json")["sentences"][like]:
        means[entry["sent"]].append(sum(area[ann_id] for ann_id in entry["ann_ids"]))
    for ref in index.loadRefs(index.getRefIds()):
        pixels = int(decode_parts(index.encode_mask(ref)).sum())
        assert index.has_target(ref) is (pixels > 0)
        # Outlines of neighbours may share a pixel here and there.
        sents = [cleaned(entry["raw"]) for entry in ref["sentences"]]
        assert all(min(abs(one - pixels) for one in means[sent]) <= 0.01 * pixels for sent in sents)


@pytest.mark.slow  # trains and tests
@pytest.mark.parametrize("like", ["grefcoco", "risbench"])
def test_a_network_trains_and_is_tested_on_drawn_data(
    request: pytest.FixtureRequest, tmp_path: Path, like: str
) -> None:
    root = request.getfixturevalue("several" if like == "grefcoco" else "tiles")
    flags = training_flags(root, tmp_path, "--dataset", like, "--workers", 0)
    train.main([*flags, "--epochs", "1", "-b", "4", "--limit-train", "8", "--limit-val", "4"])
    tested = ["--refer_data_root", root, "--dataset", like, "--workers", 0, "--device", "cpu", "--split", "val"]
    tested += ["--resume", tmp_path / f"best_{like}.pth", "--json", tmp_path / "val.json"]
    script.main(list(map(str, tested)))
    scores = load_json(tmp_path / "val.json")
    assert (scores["dataset"], scores["split"]) == (like, "val")
    assert scores["n_expressions"] == len(
        lines_of(root, "val")
        if like == "risbench"
        else [entry for ref in load_refs(root) if ref["split"] == "val" for entry in ref["sentences"]]
    )
