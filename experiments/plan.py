"""The trials of the comparison: which trainings there are, and what each is called.

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
from experiments.results import COMPARED, NETWORKS, PAPER, RECIPES, RESULTS, VARIANTS, VISION, Variant, result_path

SWEPT_ON = "refcoco"
SWEEP_SEED = 0
SAMPLE_SEED = 0


class ExperimentConfig(NamedTuple):
    """The length of the trainings and their data, which are the same for all variants."""

    images: int  # of the sample data's training split
    epochs: int
    learning_rates: tuple[float, ...]  # to choose from
    seeds: tuple[int, ...]
    batch_size: int = 16
    img_size: int = 56
    limit_val: int | None = None  # sentences of each validation
    hard: bool = False  # sample data in which objects look alike
    flags: tuple[str, ...] = ()  # flags of the command
    compared: Mapping[str, Sequence[Variant]] = COMPARED  # variants by data set
    sweeps: bool = True  # choose learning rates; otherwise use those chosen without the last flag


FULL = ExperimentConfig(images=1000, epochs=2, learning_rates=(0.00025, 0.0005, 0.001, 0.002), seeds=(1, 2, 3))
QUICK = ExperimentConfig(images=8, epochs=1, learning_rates=(0.001,), seeds=(1,), limit_val=16, flags=("--quick",))
# The variants that the usual data cannot distinguish, because they read colours well, on data for which colours are not
# sufficient. These data need smaller learning rates.
HARD = FULL._replace(
    learning_rates=(0.000125, *FULL.learning_rates),
    flags=("--hard",),
    hard=True,
    compared={"refcoco": (PAPER, Variant("cross", False), VISION)},
)
# For questions that need longer trainings: whether alignment or late fusion matters, whether weaker variants catch up.
LONG = FULL._replace(
    flags=("--long",),
    epochs=4,
    compared={"refcoco": tuple(NETWORKS), "refcocog": (PAPER, VISION)},
    sweeps=False,
)
# Whether what is behind on harder data catches up.
HARD_LONG = HARD._replace(flags=("--hard", "--long"), epochs=4, compared={"refcoco": (PAPER, VISION)}, sweeps=False)
# The paper's network trained by other recipes, on the usual data.
OTHER_RECIPES = FULL._replace(flags=("--recipes",), compared={"refcoco": (PAPER, *RECIPES)})
SETTINGS = {"": FULL, "hard": HARD, "long": LONG, "hard-long": HARD_LONG, "recipes": OTHER_RECIPES, "quick": QUICK}


class Paths(NamedTuple):
    """The folders of a comparison."""

    results: Path  # JSON files, which are committed
    runs: Path  # states of trainings, for resuming
    data: Path  # the sample data set
    sweep: Path  # JSON files of the sweep

    def result(self, trial: Trial) -> Path:
        """Return the path of a trial's JSON file."""
        if trial.lr is None:
            return result_path(self.results, trial.dataset, trial.variant, trial.seed)
        return self.sweep / f"{trial.name.removeprefix('sweep-')}.json"

    def run(self, trial: Trial) -> Path:
        """Return the folder of a trial's training."""
        return self.runs / trial.name


RUNS, DATA = Path("experiments/runs"), Path("experiments/data")
PATHS = {
    "": Paths(RESULTS, RUNS, DATA / "sample", RESULTS / "sweep"),
    "hard": Paths(RESULTS / "hard", RUNS / "hard", DATA / "hard/sample", RESULTS / "hard/sweep"),
    "long": Paths(RESULTS / "long", RUNS / "long", DATA / "sample", RESULTS / "sweep"),
    "hard-long": Paths(RESULTS / "hard-long", RUNS / "hard-long", DATA / "hard/sample", RESULTS / "hard/sweep"),
    "recipes": Paths(RESULTS / "recipes", RUNS / "recipes", DATA / "sample", RESULTS / "recipes/sweep"),
    "quick": Paths(*(RUNS / "quick" / part for part in ("results", "runs", "data/sample", "results/sweep"))),
}


def add_comparison_flags(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add the flags that select a comparison and its paths; names: the required fields of `Paths`."""
    parser.add_argument("--quick", action="store_true", help="on few images: minutes, and no result to keep")
    parser.add_argument("--hard", action="store_true", help="on harder data, apart from the others")
    parser.add_argument("--long", action="store_true", help="twice as long, without refcoco+; two networks with --hard")
    parser.add_argument("--recipes", action="store_true", help="the paper's network, trained by other recipes")
    for name in names:
        default = getattr(PATHS[""], name)
        parser.add_argument(
            f"--{name}", type=Path, metavar="DIR", help=f"default: {default}, or as the flags above have it"
        )


def config_and_paths(args: argparse.Namespace) -> tuple[ExperimentConfig, Paths]:
    """Return configuration and paths for the flags of `add_comparison_flags`; every comparison has its own paths."""
    given = {name: getattr(args, name, None) for name in Paths._fields}
    paths = PATHS[comparison_name(args)]._replace(**{name: path for name, path in given.items() if path})
    return SETTINGS[comparison_name(args)], paths


def comparison_name(args: argparse.Namespace) -> str:
    """Return the comparison's name in `SETTINGS` and `PATHS`; UserError if the flags contradict each other."""
    name = "-".join(flag for flag in ("quick", "recipes", "hard", "long") if getattr(args, flag))
    if name not in SETTINGS:
        raise UserError("--quick and --recipes cannot be combined with --hard or --long, nor with each other")
    return name


class Trial(NamedTuple):
    """One training."""

    dataset: str
    variant: Variant
    seed: int
    epochs: int
    lr: float | None = None  # of a sweep; a run takes the best one

    @property
    def name(self) -> str:
        """The name in `--only` and in file names."""
        if self.lr is None:
            return f"{self.dataset}-{self.variant.name}-seed{self.seed}"
        return f"sweep-{self.dataset}-{self.variant.name}-lr{self.lr:g}"


def epochs_of(variant: Variant, epochs: int) -> int:
    """Return how long a variant is trained, if the paper's network is trained for `epochs` epochs."""
    return epochs // 2 if variant.halved else epochs


def all_runs(config: ExperimentConfig) -> list[Trial]:
    """Return every run: first refcoco, then the others, seed by seed, so that first results can be compared early."""
    runs = [
        Trial(dataset, variant, seed, epochs_of(variant, config.epochs))
        for dataset, variants in config.compared.items()
        for variant in variants
        for seed in config.seeds
    ]
    return sorted(runs, key=lambda run: (run.dataset != SWEPT_ON, run.seed))


def sweep(config: ExperimentConfig, variant: Variant) -> list[Trial]:
    """Return the trials that compare learning rates for a variant; none if there is only one rate."""
    rates = config.learning_rates if len(config.learning_rates) > 1 else ()
    return [Trial(SWEPT_ON, variant, SWEEP_SEED, epochs_of(variant, FULL.epochs), rate) for rate in rates]


def all_trials(config: ExperimentConfig) -> list[Trial]:
    """Return everything that is trained: the sweep, unless it is another config's, and all runs."""
    variants = config.compared[SWEPT_ON] if config.sweeps else ()
    return [*(trial for variant in variants for trial in sweep(config, variant)), *all_runs(config)]


def missing_sweeps(config: ExperimentConfig, paths: Paths, variants: Collection[Variant]) -> list[Trial]:
    """Return the missing trials for choosing the learning rates of these variants."""
    trials = [trial for variant in VARIANTS if variant in variants for trial in sweep(config, variant)]
    return [trial for trial in trials if not paths.result(trial).exists()]


def read_sweep(config: ExperimentConfig, paths: Paths, variant: Variant) -> dict[str, float]:
    """Return overall IoU on val by learning rate, empty if there is only one; UserError if some are missing."""
    if missing := missing_sweeps(config, paths, {variant}):
        raise UserError(f"{paths.result(missing[0])} is missing: python -m experiments.compare makes it")
    trials = sweep(config, variant)
    return {f"{trial.lr:g}": read_json(paths.result(trial))["overall_iou"] for trial in trials}


def is_outdated(config: ExperimentConfig, paths: Paths, trial: Trial) -> bool:
    """Return whether a trial has a result that was made with other settings than now."""
    path = paths.result(trial)
    if not path.exists():
        return False
    result = read_json(path)
    if trial.lr is not None:
        return [result.get(name) for name in ("epochs", "seed", "lr")] != [trial.epochs, trial.seed, trial.lr]
    if missing_sweeps(config, paths, {trial.variant}):
        return False
    return result.get("sweep") != read_sweep(config, paths, trial.variant)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON of a trial; UserError if it cannot be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it and run it again") from error


def best_rate(config: ExperimentConfig, scores: dict[str, float]) -> float:
    """Return the learning rate with the best score; of equal scores, the smaller rate."""
    return float(max(scores, key=lambda rate: (scores[rate], -float(rate)))) if scores else config.learning_rates[0]


def find_trial(config: ExperimentConfig, name: str) -> Trial:
    """Return the trial of this name; UserError if there is none."""
    matches = [trial for trial in all_trials(config) if trial.name == name]
    if not matches:
        raise UserError(f"there is no trial {name!r}: python -m experiments.compare --list lists all")
    return matches[0]
