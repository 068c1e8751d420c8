"""The tables of the report, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

from experiments.comparison import Comparison
from experiments.results import PAPER, VARIANTS, Result, Variant
from lib.contents import STAGES
from lib.evaluation.protocols import Scores
from lib.evaluation.statistics import METRICS, Difference, Spread
from lib.texts import markdown_table

SHUFFLED = "val, shuffled"  # in Result.metrics
MISSING = "–"
FEWEST_IMAGES = 10  # for an interval; with fewer, a bootstrap is not meaningful


def scores_table(comparison: Comparison) -> str:
    """Return the table of sizes, settings and scores of all networks, all splits together."""
    header = ("network", "parameters", "GFLOP", "learning rate", "seeds", "mean IoU", "overall IoU", "P@0.5")
    rows = (scores_row(comparison, variant) for variant in comparison.trained)
    return markdown_table((*header, "overall IoU, val shuffled"), rows, 1)


def scores_row(comparison: Comparison, variant: Variant) -> list[str]:
    """Return a network's cells of `scores_table`."""
    results = list(comparison.trained[variant].values())
    scores = comparison.scores(variant)
    shuffled = [result.metrics[SHUFFLED]["overall_iou"] for result in results if SHUFFLED in result.metrics]
    return [
        VARIANTS[variant],
        listed(f"{result.parameters / 1e6:.2f} M" for result in results),
        listed(f"{result.flops / 1e9:.3g}" for result in results),
        listed(f"{result.lr:g}" for result in results),
        listed(str(result.seed) for result in results),
        *iou_cells(scores),
        str(Spread.of([one.precision[0.5] for one in scores])),
        str(Spread.of(shuffled)) if shuffled else MISSING,
    ]


def lengths_table(comparison: Comparison) -> str:
    """Return the table of steps and of minutes of training, without validation, by seed."""
    rows = (
        [
            VARIANTS[variant],
            listed(str(result.steps) for result in by_seed.values()),
            ", ".join(f"{result.seconds / 60:.1f}" for result in by_seed.values()),
        ]
        for variant, by_seed in comparison.trained.items()
    )
    return markdown_table(["network", "steps", "minutes, each seed"], rows, 1)


def maps_table(comparison: Comparison) -> str:
    """Return the table of the quality of alignment maps by stage, mean over seeds."""
    columns = [(stage, name) for stage in range(STAGES) for name in ("auc", "precision")]
    titles = [f"stage {stage + 1} {'AUC' if name == 'auc' else 'AP'}" for stage, name in columns]
    rows = []
    for variant, by_seed in comparison.trained.items():
        measured = [result.maps for result in by_seed.values() if result.maps]
        if measured:
            means = [np.mean([maps[stage][name] for maps in measured]) for stage, name in columns]
            rows.append([VARIANTS[variant], *(f"{mean:.2f}" for mean in means)])
    return markdown_table(["network", *titles], rows, 1)


def listed(values: Iterable[str]) -> str:
    """Return the different values, separated by commas."""
    return ", ".join(dict.fromkeys(values))


def iou_cells(scores: Sequence[Scores]) -> list[str]:
    """Return mean and overall IoU over the seeds."""
    return [str(Spread.of([getattr(one, name) for one in scores])) for name in ("mean_iou", "overall_iou")]


def splits_table(comparison: Comparison) -> str:
    """Return the scores of every network on each split."""
    header = ["network", *(f"{split} {name}" for split in comparison.sentences for name in METRICS)]
    rows = (
        [
            VARIANTS[variant],
            *chain.from_iterable(iou_cells(comparison.scores(variant, split)) for split in comparison.sentences),
        ]
        for variant in comparison.trained
    )
    return markdown_table(header, rows, 1)


def differences_table(comparison: Comparison) -> str:
    """Return the table of the paper's network minus each other one, all splits together."""
    header = [f"{VARIANTS[PAPER]} minus"]
    for name in METRICS:
        header += [name, "95 % interval", "each seed"]
    rows = (
        [
            VARIANTS[variant],
            *chain.from_iterable(
                difference_cells(comparison.paper_minus(variant, metric)) for metric in METRICS.values()
            ),
        ]
        for variant in comparison.rivals
    )
    return markdown_table(header, rows, 1)


def difference_cells(difference: Difference) -> tuple[str, str, str]:
    """Return mean, interval and single differences."""
    return signed(difference.mean), interval(difference), ", ".join(map(signed, difference.each))


def interval(difference: Difference) -> str:
    """Return the interval of a difference as text."""
    return f"{signed(difference.low)} to {signed(difference.high)}"


def signed(value: float) -> str:
    """Return a difference with its sign."""
    return f"{value:+.2f}".replace("-", "−")


def groups_table(comparison: Comparison) -> str:
    """Return the mean IoU of every network on sentences of each kind."""
    groups = comparison.groups()
    header = ["network", *(f"{name} ({among.sum()})" for name, among in groups.items())]
    rows = (
        [VARIANTS[variant], *(str(group_spread(comparison, variant, among)) for among in groups.values())]
        for variant in comparison.trained
    )
    return markdown_table(header, rows, 1)


def group_spread(comparison: Comparison, variant: Variant, among: np.ndarray) -> Spread:
    """Return a network's mean IoU over the seeds on some of the sentences, (sentences,) bool."""
    return Spread.of([one.mean_iou for one in comparison.scores(variant, among=among)])


def group_differences_table(comparison: Comparison) -> str:
    """Return the table of the paper's network minus the others in mean IoU, by kind of sentence."""
    header = ["sentences with", "images", *(f"minus *{VARIANTS[variant]}*" for variant in comparison.rivals)]
    rows = []
    for name, among in comparison.groups().items():
        n_images = comparison.n_images(among)
        differences = [comparison.paper_minus(variant, METRICS["mean IoU"], among) for variant in comparison.rivals]
        intervals = [f" ({interval(one)})" if n_images >= FEWEST_IMAGES else "" for one in differences]
        cells = [signed(one.mean) + text for one, text in zip(differences, intervals, strict=True)]
        rows.append([name, str(n_images), *cells])
    return markdown_table(header, rows, 1)


def sweep_table(results: Sequence[Result]) -> str:
    """Return the table of scores for choosing learning rates, with the chosen ones in bold, or a sentence if none."""
    # Seeds share a sweep, and data sets may also share it.
    sweeps: dict[tuple[object, ...], list[Result]] = {}
    for result in results:
        if result.sweep:
            sweeps.setdefault((result.variant, *sorted(result.sweep.items())), []).append(result)
    if not sweeps:
        return "There were none: the learning rate was given."
    rates = sorted({rate for group in sweeps.values() for rate in group[0].sweep}, key=float)
    rows = (
        [
            VARIANTS[group[0].variant],
            listed(result.dataset for result in group),
            *(sweep_cell(group[0], rate) for rate in rates),
        ]
        for group in sweeps.values()
    )
    return markdown_table(["network", "used on", *rates], rows, 2)


def sweep_cell(result: Result, rate: str) -> str:
    """Return overall IoU at a learning rate of the sweep."""
    if rate not in result.sweep:
        return MISSING
    text = f"{result.sweep[rate]:.2f}"
    return f"**{text}**" if float(rate) == result.lr else text
