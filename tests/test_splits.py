"""`test.py` on several splits at once, on a few sentences, and its results sentence by sentence."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import test as test_script
from lib.engine import describe_pace, forecast
from lib.evaluation.tables import describe_result, read_result
from tests.helpers import naming
from tests.networks import reference_nano

SPLITS = ("val", "testA")
LIMIT = 3


class Outcome(NamedTuple):
    """What a test left."""

    folder: Path
    flags: list[str]
    printed: str

    def json(self, name: str) -> dict[str, Any]:
        """Return a result that was written."""
        return read_result(self.folder / f"{name}.json")


@pytest.fixture(scope="module")
def tested(few_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A test of the first sentences of two splits with a seeded network."""
    folder = tmp_path_factory.mktemp("splits")
    weights = folder / "weights.pth"
    torch.save(reference_nano().state_dict(), weights)
    data = ["--refer_data_root", few_root, "--bert_tokenizer", few_root / "vocab.txt"]
    sizes = ["--img_size", 32, "--limit", LIMIT, "-b", 2, "--workers", 0, "--device", "cpu"]
    flags = [*map(str, [*data, "--resume", weights, *sizes])]
    outputs = [part for name in ("json", "csv", "jsonl") for part in (f"--{name}", f"{folder}/{{split}}.{name}")]
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *parts, **_: lines.append(" ".join(map(str, parts))))
        test_script.main([*flags, "--split", *SPLITS, *outputs])
    return Outcome(folder, flags, "\n".join(lines))


def test_each_split_has_the_scores_of_a_test_of_it_alone(tested: Outcome) -> None:
    test_script.main([*tested.flags, "--split", "testA", "--json", str(tested.folder / "alone.json")])
    assert (tested.folder / "alone.json").read_bytes() == (tested.folder / "testA.json").read_bytes()
    assert [tested.json(split)["split"] for split in SPLITS] == [*SPLITS]


def test_one_table_has_a_row_for_each_split(tested: Outcome) -> None:
    rows = [line.split() for line in tested.printed.splitlines() if line.endswith(SPLITS)]
    assert [row[-1] for row in rows] == [*SPLITS]
    assert [float(row[-2]) for row in rows] == [tested.json(split)["overall_iou"] for split in SPLITS]
    assert tested.printed.count("oIoU: ") == 1


def test_a_quick_look_says_what_it_is(tested: Outcome) -> None:
    result = tested.json("val")
    assert (result["limit"], result["n_expressions"]) == (LIMIT, LIMIT)
    assert f"first {LIMIT}" in describe_result(result)
    assert f"first {LIMIT} of" in tested.printed


def test_every_sentence_has_a_line_that_adds_up(tested: Outcome, few_root: Path) -> None:
    """In both forms, with the ids, the image and the counts of the JSON."""
    result = tested.json("val")
    lines = [json.loads(line) for line in (tested.folder / "val.jsonl").read_text().splitlines()]
    with (tested.folder / "val.csv").open(newline="") as file:
        assert [{name: str(value) for name, value in line.items()} for line in lines] == list(csv.DictReader(file))
    for name in ("sent_id", "image_id", "intersection", "union"):
        assert [line[name] for line in lines] == result["counts"][name]
    assert round(100 * sum(line["iou"] for line in lines) / LIMIT, 2) == pytest.approx(result["mean_iou"], abs=0.01)
    assert all(Path(line["image"]).is_file() and line["sentence"] and line["ref_id"] for line in lines)


@pytest.mark.parametrize("flag", ["--json", "--csv", "--jsonl", "--predictions", "--save-masks", "--report"])
def test_outputs_of_several_splits_need_the_splits_name(tmp_path: Path, flag: str) -> None:
    line = ["--resume", "weights.pth", "--split", "val", "testA", flag]
    with naming(flag, "{split}"):
        test_script.parse_args([*line, str(tmp_path / "out")])
    args = test_script.parse_args([*line, str(tmp_path / "{split}")])
    names = [getattr(one, flag.removeprefix("--").replace("-", "_")) for one in test_script.by_split(args)]
    assert names == [str(tmp_path / "val"), str(tmp_path / "testA")]


def test_an_unknown_split_among_several_is_refused() -> None:
    with naming("train9"):
        test_script.parse_args(["--resume", "weights.pth", "--split", "val", "train9"])


def test_progress_tells_rate_and_time_left() -> None:
    assert describe_pace(60, seconds=20, remaining=4.5) == "3.0 sentences/s  ends in 0:01:30"


def test_the_end_of_a_training_is_told_even_if_no_calendar_has_it() -> None:
    """As with --epochs 1000000000, to train until somebody stops it."""
    assert forecast(90.0).endswith("(in 0:01:30)")
    assert forecast(1e13).startswith("in more than")
