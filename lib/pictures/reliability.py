"""How far the IoU that a network expects of its masks can be trusted: from the rows of `test.py --csv` or `--jsonl`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from errors import UserError
from lib.files import write_atomically
from lib.texts import read_json_lines

N_BINS = 10


class Bin(NamedTuple):
    """Sentences whose expected IoU lies in one of the bins."""

    expected: float  # mean expected IoU, 0 to 1
    iou: float  # mean IoU, 0 to 1
    n_sentences: int


def read_pairs(path: Path) -> list[tuple[float, float]]:
    """Return expected IoU and IoU of every row. Raises UserError if the file is not one of `test.py`."""
    try:
        rows = _read_rows(path)
        pairs = [(float(row["expected_iou"]), float(row["iou"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path} has no rows of test.py --csv or --jsonl ({error!r})") from error
    if not pairs or not all(0 <= value <= 1 for pair in pairs for value in pair):
        raise UserError(f"{path} has no rows, or an IoU that is not from 0 to 1: write it with test.py --csv")
    return pairs


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file. Only line feeds end them: a sentence may have other ends of lines, such as U+2028."""
    if path.suffix == ".jsonl":
        return [row for _, row in read_json_lines(path)]
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def bins_of(pairs: Sequence[tuple[float, float]]) -> list[Bin]:
    """Return the bins that have sentences, by expected IoU."""
    members: dict[int, list[tuple[float, float]]] = {}
    for expected, iou in pairs:
        members.setdefault(min(int(N_BINS * expected), N_BINS - 1), []).append((expected, iou))
    return [
        Bin(fmean(expected for expected, _ in own), fmean(iou for _, iou in own), len(own))
        for _, own in sorted(members.items())
    ]


def draw_reliability(bins: Sequence[Bin], path: Path) -> None:
    """Draw IoU against expected IoU as a PNG: points on the diagonal are what the network says they are."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], ":", color="grey")
    axis.plot([one.expected for one in bins], [one.iou for one in bins], "-", marker="o")
    for one in bins:
        axis.annotate(f"{one.n_sentences:,}", (one.expected, one.iou), (5, -12), textcoords="offset points", fontsize=8)
    axis.set(xlabel="expected IoU (mean of the bin)", ylabel="IoU (mean of the bin)", xlim=(0, 1), ylim=(0, 1))
    axis.set_title("numbers: sentences", fontsize=9)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=100))
