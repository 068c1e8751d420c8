"""What the tables and pictures are made of: results beside the sentences, images and masks they are about."""

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
from lib.evaluation.metrics import Scores, score
from lib.evaluation.statistics import Difference, Metric, Sums, difference
from refer.files import Record
from refer.masks import decode_parts
from refer.open import open_data_set
from refer.refer import Index
from refer.splits import default_split_by

# What trainings on one data set must share to be compared.
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
    """An expression that was scored."""

    ref: Record  # the object it means, as the index holds it
    text: str
    kinds: Kinds

    @property
    def image_id(self) -> int:
        """The image that it is about."""
        number: int = self.ref["image_id"]
        return number


class Comparison:
    """The results on one data set.

    sentences: by split, in the order of the files, which is that of `Result.counts`. trained: the results by network
    and seed, in the order of the tables. missing: the networks that should be compared and were not trained yet.
    """

    def __init__(self, root: Path, dataset: str, results: Iterable[Result], compared: Sequence[Variant] = ()) -> None:
        """root: folder of the sample data. results: those on `dataset`. compared: networks that should be among them.

        Raises UserError where the results do not fit the data.
        """
        self.dataset, self.refer = dataset, open_data_set(root, dataset, default_split_by(dataset))
        self.sentences = read_sentences(self.refer, root / "scenes.json")
        self.trained: dict[Variant, dict[int, Result]] = {}
        for result in results:
            own = self.trained.setdefault(result.variant, {})
            if result.seed in own:
                raise UserError(f"there are two results of {name_of(result)}: remove one")
            check_counts(result, self.sentences)
            own[result.seed] = result
        self.missing = [variant for variant in compared if variant not in self.trained]

    @property
    def all_sentences(self) -> list[Sentence]:
        """The sentences of all splits, one after another."""
        return [sentence for own in self.sentences.values() for sentence in own]

    def counts(self, variant: Variant, seeds: Iterable[int] = (), split: str = "") -> np.ndarray:
        """Return intersections and unions in pixels, (2, seeds, sentences) int64.

        seeds: all of the network where none is given. split: all of them, one after another, where none is given.
        """
        own = self.trained[variant]
        splits = (split,) if split else self.sentences
        rows = [np.concatenate([own[seed].counts[name] for name in splits], axis=1) for seed in seeds or own]
        return np.stack(rows, axis=1)

    def scores(self, variant: Variant, split: str = "", among: np.ndarray | None = None) -> list[Scores]:
        """Return a network's scores, of every seed; among: (sentences,) bool, those that count."""
        counts = self.counts(variant, split=split)
        chosen = counts if among is None else counts[:, :, among]
        return [score(list(zip(*own.tolist(), strict=True))) for own in chosen.swapaxes(0, 1)]

    def groups(self) -> dict[str, np.ndarray]:
        """Return which sentences belong to each of GROUPS, (sentences,) bool; without groups that are empty."""
        kinds = [sentence.kinds for sentence in self.all_sentences]
        found = {name: np.array([belongs(own) for own in kinds]) for name, belongs in GROUPS.items()}
        return {name: among for name, among in found.items() if among.any()}

    def n_images(self, among: np.ndarray | None = None) -> int:
        """Return how many images the sentences are about; among: as in `scores`."""
        ids = np.array([sentence.image_id for sentence in self.all_sentences])
        return len(np.unique(ids if among is None else ids[among]))

    def paired_seeds(self, other: Variant) -> list[int]:
        """Return the seeds from which both the paper's network and another one were trained."""
        return [seed for seed in self.trained.get(PAPER, ()) if seed in self.trained.get(other, ())]

    @property
    def rivals(self) -> list[Variant]:
        """The networks that the paper's can be compared with, seed by seed."""
        return [variant for variant in self.trained if variant != PAPER and self.paired_seeds(variant)]

    def paper_minus(self, other: Variant, metric: Metric, among: np.ndarray | None = None) -> Difference:
        """Return by how much the paper's network scores higher than a rival; among: as in `scores`."""
        _, images = np.unique([sentence.image_id for sentence in self.all_sentences], return_inverse=True)
        chosen = np.ones(len(images), bool) if among is None else among
        seeds = self.paired_seeds(other)
        ours, theirs = (
            Sums.of(self.counts(variant, seeds)[:, :, chosen], images[chosen], images.max() + 1)
            for variant in (PAPER, other)
        )
        return difference(ours, theirs, metric)

    def load(self, sentence: Sentence) -> tuple[Image.Image, np.ndarray]:
        """Return a sentence's RGB image and its object's mask, (H, W) uint8 of 0 and 1, at their own size."""
        described = describe_object(self.refer, sentence.ref)
        return open_image_of(described, Path(self.refer.IMAGE_DIR)), decode_parts(described.parts)


def read_sentences(refer: Index, scenes: Path) -> dict[str, list[Sentence]]:
    """Return the sentences of the splits that are scored, in the order of the files."""
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
    """Return the kinds of information in every sentence of a data set, by its id."""
    try:
        entries = json.loads(scenes.read_text(encoding="utf-8"))["sentences"][dataset]
        kinds = {entry["sent_id"]: frozenset(entry["kinds"]) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{scenes} is not of a sample data set ({error!r}): remove the folder, or name another"
        ) from error
    if unknown := frozenset().union(*kinds.values()).difference(KINDS):
        raise UserError(f"{scenes} names kinds of information that nobody knows: {', '.join(sorted(unknown))}")
    return kinds


def check_counts(result: Result, sentences: Mapping[str, Sequence[Sentence]]) -> None:
    """Raise UserError where a result does not hold two numbers of every sentence."""
    for split, own in sentences.items():
        found = [len(row) for row in result.counts.get(split, ())]
        if found != [len(own)] * 2:
            raise UserError(
                f"{name_of(result)} counted {found or 'nothing'} on {split}, where the data have {len(own)} "
                f"sentences: expected [{len(own)}, {len(own)}]. Was it made with other data?"
            )


def name_of(result: Result) -> str:
    """Return how messages name a result: by its file."""
    return result_path(Path(), result.dataset, result.variant, result.seed).name


def read_comparisons(
    folder: Path, root: Path, compared: Mapping[str, Sequence[Variant]] = COMPARED
) -> list[Comparison]:
    """Return all results by data set; the sample data are drawn into `root` where they are not there.

    compared: networks by data set that there should be results of. Raises UserError where there are no results, or such
    as cannot be compared with each other or do not fit the data.
    """
    results = read_compared(folder)
    find_sample(root, results[0].sample)
    datasets = dict.fromkeys(result.dataset for result in results)
    return [
        Comparison(root, name, [result for result in results if result.dataset == name], compared.get(name, ()))
        for name in datasets
    ]


def read_compared(folder: Path) -> list[Result]:
    """Return the results of a folder; UserError where they were not made with the same data and settings."""
    try:
        results = read_results(folder)
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder} holds a result of a data set or network that is not compared ({error})") from error
    first: dict[str, Result] = {}
    for result in results:
        check_same("sample", result, results[0])
        for name in SETTINGS:
            check_same(name, result, first.setdefault(result.dataset, result))
    return results


def check_same(name: str, one: Result, other: Result) -> None:
    """Raise UserError where a field of two results differs."""
    values: list[Any] = [getattr(result, name) for result in (one, other)]
    if values[0] != values[1]:
        raise UserError(
            f"{name_of(one)} was made with {name} {values[0]}, but {name_of(other)} with {values[1]}: they cannot be "
            "compared. Keep those of one setting in the folder"
        )


def find_sample(root: Path, sample: dict[str, Any]) -> None:
    """Draw the sample data set with these options into `root`, unless it is there; UserError where another one is."""
    try:
        make_sample(root, images=sample["images"], seed=sample["seed"], hard=sample.get("hard", False))
    except (KeyError, TypeError) as error:
        raise UserError(f"the results name no options of a sample data set, but {sample}") from error
    # Another version of the code draws other scenes with the same options.
    found = json.loads((root / NOTE).read_text(encoding="utf-8"))
    if found != sample:
        raise UserError(f"the results are of the sample data set {sample}, and this code draws {found}")
