"""The results of the comparison together with their sentences, images and masks, for tables and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from data.objects import describe_object, open_image_of
from data.sample.expressions import KINDS, PROPERTIES
from data.sample.make import NOTE, make_sample
from errors import UserError
from experiments.results import COMPARED, PAPER, SPLITS, Result, Variant, read_results, result_path
from lib.evaluation.protocols import Scores, score
from lib.evaluation.statistics import Difference, Metric, Sums, difference
from refer.files import Record
from refer.masks import decode_parts
from refer.open import open_data_set
from refer.refer import Index
from refer.splits import default_split_by

# Settings in which trainings on one data set must agree to be compared.
SETTINGS = ("img_size", "batch_size", "steps")

Kinds: TypeAlias = frozenset[str]  # of information in a sentence, of data.sample.expressions.KINDS
LOOKS = frozenset({"shape", *PROPERTIES})


def _names(kind: str, kinds: Kinds) -> bool:
    return kind in kinds


# The groups in which sentences are scored, by what the tables call them; they overlap.
GROUPS: Mapping[str, Callable[[Kinds], bool]] = {
    **{kind: partial(_names, kind) for kind in KINDS},
    "colour alone": lambda kinds: kinds == {"colour"},
    "looks alone": lambda kinds: kinds <= LOOKS,
    "without colour": lambda kinds: "colour" not in kinds,
}


class Sentence(NamedTuple):
    """A scored expression."""

    ref: Record  # the record of its object in the index
    text: str
    kinds: Kinds

    @property
    def image_id(self) -> int:
        """The id of its image."""
        number: int = self.ref["image_id"]
        return number


class Comparison:
    """The results on one data set.

    sentences: by split, in the order of the files and of `Result.counts`. trained: the results by network and seed, in
    the order of the tables. missing: the networks that are not trained yet.
    """

    def __init__(self, root: Path, dataset: str, results: Iterable[Result], compared: Sequence[Variant] = ()) -> None:
        """root: folder of the sample data. results: those on `dataset`. compared: networks that should be among them.

        Raises UserError if the results do not fit the data.
        """
        self.dataset, self.refer = dataset, open_data_set(root, dataset, default_split_by(dataset))
        self.sentences = read_sentences(self.refer, root / "scenes.json")
        self.trained: dict[Variant, dict[int, Result]] = {}
        for result in results:
            by_seed = self.trained.setdefault(result.variant, {})
            if result.seed in by_seed:
                raise UserError(f"there are two results of {name_of(result)}: remove one")
            check_counts(result, self.sentences)
            by_seed[result.seed] = result
        self.missing = [variant for variant in compared if variant not in self.trained]

    @property
    def all_sentences(self) -> list[Sentence]:
        """The sentences of all splits, one after another."""
        return [sentence for of_split in self.sentences.values() for sentence in of_split]

    @property
    def of_recipes(self) -> bool:
        """Whether a network was trained by another recipe than the paper's."""
        return any(variant.recipe for variant in self.trained)

    def counts(self, variant: Variant, seeds: Iterable[int] = (), split: str = "") -> np.ndarray:
        """Return intersections and unions in pixels, (2, seeds, sentences) int64.

        seeds: default: all seeds of the network. split: default: all splits, one after another.
        """
        by_seed = self.trained[variant]
        splits = (split,) if split else self.sentences
        rows = [np.concatenate([by_seed[seed].counts[name] for name in splits], axis=1) for seed in seeds or by_seed]
        return np.stack(rows, axis=1)

    def scores(self, variant: Variant, split: str = "", among: np.ndarray | None = None) -> list[Scores]:
        """Return the scores of a network for every seed; among: (sentences,) bool, the sentences to score."""
        counts = self.counts(variant, split=split)
        chosen = counts if among is None else counts[:, :, among]
        return [score(list(zip(*pairs.tolist(), strict=True))) for pairs in chosen.swapaxes(0, 1)]

    def groups(self) -> dict[str, np.ndarray]:
        """Return the members of each of GROUPS, (sentences,) bool, without empty groups."""
        kinds = [sentence.kinds for sentence in self.all_sentences]
        groups = {name: np.array([belongs(of_sentence) for of_sentence in kinds]) for name, belongs in GROUPS.items()}
        return {name: among for name, among in groups.items() if among.any()}

    def n_images(self, among: np.ndarray | None = None) -> int:
        """Return the number of images of the sentences; among: as in `scores`."""
        ids = np.array([sentence.image_id for sentence in self.all_sentences])
        return len(np.unique(ids if among is None else ids[among]))

    def paired_seeds(self, other: Variant) -> list[int]:
        """Return the seeds of both the paper's network and another one."""
        return [seed for seed in self.trained.get(PAPER, ()) if seed in self.trained.get(other, ())]

    @property
    def rivals(self) -> list[Variant]:
        """The networks that have a seed in common with the paper's network."""
        return [variant for variant in self.trained if variant != PAPER and self.paired_seeds(variant)]

    def paper_minus(self, other: Variant, metric: Metric, among: np.ndarray | None = None) -> Difference:
        """Return the score of the paper's network minus that of a rival; among: as in `scores`."""
        _, images = np.unique([sentence.image_id for sentence in self.all_sentences], return_inverse=True)
        chosen = np.ones(len(images), bool) if among is None else among
        seeds = self.paired_seeds(other)
        ours, theirs = (
            Sums.of(self.counts(variant, seeds)[:, :, chosen], images[chosen], images.max() + 1)
            for variant in (PAPER, other)
        )
        return difference(ours, theirs, metric)

    def load(self, sentence: Sentence) -> tuple[Image.Image, np.ndarray]:
        """Return a sentence's RGB image and its object's mask, (H, W) uint8 of 0 and 1, at the image's size."""
        described = describe_object(self.refer, sentence.ref)
        return open_image_of(described, Path(self.refer.IMAGE_DIR)), decode_parts(described.parts)


def read_sentences(refer: Index, scenes: Path) -> dict[str, list[Sentence]]:
    """Return the sentences of the scored splits, in the order of the files."""
    kinds = read_kinds(scenes, refer.dataset)
    return {
        split: [
            Sentence(ref, sentence["raw"], kinds[sentence["sent_id"]])
            for ref in refer.loadRefs(refer.getRefIds(split=split))
            for sentence in ref["sentences"]
        ]
        for split in SPLITS[refer.dataset]
    }


def read_kinds(scenes: Path, dataset: str) -> dict[int, Kinds]:
    """Return the kinds of information in every sentence of a data set, by sentence id."""
    try:
        entries = json.loads(scenes.read_text(encoding="utf-8"))["sentences"][dataset]
        kinds = {entry["sent_id"]: frozenset(entry["kinds"]) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{scenes} is not of a sample data set ({error!r}): remove the folder, or name another"
        ) from error
    if unknown := frozenset().union(*kinds.values()).difference(KINDS):
        raise UserError(f"{scenes} has unknown kinds of information: {', '.join(sorted(unknown))}")
    return kinds


def check_counts(result: Result, sentences: Mapping[str, Sequence[Sentence]]) -> None:
    """Raise UserError if a result does not have two numbers for every sentence."""
    for split, of_split in sentences.items():
        expected = [len(of_split)] * 2
        lengths = [len(row) for row in result.counts.get(split, ())]
        if lengths != expected:
            raise UserError(
                f"{name_of(result)} has {lengths or 'no'} counts on {split}, but the data have {len(of_split)} "
                f"sentences: expected {expected}. Was it made with other data?"
            )


def name_of(result: Result) -> str:
    """Return the file name of a result, for messages."""
    return result_path(Path(), result.dataset, result.variant, result.seed).name


def read_comparisons(
    folder: Path, root: Path, compared: Mapping[str, Sequence[Variant]] = COMPARED
) -> list[Comparison]:
    """Return all results by data set; draws the sample data into `root` if they are missing.

    compared: the networks to compare, by data set. Raises UserError if there are no results, if they cannot be compared
    with each other, or if they do not fit the data.
    """
    results = read_compared(folder)
    find_sample(root, results[0].sample)
    datasets = dict.fromkeys(result.dataset for result in results)
    return [
        Comparison(root, name, [result for result in results if result.dataset == name], compared.get(name, ()))
        for name in datasets
    ]


def read_compared(folder: Path) -> list[Result]:
    """Return the results in a folder; UserError if they were not made with the same data and settings."""
    try:
        results = read_results(folder)
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder} has a result of an unknown data set or network ({error})") from error
    first: dict[tuple[str, bool], Result] = {}
    for result in results:
        check_same("sample", result, results[0])
        for name in SETTINGS:
            check_same(name, result, first.setdefault((result.dataset, result.variant.halved), result))
    return results


def check_same(name: str, one: Result, other: Result) -> None:
    """Raise UserError if a field of two results differs."""
    values: list[Any] = [getattr(result, name) for result in (one, other)]
    if values[0] != values[1]:
        raise UserError(
            f"{name_of(one)} was made with {name} {values[0]}, but {name_of(other)} with {values[1]}: they cannot be "
            "compared. Keep those of one setting in the folder"
        )


def find_sample(root: Path, sample: dict[str, Any]) -> None:
    """Make the sample data set with these options in `root`, if it is missing; UserError if another one is there."""
    try:
        make_sample(
            root,
            images=sample["images"],
            seed=sample["seed"],
            hard=sample.get("hard", False),
            version=sample.get("version", 1),
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"these are not options of a sample data set: {sample}") from error
    # Another version of the code draws other scenes with the same options.
    present = json.loads((root / NOTE).read_text(encoding="utf-8"))
    if present != sample:
        raise UserError(f"the results are of the sample data set {sample}, but this code draws {present}")
