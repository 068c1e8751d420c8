"""The scripts from end to end, on the sample data set."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import signal
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

import test as test_script
import train as train_script
from errors import UserError
from lib import engine
from lib.evaluation.protocols import Result, score_zero
from lib.training.run_files import RunFiles
from lib.training.run_log import RunLog
from tests.helpers import mostly_slow
from tests.networks import reference_nano
from tests.training_runs import ROOT, launch

NANO = "--swin_type nano --bert_type nano --img_size 32 --workers 0 --device cpu"


def data_flags(root: Path) -> list[str]:
    return ["--refer_data_root", str(root), "--bert_tokenizer", str(root / "vocab.txt")]


def call(script: ModuleType, *flags: object) -> None:
    """Run a script's main in this process."""
    script.main(list(map(str, flags)))


def train(root: Path, out: Path, *flags: object) -> None:
    line = [*NANO.split(), "-b", 16, "--lr", "1e-3", "--output-dir", out, *data_flags(root)]
    call(train_script, *line, *flags)


def scores(root: Path, weights: Path, out: Path, *flags: object) -> dict:
    line = ["--refer_data_root", root, "--resume", weights, "--json", out, "--workers", 0, "--device", "cpu"]
    call(test_script, *line, *flags)
    found = json.loads(out.read_text())
    assert {len(column) for column in found.pop("counts").values()} == {found["n_expressions"]}
    return found


@pytest.fixture(scope="module")
def trained(few_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of nano on the sample data: the folder with last, best and log."""
    out = tmp_path_factory.mktemp("trained")
    train(few_root, out, "--epochs", 2)
    return out


def epochs(folder: Path) -> list[dict]:
    """Return the log's lines about epochs."""
    lines = [json.loads(line) for line in (folder / "log_refcoco.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "epoch"]


def test_training_leaves_last_best_and_log(trained: Path) -> None:
    log = epochs(trained)
    assert [entry["epoch"] for entry in log] == [0, 1]
    assert all(entry["loss"] > 0 and len(entry["alignment_loss"]) == 4 for entry in log)
    assert log[-1]["lr"] == 0
    last = torch.load(trained / "last_refcoco.pth", weights_only=True)
    assert (last["epoch"], last["step"]) == (2, 0)
    assert last["best_oIoU"] == max(entry["val"]["overall_iou"] for entry in log)
    assert (trained / "best_refcoco.pth").exists()


def test_validation_equals_testing_the_saved_file(few_root: Path, trained: Path, tmp_path: Path) -> None:
    """No flag but the file: network type, image size and vocabulary come with it."""
    log = epochs(trained)
    tested = scores(few_root, trained / "last_refcoco.pth", tmp_path / "scores.json")
    names = {"dataset": "refcoco", "splitBy": "unc", "split": "val", "img_size": 32}
    assert tested == names | {"checkpoint": str(trained / "last_refcoco.pth")} | log[-1]["val"]


@pytest.mark.parametrize("module_prefix", mostly_slow([False, True], always=[True]))
def test_released_layout_is_tested(few_root: Path, tmp_path: Path, module_prefix: bool) -> None:
    """A bare state dict without `temp`: the published command line, for another vocabulary."""
    weights = {name: value for name, value in reference_nano().state_dict().items() if name != "temp"}
    if module_prefix:
        weights = {f"module.{name}": value for name, value in weights.items()}
    file = tmp_path / "best_refcoco.pth"
    torch.save(weights, file)
    flags = ["--split", "testA", "--img_size", 32, "--bert_tokenizer", few_root / "vocab.txt", "--swin_type", "nano"]
    tested = scores(few_root, file, tmp_path / "scores.json", *flags)
    assert tested["split"] == "testA"
    assert set(tested["precision"]) == {"0.5", "0.6", "0.7", "0.8", "0.9"}


def test_a_training_says_what_it_does(few_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Machine, folder, log, data and weights at the start; parts of the loss, the end and the best score on the way."""
    quick = ("--epochs", 2, "--limit-train", 4, "--limit-val", 2, "-b", 4, "--print-freq", 1)
    train(few_root, tmp_path, *quick)
    lines = capsys.readouterr().out.splitlines()
    for part in (platform.node(), "cpu", "fp32", str(tmp_path), str(tmp_path / "log_refcoco.jsonl")):
        assert part in lines[0]
    assert any(line.startswith("data refcoco (unc): train 4 objects") and "the first 2" in line for line in lines)
    assert "weights: random (seed 12345)" in lines
    steps = [line for line in lines if "  step 1/1  " in line]
    assert [line.split("  ")[0] for line in steps] == ["epoch 1/2", "epoch 2/2"]
    assert all(
        re.search(r"loss [\d.]+ \(mask [\d.]+, alignment [\d.]+\).* ends \w+ \d\d \d\d:\d\d", line) for line in steps
    )
    best = RunLog(tmp_path, "refcoco")
    best.records = [json.loads(line) for line in best.path.read_text().splitlines()]
    assert f"best so far: {best.describe_best()}" in lines
    assert "best oIoU" in steps[1] and "best" not in steps[0]


def test_log_and_run_file_tell_time_and_host(trained: Path) -> None:
    run = json.loads((trained / "run_refcoco.json").read_text())
    for record in (*epochs(trained), run):
        assert record["host"] == platform.node()
        assert datetime.fromisoformat(record["time"]).tzinfo is not None


def test_a_run_records_its_settings(trained: Path) -> None:
    run = json.loads((trained / "run_refcoco.json").read_text())
    assert run["options"]["lr"] == 1e-3
    assert run["options"]["global_batch"] == 16
    assert len(run["options"]["data"].split()) == 2
    assert run["versions"]["torch"] == metadata.version("torch")
    assert set(run["git"] or {"revision": "", "modified": False}) == {"revision", "modified"}


@pytest.mark.slow  # trains
def test_a_finished_run_has_nothing_left_to_train(
    few_root: Path, trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (trained / "last_refcoco.pth").read_bytes()
    monkeypatch.setattr(sys, "executable", str(Path.cwd() / ".venv/bin/python"))
    train(few_root, trained, "--epochs", 2, "--resume", "auto")
    printed = capsys.readouterr().out
    assert "all 2 epochs are done" in printed
    best = max(epochs(trained), key=lambda entry: entry["val"]["overall_iou"])
    assert (
        f"oIoU {best['val']['overall_iou']:.2f} after epoch {best['epoch'] + 1}, in {trained / 'best_refcoco.pth'}"
        in printed
    )
    python, script, *flags = shlex.split(printed.splitlines()[-1])
    assert (python, script) == (".venv/bin/python", "test.py")
    args = test_script.parse_args(flags)
    assert (args.resume, args.dataset, args.splitBy, args.split) == (
        *(str(trained / "best_refcoco.pth"), "refcoco", "unc", ["val"]),
    )
    assert args.refer_data_root == str(few_root)
    assert (trained / "last_refcoco.pth").read_bytes() == before


@pytest.mark.parametrize(
    "flags",
    [
        "--dataset refcoco,refcocog --splitBy unc,umd --refer_data_root my/data --overlap object",
        "--dataset jsonl --data a.jsonl b.jsonl",
        "--dataset grefcoco --no-target-pixels 50",
        "--precision bf16",
    ],
)
def test_the_command_that_tests_the_best_network_has_the_trainings_flags(flags: str) -> None:
    training = train_script.parse_args(flags.split())
    testing = test_script.parse_args(train_script.flags_to_test(training, Path("out/best.pth")))
    assert testing.resume == "out/best.pth"
    assert testing.split == [training.split]
    names = ("dataset", "splitBy", "data_files", "refer_data_root", "overlap", "no_target_pixels", "precision")
    assert [getattr(testing, name) for name in names] == [getattr(training, name) for name in names]


def test_a_best_network_that_is_elsewhere_is_not_said_to_be_here(tmp_path: Path) -> None:
    """As after resuming a copy of `last` alone, if no later epoch was better."""
    args, files = train_script.parse_args([]), RunFiles(tmp_path, "refcoco")
    state = Mock(**{"log.describe_best.return_value": "oIoU 50.00 after epoch 3"})
    text = train_script.describe_end(args, state, files)
    assert "50.00" in text and "test.py" not in text and str(files.best) not in text
    files.best.touch()
    assert f"in {files.best}. " in train_script.describe_end(args, state, files)


def test_sentences_without_the_leading_score_have_no_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first few sentences of Ref-ZOM may all mean nothing, and overall IoU is over the others."""
    printed: list[str] = []
    monkeypatch.setattr(train_script.utils, "is_main", lambda: False)  # no log is written
    monkeypatch.setattr(train_script.utils, "log", printed.append)
    nothing = Result(0, intersection=0, union=5, predicted=5, truth=0, image=9, no_target=True)
    found = score_zero([nothing], 1)
    record = {"kind": "epoch", "epoch": 0, "seconds": 1.0, "val": found.as_dict()}
    monkeypatch.setattr(train_script, "epoch_record", lambda *_: record)
    files, state = Mock(), Mock(log=RunLog(tmp_path, "refzom"), options={"model_id": "model"}, epoch=0)
    train_script.finish_epoch(state, files, Mock(epochs=2), found)
    assert found.table() in printed and not any("-1" in text for text in printed)
    assert files.save.call_args.kwargs == {"best": False}


@pytest.mark.slow  # trains
def test_a_quick_look(few_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few samples, validated every second epoch and after the last; the network is prepared once an epoch."""
    prepared = Mock(wraps=train_script.optimize_for_inference)
    monkeypatch.setattr(train_script, "optimize_for_inference", prepared)
    limits = ["--limit-train", 9, "--limit-val", 5, "-b", 4]
    train(few_root, tmp_path, "--epochs", 3, "--eval-every", 2, *limits)
    log = epochs(tmp_path)
    assert [entry["val"] and entry["val"]["n_expressions"] for entry in log] == [None, 5, 5]
    assert log[-1]["global_step"] == 6
    assert prepared.call_count == 3
    assert {path.name for path in (tmp_path / "strips_refcoco").iterdir()} == {f"epoch_{n:03}.png" for n in (1, 2, 3)}


@pytest.mark.slow  # trains twice
def test_a_cache_changes_no_number(few_root: Path, trained: Path, tmp_path: Path) -> None:
    """Built by the training, read by the test; losses and scores are those without it."""
    cache, logs = tmp_path / "cache.h5", []
    for name, flags in (("plain", []), ("cached", ["--cache", cache])):
        train(few_root, tmp_path / name, "--epochs", 1, "--limit-train", 16, "--limit-val", 16, *flags)
        (line,) = epochs(tmp_path / name)
        logs.append([line[key] for key in ("loss", "alignment_loss", "val")])
    assert logs[0] == logs[1]
    built = cache.read_bytes()
    tested = scores(few_root, trained / "last_refcoco.pth", tmp_path / "s.json", "--cache", cache)
    assert {key: tested[key] for key in epochs(trained)[-1]["val"]} == epochs(trained)[-1]["val"]
    assert cache.read_bytes() == built


@pytest.mark.slow  # trains
def test_every_option_together(few_root: Path, tmp_path: Path) -> None:
    options = "--precision bf16 --checkpointing --accumulate 2 --clip-grad 0.5 --freeze-bert --train-temperature"
    limits = ["--limit-train", 16, "--limit-val", 4, "-b", 4, "--epochs", 1, "--save-every", 1, "--keep", 3]
    train(few_root, tmp_path, *options.split(), "--loss", "ce+dice", *limits)
    states = [torch.load(tmp_path / f"last_refcoco.{n}.pth", weights_only=True)["model"] for n in (2, 1)]
    last = torch.load(tmp_path / "last_refcoco.pth", weights_only=True)["model"]
    changed = {name for name in last if not torch.equal(states[0][name], last[name])}
    assert "temp" in changed
    assert {name for name in changed if "embeddings" in name or "encoder.layer" in name} == set()
    assert "lang_stage2.layer.0.attention.self.query.weight" in changed
    assert json.loads((tmp_path / "run_refcoco.json").read_text())["options"]["global_batch"] == 8


@pytest.mark.slow  # trains
def test_frozen_parameters_are_trained_on_request(few_root: Path, tmp_path: Path) -> None:
    """The same seed with and without: a run is resumed or refused by its embeddings and temperatures."""
    limits = ["--limit-train", 8, "--limit-val", 2, "-b", 4, "--epochs", 1, "--save-every", 1, "--keep", 3]
    flags = ["--train-embeddings", "--train-temperature"]
    train(few_root, tmp_path, *flags, *limits)
    first, last = (torch.load(tmp_path / f"last_refcoco{n}.pth", weights_only=True)["model"] for n in (".2", ""))
    changed = {name for name in last if not torch.equal(first[name], last[name])}
    assert {"temp", "lang_stage1.embeddings.word_embeddings.weight"} <= changed
    with pytest.raises(UserError, match=r"train_embeddings .*True .*False"):
        train(few_root, tmp_path, "--train-temperature", *limits, "--resume", "auto")


@pytest.mark.slow  # trains twice
def test_saving_in_an_epoch(monkeypatch: pytest.MonkeyPatch, few_root: Path, tmp_path: Path) -> None:
    saved = []
    original = train_script.RunFiles.save

    def spy(files: Any, content: dict, **options: bool) -> None:
        saved.append((content["epoch"], content["step"]))
        original(files, content, **options)

    monkeypatch.setattr(train_script.RunFiles, "save", spy)
    train(few_root, tmp_path, "--epochs", 2, "--limit-train", 12, "-b", 4, "--save-every", 2)
    assert saved == [(0, 2), (1, 0), (1, 1), (1, 3), (2, 0)]


def test_a_fresh_run_does_not_replace_an_earlier_one(few_root: Path, trained: Path) -> None:
    before = (trained / "last_refcoco.pth").read_bytes()
    with pytest.raises(UserError, match="--overwrite"):
        train(few_root, trained, "--epochs", 1)
    assert (trained / "last_refcoco.pth").read_bytes() == before


def test_a_stop_never_saves_non_finite_weights(few_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss went bad between two looks at it, and then came the signal."""
    original = engine.train_step

    def spoil_and_stop(model: torch.nn.Module, *arguments: Any, **keywords: Any) -> object:
        result = original(model, *arguments, **keywords)
        model.get_parameter("classifier.conv1_1.weight").data.fill_(float("nan"))
        os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(engine, "train_step", spoil_and_stop)
    with pytest.raises(UserError, match=r"step 1\b.* no checkpoint"):
        train(few_root, tmp_path, "--epochs", 1, "-b", 4)
    assert not list(tmp_path.glob("*.pth"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--lr 1e30", r"epoch 1, step \d+.*no checkpoint"),
        pytest.param("--lr 1e30 --print-freq 50", "no checkpoint", marks=pytest.mark.slow),
    ],
)
def test_non_finite_loss_names_step_and_last_good_checkpoint(
    few_root: Path, tmp_path: Path, flags: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(few_root, tmp_path, "--epochs", 1, *flags.split())
    assert not list(tmp_path.glob("*.pth"))


@pytest.mark.slow  # trains
def test_non_finite_weights_are_never_saved(monkeypatch: pytest.MonkeyPatch, few_root: Path, tmp_path: Path) -> None:
    """Not even between two looks at the loss: the state before stays, and is named."""

    def spoil(model: torch.nn.Module, *arguments: Any, **keywords: Any) -> object:
        result = original(model, *arguments, **keywords)
        model.get_parameter("classifier.conv1_1.weight").data.fill_(float("nan"))
        return result

    flags = ["--epochs", 2, "--limit-train", 8, "-b", 4, "--limit-val", 2, "--save-every", 1]
    original = engine.train_step
    monkeypatch.setattr(engine, "train_step", lambda *a, **k: (original if a[3].epoch == 0 else spoil)(*a, **k))
    with pytest.raises(UserError, match=r"step 3\b.*last_refcoco\.pth"):
        train(few_root, tmp_path, *flags)
    last = torch.load(tmp_path / "last_refcoco.pth", weights_only=True)
    assert (last["epoch"], last["step"]) == (1, 0)
    assert all(value.isfinite().all() for value in last["model"].values())


def test_masks_and_overlays_are_written(few_root: Path, trained: Path, tmp_path: Path) -> None:
    tested = scores(
        few_root,
        trained / "last_refcoco.pth",
        tmp_path / "s.json",
        "--save-masks",
        tmp_path / "out",
        "--max-tokens",
        20,
    )
    assert tested["max_tokens"] == 20  # not the usual number
    masks, overlays = (sorted((tmp_path / "out" / kind).glob("*.png")) for kind in ("masks", "overlays"))
    assert len(masks) == len(overlays) == tested["n_expressions"]
    assert [path.name for path in masks] == [path.name for path in overlays]
    assert set(np.unique(np.asarray(Image.open(masks[0])))) <= {0, 255}


@pytest.mark.slow  # tests three times
def test_own_size_and_shuffled_expressions_are_other_measurements(few_root: Path, tmp_path: Path) -> None:
    torch.save(reference_nano().state_dict(), tmp_path / "w.pth")
    flags = ["--img_size", 32, "--bert_tokenizer", few_root / "vocab.txt"]
    plain = scores(few_root, tmp_path / "w.pth", tmp_path / "a.json", *flags)
    own = scores(few_root, tmp_path / "w.pth", tmp_path / "b.json", *flags, "--eval_ori_size")
    joined = scores(few_root, tmp_path / "w.pth", tmp_path / "d.json", *flags, "--overlap", "object")
    shuffled = scores(few_root, tmp_path / "w.pth", tmp_path / "c.json", *flags, "--shuffle_expressions")
    assert own["n_expressions"] == shuffled["n_expressions"] == plain["n_expressions"]
    assert (plain.get("measured_at"), own["measured_at"]) == (None, "image size")
    assert (plain.get("expressions"), shuffled["expressions"]) == (None, "shuffled")
    assert (plain.get("overlap"), joined["overlap"]) == (None, "object")
    assert own["overall_iou"] != plain["overall_iou"]
    assert shuffled["overall_iou"] != plain["overall_iou"]


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("train.py", "--dataset refcoco --splitBy umd --bert_tokenizer {root}/vocab.txt", "unc"),
        ("train.py", "--bert_tokenizer {root}/nothing.txt", "--bert_tokenizer"),
        pytest.param(
            *(
                "train.py",
                "--bert_tokenizer {root}/vocab.txt --swin_type base --ck_bert none",
                "swin_base_patch4_window12",
            ),
            marks=pytest.mark.slow,  # builds the large network
        ),
        ("test.py", "--resume {root}/no.pth", "no.pth"),
        ("test.py", "--resume {root}/vocab.txt", "vocab.txt"),
    ],
)
def test_a_mistake_ends_with_one_message(
    few_root: Path, script: str, flags: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = [ROOT / script, *flags.format(root=few_root).split(), "--device", "cpu"]
    line += ["--refer_data_root", few_root] + (["--output-dir", tmp_path] if script == "train.py" else [])
    result = launch(1, *line)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "error: " in result.stderr
    assert message in result.stderr
