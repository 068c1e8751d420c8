"""The metrics of the field: mean IoU, overall IoU and precision at IoU thresholds.

Protocol of the published table: every expression is one sample, and its IoU is 0 if the union is empty.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import utils
from errors import UserError
from lib.network.resize import predicted_object, upsample
from lib.scores import SCORE_NAMES, RoundedScores, score_values, two_decimals
from lib.variants import THRESHOLDS


class Result(NamedTuple):
    """The pixel counts of one expression, at the size of its target."""

    number: int  # index of the expression in its data set
    intersection: int
    union: int
    predicted: int
    truth: int
    image: int

    @property
    def iou(self) -> float:
        """The IoU, 0 to 1."""
        return iou(self.intersection, self.union)

    @property
    def percent(self) -> float:
        """The IoU in percent, rounded once: exactly 50 for one half."""
        return iou(100 * self.intersection, self.union)


class Scores(NamedTuple):
    """Scores of a split, in percent."""

    n_expressions: int
    mean_iou: float
    overall_iou: float
    precision: dict[float, float]  # by threshold: percentage of samples with at least that IoU

    def table(self) -> str:
        """Return the row of the published table as text, with two decimals."""
        widths = [max(len(name), 6) for name in SCORE_NAMES]
        rows = (SCORE_NAMES, two_decimals(score_values(self.as_dict())))
        return "\n".join("  ".join(map(str.rjust, cells, widths)) for cells in rows)

    def as_dict(self) -> RoundedScores:
        """Return plain types for JSON, rounded to two decimals as in the published table."""
        return {
            "n_expressions": self.n_expressions,
            "mean_iou": round(self.mean_iou, 2),
            "overall_iou": round(self.overall_iou, 2),
            "precision": {str(threshold): round(value, 2) for threshold, value in self.precision.items()},
        }


def at_target_size(logits: Tensor, target: Tensor | Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits and targets of a batch at the targets' size, in one or more parts.

    logits: (B, 2, H, W). target: (B, H, W), or one (h, w) per sample. A part is a pair of logits (b, 2, h, w) and
    targets (b, h, w), both on the logits' device; the order of the samples is kept.
    """
    if isinstance(target, Tensor) and target.shape[-2:] == logits.shape[-2:]:
        yield logits, target.to(logits.device, non_blocking=True)
    else:  # targets at the sizes of their images
        for sample_logits, sample_target in zip(logits, target, strict=True):
            yield upsample(sample_logits[None], sample_target.shape), sample_target[None].to(logits.device)


class Evaluation(NamedTuple):
    """The scores of a split, and the pixel counts they were computed from."""

    scores: Scores
    results: list[Result]  # of every expression, in the order of the data set


def score(counts: Sequence[tuple[int, int]]) -> Scores:
    """Return the scores of samples. counts: intersection and union of each, in pixels. ValueError if there are none."""
    if not counts:
        raise ValueError("no sample was counted: there is nothing to score")
    ious = [iou(*sample) for sample in counts]
    total_union = sum(union for _, union in counts)
    overall = sum(intersection for intersection, _ in counts) / total_union if total_union else 0.0
    precision = {t: 100 * sum(value >= t for value in ious) / len(ious) for t in THRESHOLDS}
    return Scores(len(ious), 100 * math.fsum(ious) / len(ious), 100 * overall, precision)


def iou(intersection: int, union: int) -> float:
    """Return a sample's IoU, 0 to 1; 0 where the union is empty."""
    return intersection / union if union else 0.0


class Metrics:
    """Counts pixels sample by sample. The scores do not depend on the batch size or the number of processes.

    Only integers are kept, and the mean over samples is an exactly rounded sum, so the order of samples has no effect.
    """

    def __init__(self) -> None:
        self.numbers: list[Tensor] = []  # (B,) int64 each: indices of the expressions
        self.counts: list[Tensor] = []  # (B, 5) int64 each: the other fields of Result
        self.not_finite: int | Tensor = 0  # samples whose logits are infinite or NaN

    def update(self, logits: Tensor, target: Tensor | Sequence[Tensor], numbers: Tensor) -> list[Tensor]:
        """Add a batch; return the predicted masks of its samples, each (h, w) bool of its target's size.

        logits: (B, 2, H, W). target, numbers: as in `Batch`.
        """
        masks: list[Tensor] = []
        self.numbers.append(numbers)
        for measured, truth in at_target_size(logits, target):
            predicted = predicted_object(measured)
            self.counts.append(count_pixels(predicted, truth.bool()))
            self.not_finite = self.not_finite + (~measured.isfinite().flatten(1).all(1)).sum()
            masks += predicted
        return masks

    def reduce(self) -> None:
        """Collect the samples of all processes; afterwards every process computes the same scores."""
        numbers, counts = (torch.cat(parts).cpu() if parts else None for parts in (self.numbers, self.counts))
        gathered = utils.gather((numbers, counts))
        self.numbers = [numbers for numbers, _ in gathered if numbers is not None]
        self.counts = [counts for _, counts in gathered if counts is not None]
        self.not_finite = sum(utils.gather(int(self.not_finite)))

    def compute(self) -> Evaluation:
        """Return the scores and results of all samples so far. Raises ValueError if there are none.

        Raises UserError if any logits are infinite or NaN: they would be scored as wrong predictions.
        """
        numbers = torch.cat(self.numbers).tolist() if self.numbers else []
        counts = torch.cat(self.counts).tolist() if self.counts else []
        if self.not_finite:
            raise UserError(
                f"the network's output is infinite or NaN for {int(self.not_finite):,} of {len(counts):,} expressions, "
                "so there is no score. With --precision fp16, try bf16 or fp32; otherwise use other weights"
            )
        results = sorted(Result(number, *row) for number, row in zip(numbers, counts, strict=True))
        return Evaluation(score([(result.intersection, result.union) for result in results]), results)


def count_pixels(predicted: Tensor, truth: Tensor) -> Tensor:
    """Return the pixels in every sample's intersection, union, prediction, truth and image, (B, 5) int64.

    predicted, truth: (B, H, W) bool.
    """
    columns = [mask.flatten(1).sum(1) for mask in (predicted & truth, predicted | truth, predicted, truth)]
    return torch.stack([*columns, torch.full_like(columns[0], truth[0].numel())], dim=1)
