"""The scores of each protocol in the format of all tables: columns, formulas; in percent, with two decimals.

I and U are the number of pixels in the intersection and the union of a sentence. No column is called IoU alone: some
papers use it for a mean, others for a ratio of sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple, NotRequired, TypeAlias, TypedDict

from lib.texts import markdown_table
from lib.variants import THRESHOLDS

SET_THRESHOLDS = (0.7, 0.8, 0.9)  # of Pr@X, among the sentences with a target
MISSING = "–"


class RoundedScores(TypedDict):
    """Scores in JSON files: in percent, with two decimals; None if there is no sentence of that kind."""

    n_expressions: int
    mean_iou: NotRequired[float | None]
    overall_iou: NotRequired[float | None]
    precision: dict[str, float | None]  # by threshold
    # Of the protocols beyond the classic one, which alone has no name in its files.
    protocol: NotRequired[str]
    n_no_target: NotRequired[int]  # sentences that mean nothing in their image
    no_target_pixels: NotRequired[int | None]  # masks of fewer count as empty; None: the network answers by itself
    giou: NotRequired[float]
    ciou: NotRequired[float]
    n_acc: NotRequired[float | None]
    t_acc: NotRequired[float | None]
    accuracy: NotRequired[float | None]


AnyScores: TypeAlias = Mapping[str, Any]  # a RoundedScores, which may hold more


class Column(NamedTuple):
    """A number of a table."""

    name: str
    key: str  # in JSON
    formula: str
    threshold: str = ""  # of a precision

    def value(self, scores: AnyScores) -> float | None:
        """Return the column's number."""
        found: float | None = scores[self.key][self.threshold] if self.threshold else scores[self.key]
        return found


def _precisions(name: str, thresholds: Iterable[float], among: str) -> tuple[Column, ...]:
    formula = f"share of the {among} with I / U of at least X"
    return tuple(Column(f"{name}@{one}", "precision", formula, str(one)) for one in thresholds)


_CLASSIC = (
    *_precisions("P", THRESHOLDS, "sentences"),
    Column("mIoU", "mean_iou", "mean of I / U over the sentences; 0 if U is 0"),
    Column("oIoU", "overall_iou", "sum of I / sum of U over the sentences"),
)
_SETS = (
    Column(
        "gIoU", "giou", "mean of I / U over the sentences; one without target counts 1 if it is called empty, else 0"
    ),
    Column("cIoU", "ciou", "sum of I / sum of U over the sentences but those that are rightly called empty"),
    Column("N-acc", "n_acc", "share of the sentences without target that are called empty"),
    Column("T-acc", "t_acc", "share of the sentences with a target that are not called empty"),
    *_precisions("Pr", SET_THRESHOLDS, "sentences with a target"),
)
_ZERO = (
    *_CLASSIC,
    Column("Acc", "accuracy", "share of the sentences without target with no predicted pixel; the others skip them"),
)
# By protocol. The leading number is the one by which a training chooses its best network.
COLUMNS = {"classic": _CLASSIC, "gres": _SETS, "ref-zom": _ZERO}
LEADING = {"classic": "overall_iou", "gres": "giou", "ref-zom": "overall_iou"}
MEAN = {"classic": "mean_iou", "gres": "giou", "ref-zom": "mean_iou"}
# What tables of parts of a split show.
IN_PARTS = {
    "classic": ("mIoU", "oIoU", "P@0.5"),
    "gres": ("gIoU", "cIoU", "N-acc", "T-acc"),
    "ref-zom": ("mIoU", "oIoU", "P@0.5", "Acc"),
}
# What training curves show, the leading number first.
IN_CURVES = {
    "classic": ("oIoU", "mIoU", "P@0.5"),
    "gres": ("gIoU", "cIoU", "N-acc"),
    "ref-zom": ("oIoU", "mIoU", "Acc"),
}
SCORE_NAMES = tuple(column.name for column in _CLASSIC)


def protocol_of(scores: AnyScores) -> str:
    """Return the protocol that scores were measured with."""
    name: str = scores.get("protocol", "classic")
    return name


def score_names(protocol: str) -> list[str]:
    """Return the names of a protocol's columns."""
    return [column.name for column in COLUMNS[protocol]]


def score_values(scores: AnyScores) -> list[float | None]:
    """Return the scores of a RoundedScores, which may hold more, in the order of its protocol's columns."""
    return [column.value(scores) for column in COLUMNS[protocol_of(scores)]]


def leading(scores: AnyScores) -> float:
    """Return the number by which a training chooses its best network; -1 if no sentence was of its kind."""
    value: float | None = scores[LEADING[protocol_of(scores)]]
    return -1.0 if value is None else value


def leading_text(scores: AnyScores) -> str:
    """Return the name of the leading number and its value as in tables, such as "oIoU 62.50"."""
    (value,) = two_decimals([scores[LEADING[protocol_of(scores)]]])
    return f"{leading_name(protocol_of(scores))} {value}"


def leading_name(protocol: str) -> str:
    """Return what tables call the leading number."""
    return next(column.name for column in COLUMNS[protocol] if column.key == LEADING[protocol])


def formulas(protocol: str) -> dict[str, str]:
    """Return what a protocol's columns mean, by their names; P@X once."""
    return {
        column.name.partition("@")[0] + "@X" * bool(column.threshold): column.formula for column in COLUMNS[protocol]
    }


def formula_lines(protocol: str) -> str:
    """Return what a protocol's columns mean, a line each."""
    return "\n".join(f"  {name}: {formula}" for name, formula in formulas(protocol).items())


def two_decimals(values: Iterable[float | None]) -> list[str]:
    """Return scores as a table's cells."""
    return [MISSING if value is None else f"{value:.2f}" for value in values]


def score_table(rows: Mapping[str, AnyScores]) -> str:
    """Return scores of one protocol as text, a row each, with the rows' names if there are several."""
    names = score_names(protocol_of(next(iter(rows.values()))))
    widths = [max(len(name), 6) for name in names]
    lines = [names, *(two_decimals(score_values(scores)) for scores in rows.values())]
    texts = ["  ".join(map(str.rjust, cells, widths)) for cells in lines]
    if len(rows) == 1:
        return "\n".join(texts)
    titles = ["", *rows]
    return "\n".join(f"{text}  {title}".rstrip() for text, title in zip(texts, titles, strict=True))


def scores_in_markdown(rows: Iterable[tuple[str, AnyScores]], title: str = "") -> str:
    """Return scores as a table in Markdown, or one for each protocol in a row.

    rows: of each its name and a RoundedScores. title: of the names.
    """
    return "\n\n".join(_markdown(protocol, list(group), title) for protocol, group in _by_protocol(rows))


def _by_protocol(rows: Iterable[tuple[str, AnyScores]]) -> Iterator[tuple[str, Iterable[tuple[str, AnyScores]]]]:
    return groupby(rows, key=lambda row: protocol_of(row[1]))


def _markdown(protocol: str, rows: Sequence[tuple[str, AnyScores]], title: str) -> str:
    cells = ([name, str(scores["n_expressions"]), *two_decimals(score_values(scores))] for name, scores in rows)
    return markdown_table([title, "expressions", *score_names(protocol)], cells)
