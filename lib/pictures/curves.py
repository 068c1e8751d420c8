"""Training curves of one or several runs in one picture, also of runs that are still training."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from errors import UserError
from lib.contents import log_line
from lib.files import write_atomically
from lib.schema import parse_json
from lib.scores import COLUMNS, IN_CURVES, protocol_of
from lib.texts import split_lines

Record = dict[str, Any]

FEW = 30  # points up to which each of them is marked
MANY = 200  # points up to which a noisy line is drawn as it is


def read_logs(folders: Sequence[Path]) -> dict[str, list[Record]]:
    """Return the lines of every `log_*.jsonl` in runs' folders, by names for the legend."""
    logs = {}
    for name, folder in name_apart(folders).items():
        files = sorted(folder.glob("log_*.jsonl"))
        if not files:
            raise UserError(f"{folder} holds no log_*.jsonl: name the --output-dir of a training")
        for file in files:
            logs[f"{name} {file.stem.removeprefix('log_')}"] = read_log(file)
    return logs


def name_apart(folders: Sequence[Path]) -> dict[str, Path]:
    """Return folders, each once, by the shortest ends of their paths that differ."""
    distinct = list(dict.fromkeys(Path(os.path.realpath(folder)) for folder in folders))
    for length in range(1, max(len(folder.parts) for folder in distinct) + 1):
        names = {"/".join(folder.parts[-length:]): folder for folder in distinct}
        if len(names) == len(distinct):
            break
    return names


def read_log(file: Path) -> list[Record]:
    """Return a log's lines; the last one is left out where its writing was cut short, and that is said.

    Raises UserError that names the line where another one is broken, and where none is left.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"the log {file} cannot be read ({error.strerror})") from error
    whole, _, rest = content.rpartition(b"\n")
    lines = split_lines(whole + b"\n", file) if whole else []
    records = [
        parse_json(line, log_line, f"{file}, line {number}", "no line of a log that this train.py writes")
        for number, line in enumerate(lines, start=1)
    ]
    if rest:
        print(f"{file}: line {len(lines) + 1} is half-written and left out")
    if not records:
        raise UserError(f"the log {file} has no whole line yet: train.py writes the first after --print-freq steps")
    return records


def draw(logs: dict[str, list[Record]], out: Path) -> None:
    """Draw losses, validation scores, learning rate and gradient norm by epoch into a PNG."""
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
        norms.set_yscale("log")  # needs a number above zero
        norms.yaxis.set_major_formatter("{x:g}")
        norms.yaxis.set_minor_formatter(LogFormatter())
    write_atomically(out, lambda file: figure.savefig(file, dpi=110, format="png"))


def _draw_losses(axis: Axes, name: str, records: list[Record], colour: str) -> None:
    """Draw the total of every step line, and of every epoch what it is made of; of steps before the first epoch."""
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
    """Draw a line; where it has many points faintly, and the means of MANY equal parts of it over that."""
    if len(x) <= MANY:
        _plot(axis, x, y, "-", colour, label)
        return
    _plot(axis, x, y, "-", colour, linewidth=0.6, alpha=0.25)
    bounds = [number * len(x) // MANY for number in range(MANY + 1)]
    parts = [slice(start, end) for start, end in pairwise(bounds)]
    _plot(axis, [fmean(x[part]) for part in parts], [_mean(y[part]) for part in parts], "-", colour, label)


def _plot(
    axis: Axes, x: list[float], y: list[float | None], style: str, colour: str, label: str = "", **look: Any
) -> None:
    """Draw a line with gaps where y is None, and points where there are few; nothing where y is None throughout."""
    if any(value is not None for value in y):
        values = [math.nan if value is None else value for value in y]
        axis.plot(x, values, style, color=colour, marker="." if len(x) <= FEW else "", label=label, **look)


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if len(known) == len(values) else None


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _of_kind(kind: str, records: list[Record]) -> list[Record]:
    return [record for record in records if record["kind"] == kind]


def epochs_done(records: list[Record], of: list[Record]) -> list[float]:
    """Return how many epochs were done at each record of `of`, some of a log's `records`.

    An epoch has as many steps as its last line says. One that still goes on is taken to be as long as a finished one;
    where there is none, its newest line is drawn at its end.
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
