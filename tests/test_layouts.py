"""A network's weights in every layout: nothing is lost on the way, nothing in them is trusted."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import predict
from bert.tokenizer import build_tokenizer, read_vocabulary
from CrossVLT import SegModel
from errors import UserError
from lib.variants import THRESHOLDS
from lib.weights import __main__ as command
from lib.weights.checkpoint import Checkpoint, read_checkpoint
from lib.weights.layouts import SCALE, restore, store, write_about
from tests.helpers import naming
from trained import words_of

SCORES = {
    "n_expressions": 12,
    "overall_iou": 60.0,
    "mean_iou": 58.0,
    "precision": {str(threshold): 50.0 for threshold in THRESHOLDS},
}


@pytest.fixture(scope="module")
def trained(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training file as train.py writes it."""
    torch.manual_seed(0)
    network = SegModel("nano", "nano", vocab_size=1000)
    options = {"img_size": 56, "dataset": "refcoco", "split": "val", "lr": 0.001, "output_dir": "/home/somebody"}
    log = [{"kind": "epoch", "val": None}, {"kind": "epoch", "val": SCORES}]
    state = {"epoch": 2, "best_oIoU": 60.0, "log": log, "optimizer": {}}
    path = tmp_path_factory.mktemp("trained") / "best_refcoco.pth"
    args = options | {"bert_tokenizer": str(sample_root / "vocab.txt")}
    torch.save({"model": network.state_dict(), "args": args, **state}, path)
    return path


def run(*words: object) -> None:
    command.main(list(map(str, words)))


@pytest.mark.slow  # writes weights in every layout
def test_all_layouts_and_back(trained: Path, tmp_path: Path) -> None:
    """Own → safetensors → hub → own → released: the same weights to the last bit, and the same metadata."""
    way = [tmp_path / "a.safetensors", tmp_path / "hub", tmp_path / "own.pth", tmp_path / "released.pth"]
    layouts = ["safetensors", "hub", "own", "released"]
    for source, target, layout in zip([trained, *way], way, layouts, strict=False):
        run("export", source, target, *(["--layout", "own"] if layout == "own" else []))
    before = command.inspect(trained)
    assert before["layout"] == "own, with the state to resume a training"
    for path, layout in zip(way, layouts, strict=True):
        found = command.inspect(path)
        assert (found["layout"], found["weights"], found["keys"]) == (layout, before["weights"], before["keys"])
        if layout != "released":
            assert (found["epoch"], found["best_oIoU"], found["scores"]) == (2, 60.0, SCORES)
            assert (found["args"]["img_size"], found["args"]["lr"]) == (56, 0.001)
    content = torch.load(way[2], weights_only=False)
    assert isinstance(content["args"], argparse.Namespace)
    assert not hasattr(content["args"], "output_dir"), "paths of a machine stay there"
    assert content.keys() == {"model", "args", "epoch", "best_oIoU", "scores", "vocabulary"}
    assert len(read_checkpoint(way[2]).vocabulary or ()) == 1000


def test_the_vocabulary_is_converted_with_the_weights(trained: Path, sample_root: Path, tmp_path: Path) -> None:
    run("export", trained, tmp_path / "hub")
    words = list(read_vocabulary(sample_root / "vocab.txt"))
    assert read_checkpoint(tmp_path / "hub").vocabulary == words
    assert list(read_vocabulary(tmp_path / "hub" / "vocab.txt")) == words
    model = predict.load(tmp_path / "hub")
    assert (len(model.tokenizer), model.transform.size) == (1000, 56)


@pytest.mark.parametrize("place", ["folder", "file without [MASK]"])
def test_the_vocabulary_of_the_training_is_found_where_the_training_found_it(tmp_path: Path, place: str) -> None:
    """Also if the tokenizer added [MASK] itself."""
    vocabulary = tmp_path / "words" / "vocab.txt"
    vocabulary.parent.mkdir()
    mask = ["[MASK]"] if place == "folder" else []
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *mask, "cat"]))
    name = str(vocabulary.parent if place == "folder" else vocabulary)
    words = build_tokenizer(name).words
    checkpoint = Checkpoint(tmp_path / "w.pth", {}, {"bert_tokenizer": name})
    assert words_of(checkpoint) == words and len(words) == 6
    weights = SegModel("nano", "nano", vocab_size=len(words)).state_dict()
    torch.save({"model": weights, "args": {"img_size": 56, "bert_tokenizer": name}}, tmp_path / "w.pth")
    run("export", tmp_path / "w.pth", tmp_path / "w.safetensors")
    assert read_checkpoint(tmp_path / "w.safetensors").vocabulary == words


@pytest.mark.parametrize(("epoch", "step"), [(2, 0), (3, 0), (2, 5)])
def test_a_model_card_tells_scores_of_another_epoch(trained: Path, tmp_path: Path, epoch: int, step: int) -> None:
    """The newest state of a training has the scores of the best one in its log."""
    log = [{"kind": "epoch", "epoch": 0, "val": None}, {"kind": "epoch", "epoch": 1, "val": SCORES}]
    state = torch.load(trained, weights_only=True) | {"epoch": epoch, "step": step, "log": log}
    torch.save(state, tmp_path / "last_refcoco.pth")
    run("export", tmp_path / "last_refcoco.pth", tmp_path / "hub")
    (row,) = [line for line in (tmp_path / "hub" / "README.md").read_text().splitlines() if "| 12 |" in line]
    assert ("refcoco val after epoch 2, of which" in row) is ((epoch, step) != (2, 0))


def test_scores_for_a_model_card_that_is_kept_are_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card, result = tmp_path / "hub" / "README.md", tmp_path / "val.json"
    card.parent.mkdir()
    card.write_text("mine")
    result.write_text(json.dumps(SCORES | {"dataset": "refcoco", "split": "val"}))
    with naming("--scores", card):
        run("export", trained, tmp_path / "hub", "--scores", result)
    assert [path.name for path in card.parent.iterdir()] == [card.name]
    run("export", trained, tmp_path / "hub")
    assert card.read_text() == "mine" and "README.md" in capsys.readouterr().out


@pytest.mark.slow  # builds several networks
def test_the_hub_mixin_rebuilds_the_network(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, from a folder that the command wrote; its card tells the run's own numbers."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run("export", trained, tmp_path / "hub")
    network = SegModel.from_pretrained(tmp_path / "hub")
    assert not network.training
    for name, value in read_checkpoint(trained).weights.items():
        assert torch.equal(network.state_dict()[name], value)
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["swin_type"] == "nano"
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "| refcoco val | 12 |" in card and "- lr: 0.001" in card and "somebody" not in card


def test_missing_weights_are_not_left_random(trained: Path, tmp_path: Path) -> None:
    run("export", trained, tmp_path / "hub")
    weights = load_file(tmp_path / "hub" / "model.safetensors")
    del weights["classifier.conv1_1.weight"]
    save_file(weights, tmp_path / "hub" / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"classifier\.conv1_1\.weight"):
        SegModel.from_pretrained(tmp_path / "hub")


@pytest.mark.parametrize(("dtype", "share", "error"), [("fp16", 0.55, 1e-3), ("bf16", 0.55, 8e-3), ("int8", 0.3, 4e-3)])
def test_rounded_files(trained: Path, tmp_path: Path, dtype: str, share: float, error: float) -> None:
    """error: of a value, relative to the largest of its row."""
    run("export", trained, tmp_path / "small.safetensors", "--dtype", dtype)
    run("export", trained, tmp_path / "full.safetensors")
    assert (tmp_path / "small.safetensors").stat().st_size < share * (tmp_path / "full.safetensors").stat().st_size
    before, after = (read_checkpoint(path).weights for path in (trained, tmp_path / "small.safetensors"))
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        if value.is_floating_point() and value.dim() > 0:
            largest = value.flatten(1).abs().amax(1) if value.dim() > 1 else value.abs()
            difference = (after[name] - value).abs()
            difference = difference.flatten(1).amax(1) if value.dim() > 1 else difference
            assert (difference <= error * largest + 1e-12).all(), name


def test_steps_of_another_shape_are_refused() -> None:
    stored = store({"weight": torch.randn(100, 100)}, "int8")
    stored["weight" + SCALE] = torch.ones(3)
    with pytest.raises(UserError, match="does not fit"):
        restore(stored)


@pytest.mark.parametrize(
    "entry", ["{", "[]", '{"args": {}, "state": {}}', '{"args": 1, "state": {}, "vocabulary": []}']
)
def test_odd_metadata_is_refused(tmp_path: Path, entry: str) -> None:
    save_file({"weight": torch.ones(1)}, tmp_path / "odd.safetensors", {"crossvlt": entry})
    with pytest.raises(UserError, match=r"odd\.safetensors\b.* 'crossvlt'"):
        read_checkpoint(tmp_path / "odd.safetensors")


def test_foreign_safetensors_are_read(tmp_path: Path) -> None:
    save_file({"module.weight": torch.ones(1)}, tmp_path / "foreign.safetensors")
    checkpoint = read_checkpoint(tmp_path / "foreign.safetensors")
    assert list(checkpoint.weights) == ["weight"]
    assert (checkpoint.args, checkpoint.vocabulary) == ({}, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{own} {tmp}/a.pth --dtype fp16", r"--dtype fp16\b.*\breleased\b"),
        ("{own} {tmp}/a --dtype int8", r"--dtype int8\b.*\bhub\b"),
        ("{own} {tmp}/a.tflite", r"a\.tflite\b.*--layout"),
        ("{own} {tmp}/a.onnx --dtype fp16", r"--dtype fp16\b.*\bonnx\b"),
        ("{own} {tmp}/a.pth --img_size 64", r"--img_size\b.*\bonnx\b.*\breleased\b"),
        ("{own} {tmp}/a.pth --vocabulary {tmp}/short.txt", r"--vocabulary\b.*\breleased\b"),
        ("{own} {tmp}/a.safetensors --alignment", r"--alignment\b.*\bonnx\b.*\bsafetensors\b"),
        ("{own} {tmp}/a.onnx --scores a.json", r"--scores\b.*\bhub\b.*\bonnx\b"),
        ("{own} {tmp} --layout released", "is a folder"),
        ("{own} {tmp}/a.safetensors --vocabulary {tmp}/short.txt", r"short\.txt\b.*\b5\b.*\b1000\b"),
        ("{tmp}/short.txt {tmp}/a.pth", r"short\.txt\b"),
    ],
)
def test_unsupported_exports_are_refused(trained: Path, tmp_path: Path, words: str, message: str) -> None:
    (tmp_path / "short.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
    with pytest.raises(UserError, match=message):
        run("export", *words.format(own=trained, tmp=tmp_path).split())
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


def test_inspect_prints(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("inspect", trained, "--keys")
    text = capsys.readouterr().out
    for part in (
        "Swin nano, BERT nano, 1000 words",
        "6,688,052",
        "| val | 12 |",
        "- lr: 0.001",
        "classifier.conv1_1.bias  [2]",
    ):
        assert part in text
    run("inspect", trained, "--json")
    assert json.loads(capsys.readouterr().out)["swin_type"] == "nano"


def test_a_state_from_before_the_first_validation_has_no_best_score(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(trained, weights_only=True) | {"epoch": 0, "best_oIoU": -1.0, "log": []}
    torch.save(state, tmp_path / "last_refcoco.pth")
    run("inspect", tmp_path / "last_refcoco.pth")
    assert "best" not in capsys.readouterr().out
    run("export", tmp_path / "last_refcoco.pth", tmp_path / "a.safetensors")
    assert "best_oIoU" not in read_checkpoint(tmp_path / "a.safetensors").state


def test_an_untrained_network_has_a_card_without_scores(tmp_path: Path) -> None:
    SegModel("nano", "nano", vocab_size=1000).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "nano Swin encoder" in card and "## Scores" not in card


def test_the_description_is_the_one_that_was_written(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(1)}, tmp_path / "a.safetensors", write_about({"lr": 1.0}, {"epoch": 3}, ["ä"]))
    checkpoint = read_checkpoint(tmp_path / "a.safetensors")
    assert (checkpoint.args, checkpoint.state, checkpoint.vocabulary) == ({"lr": 1.0}, {"epoch": 3}, ["ä"])


@pytest.mark.parametrize(("value", "dtype"), [(torch.nan, "fp32"), (torch.inf, "fp32"), (1e30, "fp16")])
def test_weights_of_nan_are_named_and_not_exported(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float, dtype: str
) -> None:
    """Among them numbers that the type they would be stored in does not hold."""
    weights = dict(read_checkpoint(trained).weights)
    weights["temp"] = torch.full_like(weights["temp"], value)
    torch.save(weights, tmp_path / "broken.pth")
    run("inspect", tmp_path / "broken.pth")
    assert ("not finite" in capsys.readouterr().out) == (dtype == "fp32")
    with naming("temp"):
        run("export", tmp_path / "broken.pth", tmp_path / "a.safetensors", "--dtype", dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.pth"]
