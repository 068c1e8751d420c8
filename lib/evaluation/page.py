"""The page of `test.py --report`: one HTML file that needs nothing beside it, no script and no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lib.evaluation.metrics import Scores
from lib.evaluation.published import Measurement, departures
from lib.scores import SCORE_NAMES, score_values, two_decimals

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
    from jinja2 import Environment, StrictUndefined

    counts = {label: (count, str(count)) for label, count in histogram.items()}
    charts = [
        chart("Expressions by their IoU", "IoU, percent", counts, max(histogram.values())),
        chart("Mean IoU, percent, by the length of the sentence", "words", mean_ious(by_words), 100),
        chart("Mean IoU, percent, by the size of the object", "percent of the image", mean_ious(by_size), 100),
    ]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(PAGE).render(
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


PAGE = """\
{% macro draw(chart) %}
<figure class="chart"><figcaption>{{ chart.title }}</figcaption>
<svg viewBox="0 0 360 196" role="img" aria-label="{{ chart.title }}; the table beside it has the numbers">
{% for bar in chart.columns %}
{% set middle = "%.1f"|format(bar.x + bar.width / 2) %}
<rect x="{{ "%.1f"|format(bar.x) }}" y="{{ "%.1f"|format(bar.y) }}" width="{{ "%.1f"|format(bar.width) }}" \
height="{{ "%.1f"|format(bar.height) }}"/>
<text x="{{ middle }}" y="{{ "%.1f"|format(bar.y - 4) }}">{{ bar.value }}</text>
<text x="{{ middle }}" y="170">{{ bar.label }}</text>
{% endfor %}
<line x1="0" y1="156" x2="360" y2="156"/>
<text x="180" y="190">{{ chart.unit }}</text>
</svg></figure>
{% endmacro %}
{% macro parts_table(caption, head, parts) %}
<div class="wide" role="region" aria-label="{{ caption }}" tabindex="0"><table><caption>{{ caption }}</caption>
<thead><tr><th scope="col">{{ head }}</th><th scope="col">expressions</th><th scope="col">Mean IoU</th>\
<th scope="col">Overall IoU</th><th scope="col">P@0.5</th></tr></thead><tbody>
{% for part in parts %}
<tr><th scope="row">{{ part.label }}</th><td>{{ "{:,}".format(part.scores.n_expressions) }}</td>\
<td>{{ "%.2f"|format(part.scores.mean_iou) }}</td><td>{{ "%.2f"|format(part.scores.overall_iou) }}</td>\
<td>{{ "%.2f"|format(part.scores.precision[0.5]) }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
{% macro gallery(examples) %}
<div class="gallery">
{% for example in examples %}
<figure><img src="data:image/jpeg;base64,{{ example.jpeg }}" width="{{ example.size[0] }}" \
height="{{ example.size[1] }}" alt="Image, object outlined in green, prediction outlined in red: {{ example.text }}">
<figcaption><bdi>{{ example.text }}</bdi>
<small>IoU {{ "%.2f"|format(example.iou) }} % · <bdi>{{ example.file_name }}</bdi> · ref {{ example.ref_id }} · \
sentence {{ example.sent_id }}</small></figcaption></figure>
{% endfor %}
</div>
{% endmacro %}
{% set name = "%s (%s) %s"|format(measurement.dataset, measurement.split_by, measurement.split) %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ name }}: overall IoU {{ "%.2f"|format(scores.overall_iou) }}</title>
<style>
:root { --ink: #1d2329; --faint: #5b6570; --paper: #fff; --line: #d5dae0; --bar: #2f6fb0; }
@media (prefers-color-scheme: dark) {
:root { --ink: #e4e8ec; --faint: #a3adb8; --paper: #14181c; --line: #3a424b; --bar: #6ea8e0; } }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; color: var(--ink); background: var(--paper);
font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.wide { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { text-align: left; color: var(--faint); }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
tr > :first-child { text-align: left; }
.words { white-space: normal; text-align: left; min-width: 14rem; }
figure { margin: 0; }
figcaption small { display: block; color: var(--faint); }
.gallery { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
img { display: block; width: 100%; height: auto; background: #fff; }
.pair { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 1.5rem 0; }
.chart { flex: 1 1 20rem; max-width: 32rem; }
svg { display: block; width: 100%; height: auto; font-size: 10px; }
rect { fill: var(--bar); }
text { fill: currentColor; text-anchor: middle; }
line { stroke: var(--faint); }
</style>
</head>
<body>
<main>
<h1>{{ name }}</h1>
<p>{{ "{:,}".format(scores.n_expressions) }} expressions. Weights <bdi>{{ measurement.checkpoint }}</bdi>, \
Swin {{ measurement.swin_type }} and BERT {{ measurement.bert_type }}, images of {{ measurement.img_size }} pixels on \
a side, arithmetic {{ measurement.precision }}.</p>

<h2>Scores</h2>
<div class="wide" role="region" aria-label="Scores" tabindex="0"><table id="scores"><caption>Percent; differences in \
points</caption>
<thead><tr><th scope="col"></th><th scope="col">expressions</th>
{% for head in heads %}
<th scope="col">{{ head }}</th>
{% endfor %}
</tr></thead><tbody>
{% for title, cells in rows.items() %}
<tr><th scope="row">{{ title }}</th>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% if not measurement.published %}
<p>There is no published row for this split.</p>
{% elif measurement.published.repeats_lavt %}
<p>* The published row of this split repeats LAVT's P@X, and its Mean IoU is LAVT's overall IoU. Only its overall IoU, \
{{ "%.2f"|format(measurement.published.overall_iou) }}, is CrossVLT's own.</p>
{% endif %}
{% if departures %}
<p>This test is not the published one:</p>
<ul>
{% for phrase in departures %}
<li>{{ phrase }}</li>
{% endfor %}
</ul>
{% endif %}

<h2>Which expressions are found</h2>
<div class="pair">
{{ draw(charts[0]) }}
<div class="wide" role="region" aria-label="Expressions by their IoU" tabindex="0"><table>\
<caption>Expressions by their IoU; each row includes its lower end</caption>
<thead><tr><th scope="col">IoU, percent</th><th scope="col">expressions</th><th scope="col">share, percent</th></tr>\
</thead><tbody>
{% for label, count in histogram.items() %}
<tr><th scope="row">{{ label }}</th><td>{{ "{:,}".format(count) }}</td>\
<td>{{ "%.2f"|format(100 * count / scores.n_expressions) }}</td></tr>
{% endfor %}
</tbody></table></div>
</div>
<div class="pair">
{{ draw(charts[1]) }}
{{ parts_table("By words of the sentence", "words", by_words) }}
</div>
<div class="pair">
{{ draw(charts[2]) }}
{{ parts_table("By the object's share of the image", "percent of the image", by_size) }}
</div>

<h2>Examples</h2>
<p>Image, object outlined in green and prediction outlined in red, with what lies outside faded. Predictions are \
as they were scored, scaled to the image. Each row has at most one expression of an object; of equal IoU, the one \
with the larger masks comes first.</p>
{% for title, examples in galleries.items() %}
<h3>{{ title }}</h3>
{{ gallery(examples) }}
{% endfor %}

<h2>Failures</h2>
<p>{{ "{:,}".format(n_failures) }} of {{ "{:,}".format(scores.n_expressions) }} expressions have an IoU below 50 %. \
Each is of the first kind that fits it; only masks are looked at.</p>
<div class="wide" role="region" aria-label="Kinds of failure" tabindex="0"><table id="failures">\
<caption>Kinds of failure</caption>
<thead><tr><th scope="col">kind</th><th scope="col">expressions</th><th scope="col">% of failures</th>\
<th scope="col">% of all</th><th scope="col" class="words">what it means</th></tr></thead><tbody>
{% for group in failures %}
<tr><th scope="row">{{ group.kind }}</th><td>{{ "{:,}".format(group.n_expressions) }}</td>\
<td>{{ "%.2f"|format(100 * group.n_expressions / n_failures) if n_failures else "" }}</td>\
<td>{{ "%.2f"|format(100 * group.n_expressions / scores.n_expressions) }}</td>\
<td class="words">{{ group.definition }}</td></tr>
{% endfor %}
</tbody></table></div>
{% for group in failures if group.examples %}
<h3>{{ group.kind|capitalize }}</h3>
{{ gallery(group.examples) }}
{% endfor %}
</main>
</body>
</html>
"""
