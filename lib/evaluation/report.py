"""The results of a test, expression by expression, as an HTML page: `test.py --report DIR`.

`Report` draws the prediction of every expression while the network runs, in threads. At the end it takes the results
that the scores were computed from, classifies the failures (see `failure_type`), chooses examples and writes the page,
which loads a picture when it is looked at.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from torch import Tensor

import utils
from errors import UserError
from lib.contracts import Batch, Expression, Expressions, Output
from lib.evaluation.background import Background
from lib.evaluation.page import PICTURES, Example, Failures, Grouping, Part, Row, render_page
from lib.evaluation.protocols import PROTOCOLS, Counting, Evaluation, Result, rule_of
from lib.evaluation.published import Measurement
from lib.files import write_atomically, write_text
from lib.outputs import make_folder
from lib.photo import Pixels, Places, resize_mask
from lib.pictures.panels import evenly_spaced, in_a_row, share_of, views_of
from lib.texts import showable

T = TypeVar("T")

SUCCESS = 0.5  # minimum IoU of a success
EXAMPLES = 6  # each of the best, the median and the worst
FAILURE_EXAMPLES = 3  # per type
JPEG_QUALITY = 85
MOST_AT_ONCE = 32  # predictions that are kept until they are drawn together
RUN = "report-"  # begins the name of a run's folder of pictures

# Labels of groups of expressions, by the lower end of each group.
WORDS = {**{number: str(number) for number in range(6)}, 6: "6–7", 8: "8–10", 11: "11+"}  # words of the sentence
SIZES = {0: "<1", 1: "1–2", 2: "2–5", 5: "5–10", 10: "10–20", 20: "20–40", 40: "40+"}  # percent of the image
IOUS = {start: f"{start}–{start + 10}" for start in range(0, 100, 10)}  # percent

NO_TARGET = {-1: "no target"}  # instead of a size or a number of objects
OBJECTS = {1: "one", 2: "two", 3: "more"}

# The types of failure, in the order in which `failure_type` tests for them.
FALSE_ALARM = "false alarm"
FAILURE_TYPES = {
    FALSE_ALARM: "The sentence means nothing in the image, but the prediction is not empty.",
    "no truth": "The target mask is empty at the size at which masks are compared; no prediction can be right.",
    "empty prediction": "The prediction has less than 5 % as many pixels as the object.",
    "wrong object": "Less than 10 % of the prediction is on the object, and less than half of the object is covered.",
    "under-segmented": "The prediction is no larger than the object, and at least half of it is on the object.",
    "over-segmented": "The prediction is larger than the object, and covers at least half of it.",
    "partial overlap": "Prediction and object overlap, but more than half of each is outside the other.",
}


class PackedMask(NamedTuple):
    """A mask, compressed."""

    height: int
    width: int
    bits: bytes

    @classmethod
    def of(cls, mask: Places) -> PackedMask:
        """Pack a mask (H, W) of bool."""
        height, width = mask.shape
        return cls(height, width, zlib.compress(np.packbits(mask).tobytes()))

    def unpack(self, size: Sequence[int]) -> Pixels:
        """Return the mask, uint8 with 1 on the object, resized to `size` (height, width) if it differs."""
        bits = np.frombuffer(zlib.decompress(self.bits), np.uint8)
        mask = np.unpackbits(bits, count=self.height * self.width).reshape(self.height, self.width)
        if mask.shape == tuple(size):
            return mask
        return resize_mask(mask, size)


class Report:
    """Draws the predictions of a test and writes a page about them; pass it to `engine.evaluate` as `on_batch`.

    Predictions are drawn as they were scored, so the pictures show exactly what was measured. Those of every run are in
    a folder of its own: an earlier page and its pictures stay whole until the new page is written.
    """

    def __init__(self, folder: str | Path, dataset: Expressions) -> None:
        """Make the folders; all processes must call this together.

        dataset: the one that is tested. Raises UserError if the folder cannot be written to.
        """
        self.folder, self.dataset = Path(folder), dataset
        for one in (self.folder, self.folder / PICTURES):
            make_folder(one, "--report")
        self._pictures = utils.from_main(new_pictures(self.folder) if utils.is_main() else "")
        self._threads = Background()
        self._kept: dict[int, Places] = {}  # by index: predictions for the object that was added last

    def __call__(self, batch: Batch, _: Output, masks: Sequence[Tensor]) -> None:
        """Add a batch; masks: the predictions, each (H, W) bool."""
        for index, mask in zip(batch.numbers.tolist(), masks, strict=True):
            self.add(index, mask.cpu().numpy())

    def add(self, index: int, mask: Places) -> None:
        """Add the prediction of an expression, (H, W) bool. Raises UserError if a picture cannot be made or written.

        The sentences of an object are drawn together if they are added one after another.
        """
        object_of = self.dataset.object_of
        if len(self._kept) >= MOST_AT_ONCE or any(object_of[kept] != object_of[index] for kept in self._kept):
            self._begin_to_draw()
        self._kept[index] = mask

    def _begin_to_draw(self) -> None:
        kept, self._kept = self._kept, {}
        if kept:
            self._threads.add(partial(self._draw, kept))

    def _draw(self, predictions: Mapping[int, Places]) -> None:
        """Write the pictures of sentences about one object; predictions: by index of the expression."""
        image, truth = self.dataset.load(next(iter(predictions)))
        shared = share_of(views_of(image), truth)
        for index, mask in predictions.items():
            prediction = resize_mask(mask.astype(np.uint8), truth.shape)
            picture = in_a_row(shared, prediction)  # the page has the sentence as text
            # Subsampled colour would blur thin outlines.
            save = partial(picture.save, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
            write_atomically(self.folder / self._picture(index), save, durable=False)

    def _picture(self, index: int) -> str:
        """Return the name of an expression's picture, relative to the page."""
        return f"{self._pictures}/{index:06d}.jpg"

    def _finish_pictures(self) -> None:
        self._begin_to_draw()
        self._threads.finish()

    def write(self, evaluation: Evaluation, measurement: Measurement) -> None:
        """Write `index.html` into the folder, and remove older pictures; all processes must call this together.

        evaluation: the result of `engine.evaluate`. Raises UserError if the page cannot be written; and in all
        processes if a picture cannot be written, or an image cannot be read.
        """
        utils.together(self._finish_pictures)
        if utils.is_main():
            write_text(self.folder / "index.html", self._page(evaluation, measurement))
            remove_pictures(self.folder, but=self._pictures)

    def _page(self, evaluation: Evaluation, measurement: Measurement) -> str:
        results = evaluation.counted
        extremes = best_median_worst(results, self.dataset.object_of)
        shown = {result.number for members in extremes.values() for result in members}
        with_target = [result for result in results if not result.no_target]
        by_iou = grouped(with_target, [result.percent for result in with_target], IOUS)
        kinds = find_failures(results)
        if evaluation.counting.protocol == "classic":
            del kinds[FALSE_ALARM]
        return render_page(
            {name: scores.as_dict() for name, scores in evaluation.rows().items()},
            measurement,
            histogram={label: len(members) for label, members in by_iou.items()},
            groupings=list(self._groupings(evaluation)),
            galleries={title: list(map(self._example, members)) for title, members in extremes.items()},
            failures=[
                Failures(kind, FAILURE_TYPES[kind], len(members), self._typical(members, shown))
                for kind, members in kinds.items()
            ],
            sentences=list(map(self._row, results)),
        )

    def _typical(self, failures: Sequence[Result], shown: set[int]) -> list[Example]:
        """Return a few failures that are not shown already."""
        left = [result for result in failures if result.number not in shown]
        return [self._example(left[place]) for place in evenly_spaced(len(left), FAILURE_EXAMPLES)]

    def _groupings(self, evaluation: Evaluation) -> Iterator[Grouping]:
        """Yield the groups of expressions that get a table and a chart."""
        results, counting = evaluation.results, evaluation.counting
        expressions = [self.dataset.expressions[result.number] for result in results]
        words = [len(expression.text.split()) for expression in expressions]
        sizes = [-1 if result.no_target else 100 * result.truth / result.image for result in results]
        no_target = NO_TARGET if any(result.no_target for result in results) else {}
        by_words = score_parts(grouped(results, words, WORDS), counting)
        yield Grouping("By length of the sentence", "words", by_words)
        by_size = score_parts(grouped(results, sizes, no_target | SIZES), counting)
        yield Grouping("By size of the object", "percent of the image", by_size)
        if counting.protocol != "classic":
            numbers = [-1 if one.no_target else n_objects(own) for one, own in zip(results, expressions, strict=True)]
            by_number = score_parts(grouped(results, numbers, no_target | OBJECTS), counting)
            yield Grouping("By number of objects", "objects", by_number)

    def _example(self, result: Result) -> Example:
        expression = self.dataset.expressions[result.number]
        return Example(
            text=expression.text,
            iou=result.percent,
            file_name=self.dataset.image_path(result.number).name,
            ref_id=expression.ref_id,
            sent_id=expression.sent_id,
            picture=self._picture(result.number),
        )

    def _row(self, result: Result) -> Row:
        text, category = self.dataset.expressions[result.number].text, self.dataset.category(result.number)
        size = 100 * result.truth / result.image
        picture = self._picture(result.number)
        return Row(showable(text), round(result.percent, 2), round(size, 2), showable(category), picture)


def new_pictures(folder: Path) -> str:
    """Make a folder for the pictures of a run, and return its name relative to the page."""
    number = 1
    while True:
        name = f"{PICTURES}/{RUN}{number}"
        try:
            (folder / name).mkdir()
            return name
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UserError(f"--report {folder / name} cannot be made ({error.strerror or error})") from error


def remove_pictures(folder: Path, but: str = "") -> None:
    """Remove the pictures of earlier runs, and of runs that were interrupted; what others put there stays.

    but: the folder of pictures to keep, relative to the page.
    """
    for run in (folder / PICTURES).glob(f"{RUN}[0-9]*"):
        if run == folder / but:
            continue
        for picture in chain(run.glob("[0-9]*.jpg"), run.glob(".[0-9]*.jpg.*.tmp")):
            with suppress(OSError):
                picture.unlink()
        with suppress(OSError):  # it holds something else
            run.rmdir()


def failure_type(result: Result) -> str:
    """Return the name of a failure's type, one of FAILURE_TYPES."""
    common, predicted, truth = result.intersection, result.predicted, result.truth
    if result.no_target:
        return FALSE_ALARM
    if truth == 0:
        return "no truth"
    if 20 * predicted < truth:
        return "empty prediction"
    if 10 * common < predicted and 2 * common < truth:
        return "wrong object"
    if predicted <= truth and 2 * common >= predicted:
        return "under-segmented"
    if predicted > truth and 2 * common >= truth:
        return "over-segmented"
    return "partial overlap"


def find_failures(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Return the results below SUCCESS by type; types without a failure have an empty list."""
    failures: dict[str, list[Result]] = {kind: [] for kind in FAILURE_TYPES}
    for result in results:
        if result.iou < SUCCESS:
            failures[failure_type(result)].append(result)
    return failures


def best_median_worst(
    results: Sequence[Result], object_of: Sequence[int], count: int = EXAMPLES
) -> dict[str, list[Result]]:
    """Return the best, the median and the worst results, by title: at most one per object in each, none in two of them.

    object_of: the index of the object, by index of the expression. Results of equal IoU are sorted by union, largest
    first: of good results these are the hardest, of bad ones the most relevant.
    """
    best = sorted(results, key=lambda result: (-result.iou, -result.union, result.number))
    worst = sorted(results, key=lambda result: (result.iou, -result.union, result.number))
    middle = (len(worst) - 1) / 2
    median = [worst[position] for position in sorted(range(len(worst)), key=lambda position: abs(position - middle))]
    chosen: dict[str, list[Result]] = {}
    for title, order in {"Best": best, "Worst": worst, "Around the median": median}.items():
        shown = {result.number for members in chosen.values() for result in members}
        left = (result for result in order if result.number not in shown)
        chosen[title] = one_per_object(left, object_of)[:count]
    return {title: chosen[title] for title in ("Best", "Around the median", "Worst")}


def one_per_object(order: Iterable[Result], object_of: Sequence[int]) -> list[Result]:
    """Return the first result of every object, in the given order."""
    first: dict[int, Result] = {}
    for result in order:
        first.setdefault(object_of[result.number], result)
    return list(first.values())


def grouped(results: Sequence[T], values: Sequence[float], groups: Mapping[int, str]) -> dict[str, list[T]]:
    """Return the results by label of the group that their value belongs to; empty groups are included.

    values: one per result, none below the first group. groups: labels by the lower end of each group, in ascending
    order; the last group has no upper end.
    """
    starts = list(groups)
    members: dict[str, list[T]] = {label: [] for label in groups.values()}
    for result, value in zip(results, values, strict=True):
        members[groups[starts[bisect_right(starts, value) - 1]]].append(result)
    return members


def n_objects(expression: Expression) -> int:
    """Return how many objects an expression means."""
    return len(expression.ann_id) if isinstance(expression.ann_id, tuple) else 1


def score_parts(groups: Mapping[str, Sequence[Result]], counting: Counting) -> list[Part]:
    """Return the scores of every group that is not empty."""
    score = PROTOCOLS[counting.protocol]
    rules = {label: rule_of(members, counting) for label, members in groups.items() if members}
    return [Part(label, score(groups[label], rule).as_dict()) for label, rule in rules.items()]
