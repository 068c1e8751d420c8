"""The results of the comparison: one JSON file per trial, from which all tables and pictures are made.

`experiments/results/{data set}-{variant}-seed{n}.json` is a tested training, `sweep/….json` a training for choosing its
learning rate. The folders of the trainings are needed only for resuming.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from errors import UserError
from lib.files import write_text

RESULTS = Path("experiments/results")


class Variant(NamedTuple):
    """A network of the comparison: the same stages with one fusion variant, trained by one recipe."""

    fusion: str  # of `lib.variants.FUSIONS`
    alignment: bool
    recipe: str = ""  # of `RECIPE_FLAGS`, perhaps with HALVED behind it; "": the paper's

    @property
    def name(self) -> str:
        """The name in file names: cross, cross-unaligned, vision, cross-maskris, …"""
        return "-".join(filter(None, (self.fusion, "" if self.alignment else "unaligned", self.recipe)))

    @property
    def halved(self) -> bool:
        """Whether it takes half of the steps: two passes in each take as long as all steps with one."""
        return self.recipe.endswith(HALVED)

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags of `train.py` for its recipe."""
        return RECIPE_FLAGS[self.recipe.removesuffix(HALVED)]


HALVED = "-half"
_DICE = ("--loss", "ce+dice2", "--dice-weight", "0.1")
# The patches are as large a part of the image as 32 pixels are of 480.
_MASKRIS = ("--mask-image", "0.75", "--mask-text", "0.15", "--mask-patch", "4")
# Without a rate for encoders: here, nothing is pretrained.
_SCHEDULE = ("--warmup", "34", "--clip-grad", "1", "--train-embeddings")
_ALIGN = ("--align-temperature", "0.1", "--train-temperature", "--align-prior", "0.04")
RECIPE_FLAGS: dict[str, tuple[str, ...]] = {
    "": (),
    "dice2": _DICE,
    "maskris": _MASKRIS,
    "schedule": _SCHEDULE,
    "align": _ALIGN,
    "all": (*_DICE, *_MASKRIS, *_SCHEDULE, *_ALIGN),
}
# In the order of the tables, the paper's network first; by what they are called there.
NETWORKS = {
    Variant("cross", True): "CrossVLT",
    Variant("cross", False): "without alignment",
    Variant("none", True): "without fusion",
    Variant("none", False): "without both",
    Variant("vision", True): "vision-only early fusion",
    Variant("late", True): "late fusion",
}
RECIPES = {
    Variant("cross", True, "dice2"): "with dice over both classes",
    Variant("cross", True, "maskris"): "with MaskRIS",
    Variant("cross", True, f"maskris{HALVED}"): "with MaskRIS, half of the steps",
    Variant("cross", True, "schedule"): "with warm-up, clipping, trained embeddings",
    Variant("cross", True, "align"): "with alignment that learns",
    Variant("cross", True, "all"): "with all of these",
    Variant("cross", True, f"all{HALVED}"): "with all of these, half of the steps",
}
VARIANTS = NETWORKS | RECIPES
PAPER = Variant("cross", True)
VISION = Variant("vision", True)
# Which variants are compared on which data set.
COMPARED = {"refcoco": tuple(NETWORKS), "refcoco+": (PAPER, VISION), "refcocog": (PAPER, VISION)}
SPLITS = {
    "refcoco": ("val", "testA", "testB"),
    "refcoco+": ("val", "testA", "testB"),
    "refcocog": ("val", "test"),
}


class Result(NamedTuple):
    """A training that was tested. The fields are those of its JSON file."""

    dataset: str
    fusion: str
    alignment: bool
    seed: int
    lr: float
    sweep: dict[str, float]  # overall IoU on val of the sweep, by learning rate; the best one is `lr`
    commands: list[str]  # that trained and tested it
    sample: dict[str, int]  # options of the sample data set, as its sample.json holds them
    img_size: int  # pixels on a side
    batch_size: int
    steps: int
    parameters: int
    flops: int  # of a forward pass of one image and sentence, two for a multiplication and the addition behind it
    seconds: float  # of training, validation left out
    machine: dict[str, Any]
    # {"step": […], "loss": […], "mask_loss": […]} of every line of the log, and {"step", "mean_iou", "overall_iou"}
    # of every validation under "val"
    curve: dict[str, Any]
    metrics: dict[str, dict[str, Any]]  # by split: `Scores.as_dict`; "val, shuffled" read other objects' sentences
    # By split: [intersections, unions] in pixels, in the order of the data set's expressions.
    counts: dict[str, list[list[int]]]
    # A few expressions of val: {"index": of the expression, "mask": COCO RLE counts of the prediction at img_size,
    # "maps": alignment by stage as rows of numbers, [] without alignment}
    examples: list[dict[str, Any]]
    recipe: str = ""  # see `Variant`
    # By stage: `experiments.maps.MapQuality` on some sentences of val; older results have none.
    maps: Sequence[dict[str, float]] = ()

    @property
    def variant(self) -> Variant:
        """The network that was trained."""
        return Variant(self.fusion, self.alignment, self.recipe)


def result_path(folder: Path, dataset: str, variant: Variant, seed: int) -> Path:
    """Return the path of a result."""
    return folder / f"{dataset}-{variant.name}-seed{seed}.json"


def write_result(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole: a line for each field."""
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in content.items()]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_result(path: Path) -> Result:
    """Return a result; UserError if the file is not one."""
    try:
        return Result(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} holds no result of experiments.compare ({error}): remove it and run it again"
        ) from error


def read_results(folder: Path = RESULTS) -> list[Result]:
    """Return all results in a folder, sorted by data set, variant and seed; UserError if there are none."""
    order = {(dataset, variant): (i, j) for i, dataset in enumerate(COMPARED) for j, variant in enumerate(VARIANTS)}
    results = [read_result(path) for path in sorted(folder.glob("*.json"))]
    if not results:
        raise UserError(f"{folder} holds no results: python -m experiments.compare makes them")
    return sorted(results, key=lambda result: (*order[result.dataset, result.variant], result.seed))
