"""Training curves of one or several runs in one picture.

python -m lib.plots ./checkpoints --out curves.png
python -m lib.plots run_a run_b --out compared.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lib.checkpoint import write_atomically
from utils import UserError, run


def read_logs(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the epochs of every `log_*.jsonl` in a run's folder, by a name for the legend."""
    files = sorted(folder.glob("log_*.jsonl"))
    if not files:
        raise UserError(f"{folder} holds no log_*.jsonl: name the --output-dir of a training")
    logs = {}
    for file in files:
        try:
            logs[f"{folder.name} {file.stem.removeprefix('log_')}"] = [
                json.loads(line) for line in file.read_text().splitlines()
            ]
        except ValueError as error:
            raise UserError(f"{file} is no training log: {error}") from error
    return logs


def draw(logs: dict[str, list[dict[str, Any]]], out: Path) -> None:
    """Draw losses, validation scores and learning rate by epoch into a PNG."""
    figure = Figure(figsize=(15, 4), layout="constrained")
    losses, scores, rates = figure.subplots(1, 3)
    for name, epochs in logs.items():
        x = [entry["epoch"] + 1 for entry in epochs]
        line = losses.plot(*_loss_curve(epochs), label=f"{name}: total")[0]
        style = {"color": line.get_color(), "marker": "."}
        losses.plot(x, [entry["mask_loss"] for entry in epochs], "--", **style, label="mask")
        losses.plot(x, [sum(entry["alignment_loss"]) for entry in epochs], ":", **style, label="alignment")
        scores.plot(x, [entry["val"]["overall_iou"] for entry in epochs], **style, label=f"{name}: overall IoU")
        scores.plot(x, [entry["val"]["mean_iou"] for entry in epochs], "--", **style, label="mean IoU")
        scores.plot(x, [entry["val"]["precision"]["0.5"] for entry in epochs], ":", **style, label="P@0.5")
        rates.plot(x, [entry["lr"] for entry in epochs], **style, label=name)
    for axis, title in ((losses, "training loss"), (scores, "validation, percent"), (rates, "learning rate")):
        axis.set(title=title, xlabel="epochs")
        axis.set_ylim(bottom=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    scores.set_ylim(0, 100)
    write_atomically(out, lambda file: figure.savefig(file, dpi=110, format="png"))


def _loss_curve(epochs: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Return x (in epochs) and y of the loss, several points an epoch."""
    points = [
        (entry["epoch"] + (number + 0.5) / len(entry["loss_curve"]), loss)
        for entry in epochs
        for number, loss in enumerate(entry["loss_curve"])
    ]
    return [x for x, _ in points], [y for _, y in points]


def main() -> None:
    """Draw the runs named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("runs", type=Path, nargs="+", help="output folders of trainings")
    parser.add_argument("--out", type=Path, default=Path("curves.png"), help="a PNG file (default: curves.png)")
    args = parser.parse_args()
    logs: dict[str, list[dict[str, Any]]] = {}
    for folder in args.runs:
        logs |= read_logs(folder)
    try:
        draw(logs, args.out)
    except (KeyError, TypeError) as error:
        raise UserError(f"the log of {' or '.join(logs)} is none that train.py writes: {error!r}") from error
    print(f"curves of {', '.join(logs)} in {args.out}")


if __name__ == "__main__":
    run(main)
