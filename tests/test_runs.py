"""One table of several trainings: what differs, what they reached, and what they took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lib.evaluation import __main__ as command
from lib.evaluation.runs import compare_runs, read_runs
from tests.helpers import naming
from tests.test_tools import epoch_line, step_line, write_log


def write_run(folder: Path, *records: dict[str, Any], **options: object) -> Path:
    """Write the log and the description of a training, as `train.py` leaves them."""
    write_log(folder, *records)
    described = {"options": {"epochs": 3, "output_dir": str(folder)} | options, "host": "node1", "earlier": []}
    (folder / "run_refcoco.json").write_text(json.dumps(described))
    return folder


def table(text: str) -> dict[str, list[str]]:
    """Return the cells of a table in Markdown by the first cell of their row."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.strip().splitlines()]
    return {first: cells for first, *cells in rows}


def test_runs_come_into_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The best epoch counts from 1; options that are equal, or are paths, are left out."""
    first = write_run(tmp_path / "a", epoch_line(0, 30.0), epoch_line(1, 50.0), epoch_line(2, 40.0), lr=1e-3, loss="ce")
    other = write_run(tmp_path / "b", epoch_line(0, 60.0), lr=1e-4, loss="ce")
    command.main(["compare", str(first), str(other)])
    found = table(capsys.readouterr().out)
    assert found[""] == ["a", "b"]
    assert found["lr"] == ["0.001", "0.0001"]
    assert found["best epoch: oIoU"] == ["50.00", "60.00"]
    assert found["best epoch"] == ["2", "1"]
    assert found["epochs done"] == ["3 of 3", "1 of 3"]
    assert not {"loss", "output_dir", "epochs"} & found.keys()
    assert found["device"] == ["node1", "node1"]


def test_a_run_in_its_first_epoch_has_no_score_yet(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "new", step_line(0, 1)), write_run(tmp_path / "old", epoch_line(0, 20.0))])
    found = table(compare_runs(runs))
    assert (found["best epoch: oIoU"], found["best epoch"]) == (["–", "20.00"], ["–", "1"])
    assert found["epochs done"] == ["0 of 3", "1 of 3"]


def test_folders_without_a_training_and_damaged_descriptions_are_named(tmp_path: Path) -> None:
    with naming(tmp_path, "--output-dir"):
        read_runs([tmp_path])
    folder = write_run(tmp_path / "a", epoch_line(0, 1.0))
    (folder / "run_refcoco.json").write_text("[]")
    with naming(folder / "run_refcoco.json"):
        read_runs([folder])
