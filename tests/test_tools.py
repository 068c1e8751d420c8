"""The small tools around a run: summary, curves, sheets of overlays, progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib import engine, pictures, plots, summary
from utils import UserError

PRECISION = {"0.5": 80.0, "0.6": 70.0, "0.7": 60.0, "0.8": 40.0, "0.9": 10.0}


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def run(module: object, *flags: object) -> None:
        monkeypatch.setattr(sys, "argv", ["tool", *map(str, flags)])
        module.main()

    return run


def result(folder: Path, name: str, overall_iou: float, **more: str) -> Path:
    content = more | {"dataset": "refcoco", "split": "val", "n_expressions": 7, "precision": PRECISION}
    file = folder / name
    file.write_text(json.dumps(content | {"mean_iou": 61.5, "overall_iou": overall_iou}))
    return file


def test_summary_puts_results_and_control_into_one_table(call: Callable, tmp_path: Path) -> None:
    files = (
        result(tmp_path, "val.json", 63.25),
        "--control",
        result(tmp_path, "shuffled.json", 20.0, expressions="shuffled"),
    )
    call(summary, *files, "--out", tmp_path / "table.md", "--least", 63.25, "--drop", 43.25)
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[2] == "| refcoco val | 7 | 80.00 | 70.00 | 60.00 | 40.00 | 10.00 | 61.50 | 63.25 |"
    assert lines[3].startswith("| refcoco val, expressions shuffled | 7 |")
    assert lines[3].endswith("| 20.00 |")


@pytest.mark.parametrize(("flag", "value", "message"), [("--least", 64, "at least 64"), ("--drop", 44, "hardly reads")])
def test_summary_judges(call: Callable, tmp_path: Path, flag: str, value: int, message: str) -> None:
    files = (
        result(tmp_path, "val.json", 63.25),
        "--control",
        result(tmp_path, "shuffled.json", 20.0, expressions="shuffled"),
    )
    with pytest.raises(UserError, match=message):
        call(summary, *files, flag, value)


@pytest.mark.parametrize("content", ["{}", "[1]", "no json", '{"precision": 3}'])
def test_summary_names_what_is_no_result(call: Callable, tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=r"x\.json is no result"):
        call(summary, tmp_path / "x.json")


def test_curves_of_several_runs_come_into_one_picture(call: Callable, tmp_path: Path) -> None:
    entry = {"loss": 2.0, "loss_curve": [2.1, 2.0, 1.9], "mask_loss": 0.5, "alignment_loss": [0.2] * 4, "lr": 1e-3}
    val = {"overall_iou": 50.0, "mean_iou": 49.0, "precision": PRECISION}
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        lines = [json.dumps(entry | {"epoch": epoch, "val": val}) for epoch in range(3)]
        (tmp_path / run / "log_refcoco.jsonl").write_text("\n".join(lines) + "\n")
    call(plots, tmp_path / "a", tmp_path / "b", "--out", tmp_path / "deep" / "curves.png")
    with Image.open(tmp_path / "deep" / "curves.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10


@pytest.mark.parametrize("content", [None, "[]\n", '{"epoch": 1}\n', "broken\n"])
def test_curves_name_what_is_no_log(call: Callable, tmp_path: Path, content: str | None) -> None:
    if content:
        (tmp_path / "log_refcoco.jsonl").write_text(content)
    with pytest.raises(UserError, match="log"):
        call(plots, tmp_path, "--out", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_sheet_holds_as_many_overlays_as_asked(call: Callable, tmp_path: Path) -> None:
    (tmp_path / "overlays").mkdir()
    for number in range(10):
        Image.new("RGB", (30, 20), (20 * number, 0, 0)).save(tmp_path / "overlays" / f"{number}.png")
    call(pictures, tmp_path, "--out", tmp_path / "sheet.png", "--count", 5)
    with Image.open(tmp_path / "sheet.png") as page:
        colours = {colour for _, colour in page.convert("RGB").getcolors()}
    assert colours == {(20 * number, 0, 0) for number in (0, 2, 4, 6, 8)} | {(255, 255, 255)}


def test_sheet_without_overlays_is_an_error(call: Callable, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no overlays.*--save-masks"):
        call(pictures, tmp_path, "--out", tmp_path / "sheet.png")


def test_overlay_keeps_the_object_outlines_it_and_fades_the_rest() -> None:
    mask = np.zeros((10, 12), np.uint8)
    mask[2:8, 3:9] = 1
    picture = np.asarray(pictures.overlay(Image.new("RGB", (12, 10), (100, 20, 50)), mask, (200, 0, 0)))
    assert (picture[3:7, 4:8] == (100, 20, 50)).all()
    assert (picture[2, 3:9] == (200, 0, 0)).all()
    outside = picture[0]
    assert (outside == outside[0, 0]).all() and outside[0, 0] > 150, "faded to a light grey"


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, terminal: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    bar = engine.progress(range(3), "epoch 0")
    for step, _ in enumerate(bar, start=1):
        engine.report(bar, f"epoch 0  step {step}/3", "loss 1.5")
    out, err = capsys.readouterr()
    assert ("epoch 0  step 2/3  loss 1.5" in out) is not terminal
    assert ("loss 1.5" in err) is terminal
