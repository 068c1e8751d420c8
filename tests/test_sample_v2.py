"""Version 2 of the sample data: fair shares of all kinds of sentences, each of which means exactly its object.

The sentences are read by a reader of its own (`tests.scene_reader_v2`) that knows nothing of how they were written.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from statistics import fmean, median
from typing import Any

import pytest
from transformers import BertTokenizer

from data.sample import expressions_v2, grefcoco, make, records, refcoco
from data.sample.__main__ import parse_args
from data.sample.expressions import View
from errors import UserError
from lib.evaluation import __main__ as tables
from tests.fuzz import EVERYTHING
from tests.helpers import naming
from tests.scene_reader_v2 import cleaned, kinds_of, understand, understand_some

N_SCENES = 110
SPLITS = ("train", "testA", "testB")

Said = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]  # image, object, sentence


def describe(number: int) -> dict[str, Any]:
    """Return the content and the sentences of a scene, which need no picture."""
    rng, split = Random(f"7 {number}"), SPLITS[number % len(SPLITS)]
    composed, seen = records.compose_scene(rng, split, refcoco.KIND_V2)
    view = expressions_v2.LooksView(composed.width, composed.height, seen)
    return {
        "width": composed.width,
        "height": composed.height,
        "objects": [records.object_entry(number, depth, part) for depth, part in enumerate(seen)],
        "sentences": refcoco.write_sentences_v2(rng, view, split),
    }


@pytest.fixture(scope="module")
def scenes() -> list[dict[str, Any]]:
    """Return some scenes of all splits."""
    return [describe(number) for number in range(1, N_SCENES + 1)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a very small data set."""
    folder = tmp_path_factory.mktemp("v2") / "data"
    make.make_sample(folder, images=8, version=2)
    return folder


def said_of(scenes: list[dict[str, Any]], dataset: str) -> list[Said]:
    """Return every sentence of a data set with its image and its object."""
    return [
        (image, found, sentence)
        for image in scenes
        for found, sentences in zip(image["objects"], image["sentences"][dataset], strict=True)
        for sentence in sentences
    ]


def wrongly_read(scenes: list[dict[str, Any]], dataset: str) -> Iterator[tuple[str, Any]]:
    """Yield the sentences that do not mean exactly their object, or have other kinds than stated."""
    for image, found, sentence in said_of(scenes, dataset):
        meant = [one["ann_id"] for one in understand(sentence["sent"], image)]
        kinds = kinds_of(sentence["sent"])
        if meant != [found["ann_id"]] or kinds != (sentence["kind"], set(sentence["kinds"])):
            yield sentence["sent"], (meant, found["ann_id"], kinds)


# ---------------------------------------------------------------- sentences


@pytest.mark.parametrize("dataset", refcoco.REFS)
def test_every_sentence_means_exactly_its_object(scenes: list[dict[str, Any]], dataset: str) -> None:
    assert not list(wrongly_read(scenes, dataset))


@pytest.mark.slow
def test_every_sentence_of_many_scenes_means_exactly_its_object() -> None:
    """FUZZ=all tries 500 scenes, in half a minute."""
    many = [describe(number) for number in range(2000, 2500 if EVERYTHING else 2150)]
    for dataset in refcoco.REFS:
        assert not list(wrongly_read(many, dataset))


def test_kinds_come_in_fair_shares(scenes: list[dict[str, Any]]) -> None:
    shares = Counter(sentence["kind"] for _, _, sentence in said_of(scenes, "refcoco"))
    assert set(shares) == set(expressions_v2.KINDS)
    assert min(shares.values()) / shares.total() > 0.03 and max(shares.values()) / shares.total() < 0.2
    assert {sentence["kind"] for _, _, sentence in said_of(scenes, "refcoco+")} == {*expressions_v2.LOOKS, "negation"}
    long = Counter(sentence["kind"] for _, _, sentence in said_of(scenes, "refcocog"))
    assert long["relation1"] + long["relation2"] > 0.4 * long.total()


@pytest.mark.parametrize("dataset", refcoco.REFS)
def test_colour_alone_tells_few_objects(scenes: list[dict[str, Any]], dataset: str) -> None:
    """At most a third of the sentences hold a colour that no other object of the scene has."""

    def by_colour(image: dict[str, Any], found: dict[str, Any], sentence: dict[str, Any]) -> bool:
        same = [one for one in image["objects"] if one["colour"] == found["colour"]]
        return len(same) == 1 and "colour" in sentence["kinds"]

    assert fmean(by_colour(*one) for one in said_of(scenes, dataset)) <= 1 / 3


def test_sentences_are_as_long_as_people_write_them(scenes: list[dict[str, Any]]) -> None:
    """One word to 27; a few of them, mostly in refcocog, are longer than the 21 tokens that a network reads."""
    lengths = {d: [len(said["sent"].split()) for *_, said in said_of(scenes, d)] for d in refcoco.REFS}
    assert 0.05 < fmean(length == 1 for length in lengths["refcoco"]) < 0.15
    assert max(map(max, lengths.values())) <= expressions_v2.MAX_WORDS == 27
    assert 0.005 < fmean(length > 19 for length in lengths["refcocog"]) < 0.05
    assert fmean(length > 19 for length in lengths["refcoco"]) < 0.01


def test_people_mistype_and_repeat_themselves(scenes: list[dict[str, Any]]) -> None:
    told = said_of(scenes, "refcoco")
    fine = [" ".join(word for word in s["sent"].split() if word not in ("the", "a", "an")) for *_, s in told]
    mended = [cleaned(s["sent"]) for *_, s in told]
    assert 0.01 < fmean(one not in other for one, other in zip(mended, fine, strict=True)) < 0.06
    assert 0.05 < fmean(s["raw"][0].isupper() for *_, s in told) < 0.15
    repeated = sum(n - 1 for n in Counter((one["ann_id"], s["sent"]) for _, one, s in told).values())
    assert 0.02 < repeated / len(told) < 0.09


def test_objects_are_as_large_as_in_photographs(scenes: list[dict[str, Any]]) -> None:
    """In the median 5 % of the image, twice as much as in version 1."""
    shares = [one["area"] / (image["width"] * image["height"]) for image in scenes for one in image["objects"]]
    assert 0.04 < median(shares) < 0.1


# ---------------------------------------------------------------- several objects, or none


@pytest.mark.slow  # draws many scenes
def test_every_sentence_means_exactly_its_set() -> None:
    """As with `--like grefcoco` of version 1; there are absent objects of more forms."""
    forms = Counter[str]()
    for number in range(1, 61):
        rng, split = Random(f"9 {number}"), ("train", "val", "testA", "testB")[number % 4]
        composed, seen = records.compose_scene(rng, split, grefcoco.KIND_V2)
        image: dict[str, Any] = {"width": composed.width, "height": composed.height}
        image["objects"] = [records.object_entry(number, depth, part) for depth, part in enumerate(seen)]
        told = grefcoco.write_sentences_v2(rng, View(composed.width, composed.height, seen), split)
        for said in told:
            assert [found["depth"] for found in understand_some(said["sent"], image)] == said["meant"], said
        forms.update(said["form"] for said in told)
    assert forms.total() > 500
    assert set(forms) >= {"one", "group", "half", "rank", "exception", "union", "absent"}
    assert min(forms["absent denied"], forms["absent in order"]) > 5


def test_files_of_sets_are_of_version_2(tmp_path: Path) -> None:
    make.make_sample(tmp_path / "data", images=2, like="grefcoco", version=2)
    options = json.loads((tmp_path / "data" / "sample.json").read_text())
    assert options == {"version": 2, "images": 2, "seed": 0, "like": "grefcoco"}
    tokenizer = BertTokenizer(vocab=str(tmp_path / "data" / "vocab.txt"))
    refs = json.loads((tmp_path / "data" / "grefcoco" / "grefs(unc).json").read_text())
    assert not [s for ref in refs for s in ref["sentences"] if tokenizer.unk_token_id in tokenizer.encode(s["raw"])]


# ---------------------------------------------------------------- files


def test_files_are_those_of_a_data_set(root: Path) -> None:
    """What is written is what was said, every token is known, and the record says which version it is."""
    assert json.loads((root / "sample.json").read_text()) == {"version": 2, "images": 8, "seed": 0}
    truth = json.loads((root / "scenes.json").read_text())
    tokenizer = BertTokenizer(vocab=str(root / "vocab.txt"))
    lines = (root / "vocab.txt").read_text().splitlines()
    usual = make.vocabulary()
    count = usual.index("[unused0]")
    assert lines[:count] == usual[:count] and len(lines) == len(set(lines)) == 1000
    for dataset, name in refcoco.REFS.items():
        instances = json.loads((root / dataset / "instances.json").read_text())
        assert instances["info"]["version"] == "2"
        with (root / dataset / name).open("rb") as file:
            refs = pickle.load(file)
        spoken = [(s["sent_id"], ref["ann_id"], s["sent"]) for ref in refs for s in ref["sentences"]]
        assert spoken == [(entry["sent_id"], entry["ann_id"], entry["sent"]) for entry in truth["sentences"][dataset]]
        assert all(entry["kind"] in expressions_v2.KINDS for entry in truth["sentences"][dataset])
        assert not [s for *_, s in spoken if tokenizer.unk_token_id in tokenizer.encode(s)]


def test_every_word_is_whole_in_the_vocabulary() -> None:
    known = {*make.vocabulary(), *expressions_v2.words()}
    assert len(make.vocabulary(expressions_v2.words())) == 1000
    assert expressions_v2.spelling() <= known


def test_it_is_drawn_by_default(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make.make_sample(root, images=8)
    assert "already" in capsys.readouterr().out


def test_no_other_version_goes_into_the_folder(root: Path) -> None:
    with naming(root, "--root"):
        make.make_sample(root, images=8, version=1)
    for wrong in ({"hard": True}, {"like": "risbench"}):
        with pytest.raises(UserError, match="version 2"):
            make.make_sample(root, images=8, version=2, **wrong)


@pytest.mark.parametrize("wrong", [["--hard"], ["--like", "risbench"]])
def test_flags_that_exclude_each_other(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(["--root", "new", "--version", "2", *wrong])
    assert "--version 2" in capsys.readouterr().err


# ---------------------------------------------------------------- the same for ever

# SHA-256 of the looks and sentences of the first four scenes of seed 7, in JSON; what changes it is another version.
DIGESTS = {
    ("refcoco", 1): "2937f192ebe4234d",
    ("refcoco", 2): "ca1b3dc539d51f83",
    ("grefcoco", 1): "585b0917d16ebebc",
    ("risbench", 1): "ce53dd31394628c7",
    ("grefcoco", 2): "1094fdfd4f5a8923",
    ("hard", 1): "6c9f0bd528b83b75",
}


@pytest.mark.parametrize(("name", "version"), DIGESTS)
def test_a_version_stays_the_same(name: str, version: int) -> None:
    """Looks and sentences do not change with versions of Python or of libraries.

    Pixels do: Pillow 11 and 12 draw the edge of a heart a little differently.
    """
    kind = make.choose_kind("refcoco" if name == "hard" else name, version, hard=name == "hard")
    digest = hashlib.sha256()
    for number in (1, 2, 3, 4):
        rng = Random(f"7 {number}")
        composed, seen = records.compose_scene(rng, "train", kind)
        view = expressions_v2.LooksView(composed.width, composed.height, seen)
        told = kind.write_sentences(rng, view, "train")
        digest.update(json.dumps([[vars(part.look) for part in seen], told]).encode())
    assert digest.hexdigest()[:16] == DIGESTS[name, version]


# ---------------------------------------------------------------- scores by kind

NO_PRECISION = dict.fromkeys(("0.5", "0.6", "0.7", "0.8", "0.9"), 0.0)


def test_scores_are_tabled_by_kind(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A network that finds all colours and nothing else has 100 % there and 0 % elsewhere."""
    said = json.loads((root / "scenes.json").read_text())["sentences"]["refcoco"]
    right = [100 * (entry["kind"] == "colour") for entry in said]
    counts = {name: [100] * len(said) for name in ("union", "predicted", "truth", "image", "image_id")}
    counts |= {"sent_id": [entry["sent_id"] for entry in said], "intersection": right}
    scores = {"n_expressions": len(said), "mean_iou": 0.0, "overall_iou": 0.0, "precision": NO_PRECISION}
    result = {"dataset": "refcoco", "splitBy": "unc", "split": "val", "checkpoint": "x", **scores, "counts": counts}
    (tmp_path / "val.json").write_text(json.dumps(result))
    tables.main(["kinds", str(tmp_path / "val.json"), "--scenes", str(root / "scenes.json")])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    found = {row[0]: row[1:] for row in rows[1:]}
    assert found["colour"][1:] == ["100.00"] * 4 and found["shape"][1:] == ["0.00"] * 4
    assert found["without colour"][1:] == ["0.00"] * 4
    assert (
        sum(int(found[kind][0]) for kind in expressions_v2.KINDS if kind in found) == int(found["all"][0]) == len(said)
    )


def test_scores_of_other_data_are_refused(tmp_path: Path) -> None:
    for content in ("no JSON", '{"sentences": {"risbench": [{"file_name": "1.png"}]}}'):
        (tmp_path / "scenes.json").write_text(content)
        with naming(tmp_path / "scenes.json"):
            tables.main(["kinds", "val.json", "--scenes", str(tmp_path / "scenes.json")])
