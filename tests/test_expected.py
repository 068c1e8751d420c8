"""The IoU that a network expects: its definition, the rows of a test, and the picture of how far it can be trusted."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from lib.contracts import Output
from lib.evaluation.expected import ExpectedIoU, expected_iou
from lib.evaluation.result import rows_as_csv, rows_as_json_lines
from lib.pictures import __main__ as pictures_command
from lib.pictures.reliability import Bin, bins_of, read_pairs
from tests.helpers import naming
from tests.test_masking import batch_of


def logits_of(probabilities: list[list[float]]) -> torch.Tensor:
    """Logits (1, 2, H, W) of an object with these probabilities."""
    object_logits = torch.logit(torch.tensor(probabilities, dtype=torch.float64))
    return torch.stack([torch.zeros_like(object_logits), object_logits])[None]


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ([[0.9, 0.8], [0.3, 0.1]], (0.9 + 0.8) / (2 + 0.3 + 0.1)),
        ([[0.6, 0.4], [0.4, 0.4]], 0.6 / (1 + 1.2)),  # undecided everywhere: the mask's mean probability is 0.6
        ([[0.4, 0.3], [0.2, 0.1]], 0.0),  # an empty mask
        ([[0.75, 0.75], [0.75, 0.75]], 0.75),
    ],
)
def test_it_is_the_ratio_of_expected_pixels(probabilities: list[list[float]], expected: float) -> None:
    assert expected_iou(logits_of(probabilities)).item() == pytest.approx(expected)


def test_a_network_that_is_sure_of_an_empty_mask_expects_0() -> None:
    """Though the probabilities of all pixels round to 0."""
    logits = torch.stack([torch.full((4, 4), 60.0), torch.full((4, 4), -60.0)])[None]
    assert expected_iou(logits).tolist() == [0.0]


def test_a_mask_may_be_given() -> None:
    mask = torch.tensor([[[True, False], [True, False]]])
    expected = (0.9 + 0.3) / (2 + 0.8 + 0.1)
    assert expected_iou(logits_of([[0.9, 0.8], [0.3, 0.1]]), mask).item() == pytest.approx(expected)


def test_samples_are_collected_by_number_whatever_their_size() -> None:
    """Targets at the sizes of their images, too; every value is that of the sample alone."""
    batch = batch_of([7, 3], size=16)
    logits = torch.randn(2, 2, 16, 16)
    whole = ExpectedIoU()
    single: dict[int, float] = {}
    targets = [torch.zeros(16, 16), torch.zeros(9, 30)]
    whole(batch._replace(target=targets), Output(logits, ()), [])
    for index, number in enumerate((7, 3)):
        one = ExpectedIoU()
        one(batch_of([number], size=16)._replace(target=[targets[index]]), Output(logits[index : index + 1], ()), [])
        single |= one.values
    whole.finish()
    assert whole.values == single and set(single) == {3, 7}
    assert single[7] == pytest.approx(expected_iou(logits[:1]).item(), abs=1e-4)


def test_bins_hold_means() -> None:
    pairs = [(0.91, 1.0), (0.95, 0.5), (1.0, 0.9), (0.05, 0.0)]
    found = bins_of(pairs)
    assert [one.n_sentences for one in found] == [1, 3]
    assert found[1] == pytest.approx(Bin(0.9533333, 0.8, 3))


def test_rows_of_a_test_become_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"iou": one / 20, "expected_iou": one / 19, "sentence": "a, b"} for one in range(20)]
    lines, table = tmp_path / "val.jsonl", tmp_path / "val.csv"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table.write_text("iou,expected_iou,sentence\n" + "".join(f'{r["iou"]},{r["expected_iou"]},"a, b"\n' for r in rows))
    assert read_pairs(lines) == read_pairs(table)
    pictures_command.main(["reliability", str(table), "--out", str(tmp_path / "out.png")])
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert "20 sentences" in capsys.readouterr().out


@pytest.mark.parametrize("sign", ["\n", "\r", "\x0b", "\x85", "\u2028", '"', ","])
def test_a_sentence_of_several_lines_is_one_row(sign: str, tmp_path: Path) -> None:
    rows = [{"sent_id": one, "sentence": f"red{sign}dog", "iou": 0.5, "expected_iou": 0.4} for one in (1, 2)]
    lines, table = tmp_path / "val.jsonl", tmp_path / "val.csv"
    lines.write_bytes(rows_as_json_lines(rows).encode())
    table.write_bytes(rows_as_csv(rows).encode())
    assert read_pairs(lines) == read_pairs(table) == [(0.4, 0.5)] * 2
    with table.open(newline="", encoding="utf-8") as file:
        assert [row["sentence"] for row in csv.DictReader(file)] == [f"red{sign}dog"] * 2


@pytest.mark.parametrize("content", ["", "iou,sentence\n0.5,red\n", "iou,expected_iou\n0.5,nan\n", "\x00\xff"])
def test_other_files_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text(content, encoding="latin-1")
    with naming("other.csv", "--csv"):
        read_pairs(tmp_path / "other.csv")
