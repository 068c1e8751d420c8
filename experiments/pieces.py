"""The pieces of the comparison: which trainings there are, and what each is called.

A *run* is trained with one seed and tested. A *sweep* is a shorter training that only helps to choose a learning rate:
every variant is tried with the same few, on refcoco and with a seed of its own, and all its runs take the one that gave
the best overall IoU on val. Where a variant learns too slowly for a short sweep to tell, with any of them, a longer one
decides.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.results import COMPARED, PAPER, RESULTS, VARIANTS, VISION, Variant, result_path
from utils import UserError

SWEPT_ON = "refcoco"
SWEEP_SEED = 0
SAMPLE_SEED = 0
UNDECIDED = 10.0  # percent overall IoU that the best learning rate of a sweep must reach


class Setting(NamedTuple):
    """How long everything is trained, and on how much; the same for all variants."""

    images: int  # of the sample data's training split
    epochs: int
    sweep_epochs: tuple[int, ...]  # of the sweep, and of the longer ones where that one is undecided
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    batch_size: int = 16
    img_size: int = 56
    limit_val: int | None = None  # sentences of each validation
    hard: bool = False  # sample data on which objects look alike
    compared: Mapping[str, Sequence[Variant]] = COMPARED  # variants by data set


FULL = Setting(
    images=1000, epochs=2, sweep_epochs=(1, 2), learning_rates=(0.00025, 0.0005, 0.001, 0.002), seeds=(1, 2, 3)
)
QUICK = Setting(images=24, epochs=1, sweep_epochs=(), learning_rates=(0.001,), seeds=(1,), limit_val=16)
# Where the usual data cannot tell variants apart: those that read colours well, on data where colours are not enough.
HARD = FULL._replace(hard=True, compared={"refcoco": (PAPER, Variant("cross", False), VISION)})


class Folders(NamedTuple):
    """Where a comparison keeps its files."""

    results: Path  # JSON files, which belong into the repository
    runs: Path  # of trainings: states to go on from
    data: Path  # the sample data set

    def result(self, piece: Piece) -> Path:
        """Return where a piece's JSON lies."""
        if piece.lr is None:
            return result_path(self.results, piece.dataset, piece.variant, piece.seed)
        return self.results / "sweep" / f"{piece.name.removeprefix('sweep-')}.json"

    def run(self, piece: Piece) -> Path:
        """Return the folder of a piece's training."""
        return self.runs / piece.name


PLACES = {
    "": Folders(RESULTS, Path("experiments/runs"), Path("experiments/data/sample")),
    "hard": Folders(RESULTS / "hard", Path("experiments/runs/hard"), Path("experiments/data/hard/sample")),
    "quick": Folders(*(Path("experiments/runs/quick") / part for part in ("results", "runs", "data/sample"))),
}


def add_places(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add the flags that say which comparison it is and where its files are; names: of `Folders` that are needed."""
    comparisons = parser.add_mutually_exclusive_group()
    comparisons.add_argument("--quick", action="store_true", help="on few images: minutes, and no result to keep")
    comparisons.add_argument("--hard", action="store_true", help="on harder data, apart from the others")
    for name in names:
        default = getattr(PLACES[""], name)
        parser.add_argument(
            f"--{name}", type=Path, metavar="DIR", help=f"default: {default}, or as --quick and --hard have it"
        )


def places(args: argparse.Namespace) -> tuple[Setting, Folders]:
    """Return what `add_places` asked for; every comparison keeps to folders of its own."""
    given = {name: getattr(args, name, None) for name in Folders._fields}
    folders = PLACES[which(args)]._replace(**{name: path for name, path in given.items() if path})
    return {"": FULL, "hard": HARD, "quick": QUICK}[which(args)], folders


def which(args: argparse.Namespace) -> str:
    """Return the comparison's name in `PLACES`."""
    return next((name for name in ("quick", "hard") if getattr(args, name)), "")


class Piece(NamedTuple):
    """One training."""

    dataset: str
    variant: Variant
    seed: int
    epochs: int
    lr: float | None = None  # of a sweep; a run takes the best one

    @property
    def name(self) -> str:
        """As `--only` takes it and files are called."""
        if self.lr is None:
            return f"{self.dataset}-{self.variant.name}-seed{self.seed}"
        return f"sweep-{self.dataset}-{self.variant.name}-epochs{self.epochs}-lr{self.lr:g}"


def all_runs(setting: Setting) -> list[Piece]:
    """Return every run: refcoco, then the others; seed by seed, so that what was begun can be compared early."""
    runs = [
        Piece(dataset, variant, seed, setting.epochs)
        for dataset, variants in setting.compared.items()
        for variant in variants
        for seed in setting.seeds
    ]
    return sorted(runs, key=lambda run: (run.dataset != SWEPT_ON, run.seed))


def sweep(setting: Setting, variant: Variant, epochs: int) -> list[Piece]:
    """Return the trainings of one length that compare learning rates for a variant."""
    return [Piece(SWEPT_ON, variant, SWEEP_SEED, epochs, rate) for rate in setting.learning_rates]


def missing_sweeps(setting: Setting, folders: Folders, variants: Collection[Variant]) -> list[Piece]:
    """Return what must be trained next to choose the variants' learning rates; nothing where they are chosen."""
    return [
        piece
        for variant in VARIANTS
        if variant in variants
        for piece in _next_sweep(setting, folders, variant)
        if not folders.result(piece).exists()
    ]


def _next_sweep(setting: Setting, folders: Folders, variant: Variant) -> list[Piece]:
    """Return the shortest sweep that is not done, unless a shorter one decided."""
    for epochs in setting.sweep_epochs:
        pieces = sweep(setting, variant, epochs)
        if not all(folders.result(piece).exists() for piece in pieces):
            return pieces
        if max(scores_of(folders, pieces).values()) >= UNDECIDED:
            return []
    return []


def scores_of(folders: Folders, pieces: Sequence[Piece]) -> dict[str, float]:
    """Return overall IoU on val by learning rate; all pieces must be done."""
    files = {f"{piece.lr:g}": folders.result(piece) for piece in pieces}
    return {rate: json.loads(path.read_text(encoding="utf-8"))["overall_iou"] for rate, path in files.items()}


def read_sweep(setting: Setting, folders: Folders, variant: Variant) -> dict[str, float]:
    """Return the scores of the sweep that chose a variant's learning rate, empty where there is none to choose."""
    scores: dict[str, float] = {}
    for epochs in setting.sweep_epochs:
        scores = scores_of(folders, sweep(setting, variant, epochs))
        if max(scores.values()) >= UNDECIDED:
            break
    return scores


def best_rate(setting: Setting, scores: dict[str, float]) -> float:
    """Return the learning rate with the best score, the smaller one of equals."""
    return float(max(scores, key=lambda rate: (scores[rate], -float(rate)))) if scores else setting.learning_rates[0]


def find_piece(setting: Setting, name: str) -> Piece:
    """Return the piece of that name; UserError where there is none."""
    rounds = [(variant, epochs) for variant in VARIANTS for epochs in setting.sweep_epochs]
    pieces = [*all_runs(setting), *(piece for round in rounds for piece in sweep(setting, *round))]
    found = [piece for piece in pieces if piece.name == name]
    if not found:
        raise UserError(f"no piece is called {name!r}: python -m experiments.compare --list names the runs")
    return found[0]
