"""The page of `test.py --report`: one HTML file beside a folder of pictures, without network requests."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lib.evaluation.published import Measurement, Other, departures
from lib.scores import (
    IN_PARTS,
    MEAN,
    MISSING,
    AnyScores,
    formulas,
    leading_text,
    protocol_of,
    score_names,
    score_values,
    two_decimals,
)

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATE = Path(__file__).with_suffix(".html")
SCRIPT = Path(__file__).with_suffix(".js")  # sorts and filters the sentences
PICTURES = "pictures"  # the folder of the pictures, beside the page
HEADS = ("image", "object", "prediction")  # of the columns of a picture
ALT = "Image, object outlined in green, prediction outlined in red: "  # of a picture, before its sentence
# Size of a chart in units of its viewBox, one pixel each on a phone.
CHART_WIDTH, CHART_HEIGHT = 360, 180
TOP, BOTTOM = 16, 24  # room for the values above the bars and the labels below them


class Part(NamedTuple):
    """A group of expressions and its scores."""

    label: str
    scores: AnyScores

    @property
    def cells(self) -> list[str]:
        """The cells of its row: number of expressions and the scores of `IN_PARTS`."""
        protocol = protocol_of(self.scores)
        cells = dict(zip(score_names(protocol), two_decimals(score_values(self.scores)), strict=True))
        return [f"{self.scores['n_expressions']:,}", *(cells[name] for name in IN_PARTS[protocol])]

    @property
    def mean(self) -> float | None:
        """mIoU or gIoU, by protocol."""
        value: float | None = self.scores[MEAN[protocol_of(self.scores)]]
        return value


class Grouping(NamedTuple):
    """All expressions in groups, for a table and a chart."""

    caption: str
    unit: str  # of the labels
    parts: Sequence[Part]


class Example(NamedTuple):
    """An expression with its picture."""

    text: str
    iou: float  # percent
    file_name: str
    ref_id: int
    sent_id: int
    picture: str  # its file, relative to the page: image, truth and prediction side by side


class Row(NamedTuple):
    """A sentence in the list of all."""

    text: str
    iou: float  # percent
    size: float  # of the object, percent of the image
    category: str
    picture: str


class Failures(NamedTuple):
    """The failures of one type."""

    kind: str
    definition: str
    n_expressions: int
    examples: list[Example]


class Column(NamedTuple):
    """A bar of a chart, in units of its viewBox."""

    x: float  # left edge
    y: float
    width: float
    height: float
    label: str  # below it
    value: str  # above it


class Chart(NamedTuple):
    """A bar chart; the heights of its bars are relative to the largest possible value."""

    title: str
    unit: str  # of the labels
    columns: list[Column]


def render_page(
    rows: Mapping[str, AnyScores],
    measurement: Measurement,
    histogram: Mapping[str, int],
    groupings: Sequence[Grouping],
    galleries: Mapping[str, Sequence[Example]],
    failures: Sequence[Failures],
    sentences: Sequence[Row],
) -> str:
    """Return the page as HTML; all texts are escaped.

    rows: the scores, and those to show next to them, by name. histogram: number of expressions by label of their IoU.
    galleries: examples by title. sentences: all of them.
    """
    scores = next(iter(rows.values()))
    protocol = protocol_of(scores)
    counts = {label: (count, str(count)) for label, count in histogram.items()}
    mean = IN_PARTS[protocol][0]
    script = SCRIPT.read_text(encoding="utf-8")
    return (
        environment()
        .get_template(TEMPLATE.name)
        .render(
            scores=scores,
            measurement=measurement,
            leading=leading_text(scores),
            heads=score_names(protocol),
            rows=score_rows(rows, measurement),
            formulas=formulas(protocol),
            departures=departures(measurement, scores["n_expressions"]),
            histogram=histogram,
            histogram_chart=bar_chart("Expressions by their own IoU", "percent", counts, max(histogram.values()) or 1),
            groupings=groupings,
            charts=[
                bar_chart(f"{mean}, percent, {lower_first(one.caption)}", one.unit, mean_ious(one.parts), 100)
                for one in groupings
            ],
            heads_of_parts=IN_PARTS[protocol],
            galleries=galleries,
            failures=failures,
            data={"rows": sentences, "pictureHeads": HEADS, "alt": ALT},  # for the script
            categories=sorted({row.category for row in sentences} - {""}),
            picture_heads=HEADS,
            alt=ALT,
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            n_failures=sum(group.n_expressions for group in failures),
        )
    )


def lower_first(text: str) -> str:
    """Return a text that begins with a small letter."""
    return text[:1].lower() + text[1:]


def environment() -> Environment:
    """Return the Jinja environment of the templates in this folder."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def score_rows(rows: Mapping[str, AnyScores], measurement: Measurement) -> dict[str, list[str]]:
    """Return the rows of the score table by name: number of expressions and scores, as text.

    The difference is that of the rounded numbers, in points. It is left out if the published number is not CrossVLT's.
    """
    first = next(iter(rows.values()))
    ours, names = score_values(first), score_names(protocol_of(first))
    shown = {
        f"this test, {name}" if name.startswith("empty") else name or "this test": score_cells(scores)
        for name, scores in rows.items()
    }
    if published := measurement.published:
        theirs = [*published.precision, published.mean_iou, published.overall_iou]
        is_lavt = [published.repeats_lavt] * (len(theirs) - 1) + [False]
        stars = [f"{value}{'*' * lavt}" for value, lavt in zip(two_decimals(theirs), is_lavt, strict=True)]
        points = [point_difference(our, their) for our, their in zip(ours, theirs, strict=True)]
        shown["published"] = [f"{measurement.n_published:,}" if measurement.n_published else "", *stars]
        shown["difference"] = ["", *("" if lavt else point for point, lavt in zip(points, is_lavt, strict=True))]
    return shown | {other_name(other): ["", *other_cells(other, names)] for other in measurement.others}


def score_cells(scores: AnyScores) -> list[str]:
    """Return the cells of a row: number of expressions and scores."""
    return [f"{scores['n_expressions']:,}", *two_decimals(score_values(scores))]


def point_difference(ours: float | None, theirs: float) -> str:
    """Return the difference of two rounded scores, in points."""
    # Adding zero turns a negative zero into a positive one.
    return MISSING if ours is None else f"{round(ours - theirs, 2) + 0.0:+.2f}"


def other_name(other: Other) -> str:
    """Return the name of a row published by others."""
    return f"{other.network} ({'; '.join(filter(None, (other.source, other.note)))})"


def other_cells(other: Other, names: Sequence[str]) -> list[str]:
    """Return the cells of a row published by others, for the columns with these names."""
    return [f"{other.scores[name]:.2f}" if name in other.scores else "" for name in names]


def mean_ious(parts: Sequence[Part]) -> dict[str, tuple[float, str]]:
    """Return mean or generalized IoU in percent, and its text, by label."""
    return {part.label: (part.mean or 0, MISSING if part.mean is None else f"{part.mean:.0f}") for part in parts}


def bar_chart(title: str, unit: str, bars: Mapping[str, tuple[float, str]], largest: float) -> Chart:
    """Return a bar chart. bars: value and its text, by label. largest: the value of a bar of full height."""
    step = CHART_WIDTH / len(bars)
    columns = []
    for number, (label, (value, text)) in enumerate(bars.items()):
        height = (CHART_HEIGHT - TOP - BOTTOM) * value / largest
        columns.append(Column((number + 0.1) * step, CHART_HEIGHT - BOTTOM - height, 0.8 * step, height, label, text))
    return Chart(title, unit, columns)
