"""The pieces of the comparison: which trainings there are, and what each is called.

A *run* is trained with one seed and tested. A *sweep* only helps to choose a learning rate: on refcoco and with a seed
of its own, every variant is tried with the same few, and all its runs take the one that gave the best overall IoU on
val. The usual and the harder data have a sweep each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from errors import UserError
from experiments.results import COMPARED, PAPER, RESULTS, VARIANTS, VISION, Variant, result_path

SWEPT_ON = "refcoco"
SWEEP_SEED = 0
SAMPLE_SEED = 0


class Setting(NamedTuple):
    """How long everything is trained, and on how much; the same for all variants."""

    images: int  # of the sample data's training split
    epochs: int
    learning_rates: tuple[float, ...]  # to choose from
    seeds: tuple[int, ...]
    batch_size: int = 16
    img_size: int = 56
    limit_val: int | None = None  # sentences of each validation
    hard: bool = False  # sample data on which objects look alike
    flags: tuple[str, ...] = ()  # of the command that asks for it
    compared: Mapping[str, Sequence[Variant]] = COMPARED  # variants by data set
    sweeps: bool = True  # for itself; otherwise it takes what was chosen without its last flag


FULL = Setting(images=1000, epochs=2, learning_rates=(0.00025, 0.0005, 0.001, 0.002), seeds=(1, 2, 3))
QUICK = Setting(images=24, epochs=1, learning_rates=(0.001,), seeds=(1,), limit_val=16, flags=("--quick",))
# Where the usual data cannot tell variants apart: those that read colours well, on data where colours are not enough.
# These data want smaller learning rates.
HARD = FULL._replace(
    learning_rates=(0.000125, *FULL.learning_rates),
    flags=("--hard",),
    hard=True,
    compared={"refcoco": (PAPER, Variant("cross", False), VISION)},
)
# Where the usual length may be too short: for alignment or late fusion to say anything, for what is behind to catch up.
LONG = FULL._replace(
    flags=("--long",),
    epochs=4,
    compared={"refcoco": tuple(VARIANTS), "refcocog": (PAPER, VISION)},
    sweeps=False,
)
# Whether what is behind on harder data catches up.
HARD_LONG = HARD._replace(flags=("--hard", "--long"), epochs=4, compared={"refcoco": (PAPER, VISION)}, sweeps=False)
SETTINGS = {"": FULL, "hard": HARD, "long": LONG, "hard-long": HARD_LONG, "quick": QUICK}


class Folders(NamedTuple):
    """Where a comparison keeps its files."""

    results: Path  # JSON files, which belong into the repository
    runs: Path  # of trainings: states to go on from
    data: Path  # the sample data set
    sweep: Path  # JSON files of the sweep

    def result(self, piece: Piece) -> Path:
        """Return where a piece's JSON lies."""
        if piece.lr is None:
            return result_path(self.results, piece.dataset, piece.variant, piece.seed)
        return self.sweep / f"{piece.name.removeprefix('sweep-')}.json"

    def run(self, piece: Piece) -> Path:
        """Return the folder of a piece's training."""
        return self.runs / piece.name


RUNS, DATA = Path("experiments/runs"), Path("experiments/data")
PLACES = {
    "": Folders(RESULTS, RUNS, DATA / "sample", RESULTS / "sweep"),
    "hard": Folders(RESULTS / "hard", RUNS / "hard", DATA / "hard/sample", RESULTS / "hard/sweep"),
    "long": Folders(RESULTS / "long", RUNS / "long", DATA / "sample", RESULTS / "sweep"),
    "hard-long": Folders(RESULTS / "hard-long", RUNS / "hard-long", DATA / "hard/sample", RESULTS / "hard/sweep"),
    "quick": Folders(*(RUNS / "quick" / part for part in ("results", "runs", "data/sample", "results/sweep"))),
}


def add_places(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add the flags that say which comparison it is and where its files are; names: of `Folders` that are needed."""
    parser.add_argument("--quick", action="store_true", help="on few images: minutes, and no result to keep")
    parser.add_argument("--hard", action="store_true", help="on harder data, apart from the others")
    parser.add_argument("--long", action="store_true", help="twice as long, without refcoco+; two networks with --hard")
    for name in names:
        default = getattr(PLACES[""], name)
        parser.add_argument(
            f"--{name}", type=Path, metavar="DIR", help=f"default: {default}, or as --quick, --hard and --long have it"
        )


def places(args: argparse.Namespace) -> tuple[Setting, Folders]:
    """Return what `add_places` asked for; every comparison keeps to folders of its own."""
    given = {name: getattr(args, name, None) for name in Folders._fields}
    folders = PLACES[which(args)]._replace(**{name: path for name, path in given.items() if path})
    return SETTINGS[which(args)], folders


def which(args: argparse.Namespace) -> str:
    """Return the comparison's name in `SETTINGS` and `PLACES`; UserError where flags do not go together."""
    name = "-".join(flag for flag in ("quick", "hard", "long") if getattr(args, flag))
    if name not in SETTINGS:
        raise UserError("--quick stands alone: leave out --hard and --long")
    return name


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
        return f"sweep-{self.dataset}-{self.variant.name}-lr{self.lr:g}"


def all_runs(setting: Setting) -> list[Piece]:
    """Return every run: refcoco, then the others; seed by seed, so that what was begun can be compared early."""
    runs = [
        Piece(dataset, variant, seed, setting.epochs)
        for dataset, variants in setting.compared.items()
        for variant in variants
        for seed in setting.seeds
    ]
    return sorted(runs, key=lambda run: (run.dataset != SWEPT_ON, run.seed))


def sweep(setting: Setting, variant: Variant) -> list[Piece]:
    """Return the trainings that compare learning rates for a variant, none where there is nothing to choose."""
    rates = setting.learning_rates if len(setting.learning_rates) > 1 else ()
    return [Piece(SWEPT_ON, variant, SWEEP_SEED, FULL.epochs, rate) for rate in rates]


def all_pieces(setting: Setting) -> list[Piece]:
    """Return everything that is trained: the sweep, unless it is another setting's, and all runs."""
    variants = setting.compared[SWEPT_ON] if setting.sweeps else ()
    return [*(piece for variant in variants for piece in sweep(setting, variant)), *all_runs(setting)]


def missing_sweeps(setting: Setting, folders: Folders, variants: Collection[Variant]) -> list[Piece]:
    """Return what is still to be trained to choose the variants' learning rates."""
    pieces = [piece for variant in VARIANTS if variant in variants for piece in sweep(setting, variant)]
    return [piece for piece in pieces if not folders.result(piece).exists()]


def read_sweep(setting: Setting, folders: Folders, variant: Variant) -> dict[str, float]:
    """Return overall IoU on val by learning rate, empty where there is none to choose; UserError where some lack."""
    if missing := missing_sweeps(setting, folders, {variant}):
        raise UserError(f"{folders.result(missing[0])} is missing: python -m experiments.compare makes it")
    pieces = sweep(setting, variant)
    return {f"{piece.lr:g}": read_json(folders.result(piece))["overall_iou"] for piece in pieces}


def is_outdated(setting: Setting, folders: Folders, piece: Piece) -> bool:
    """Say whether a piece's result is there, but made otherwise than it would be now."""
    path = folders.result(piece)
    if not path.exists():
        return False
    found = read_json(path)
    if piece.lr is not None:
        return [found.get(name) for name in ("epochs", "seed", "lr")] != [piece.epochs, piece.seed, piece.lr]
    if missing_sweeps(setting, folders, {piece.variant}):
        return False
    return found.get("sweep") != read_sweep(setting, folders, piece.variant)


def read_json(path: Path) -> dict[str, Any]:
    """Read what a piece left; UserError where it cannot be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it and run it again") from error


def best_rate(setting: Setting, scores: dict[str, float]) -> float:
    """Return the learning rate with the best score, the smaller one of equals."""
    return float(max(scores, key=lambda rate: (scores[rate], -float(rate)))) if scores else setting.learning_rates[0]


def find_piece(setting: Setting, name: str) -> Piece:
    """Return the piece of that name; UserError where there is none."""
    found = [piece for piece in all_pieces(setting) if piece.name == name]
    if not found:
        raise UserError(f"no piece is called {name!r}: python -m experiments.compare --list names them all")
    return found[0]
