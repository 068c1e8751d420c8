"""The page of `test.py --report`: one self-contained HTML file, without scripts and network requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lib.evaluation.metrics import Scores
from lib.evaluation.published import Measurement, departures
from lib.scores import SCORE_NAMES, score_values, two_decimals

TEMPLATE = Path(__file__).with_suffix(".html")
# Size of a chart in units of its viewBox, one pixel each on a phone.
CHART_WIDTH, CHART_HEIGHT = 360, 180
TOP, BOTTOM = 16, 24  # room for the values above the bars and the labels below them


class Part(NamedTuple):
    """A group of expressions and its scores."""

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
    size: tuple[int, int]  # of the picture: width, height in pixels


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
    scores: Scores,
    measurement: Measurement,
    histogram: Mapping[str, int],
    by_words: Sequence[Part],
    by_size: Sequence[Part],
    galleries: Mapping[str, Sequence[Example]],
    failures: Sequence[Failures],
) -> str:
    """Return the page as HTML; all texts are escaped.

    histogram: number of expressions by label of their IoU. galleries: examples by title.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    counts = {label: (count, str(count)) for label, count in histogram.items()}
    charts = [
        bar_chart("Expressions by their IoU", "IoU, percent", counts, max(histogram.values())),
        bar_chart("Mean IoU, percent, by the length of the sentence", "words", mean_ious(by_words), 100),
        bar_chart("Mean IoU, percent, by the size of the object", "percent of the image", mean_ious(by_size), 100),
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
    """Return the rows of the score table by name: number of expressions and seven scores each, as text.

    The difference is that of the rounded numbers, in points. It is left out if the published number is not CrossVLT's.
    """
    ours = score_values(scores.as_dict())
    rows = {"this test": [f"{scores.n_expressions:,}", *two_decimals(ours)]}
    if published := measurement.published:
        theirs = [*published.precision, published.mean_iou, published.overall_iou]
        is_lavt = [published.repeats_lavt] * (len(theirs) - 1) + [False]
        stars = [f"{value}{'*' * lavt}" for value, lavt in zip(two_decimals(theirs), is_lavt, strict=True)]
        # Adding zero turns a negative zero into a positive one.
        points = [f"{round(our - their, 2) + 0.0:+.2f}" for our, their in zip(ours, theirs, strict=True)]
        rows["published"] = [f"{measurement.n_published:,}" if measurement.n_published else "", *stars]
        rows["difference"] = ["", *("" if lavt else point for point, lavt in zip(points, is_lavt, strict=True))]
    return rows


def mean_ious(parts: Sequence[Part]) -> dict[str, tuple[float, str]]:
    """Return mean IoU in percent, and its text, by label."""
    return {part.label: (part.scores.mean_iou, f"{part.scores.mean_iou:.0f}") for part in parts}


def bar_chart(title: str, unit: str, bars: Mapping[str, tuple[float, str]], largest: float) -> Chart:
    """Return a bar chart. bars: value and its text, by label. largest: the value of a bar of full height."""
    step = CHART_WIDTH / len(bars)
    columns = []
    for number, (label, (value, text)) in enumerate(bars.items()):
        height = (CHART_HEIGHT - TOP - BOTTOM) * value / largest
        columns.append(Column((number + 0.1) * step, CHART_HEIGHT - BOTTOM - height, 0.8 * step, height, label, text))
    return Chart(title, unit, columns)
