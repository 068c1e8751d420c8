"""A split's scores as every table shows them: the order of the published one, in percent, two decimals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from lib.texts import markdown_table
from lib.variants import THRESHOLDS

SCORE_NAMES = (*(f"P@{threshold}" for threshold in THRESHOLDS), "Mean IoU", "Overall IoU")


class RoundedScores(TypedDict):
    """Scores as JSON files hold them: percent, two decimals."""

    n_expressions: int
    mean_iou: float
    overall_iou: float
    precision: dict[str, float]  # by threshold


def score_values(scores: Mapping[str, Any]) -> list[float]:
    """Return the scores of a RoundedScores, which may hold more, in the order of SCORE_NAMES."""
    precision = [scores["precision"][str(threshold)] for threshold in THRESHOLDS]
    return [*precision, scores["mean_iou"], scores["overall_iou"]]


def two_decimals(values: Iterable[float]) -> list[str]:
    """Return scores as a table's cells."""
    return [f"{value:.2f}" for value in values]


def scores_in_markdown(rows: Iterable[tuple[str, Mapping[str, Any]]], title: str = "") -> str:
    """Return scores as a table in Markdown; rows: of each its name and a RoundedScores. title: of the names."""
    cells = ([name, str(scores["n_expressions"]), *two_decimals(score_values(scores))] for name, scores in rows)
    return markdown_table([title, "expressions", *SCORE_NAMES], cells)
