"""The field's numbers: mean IoU, overall IoU and precision at IoU thresholds.

Protocol of the published table: every expression is one sample, IoU is 0 where the union is empty.
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
    """One expression's numbers, in pixels at the size that scores are measured at."""

    number: int  # of the expression in its data set
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
        """The IoU in percent, rounded once: exactly 50 if it is a half."""
        return iou(100 * self.intersection, self.union)


class Scores(NamedTuple):
    """Scores of a split, in percent."""

    n_expressions: int
    mean_iou: float
    overall_iou: float
    precision: dict[float, float]  # by threshold: share of samples with at least that IoU

    def table(self) -> str:
        """Return the published table's row as text, two decimals."""
        widths = [max(len(name), 6) for name in SCORE_NAMES]
        rows = (SCORE_NAMES, two_decimals(score_values(self.as_dict())))
        return "\n".join("  ".join(map(str.rjust, cells, widths)) for cells in rows)

    def as_dict(self) -> RoundedScores:
        """Return plain types for JSON, rounded to the two decimals of the published table."""
        return {
            "n_expressions": self.n_expressions,
            "mean_iou": round(self.mean_iou, 2),
            "overall_iou": round(self.overall_iou, 2),
            "precision": {str(threshold): round(value, 2) for threshold, value in self.precision.items()},
        }


def at_target_size(logits: Tensor, target: Tensor | Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a batch's logits and targets at the size that they are compared at, in one or more parts.

    logits: (B, 2, H, W). target: (B, H, W), or for every sample one of its image's own size. A part is (b, 2, h, w)
    and (b, h, w), both on the logits' device; the order of the samples is kept.
    """
    if isinstance(target, Tensor) and target.shape[-2:] == logits.shape[-2:]:
        yield logits, target.to(logits.device, non_blocking=True)
    else:  # targets at their images' own sizes
        for sample_logits, own in zip(logits, target, strict=True):
            yield upsample(sample_logits[None], own.shape), own[None].to(logits.device)


class Evaluation(NamedTuple):
    """What a split was scored with, and what the scores were made from."""

    scores: Scores
    results: list[Result]  # of every expression, in the data set's order


def score(counts: Sequence[tuple[int, int]]) -> Scores:
    """Return the scores of samples, of each its intersection and union in pixels; ValueError where there are none."""
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
    """Count pixels sample by sample; the same numbers come out for any batch size and number of processes.

    Only integers are kept, and the mean over samples is an exactly rounded sum, so no order of samples shows.
    """

    def __init__(self) -> None:
        self.numbers: list[Tensor] = []  # (B,) int64 each, of the expressions
        self.counts: list[Tensor] = []  # (B, 5) int64 each: the other fields of Result
        self.broken: int | Tensor = 0  # samples whose logits are infinite or NaN

    def update(self, logits: Tensor, target: Tensor | Sequence[Tensor], numbers: Tensor) -> list[Tensor]:
        """Add a batch and return the predicted masks of its samples, each (h, w) bool of its target's size.

        logits: (B, 2, H, W). target, numbers: as in `Batch`.
        """
        masks: list[Tensor] = []
        self.numbers.append(numbers)
        for measured, truth in at_target_size(logits, target):
            predicted = predicted_object(measured)
            self.counts.append(count(predicted, truth.bool()))
            self.broken = self.broken + (~measured.isfinite().flatten(1).all(1)).sum()
            masks += predicted
        return masks

    def reduce(self) -> None:
        """Collect the samples of all processes; afterwards every process computes the same scores."""
        numbers, counts = (torch.cat(parts).cpu() if parts else None for parts in (self.numbers, self.counts))
        shares = utils.gather((numbers, counts))
        self.numbers = [own for own, _ in shares if own is not None]
        self.counts = [own for _, own in shares if own is not None]
        self.broken = sum(utils.gather(int(self.broken)))

    def compute(self) -> Evaluation:
        """Return the scores of everything counted so far, and its rows; raises ValueError if that is nothing.

        Raises UserError if logits are infinite or NaN: they would pass for wrong answers.
        """
        numbers = torch.cat(self.numbers).tolist() if self.numbers else []
        counts = torch.cat(self.counts).tolist() if self.counts else []
        if self.broken:
            raise UserError(
                f"{int(self.broken):,} of {len(counts):,} answers of the network are infinite or not a number, so "
                "there is no score. With --precision fp16 try bf16 or fp32; otherwise take other weights"
            )
        results = sorted(Result(number, *row) for number, row in zip(numbers, counts, strict=True))
        return Evaluation(score([(result.intersection, result.union) for result in results]), results)


def count(predicted: Tensor, truth: Tensor) -> Tensor:
    """Return the pixels of every sample's intersection, union, prediction, truth and image, (B, 5) int64.

    predicted, truth: (B, H, W) bool.
    """
    columns = [mask.flatten(1).sum(1) for mask in (predicted & truth, predicted | truth, predicted, truth)]
    return torch.stack([*columns, torch.full_like(columns[0], truth[0].numel())], dim=1)
