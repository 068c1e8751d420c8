"""Training curves of one or several runs in one picture, also of unfinished runs."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from lib.files import write_atomically
from lib.logs import Record
from lib.scores import COLUMNS, IN_CURVES, protocol_of

MAX_MARKED = 30  # points; lines with more have no markers
MAX_NOISY = 200  # points; lines with more are smoothed


def plot_curves(logs: dict[str, list[Record]], out: Path) -> None:
    """Plot losses, validation scores, learning rate and gradient norm by epoch into a PNG."""
    figure = Figure(figsize=(14, 8.5), layout="constrained")
    losses, scores, rates, norms = figure.subplots(2, 2, sharex=True).flat
    for number, (name, records) in enumerate(logs.items()):
        colour = f"C{number % 10}"
        _draw_losses(losses, name, records, colour)
        _draw_scores(scores, name, records, colour)
        steps = _of_kind("step", records)
        x = epochs_done(records, steps)
        _plot(rates, x, [record["lr"] for record in steps], "-", colour, name)
        _plot_noisy(norms, x, [record["grad_norm"] for record in steps], colour, name)
    for axis, title in (
        (losses, "training loss"),
        (scores, "validation, percent"),
        (rates, "learning rate"),
        (norms, "gradient norm"),
    ):
        axis.set(title=title, xlabel="epochs")
        axis.tick_params(labelbottom=True)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend(fontsize=8)
        else:
            axis.text(0.5, 0.5, "nothing yet", transform=axis.transAxes, ha="center", color="grey")
    for axis in (losses, rates):
        axis.update_datalim([(0, 0)])
        axis.autoscale_view()
        axis.set_ylim(bottom=0)
    losses.set_xlim(left=0)
    scores.set_ylim(0, 100)
    if any(record.get("grad_norm") for records in logs.values() for record in records):
        norms.set_yscale("log")  # needs a positive number
        norms.yaxis.set_major_formatter("{x:g}")
        norms.yaxis.set_minor_formatter(LogFormatter())
    write_atomically(out, lambda file: figure.savefig(file, dpi=110, format="png"))


def _draw_losses(axis: Axes, name: str, records: list[Record], colour: str) -> None:
    """Plot the total loss of all step records, and its parts for all epochs, or for all steps if no epoch is done."""
    steps, epochs = _of_kind("step", records), _of_kind("epoch", records)
    _plot_noisy(axis, epochs_done(records, steps), [record["loss"] for record in steps], colour, f"{name}: total")
    means = epochs or steps
    x = epochs_done(records, means)
    _plot(axis, x, [record["mask_loss"] for record in means], "--", colour, "mask")
    _plot(axis, x, [_sum(record["alignment_loss"]) for record in means], ":", colour, "alignment")


def _draw_scores(axis: Axes, name: str, records: list[Record], colour: str) -> None:
    validated = [record for record in records if record.get("val")]
    x, scores = epochs_done(records, validated), [record["val"] for record in validated]
    if not scores:
        return
    columns = {column.name: column for column in COLUMNS[protocol_of(scores[0])]}
    for style, (number, shown) in zip(("-", "--", ":"), enumerate(IN_CURVES[protocol_of(scores[0])]), strict=True):
        label = shown if number else f"{name}: {shown}"
        _plot(axis, x, [columns[shown].value(score) for score in scores], style, colour, label)


def _plot_noisy(axis: Axes, x: list[float], y: list[float | None], colour: str, label: str) -> None:
    """Plot a line; if it has many points, plot it faintly, and over it the means of MAX_NOISY equal parts."""
    if len(x) <= MAX_NOISY:
        _plot(axis, x, y, "-", colour, label)
        return
    _plot(axis, x, y, "-", colour, linewidth=0.6, alpha=0.25)
    bounds = [number * len(x) // MAX_NOISY for number in range(MAX_NOISY + 1)]
    parts = [slice(start, end) for start, end in pairwise(bounds)]
    _plot(axis, [fmean(x[part]) for part in parts], [_mean(y[part]) for part in parts], "-", colour, label)


def _plot(
    axis: Axes, x: list[float], y: list[float | None], style: str, colour: str, label: str = "", **look: Any
) -> None:
    """Plot a line with gaps at None, and with markers if it has few points; plot nothing if all values are None."""
    if any(value is not None for value in y):
        values = [math.nan if value is None else value for value in y]
        axis.plot(x, values, style, color=colour, marker="." if len(x) <= MAX_MARKED else "", label=label, **look)


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if len(known) == len(values) else None


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _of_kind(kind: str, records: list[Record]) -> list[Record]:
    return [record for record in records if record["kind"] == kind]


def epochs_done(records: list[Record], of: list[Record]) -> list[float]:
    """Return the number of epochs done at each record of `of`, which are some of a log's `records`.

    The last record of an epoch tells its number of steps. An unfinished epoch counts as long as a finished one; if
    there is none, its newest record counts as its end.
    """
    lengths = {record["epoch"]: record["step"] for record in records if record["kind"] == "step"}
    finished = [record["epoch"] for record in records if record["kind"] == "epoch" and record["epoch"] in lengths]
    if finished:
        whole = lengths[finished[-1]]
        lengths = {epoch: steps if epoch in finished else max(steps, whole) for epoch, steps in lengths.items()}
    return [
        record["epoch"] + (record["step"] / lengths[record["epoch"]] if record["kind"] == "step" else 1)
        for record in of
    ]
