"""The scripts from end to end, on the sample data set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import test as test_script
import train as train_script
import utils
from CrossVLT import build_model
from tests.reference.weights import fill

ROOT = Path(__file__).parent.parent
NANO = "--swin_type nano --bert_type nano --img_size 64 --workers 0 --device cpu"


def data_flags(root: Path) -> list[str]:
    return ["--refer_data_root", str(root), "--bert_tokenizer", str(root / "vocab.txt")]


def call(monkeypatch: pytest.MonkeyPatch, script: object, *flags: object) -> None:
    """Run a script's main in this process."""
    monkeypatch.setattr(sys, "argv", ["script.py", *map(str, flags)])
    script.main()


def train(monkeypatch: pytest.MonkeyPatch, root: Path, out: Path, *flags: object) -> None:
    line = [*NANO.split(), "-b", 16, "--lr", "1e-3", "--output-dir", out, *data_flags(root)]
    call(monkeypatch, train_script, *line, *flags)


def scores(monkeypatch: pytest.MonkeyPatch, root: Path, weights: Path, out: Path, *flags: object) -> dict:
    line = ["--refer_data_root", root, "--resume", weights, "--json", out, "--workers", 0, "--device", "cpu"]
    call(monkeypatch, test_script, *line, *flags)
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def trained(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of nano on the sample data: the folder with last, best and log."""
    out = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as monkeypatch:
        train(monkeypatch, sample_root, out, "--epochs", 2)
    return out


def test_training_leaves_last_best_and_log(trained: Path) -> None:
    log = [json.loads(line) for line in (trained / "log_refcoco.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in log] == [0, 1]
    assert all(entry["loss"] > 0 and len(entry["alignment_loss"]) == 4 for entry in log)
    assert log[-1]["lr"] == 0
    last = torch.load(trained / "last_refcoco.pth", weights_only=True)
    assert last["epoch"] == 1
    assert last["best_oIoU"] == max(entry["val"]["overall_iou"] for entry in log)
    assert (trained / "best_refcoco.pth").exists()


def test_validation_equals_testing_the_saved_file(
    monkeypatch: pytest.MonkeyPatch, sample_root: Path, trained: Path, tmp_path: Path
) -> None:
    """No flag but the file: network type, image size and vocabulary come with it."""
    log = [json.loads(line) for line in (trained / "log_refcoco.jsonl").read_text().splitlines()]
    tested = scores(monkeypatch, sample_root, trained / "last_refcoco.pth", tmp_path / "scores.json")
    names = {"dataset": "refcoco", "splitBy": "unc", "split": "val"}
    assert tested == names | {"checkpoint": str(trained / "last_refcoco.pth")} | log[-1]["val"]


@pytest.mark.parametrize("module_prefix", [False, True])
def test_released_layout_is_tested(
    monkeypatch: pytest.MonkeyPatch, sample_root: Path, tmp_path: Path, module_prefix: bool
) -> None:
    """A bare state dict without `temp`: the published command line, for another vocabulary."""
    model = build_model("nano", "nano", vocab_size=1000)
    weights = {name: value for name, value in fill(model.state_dict()).items() if name != "temp"}
    if module_prefix:
        weights = {f"module.{name}": value for name, value in weights.items()}
    file = tmp_path / "best_refcoco.pth"
    torch.save(weights, file)
    flags = ["--split", "testA", "--img_size", 64, "--bert_tokenizer", sample_root / "vocab.txt", "--swin_type", "nano"]
    tested = scores(monkeypatch, sample_root, file, tmp_path / "scores.json", *flags)
    assert tested["split"] == "testA"
    assert set(tested["precision"]) == {"0.5", "0.6", "0.7", "0.8", "0.9"}


def test_resumed_training_equals_uninterrupted_training(
    monkeypatch: pytest.MonkeyPatch, sample_root: Path, tmp_path: Path, trained: Path
) -> None:
    class Killed(Exception):
        pass

    def kill_after_first(*_: object, **keywords: int) -> None:
        if keywords["epoch"] == 1:
            raise Killed
        return original(*_, **keywords)

    original = train_script.train_one_epoch
    monkeypatch.setattr(train_script, "train_one_epoch", kill_after_first)
    with pytest.raises(Killed):
        train(monkeypatch, sample_root, tmp_path, "--epochs", 2)
    monkeypatch.setattr(train_script, "train_one_epoch", original)
    train(monkeypatch, sample_root, tmp_path, "--epochs", 2, "--resume", tmp_path / "last_refcoco.pth")

    whole = torch.load(trained / "last_refcoco.pth", weights_only=True)
    resumed = torch.load(tmp_path / "last_refcoco.pth", weights_only=True)
    assert all(torch.equal(value, resumed["model"][name]) for name, value in whole["model"].items())
    assert resumed["best_oIoU"] == whole["best_oIoU"]
    assert [entry["loss"] for entry in resumed["history"]] == [entry["loss"] for entry in whole["history"]]


def test_resuming_another_run_is_refused(monkeypatch: pytest.MonkeyPatch, sample_root: Path, trained: Path) -> None:
    with pytest.raises(utils.UserError, match="epochs was 2 and is now 3"):
        train(monkeypatch, sample_root, trained, "--epochs", 3, "--resume", trained / "last_refcoco.pth")


def test_a_fresh_run_does_not_replace_an_earlier_one(
    monkeypatch: pytest.MonkeyPatch, sample_root: Path, trained: Path
) -> None:
    before = (trained / "last_refcoco.pth").read_bytes()
    with pytest.raises(utils.UserError, match="--overwrite"):
        train(monkeypatch, sample_root, trained, "--epochs", 1)
    assert (trained / "last_refcoco.pth").read_bytes() == before


def test_non_finite_loss_names_step_and_last_good_checkpoint(
    monkeypatch: pytest.MonkeyPatch, sample_root: Path, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(utils.UserError, match=r"epoch 0, step \d+.*no checkpoint of this run"):
        train(monkeypatch, sample_root, tmp_path, "--epochs", 1, "--lr", "1e30")

    def spoil(*arguments: object, **keywords: object) -> object:
        arguments[0].classifier.conv1_1.weight.data.fill_(float("nan"))
        return original(*arguments, **keywords)

    original = train_script.train_one_epoch
    checkpoint = torch.load(trained / "last_refcoco.pth", weights_only=True)
    checkpoint["epoch"], checkpoint["history"] = 0, checkpoint["history"][:1]
    torch.save(checkpoint, tmp_path / "last_refcoco.pth")
    monkeypatch.setattr(train_script, "train_one_epoch", spoil)
    with pytest.raises(utils.UserError, match=r"epoch 1, step 1\..*last_refcoco\.pth \(epoch 0\)"):
        train(monkeypatch, sample_root, tmp_path, "--epochs", 2, "--resume", tmp_path / "last_refcoco.pth")


def test_masks_and_overlays_are_written(
    monkeypatch: pytest.MonkeyPatch, sample_root: Path, trained: Path, tmp_path: Path
) -> None:
    tested = scores(
        monkeypatch, sample_root, trained / "last_refcoco.pth", tmp_path / "s.json", "--save-masks", tmp_path / "out"
    )
    masks, overlays = (sorted((tmp_path / "out" / kind).glob("*.png")) for kind in ("masks", "overlays"))
    assert len(masks) == len(overlays) == tested["n_expressions"]
    assert [path.name for path in masks] == [path.name for path in overlays]
    assert set(np.unique(np.asarray(Image.open(masks[0])))) <= {0, 255}


def test_own_size_and_shuffled_expressions_are_other_measurements(
    monkeypatch: pytest.MonkeyPatch, sample_root: Path, tmp_path: Path
) -> None:
    model = build_model("nano", "nano", vocab_size=1000)
    torch.save(fill(model.state_dict()), tmp_path / "w.pth")
    flags = ["--img_size", 64, "--bert_tokenizer", sample_root / "vocab.txt"]
    plain = scores(monkeypatch, sample_root, tmp_path / "w.pth", tmp_path / "a.json", *flags)
    own = scores(monkeypatch, sample_root, tmp_path / "w.pth", tmp_path / "b.json", *flags, "--eval_ori_size")
    shuffled = scores(
        monkeypatch, sample_root, tmp_path / "w.pth", tmp_path / "c.json", *flags, "--shuffle_expressions"
    )
    assert own["n_expressions"] == shuffled["n_expressions"] == plain["n_expressions"]
    assert (plain.get("measured_at"), own["measured_at"]) == (None, "image size")
    assert (plain.get("expressions"), shuffled["expressions"]) == (None, "shuffled")
    assert own["overall_iou"] != plain["overall_iou"]
    assert shuffled["overall_iou"] != plain["overall_iou"]


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("train.py", "--dataset refcoco --splitBy umd --bert_tokenizer {root}/vocab.txt", "unc"),
        ("train.py", "--bert_tokenizer {root}/nothing.txt", "--bert_tokenizer"),
        ("train.py", "--bert_tokenizer {root}/vocab.txt --swin_type base --ck_bert none", "swin_base_patch4_window12"),
        ("test.py", "--resume {root}/no.pth", "no.pth"),
        ("test.py", "--resume {root}/vocab.txt", "vocab.txt"),
    ],
)
def test_a_mistake_ends_with_one_message(
    sample_root: Path, script: str, flags: str, message: str, tmp_path: Path
) -> None:
    line = [sys.executable, str(ROOT / script), *flags.format(root=sample_root).split(), "--device", "cpu"]
    line += ["--refer_data_root", str(sample_root)] + (["--output-dir", str(tmp_path)] if script == "train.py" else [])
    result = subprocess.run(
        line, capture_output=True, text=True, check=False, cwd=tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "error: " in result.stderr
    assert message in result.stderr
