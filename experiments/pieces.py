"""The pieces of the comparison: which trainings there are, and what each is called.

A *run* is trained with one seed and tested. A *sweep* is a shorter training that only helps to choose a learning rate:
every variant is tried with the same few, on refcoco and with a seed of its own, and all its runs take the one that gave
the best overall IoU on val.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.results import COMPARED, PAPER, VARIANTS, Variant, result_path

SWEPT_ON = "refcoco"
SWEEP_SEED = 0
SAMPLE_SEED = 0


class Setting(NamedTuple):
    """How long everything is trained, and on how much; the same for all variants."""

    images: int  # of the sample data's training split
    epochs: int
    sweep_epochs: int
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    batch_size: int = 16
    img_size: int = 56
    limit_val: int | None = None  # sentences of each validation


FULL = Setting(images=1000, epochs=2, sweep_epochs=1, learning_rates=(0.0005, 0.001, 0.002), seeds=(1, 2, 3))
QUICK = Setting(images=24, epochs=1, sweep_epochs=1, learning_rates=(0.001,), seeds=(1,), limit_val=16)


class Piece(NamedTuple):
    """One training."""

    dataset: str
    variant: Variant
    seed: int
    lr: float | None = None  # of a sweep; a run takes the best one

    @property
    def name(self) -> str:
        """As `--only` takes it and files are called."""
        if self.lr is None:
            return f"{self.dataset}-{self.variant.name}-seed{self.seed}"
        return f"sweep-{self.dataset}-{self.variant.name}-lr{self.lr:g}"


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


def all_runs(setting: Setting) -> list[Piece]:
    """Return every run, seed by seed and the paper's network first, so that what was begun can be compared early."""
    cases = [(dataset, variant) for dataset, variants in COMPARED.items() for variant in variants]
    return [Piece(*case, seed) for seed in setting.seeds for case in cases]


def sweeps(setting: Setting, variant: Variant) -> list[Piece]:
    """Return what chooses a variant's learning rate; nothing where there is no choice."""
    rates = setting.learning_rates
    return [Piece(SWEPT_ON, variant, SWEEP_SEED, rate) for rate in rates] if len(rates) > 1 else []


def sweeps_for(setting: Setting, runs: Sequence[Piece]) -> list[Piece]:
    """Return the sweeps that runs need, each once."""
    wanted = {run.variant for run in runs}
    return [piece for variant in VARIANTS if variant in wanted for piece in sweeps(setting, variant)]


def read_sweep(setting: Setting, folders: Folders, variant: Variant) -> dict[str, float]:
    """Return overall IoU on val by learning rate, empty where there was no choice; all sweeps must be there."""
    files = {f"{piece.lr:g}": folders.result(piece) for piece in sweeps(setting, variant)}
    return {rate: json.loads(path.read_text(encoding="utf-8"))["overall_iou"] for rate, path in files.items()}


def best_rate(setting: Setting, sweep: dict[str, float]) -> float:
    """Return the learning rate with the best score, the smaller one of equals."""
    return float(max(sweep, key=lambda rate: (sweep[rate], -float(rate)))) if sweep else setting.learning_rates[0]


def find_piece(setting: Setting, name: str) -> Piece:
    """Return the piece of that name; ValueError where there is none."""
    for piece in (*all_runs(setting), *(sweep for variant in VARIANTS for sweep in sweeps(setting, variant))):
        if piece.name == name:
            return piece
    raise ValueError(f"no piece is called {name!r}; one is {Piece(SWEPT_ON, PAPER, setting.seeds[0]).name}")
