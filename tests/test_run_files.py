"""The files of a run: what is kept, what is never replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lib.engine import EpochSummary
from lib.metrics import Scores
from lib.optim import build_scheduler
from lib.run_files import FIXED_OPTIONS, RunFiles
from utils import UserError

OPTIONS = dict.fromkeys(FIXED_OPTIONS, 1) | {"dataset": "refcoco", "batch_size": 4, "resume": "", "model_id": "m"}


def open_run(folder: Path, *, overwrite: bool = False, **options: Any) -> RunFiles:
    return RunFiles(OPTIONS | {"output_dir": str(folder)} | options, overwrite=overwrite)


class Trainee:
    """A network of one number with its optimizer and schedule."""

    def __init__(self) -> None:
        self.network = nn.Linear(1, 1, bias=False)
        self.optimizer = torch.optim.AdamW(self.network.parameters())
        self.scheduler = build_scheduler(self.optimizer, total_steps=10)

    def parts(self) -> tuple[Any, Any, Any]:
        return self.network, self.optimizer, self.scheduler

    def finish(self, files: RunFiles, epoch: int, overall_iou: float) -> None:
        self.network.weight.data.fill_(epoch)
        summary = EpochSummary(1.0, 0.5, [0.1] * 4, [1.1, 0.9], 2.0, 3.0)
        scores = Scores(1, overall_iou, overall_iou, {0.5: overall_iou})
        files.finish_epoch(epoch, summary, scores, *self.parts())


def epoch_in(file: Path) -> tuple[int, float]:
    content = torch.load(file, weights_only=True)
    return content["epoch"], content["model"]["weight"].item()


def test_best_is_replaced_on_improvement_alone(tmp_path: Path) -> None:
    files, trainee = open_run(tmp_path), Trainee()
    for epoch, overall_iou in enumerate((30.0, 50.0, 40.0, 50.0)):
        trainee.finish(files, epoch, overall_iou)
    assert epoch_in(tmp_path / "best_refcoco.pth") == (1, 1.0)
    assert epoch_in(tmp_path / "last_refcoco.pth") == (3, 3.0)
    log = [json.loads(line) for line in (tmp_path / "log_refcoco.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["val"]["overall_iou"]) for line in log] == [(0, 30), (1, 50), (2, 40), (3, 50)]


def test_the_best_score_survives_a_resume(tmp_path: Path) -> None:
    trainee = Trainee()
    files = open_run(tmp_path)
    trainee.finish(files, 0, 60.0)
    again = open_run(tmp_path, resume=str(files.last))
    assert again.resume(*trainee.parts()) == 1
    trainee.finish(again, 1, 40.0)
    assert epoch_in(tmp_path / "best_refcoco.pth") == (0, 0.0)
    assert len((tmp_path / "log_refcoco.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("name", ["last_refcoco.pth", "best_refcoco.pth", "log_refcoco.jsonl"])
def test_nothing_of_another_run_is_replaced(tmp_path: Path, name: str) -> None:
    """Neither by a fresh run nor by one that goes on from elsewhere."""
    elsewhere = tmp_path / "other.pth"
    elsewhere.write_bytes(b"x")
    (tmp_path / name).write_bytes(b"precious")
    for resume in ("", str(elsewhere)):
        with pytest.raises(UserError, match=f"{name} in .* would be replaced.*--overwrite"):
            open_run(tmp_path, resume=resume)
    open_run(tmp_path, overwrite=True)
    assert (tmp_path / name).read_bytes() == b"precious"


def test_going_on_from_best_would_lose_what_last_holds(tmp_path: Path) -> None:
    trainee, files = Trainee(), open_run(tmp_path)
    trainee.finish(files, 0, 60.0)
    with pytest.raises(UserError, match=r"go on with --resume .*last_refcoco\.pth"):
        open_run(tmp_path, resume=str(files.best))


def test_the_last_good_checkpoint_exists(tmp_path: Path) -> None:
    trainee, files = Trainee(), open_run(tmp_path / "a")
    assert "no checkpoint" in files.last_good()
    trainee.finish(files, 0, 60.0)
    assert f"{files.last} (epoch 0)" in files.last_good()
    moved = open_run(tmp_path / "b", resume=str(files.last))
    moved.resume(*trainee.parts())
    assert f"{files.last} (epoch 0)" in moved.last_good()


def test_weights_alone_cannot_be_continued(tmp_path: Path) -> None:
    torch.save({"model": nn.Linear(1, 1, bias=False).state_dict(), "epoch": 3, "best_oIoU": 1.0}, tmp_path / "w.pth")
    files = open_run(tmp_path / "run", resume=str(tmp_path / "w.pth"))
    with pytest.raises(UserError, match=r"w\.pth holds weights but no history, lr_scheduler, optimizer"):
        files.resume(*Trainee().parts())


@pytest.mark.parametrize("name", FIXED_OPTIONS)
def test_another_run_is_not_continued(tmp_path: Path, name: str) -> None:
    trainee, files = Trainee(), open_run(tmp_path)
    trainee.finish(files, 0, 60.0)
    change = {"batch_size": 8} if name == "global_batch" else {name: "other"}
    other = open_run(tmp_path / "b", resume=str(files.last), **change)
    was, now = files.options[name], other.options[name]
    with pytest.raises(UserError, match=f"{name} was {was} and is now {now}"):
        other.resume(*trainee.parts())


def test_an_output_folder_that_takes_no_files_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--output-dir .*file/run cannot be written to"):
        open_run(tmp_path / "file" / "run")
