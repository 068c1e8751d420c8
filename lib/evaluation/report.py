"""What a test found, expression by expression, and the page that shows it; `test.py --report DIR`.

While the network runs, `Report` keeps the compressed prediction of every expression. At the end it reads the numbers
that the scores were made from, sorts the failures (see `kind_of`), chooses examples and writes one self-contained page.
"""

from __future__ import annotations

import base64
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

import utils
from lib.contracts import Batch, Expressions
from lib.evaluation.metrics import Evaluation, Result, score
from lib.evaluation.page import Example, Failures, Part, render
from lib.evaluation.published import Measurement
from lib.files import write_text
from lib.outputs import make_folder
from lib.photo import Pixels, Places, resize_mask
from lib.pictures.panels import evenly_spaced, side_by_side

SUCCESS = 0.5  # IoU from which a prediction is no failure
EXAMPLES = 6  # of the best, the median and the worst
FAILURE_EXAMPLES = 3  # of each kind
JPEG_QUALITY = 85

# Groups of expressions, by where they begin.
WORDS = {**{number: str(number) for number in range(6)}, 6: "6–7", 8: "8–10", 11: "11+"}  # of the sentence
SIZES = {0: "<1", 1: "1–2", 2: "2–5", 5: "5–10", 10: "10–20", 20: "20–40", 40: "40+"}  # percent of the image
IOUS = {start: f"{start}–{start + 10}" for start in range(0, 100, 10)}  # percent

# The kinds of failure, in the order in which `kind_of` asks for them.
KINDS = {
    "no truth": "The object has no pixel at the size that scores are measured at; no prediction can be right.",
    "nothing found": "The prediction has less than 5 % as many pixels as the object.",
    "wrong object": "Less than 10 % of the prediction is on the object, and less than half of the object is covered.",
    "part missed": "The prediction is no larger than the object, and at least half of it is on the object.",
    "too much": "The prediction is larger than the object, and covers at least half of it.",
    "half beside it": "Prediction and object overlap, but more than half of each is outside the other.",
}


class Packed(NamedTuple):
    """A mask in little space."""

    height: int
    width: int
    bits: bytes

    @classmethod
    def of(cls, mask: Places) -> Packed:
        """Pack a mask (H, W) of bool."""
        height, width = mask.shape
        return cls(height, width, zlib.compress(np.packbits(mask).tobytes()))

    def unpack(self, size: Sequence[int]) -> Pixels:
        """Return the mask, resized to `size` (height, width) where that is another, uint8 with 1 on the object."""
        bits = np.frombuffer(zlib.decompress(self.bits), np.uint8)
        mask = np.unpackbits(bits, count=self.height * self.width).reshape(self.height, self.width)
        if mask.shape == tuple(size):
            return mask
        return resize_mask(mask, size)


class Report:
    """Collect what a test finds and write a page about it; a `visit` for `engine.evaluate`.

    Predictions are kept as they were scored, a bit a pixel and compressed: about a kilobyte each, and never more than
    an eighth of a byte a pixel. So the page shows what was measured, whatever arithmetic and batch it came from.
    """

    def __init__(self, folder: str | Path, dataset: Expressions) -> None:
        """dataset: the one whose samples will come. Raises UserError where the folder takes no files."""
        self.folder, self.dataset = Path(folder), dataset
        make_folder(self.folder, "--report")
        self.predictions: dict[int, Packed] = {}  # by the expression's number

    def __call__(self, batch: Batch, _: Tensor, masks: Sequence[Tensor]) -> None:
        """Add a batch; masks: what was predicted, each (H, W) bool."""
        for index, mask in zip(batch.numbers.tolist(), masks, strict=True):
            self.predictions[index] = Packed.of(mask.cpu().numpy())

    def write(self, evaluation: Evaluation, measurement: Measurement) -> None:
        """Write `index.html` into the folder; all processes must call this together.

        evaluation: of all processes, as `engine.evaluate` returned it. Raises UserError where the page cannot be
        written, and where the image of an example cannot be read.
        """
        scores, results = evaluation
        extremes, failures = find_extremes(results, self.dataset.object_of), find_failures(results)
        typical = {
            kind: [found[place] for place in evenly_spaced(len(found), FAILURE_EXAMPLES)]
            for kind, found in failures.items()
        }
        shown = {result.number: result for result in chain(*extremes.values(), *typical.values())}
        # The predictions of the few that are shown come to the main process.
        shares = utils.gather({index: packed for index, packed in self.predictions.items() if index in shown})
        if not utils.is_main():
            return

        predictions = {index: packed for share in shares for index, packed in share.items()}
        examples = {index: self._example(result, predictions[index]) for index, result in shown.items()}
        words = [len(self.dataset.expressions[result.number].text.split()) for result in results]
        sizes = [100 * result.truth / result.image for result in results]
        by_iou = grouped(results, [result.percent for result in results], IOUS)
        page = render(
            scores,
            measurement,
            histogram={label: len(members) for label, members in by_iou.items()},
            by_words=score_parts(grouped(results, words, WORDS)),
            by_size=score_parts(grouped(results, sizes, SIZES)),
            galleries={title: [examples[result.number] for result in found] for title, found in extremes.items()},
            failures=[
                Failures(kind, KINDS[kind], len(found), [examples[result.number] for result in typical[kind]])
                for kind, found in failures.items()
            ],
        )
        write_text(self.folder / "index.html", page)

    def _example(self, result: Result, prediction: Packed) -> Example:
        expression = self.dataset.expressions[result.number]
        image, truth = self.dataset.load(result.number)
        picture = side_by_side(image, expression.text, truth, prediction.unpack(truth.shape))
        content = BytesIO()
        picture.save(content, "JPEG", quality=JPEG_QUALITY, subsampling=0)  # full colour: outlines are thin
        return Example(
            text=expression.text,
            iou=result.percent,
            file_name=self.dataset.image_path(result.number).name,
            ref_id=expression.ref_id,
            sent_id=expression.sent_id,
            jpeg=base64.b64encode(content.getvalue()).decode("ascii"),
            size=picture.size,
        )


def kind_of(result: Result) -> str:
    """Return which of KINDS a failure is."""
    common, predicted, truth = result.intersection, result.predicted, result.truth
    if truth == 0:
        return "no truth"
    if 20 * predicted < truth:
        return "nothing found"
    if 10 * common < predicted and 2 * common < truth:
        return "wrong object"
    if predicted <= truth and 2 * common >= predicted:
        return "part missed"
    if predicted > truth and 2 * common >= truth:
        return "too much"
    return "half beside it"


def find_failures(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Return the results below SUCCESS by their kind; every kind is there."""
    failures: dict[str, list[Result]] = {kind: [] for kind in KINDS}
    for result in results:
        if result.iou < SUCCESS:
            failures[kind_of(result)].append(result)
    return failures


def find_extremes(
    results: Sequence[Result], object_of: Sequence[int], count: int = EXAMPLES
) -> dict[str, list[Result]]:
    """Return the best, the median and the worst results, at most one of an object in each.

    object_of: by the expression's number. Of equal IoU the one with the larger union comes first: it is the best that
    is hardest and the worst that matters most.
    """
    best = sorted(results, key=lambda result: (-result.iou, -result.union, result.number))
    worst = sorted(results, key=lambda result: (result.iou, -result.union, result.number))
    middle = (len(worst) - 1) / 2
    median = [worst[place] for place in sorted(range(len(worst)), key=lambda place: abs(place - middle))]
    orders = {"Best": best, "Around the median": median, "Worst": worst}
    return {title: one_of_each(order, object_of)[:count] for title, order in orders.items()}


def one_of_each(order: Iterable[Result], object_of: Sequence[int]) -> list[Result]:
    """Return the first result of every object, in the order given."""
    first: dict[int, Result] = {}
    for result in order:
        first.setdefault(object_of[result.number], result)
    return list(first.values())


def grouped(results: Sequence[Result], values: Sequence[float], groups: Mapping[int, str]) -> dict[str, list[Result]]:
    """Return results by the label of the group that their value is in, empty groups among them.

    values: one per result, none below the first group. groups: label by where a group begins, in ascending order; the
    last one has no end.
    """
    starts = list(groups)
    members: dict[str, list[Result]] = {label: [] for label in groups.values()}
    for result, value in zip(results, values, strict=True):
        members[groups[starts[bisect_right(starts, value) - 1]]].append(result)
    return members


def score_parts(groups: Mapping[str, Sequence[Result]]) -> list[Part]:
    """Return the scores of every group that is not empty."""
    counts = {label: [(result.intersection, result.union) for result in found] for label, found in groups.items()}
    return [Part(label, score(pairs)) for label, pairs in counts.items() if pairs]
