"""Several models on the same sentences: by how much one scores higher, on which kinds of sentences, on which most.

Differences are those to the first model, with bootstrap intervals over images: see `lib.evaluation.statistics`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib.contracts import Expressions
from lib.evaluation.page import environment, score_cells
from lib.evaluation.protocols import ALWAYS, Evaluation, name_of
from lib.evaluation.published import Measurement
from lib.evaluation.report import (
    JPEG_QUALITY,
    NO_TARGET,
    OBJECTS,
    SIZES,
    WORDS,
    PackedMask,
    grouped,
    n_objects,
    remove_pictures,
)
from lib.evaluation.sentences import KIND_WORDS, of_kind
from lib.evaluation.statistics import RESAMPLES, Metric, Sums, differences, observed
from lib.files import write_text
from lib.pictures.panels import compared
from lib.scores import AnyScores, formulas, score_names

ALL = "all sentences"
FEWEST_IMAGES = 10  # for an interval: of fewer, a bootstrap says too little about others
EXAMPLES = 6  # of the sentences on which two models differ most, for each side
# By protocol: the mean and the ratio of sums.
METRICS: Mapping[str, Mapping[str, Metric]] = {
    "classic": {"mIoU": Sums.mean_iou, "oIoU": Sums.overall_iou},
    "gres": {"gIoU": Sums.mean_iou, "cIoU": Sums.overall_iou},
    "ref-zom": {"mIoU": Sums.mean_iou, "oIoU": Sums.overall_iou},
}


class Model(NamedTuple):
    """A model and what it predicted."""

    name: str
    evaluation: Evaluation
    masks: Mapping[int, PackedMask]  # by index of the expression; empty if only counts are known


class Row(NamedTuple):
    """The difference of a model to the first one, on a group of sentences."""

    model: str
    group: str
    sentences: int
    images: int
    metric: str
    difference: float  # points
    low: float | None  # ends of the 95 % interval; None for few images
    high: float | None

    @property
    def cell(self) -> str:
        """The difference and its interval as text."""
        if self.low is None or self.high is None:
            return signed(self.difference)
        return f"{signed(self.difference)} ({signed(self.low)} to {signed(self.high)})"


class Example(NamedTuple):
    """A sentence with the masks of all models."""

    text: str
    ious: Mapping[str, float]  # percent, by model
    file_name: str
    sent_id: int
    jpeg: str  # base64; without the predictions of models of which only counts are known
    size: tuple[int, int]


def signed(value: float) -> str:
    """Return a difference with its sign."""
    return f"{value:+.2f}".replace("-", "−")


class Comparison:
    """Compares models on the sentences of a split; all of them were scored with one protocol at one size."""

    def __init__(self, models: Sequence[Model], dataset: Expressions) -> None:
        """models: two or more."""
        self.models, self.dataset = models, dataset
        self.protocol = models[0].evaluation.counting.protocol
        self.counted = {model.name: model.evaluation.counted for model in models}
        self.results = self.counted[models[0].name]
        ids = [dataset.expressions[result.number].image_id for result in self.results]
        _, self.images = np.unique(ids, return_inverse=True)
        # Ref-ZOM's means leave out the sentences without a target.
        self.scored = np.array([self.protocol != "ref-zom" or not result.no_target for result in self.results])

    def groups(self) -> dict[str, np.ndarray]:
        """Return which sentences belong to each group, (sentences,) bool; groups overlap, none is empty."""
        expressions = [self.dataset.expressions[result.number] for result in self.results]
        no_target = NO_TARGET if any(result.no_target for result in self.results) else {}
        kinds = {f"with {kind}": np.array(own) for kind, own in of_kind([one.text for one in expressions]).items()}
        words = self._grouped([len(one.text.split()) for one in expressions], WORDS, "words: {}")
        sizes = [-1 if one.no_target else 100 * one.truth / one.image for one in self.results]
        numbers = [-1 if one.no_target else n_objects(own) for one, own in zip(self.results, expressions, strict=True)]
        groups = {ALL: np.ones(len(self.results), bool), **kinds, **words}
        groups |= self._grouped(sizes, SIZES | no_target, "object of {} % of the image")
        if self.protocol != "classic":
            groups |= self._grouped(numbers, OBJECTS | no_target, "objects: {}")
        return {name: own & self.scored for name, own in groups.items() if (own & self.scored).any()}

    def _grouped(self, values: Sequence[float], groups: Mapping[int, str], title: str) -> dict[str, np.ndarray]:
        found = grouped(range(len(values)), values, dict(sorted(groups.items())))
        names = {label: label if label in NO_TARGET.values() else title.format(label) for label in found}
        return {names[label]: np.isin(np.arange(len(values)), own) for label, own in found.items()}

    def rows(self) -> list[Row]:
        """Return the differences of every model to the first one, on every group, by every metric."""
        groups, metrics = self.groups(), METRICS[self.protocol]
        sums = {
            model.name: {group: self._sums(model.name, own) for group, own in groups.items()} for model in self.models
        }
        first, *others = sums
        rows, pairs = [], []
        for name, (group, among), metric in product(others, groups.items(), metrics):
            pair = sums[name][group], sums[first][group], metrics[metric]
            n_images = len(np.unique(self.images[among]))
            mean = float(observed(*pair).mean())
            rows.append(Row(name, group, int(among.sum()), n_images, metric, mean, None, None))
            pairs.append(pair)
        large = [place for place, row in enumerate(rows) if row.images >= FEWEST_IMAGES]
        found = differences([pairs[place] for place in large])  # of all rows at once: drawing takes the longest
        for place, own in zip(large, found, strict=True):
            rows[place] = rows[place]._replace(low=own.low, high=own.high)
        return rows

    def _sums(self, name: str, among: np.ndarray) -> Sums:
        rows = self.counted[name]
        counts = np.array([[[row.intersection for row in rows]], [[row.union for row in rows]]])
        ious = np.array([[row.iou for row in rows]])
        return Sums.of(counts[:, :, among], self.images[among], int(self.images.max()) + 1, ious[:, among])

    def examples(self) -> dict[str, list[Example]]:
        """Return the sentences on which each model and the first one differ most, at most one of an object."""
        first, *others = self.models
        galleries = {}
        for model in others:
            pairs = zip(self.counted[model.name], self.counted[first.name], strict=True)
            gains = np.array([own.iou - base.iou for own, base in pairs])
            for word, sign in (("better", 1), ("worse", -1)):
                order = [
                    place for place in np.argsort(-sign * gains, kind="stable").tolist() if sign * gains[place] > 0
                ]
                title = f"{model.name} {word} than {first.name}"
                galleries[title] = [self._example(place) for place in self._one_per_object(order)]
        return galleries

    def _one_per_object(self, places: Sequence[int]) -> list[int]:
        by_object: dict[int, int] = {}
        for place in places:
            by_object.setdefault(self.dataset.object_of[self.results[place].number], place)
            if len(by_object) == EXAMPLES:
                break
        return list(by_object.values())

    def _example(self, place: int) -> Example:
        number = self.results[place].number
        expression = self.dataset.expressions[number]
        image, truth = self.dataset.load(number)
        masks = {model.name: model.masks[number].unpack(truth.shape) for model in self.models if model.masks}
        picture, content = compared(image, expression.text, truth, masks), BytesIO()
        picture.save(content, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        return Example(
            text=expression.text,
            ious={name: rows[place].percent for name, rows in self.counted.items()},
            file_name=self.dataset.image_path(number).name,
            sent_id=expression.sent_id,
            jpeg=base64.b64encode(content.getvalue()).decode("ascii"),
            size=picture.size,
        )

    def scores(self) -> dict[str, AnyScores]:
        """Return the scores of every model by name, each followed by those of other rules for "no target".

        Last come those of always answering "no target", if that is possible.
        """
        found: dict[str, AnyScores] = {}
        always = name_of(ALWAYS)
        last: dict[str, AnyScores] = {}  # the same for every model
        for model in self.models:
            own, *others = model.evaluation.rows().items()
            found[model.name] = own[1].as_dict()
            for rule, scores in others:
                if rule == always:
                    last[rule] = scores.as_dict()
                else:
                    found[f"{model.name}, {rule}"] = scores.as_dict()
        return found | last

    def as_dict(self, rows: Sequence[Row]) -> dict[str, object]:
        """Return what `--json` writes: the scores of every model, and the differences."""
        return {"models": self.scores(), "differences": [row._asdict() for row in rows]}

    def write_page(self, folder: str | Path, rows: Sequence[Row], measurement: Measurement) -> None:
        """Write `index.html`, and remove the pictures of an earlier report.

        Raises UserError if it cannot be written, or an image cannot be read.
        """
        metrics = list(METRICS[self.protocol])
        cells: dict[str, dict[str, list[str]]] = {}
        for row in rows:
            start = [f"{row.sentences:,}", f"{row.images:,}"]
            cells.setdefault(row.model, {}).setdefault(row.group, start).append(row.cell)
        page = (
            environment()
            .get_template("comparison.html")
            .render(
                measurement=measurement,
                first=self.models[0].name,
                heads=score_names(self.protocol),
                scores={name: score_cells(scores) for name, scores in self.scores().items()},
                formulas=formulas(self.protocol),
                metrics=metrics,
                differences=cells,
                resamples=RESAMPLES,
                fewest=FEWEST_IMAGES,
                kind_words=KIND_WORDS,
                galleries=self.examples(),
            )
        )
        write_text(Path(folder) / "index.html", page)
        remove_pictures(Path(folder))
