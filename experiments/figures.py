"""The pictures of the report.

They are a little wider than a page of about 860 pixels, and have at most 256 colours: they belong into the repository,
and have to be small. A network has one colour in all charts; the colours are those of Okabe and Ito
(https://jfly.uni-koeln.de/color/), which colour-blind people tell apart.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

from experiments.comparison import Comparison, Sentence
from experiments.results import NETWORKS, PAPER, RECIPES, VARIANTS, Result, Variant
from experiments.tables import group_spread
from lib.evaluation.protocols import iou
from lib.evaluation.statistics import METRICS
from lib.files import write_atomically
from lib.photo import open_stored, resize_mask
from lib.pictures.curves import MAX_MARKED
from lib.pictures.overlay import PREDICTION_COLOUR, TRUTH_COLOUR, outline, overlay
from lib.pictures.panels import evenly_spaced, small_png
from lib.pictures.tiles import LINE_HEIGHT, below, beside, colours_of, heat_map, paragraph
from lib.run_lengths import RunLengths

COLOURS = dict(zip(NETWORKS, ("#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#CC79A7"), strict=True))
# They stand beside the paper's network, never beside the others.
COLOURS |= dict(
    zip(RECIPES, ("#E69F00", "#009E73", "#66C2A5", "#56B4E9", "#D55E00", "#CC79A7", "#E3B5D0"), strict=True)
)
WIDTH = 10  # inches
DPI = 110
SMOOTHING = 25  # parts of a training over which its loss is averaged

# Of pictures that show images, in pixels.
PANEL = 144  # a side of a square that an image is fitted into
GAP = 6
IN_A_ROW = 8  # tiles as wide as a panel
N_EXAMPLES = 8
N_ALIGNED = 2  # examples whose alignment is shown


# ---------------------------------------------------------------- charts


def save_small(picture: Image.Image, path: Path) -> bool:
    """Write an RGB picture as a small PNG."""
    content = small_png(picture)
    write_atomically(path, lambda file: file.write(content))
    return True


def save(figure: Figure, path: Path) -> bool:
    """Write a chart as PNG; nothing in the file tells when and by what it was written."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI, format="png")
    return save_small(open_stored(drawn), path)


def draw_groups(comparison: Comparison, path: Path) -> bool:
    """Draw the mean IoU of every network on sentences of each kind as bars, with the deviation over the seeds."""
    groups = comparison.groups()
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axis = figure.subplots()
    width = 0.84 / len(comparison.trained)
    for number, variant in enumerate(comparison.trained):
        spreads = [group_spread(comparison, variant, among) for among in groups.values()]
        axis.bar(
            np.arange(len(groups)) + (number - (len(comparison.trained) - 1) / 2) * width,
            [spread.mean for spread in spreads],
            width * 0.92,
            yerr=[spread.deviation or 0 for spread in spreads],
            color=COLOURS[variant],
            error_kw={"elinewidth": 1, "ecolor": "0.2"},
            label=VARIANTS[variant],
        )
    labels = [f"{name.replace(' ', chr(10), 1)}\n({among.sum()})" for name, among in groups.items()]
    axis.set_xticks(range(len(groups)), labels)
    axis.set(ylabel="mean IoU, percent", xlim=(-0.6, len(groups) - 0.4))
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return save(figure, path)


def draw_differences(comparison: Comparison, path: Path) -> bool:
    """Draw by how much the paper's network scores higher than each other one: mean, interval, every seed."""
    rivals = comparison.rivals
    if not rivals:
        return False
    figure = Figure(figsize=(WIDTH, 1.3 + 0.42 * len(rivals)), layout="constrained")
    axes = figure.subplots(1, len(METRICS), sharey=True)
    for axis, (name, metric) in zip(axes, METRICS.items(), strict=True):
        for row, variant in enumerate(rivals):
            found, colour = comparison.paper_minus(variant, metric), COLOURS[variant]
            axis.plot([found.low, found.high], [row, row], color=colour, linewidth=5, alpha=0.4, solid_capstyle="butt")
            axis.plot(found.each, [row] * len(found.each), "o", color=colour, markerfacecolor="white", markersize=5)
            axis.plot(found.mean, row, "D", color=colour, markersize=8)
        axis.axvline(0, color="0.3", linewidth=1)
        axis.update_datalim([(0, 0)])
        axis.autoscale_view(scaley=False)
        axis.set_yticks(range(len(rivals)), [VARIANTS[variant] for variant in rivals])
        axis.set(title=f"{name}: {VARIANTS[PAPER]} minus", xlabel="points", ylim=(len(rivals) - 0.5, -0.5))
        axis.grid(axis="x", alpha=0.3)
    return save(figure, path)


def draw_curves(comparison: Comparison, path: Path) -> bool:
    """Draw the mask's loss and overall IoU on val by step: the mean over the seeds, and a band from least to most."""
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    for variant, own in comparison.trained.items():
        curves = [result.curve for result in own.values()]
        steps, values = by_step([curve["step"] for curve in curves], [curve["mask_loss"] for curve in curves])
        draw_band(losses, smooth(steps), smooth(values), variant)
        validations = [curve["val"] for curve in curves]
        steps, values = by_step([val["step"] for val in validations], [val["overall_iou"] for val in validations])
        draw_band(scores, steps, values, variant)
    losses.set(title="loss of the mask in training", xlabel="step", yscale="log")
    losses.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    losses.yaxis.set_major_formatter("{x:g}")
    losses.yaxis.set_minor_formatter(NullFormatter())
    scores.set(title="overall IoU on val, percent", xlabel="step")
    for axis in (losses, scores):
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.grid(alpha=0.3)
    handles, labels = scores.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return save(figure, path)


def by_step(steps: Sequence[Sequence[int]], values: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps that all trainings have in common, and their values there, (trainings, steps)."""
    tables = [dict(zip(*pair, strict=True)) for pair in zip(steps, values, strict=True)]
    common = sorted(set(tables[0]).intersection(*tables[1:]))
    return np.array(common, float), np.array([[table[step] for step in common] for table in tables], float)


def smooth(values: np.ndarray) -> np.ndarray:
    """Return the running mean of the last axis over a SMOOTHING-th part of it; that much is lost at the ends."""
    length = max(1, values.shape[-1] // SMOOTHING)
    means: np.ndarray = np.lib.stride_tricks.sliding_window_view(values, length, axis=-1).mean(axis=-1)
    return means


def draw_band(axis: Axes, x: np.ndarray, values: np.ndarray, variant: Variant) -> None:
    """Draw the mean of several lines, and the band between their extremes; values: (lines, len(x))."""
    marker = "o" if len(x) <= MAX_MARKED else ""
    axis.plot(x, values.mean(axis=0), color=COLOURS[variant], linewidth=1.8, marker=marker, label=VARIANTS[variant])
    axis.fill_between(x, values.min(axis=0), values.max(axis=0), color=COLOURS[variant], alpha=0.15, linewidth=0)


# ---------------------------------------------------------------- pictures of images


class Example(NamedTuple):
    """A sentence of val and what every network makes of it."""

    number: int  # in val
    sentence: Sentence
    image: Image.Image  # as large as it is shown
    truth: np.ndarray  # (H, W) uint8 of 0 and 1, as large as the image is shown
    found: dict[Variant, dict[str, Any]]  # of Result.examples


def first_results(comparison: Comparison) -> dict[Variant, Result]:
    """Return of every network the training with the least seed."""
    return {variant: own[min(own)] for variant, own in comparison.trained.items()}


def common_examples(comparison: Comparison, results: dict[Variant, Result], count: int) -> list[Example]:
    """Return evenly spaced ones of the examples that all results keep."""
    kept = [{example["index"]: example for example in result.examples} for result in results.values()]
    common = sorted(set(kept[0]).intersection(*kept[1:]))
    chosen = [common[number] for number in evenly_spaced(len(common), count)]
    return [
        make_example(comparison, index, dict(zip(results, (examples[index] for examples in kept), strict=True)))
        for index in chosen
    ]


def make_example(comparison: Comparison, index: int, found: dict[Variant, dict[str, Any]]) -> Example:
    """Return a sentence of val with its image and truth, enlarged to fit a panel."""
    sentence = comparison.sentences["val"][index]
    image, truth = comparison.load(sentence)
    scale = PANEL / max(image.size)
    shown = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    return Example(index, sentence, shown, resize_mask(truth, (shown.height, shown.width)), found)


def draw_examples(comparison: Comparison, path: Path) -> bool:
    """Draw the same sentences once for every network: image with truth, then each network's mask with its IoU."""
    results = first_results(comparison)
    examples = common_examples(comparison, results, N_EXAMPLES)
    if not examples:
        return False
    blocks = max(1, IN_A_ROW // (2 + len(results)))
    header = [paragraph(text, PANEL) for text in ("", "truth", *(VARIANTS[variant] for variant in results))]
    rows = [example_tiles(example, results) for example in examples]
    beside = [list(chain(*rows[start : start + blocks])) for start in range(0, len(rows), blocks)]
    return save_page([header * min(blocks, len(rows)), *beside], path)


def example_tiles(example: Example, results: dict[Variant, Result]) -> list[Image.Image]:
    """Return a row of `draw_examples`."""
    tiles = [
        paragraph(example.sentence.text, PANEL),
        picture_tile(outline(example.image, example.truth, TRUTH_COLOUR)),
    ]
    for variant, result in results.items():
        runs: RunLengths = {"size": [result.img_size] * 2, "counts": example.found[variant]["mask"].encode()}
        mask = resize_mask(coco_mask.decode(runs), example.truth.shape)
        intersections, unions = result.counts["val"]
        percent = 100 * iou(intersections[example.number], unions[example.number])
        picture = overlay(example.image, mask, PREDICTION_COLOUR, wider=1)
        tiles.append(picture_tile(picture, f"IoU {percent:.0f}"))
    return tiles


def draw_alignment(comparison: Comparison, path: Path) -> bool:
    """Draw how similar every stage finds each place to the sentence, all in one range of colours."""
    results = {variant: result for variant, result in first_results(comparison).items() if variant.alignment}
    examples = common_examples(comparison, results, N_ALIGNED) if results else []
    if not examples:
        return False
    maps = {
        (example.number, variant): [np.array(rows, float) for rows in example.found[variant]["maps"]]
        for example in examples
        for variant in results
    }
    values = np.concatenate([stage.ravel() for own in maps.values() for stage in own])
    low, high = float(values.min()), float(values.max())
    stages = [f"stage {number}" for number in range(1, 1 + max(map(len, maps.values())))]
    width = (2 + len(stages)) * (PANEL + GAP) - GAP
    blank = Image.new("RGB", (PANEL, LINE_HEIGHT), "white")
    rows = [[blank, blank, *(paragraph(stage, PANEL) for stage in stages)]]
    for example in examples:
        rows.append([paragraph(example.sentence.text, width)])
        truth = picture_tile(outline(example.image, example.truth, TRUTH_COLOUR), "truth")
        for first, variant in zip([truth, *[blank] * len(results)], results, strict=False):
            panels = [map_tile(example.image, stage, low, high) for stage in maps[example.number, variant]]
            rows.append([first, paragraph(VARIANTS[variant], PANEL), *panels])
    meaning = "cosine / temperature + bias" if comparison.of_recipes else "cosine of place and sentence"
    rows.append([scale_tile(low, high, meaning)])
    return save_page(rows, path)


def map_tile(image: Image.Image, values: np.ndarray, low: float, high: float) -> Image.Image:
    """Return an image under the colours of a stage's map (H_i, W_i), and under it the map's own range."""
    return picture_tile(heat_map(image, values, low, high), f"{values.min():.3f} to {values.max():.3f}")


def scale_tile(low: float, high: float, meaning: str) -> Image.Image:
    """Return the colours from those of the lowest value to those of the highest, and what they mean."""
    fractions = np.linspace(0, 1, 2 * PANEL)[None].repeat(LINE_HEIGHT, axis=0)
    colours = Image.fromarray(colours_of(fractions).astype(np.uint8))
    return beside([paragraph(f"{meaning}: {low:.3f}", 2 * PANEL), colours, paragraph(f"{high:.3f}", PANEL)], GAP)


def picture_tile(picture: Image.Image, text: str = "") -> Image.Image:
    """Return a picture of at most PANEL pixels a side on a tile as wide as that, a text under it."""
    return below([picture, paragraph(text, PANEL)])


def save_page(rows: Sequence[Sequence[Image.Image]], path: Path) -> bool:
    """Write tiles on a white page as PNG, those of a row side by side."""
    page = below([beside(row, GAP) for row in rows], GAP)
    return save_small(ImageOps.expand(page, GAP, "white"), path)


class Picture(NamedTuple):
    """A picture that is drawn of every data set."""

    title: str
    caption: str
    draw: Callable[[Comparison, Path], bool]  # says whether there was something to draw


SMALLEST_SEED = "of every network, the training with the smallest seed"
# By the names of their files.
FIGURES = {
    "differences": Picture(
        "differences to the paper's network",
        "Diamonds: mean over the seeds. Circles: single seeds. Bars: 95 % interval.",
        draw_differences,
    ),
    "kinds": Picture(
        "mean IoU by kind of expression",
        "How many sentences in brackets. Lines: standard deviation over the seeds.",
        draw_groups,
    ),
    "examples": Picture(
        "the same sentences for every network",
        f"Truth in green, predictions in red; {SMALLEST_SEED}. The sentences are spaced evenly over those of val whose "
        "masks the results keep, not chosen by what came out.",
        draw_examples,
    ),
    "alignment": Picture(
        "where each stage finds similarity to the sentence",
        "Cosine of every place and the sentence (where alignment learns, divided by the temperature and with a bias), "
        f"all maps in one range of colours, each above its own range; {SMALLEST_SEED}.",
        draw_alignment,
    ),
    "curves": Picture(
        "curves of training",
        "Means over the seeds; the bands reach from the lowest to the highest. The loss is that of the mask, without "
        "alignment; dice and MaskRIS put other terms into it. It is a running mean over "
        f"1/{SMOOTHING} of the training.",
        draw_curves,
    ),
}
