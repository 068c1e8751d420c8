"""The log of a run is a function of the training's state, so that of a resumed run is complete."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import shutil
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem

import utils
from errors import UserError
from lib.training.run_log import RunLog
from tests.training_runs import ROOT

STEPS_PER_EPOCH = 4
PICTURE = Image.fromarray(np.arange(10 * 12 * 3, dtype=np.uint8).reshape(10, 12, 3))


def step_record(global_step: int, **more: Any) -> dict[str, Any]:
    epoch, step = divmod(global_step - 1, STEPS_PER_EPOCH)
    losses = {"loss": 2 / global_step, "mask_loss": 0.5, "alignment_loss": [0.1, 0.2, 0.3, 0.4]}
    speed = {"samples_per_second": 8.0, "data_wait": 0.1, "memory_gib": 1.5}
    place = {"kind": "step", "epoch": epoch, "step": step + 1, "global_step": global_step}
    return place | losses | {"lr": 1e-3, "grad_norm": 3.0} | speed | more


def epoch_record(epoch: int, overall_iou: float | None) -> dict[str, Any]:
    val = {"n_expressions": 3, "mean_iou": 40.0, "overall_iou": overall_iou, "precision": {"0.5": 30.0, "0.9": 1.0}}
    record = step_record((epoch + 1) * STEPS_PER_EPOCH) | {"kind": "epoch", "model_id": "ä", "seconds": 9.0}
    del record["step"], record["grad_norm"]
    return record | {"val": None if overall_iou is None else val}


def whole_run() -> list[dict[str, Any]]:
    """Two epochs, only the second of which was validated."""
    first, second = ([step_record(step) for step in steps] for steps in (range(1, 5), range(5, 9)))
    return [*first, epoch_record(0, None), *second, epoch_record(1, 50.0)]


def write(
    folder: Path, records: list[dict[str, Any]], after: Sequence[dict[str, Any]] = (), global_step: int = 0
) -> RunLog:
    """Go on after the records `after` and add the others."""
    log = RunLog(folder, "refcoco")
    log.start(list(after), global_step)
    for record in records:
        log.add(record)
    log.close()
    for number, path in enumerate(sorted(log.events.glob("events.*"))):  # by age, which names tell to the second alone
        path.rename(path.with_name(f"events.out.tfevents.{number}"))
    return log


def rendering(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard_refcoco"), {"scalars": 0, "images": 0}).Reload()


def points(folder: Path, tag: str) -> list[Any]:
    return [(event.step, pytest.approx(event.value)) for event in events(folder).Scalars(tag)]


def test_file_holds_the_records(tmp_path: Path) -> None:
    log = write(tmp_path, whole_run())
    assert log.records == whole_run()
    assert (tmp_path / "log_refcoco.jsonl").read_bytes() == rendering(whole_run())


def test_every_line_is_written_at_once(tmp_path: Path) -> None:
    log = RunLog(tmp_path, "refcoco")
    log.start([], 0)
    assert log.path.read_bytes() == b""
    log.add(step_record(1))
    assert log.path.read_bytes() == rendering([step_record(1)])
    assert points(tmp_path, "train/loss") == [(1, 2.0)]
    log.close()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_becomes_null(tmp_path: Path, bad: float) -> None:
    log = write(tmp_path, [step_record(1, grad_norm=bad, alignment_loss=[0.1, bad, 0.3, 0.4]), step_record(2)])
    line = json.loads(log.path.read_text().splitlines()[0], parse_constant=lambda name: pytest.fail(name))
    assert line["grad_norm"] is None and line["alignment_loss"] == [0.1, None, 0.3, 0.4]
    assert log.records[0] == line
    assert points(tmp_path, "train/grad_norm") == [(2, 3.0)]
    assert points(tmp_path, "train/alignment_stage2") == [(2, 0.2)]


def test_a_resumed_log_is_that_of_an_uninterrupted_run(tmp_path: Path) -> None:
    """The run died two lines after its checkpoint, in the middle of a third."""
    whole = whole_run()
    write(tmp_path, [*whole[:4], step_record(5, loss=77.0), step_record(6, loss=77.0)])
    with (tmp_path / "log_refcoco.jsonl").open("ab") as file:
        file.write(b'{"kind": "step", "epo')
    log = write(tmp_path, [], after=whole[:4], global_step=4)
    assert log.path.read_bytes() == rendering(whole[:4])
    log = write(tmp_path, whole[4:], after=whole[:4], global_step=4)
    assert log.records == whole
    assert log.path.read_bytes() == rendering(whole)
    assert points(tmp_path, "train/loss") == [(step, 2 / step) for step in range(1, 9)]


def test_points_are_named_and_placed(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    write(tmp_path, whole_run())
    assert set(events(tmp_path).Tags()["scalars"]) == {
        *(f"train/{name}" for name in ("loss", "mask_loss", "lr", "grad_norm")),
        *(f"train/alignment_stage{stage}" for stage in (1, 2, 3, 4)),
        *("speed/samples_per_second", "speed/data_wait", "memory/gib"),
        *("epoch/loss", "epoch/mask_loss", "epoch/seconds"),
        *(f"val/{name}" for name in ("overall_iou", "mean_iou", "precision_0.5", "precision_0.9")),
    }
    assert points(tmp_path, "train/alignment_stage3")[0] == (1, 0.3)
    assert points(tmp_path, "epoch/loss") == [(4, 0.5), (8, 0.25)]
    assert points(tmp_path, "val/overall_iou") == [(8, 50.0)]
    assert capfd.readouterr() == ("", ""), "TensorBoard leaves the console to the training"


def test_a_run_resumed_elsewhere_shows_its_whole_history(tmp_path: Path) -> None:
    whole = whole_run()
    write(tmp_path / "new", whole[4:], after=whole[:4], global_step=4)
    assert points(tmp_path / "new", "train/loss") == [(step, 2 / step) for step in range(1, 9)]
    assert (tmp_path / "new" / "log_refcoco.jsonl").read_bytes() == rendering(whole)


@pytest.mark.parametrize("after", [[], [step_record(1, samples_per_second=7.0)]])
@pytest.mark.parametrize("with_log", [True, False])
def test_nothing_is_shown_of_a_run_that_was_replaced(
    tmp_path: Path, after: list[dict[str, Any]], with_log: bool
) -> None:
    """By a fresh run or by one that comes from elsewhere; the old log may have been removed by hand."""
    log = write(tmp_path, whole_run())
    if not with_log:
        log.path.unlink()
    log.strips.mkdir()
    (log.strips / "epoch_001.png").touch()
    write(tmp_path, [step_record(2)], after=after, global_step=len(after))
    assert [step for step, _ in points(tmp_path, "train/loss")] == [*range(1, len(after) + 1), 2]
    assert "val/overall_iou" not in events(tmp_path).Tags()["scalars"]
    assert not log.strips.exists()


def test_foreign_files_next_to_points_and_pictures_are_kept(tmp_path: Path) -> None:
    log = write(tmp_path, whole_run())
    log.strips.mkdir()
    notes = [folder / "notes.txt" for folder in (log.events, log.strips)]
    for file in notes:
        file.write_text("mine")
    write(tmp_path, [step_record(2)])
    assert all(file.read_text() == "mine" for file in notes)
    assert [step for step, _ in points(tmp_path, "train/loss")] == [2]


def test_files_that_somebody_removes_are_made_again(tmp_path: Path) -> None:
    """Points, pictures and log are derived from the states: a training resumes without them."""
    log, whole = RunLog(tmp_path, "refcoco"), whole_run()
    log.start([], 0)
    for record in whole[:3]:
        log.add(record)
    log.add_strip(PICTURE, 0, 3)
    for folder in (log.events, log.strips):
        shutil.rmtree(folder)
    log.path.unlink()
    for record in whole[3:]:
        log.add(record)
    for file in log.events.iterdir():
        file.unlink()
    log.add_strip(PICTURE, 1, 8)
    assert points(tmp_path, "train/loss") == [(step, 2 / step) for step in range(1, 9)]
    assert [path.name for path in log.strips.iterdir()] == ["epoch_002.png"]
    assert log.path.read_bytes() == rendering(whole)
    shutil.rmtree(tmp_path)
    log.close()


def test_only_strips_of_finished_epochs_are_kept(tmp_path: Path) -> None:
    whole = whole_run()
    log = RunLog(tmp_path, "refcoco")
    log.start([], 0)
    for epoch, record in enumerate((whole[4], whole[-1])):
        log.add_strip(PICTURE, epoch, record["global_step"])
        log.add(record)
    log.close()
    assert sorted(path.name for path in log.strips.iterdir()) == ["epoch_001.png", "epoch_002.png"]
    write(tmp_path, [], after=[whole[4]], global_step=4)
    assert [path.name for path in log.strips.iterdir()] == ["epoch_001.png"]


def test_a_strip_is_a_file_and_in_tensorboard(tmp_path: Path) -> None:
    log = RunLog(tmp_path, "refcoco")
    log.start([], 0)
    log.add_strip(PICTURE, 11, 48)
    log.close()
    (shown,) = events(tmp_path).Images("val/predictions")
    assert (shown.step, shown.width, shown.height) == (48, *PICTURE.size)
    for source in (tmp_path / "strips_refcoco" / "epoch_012.png", io.BytesIO(shown.encoded_image_string)):
        with Image.open(source) as picture:
            assert np.array_equal(np.asarray(picture), np.asarray(PICTURE))


def test_best_is_that_of_validated_epochs(tmp_path: Path) -> None:
    log = RunLog(tmp_path, "refcoco")
    log.start([], 0)
    best = []
    for epoch, overall_iou in enumerate((None, 0.0, 50.0, None, 40.0)):
        log.add(epoch_record(epoch, overall_iou))
        best.append(log.best_score)
    assert best == [-1.0, 0.0, 50.0, 50.0, 50.0]
    again = RunLog(tmp_path, "refcoco")
    again.start(log.records, 20)
    assert again.best_score == 50.0
    log.close()
    again.close()


def test_other_processes_keep_records_and_have_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils, "is_main", lambda: False)
    log = RunLog(tmp_path, "refcoco")
    log.start(whole_run()[:1], 1)
    log.add(step_record(2, grad_norm=math.nan))
    log.add_strip(PICTURE, 0, 2)
    log.close()
    assert log.records == [step_record(1), step_record(2, grad_norm=None)]
    assert not list(tmp_path.iterdir())


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_named_for_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = write(tmp_path, whole_run()[:1])
    message = r"log_refcoco\.jsonl\b.*No space left"
    monkeypatch.setattr(Path, "open", full_disk)
    with pytest.raises(UserError, match=message):
        log.add(step_record(2))
    with pytest.raises(UserError, match=message):
        RunLog(tmp_path, "refcoco").start(log.records, 1)
    monkeypatch.undo()
    assert log.path.read_bytes() == rendering(whole_run()[:1])


def test_a_full_disk_is_named_for_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = write(tmp_path, [])
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match=r"strips_refcoco.epoch_001\.png\b"):
        log.add_strip(PICTURE, 0, 4)
    assert not list(log.strips.iterdir())


# The thread prints its traceback besides handing the error on to the next call.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_in_the_thread_of_tensorboard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = threading.enumerate()
    log = RunLog(tmp_path, "refcoco")
    log.start([], 0)
    monkeypatch.setattr(LocalFileSystem, "append", full_disk)
    message = r"tensorboard_refcoco\b.*No space left on device"
    with pytest.raises(UserError, match=message):
        for step in range(1, 4):
            log.add(step_record(step))
    with pytest.raises(UserError, match=message):
        log.close()
    for thread in threading.enumerate():
        if thread not in others:
            thread.join(timeout=10)
            assert not thread.is_alive()


def test_the_page_shows_how_to_send_the_log_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of docs/training.md, with a tracker that notes what it gets."""
    code = (ROOT / "docs/training.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    sent: dict[int, list[dict[str, float]]] = {}

    def send(numbers: dict[str, float], step: int) -> None:
        sent.setdefault(step, []).append(numbers)

    records = whole_run()
    monkeypatch.setattr("sys.stdin", io.StringIO(rendering(records).decode()))
    exec(code, {"sys": sys, "json": json, "send": send})
    assert sorted(sent) == list(range(1, 9))
    losses = {"loss": 1.0, "mask_loss": 0.5, "lr": 1e-3, "grad_norm": 3.0}
    speed = {"samples_per_second": 8.0, "data_wait": 0.1, "memory_gib": 1.5}
    assert sent[2] == [{f"step/{name}": value for name, value in (losses | speed).items()}]
    assert sent[8][-1]["epoch/overall_iou"] == 50.0
    assert sent[8][-1]["epoch/seconds"] == 9.0
