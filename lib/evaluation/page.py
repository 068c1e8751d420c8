"""The page of `test.py --report`: one HTML file that needs nothing beside it, no script and no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lib.evaluation.metrics import Scores
from lib.evaluation.published import Measurement, departures
from lib.scores import SCORE_NAMES, score_values, two_decimals

TEMPLATE = Path(__file__).with_suffix(".html")
# Of charts, in the units of their viewBox: a phone shows one to a pixel.
CHART_WIDTH, CHART_HEIGHT = 360, 180
TOP, BOTTOM = 16, 24  # room for the numbers over bars and for the names under them


class Part(NamedTuple):
    """Some of the expressions and how well they were found."""

    label: str
    scores: Scores


class Example(NamedTuple):
    """An expression with its picture."""

    text: str
    iou: float  # percent
    file_name: str
    ref_id: int
    sent_id: int
    jpeg: str  # image, truth and prediction side by side; base64
    size: tuple[int, int]  # of the picture: width, height


class Failures(NamedTuple):
    """The failures of one kind."""

    kind: str
    definition: str
    n_expressions: int
    examples: list[Example]


class Column(NamedTuple):
    """A bar of a chart."""

    x: float
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


def render(
    scores: Scores,
    measurement: Measurement,
    histogram: Mapping[str, int],
    by_words: Sequence[Part],
    by_size: Sequence[Part],
    galleries: Mapping[str, Sequence[Example]],
    failures: Sequence[Failures],
) -> str:
    """Return the page. Every text is escaped on its way in.

    histogram: numbers of expressions by their IoU. galleries: examples by what they are examples of.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    counts = {label: (count, str(count)) for label, count in histogram.items()}
    charts = [
        chart("Expressions by their IoU", "IoU, percent", counts, max(histogram.values())),
        chart("Mean IoU, percent, by the length of the sentence", "words", mean_ious(by_words), 100),
        chart("Mean IoU, percent, by the size of the object", "percent of the image", mean_ious(by_size), 100),
    ]
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE.name).render(
        scores=scores,
        measurement=measurement,
        heads=SCORE_NAMES,
        rows=score_rows(scores, measurement),
        departures=departures(measurement, scores.n_expressions),
        histogram=histogram,
        charts=charts,
        by_words=by_words,
        by_size=by_size,
        galleries=galleries,
        failures=failures,
        n_failures=sum(group.n_expressions for group in failures),
    )


def score_rows(scores: Scores, measurement: Measurement) -> dict[str, list[str]]:
    """Return the table's rows by their names: expressions and seven scores each, as text.

    The difference is in points, of the numbers as they are shown; it is left out where a published number is not
    CrossVLT's own.
    """
    own = score_values(scores.as_dict())
    rows = {"this test": [f"{scores.n_expressions:,}", *two_decimals(own)]}
    if published := measurement.published:
        values = [*published.precision, published.mean_iou, published.overall_iou]
        foreign = [published.repeats_lavt] * (len(values) - 1) + [False]
        stars = [f"{value}{'*' * is_foreign}" for value, is_foreign in zip(two_decimals(values), foreign, strict=True)]
        # Adding zero turns a negative zero into one without a sign.
        points = [f"{round(value - other, 2) + 0.0:+.2f}" for value, other in zip(own, values, strict=True)]
        rows["published"] = [f"{measurement.n_published:,}" if measurement.n_published else "", *stars]
        rows["difference"] = ["", *("" if no else point for point, no in zip(points, foreign, strict=True))]
    return rows


def mean_ious(parts: Sequence[Part]) -> dict[str, tuple[float, str]]:
    """Return the bars of a chart by their labels."""
    return {part.label: (part.scores.mean_iou, f"{part.scores.mean_iou:.0f}") for part in parts}


def chart(title: str, unit: str, bars: Mapping[str, tuple[float, str]], largest: float) -> Chart:
    """Return a bar chart; bars: value and its text by the label below, `largest` reaching the top."""
    step = CHART_WIDTH / len(bars)
    columns = []
    for number, (label, (value, text)) in enumerate(bars.items()):
        height = (CHART_HEIGHT - TOP - BOTTOM) * value / largest
        columns.append(Column((number + 0.1) * step, CHART_HEIGHT - BOTTOM - height, 0.8 * step, height, label, text))
    return Chart(title, unit, columns)
