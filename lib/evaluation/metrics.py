"""Counting pixels, sample by sample: what the numbers of `lib.evaluation.protocols` are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

import utils
from errors import UserError
from lib.evaluation.protocols import NO_ANSWER, Counting, Evaluation, Result, evaluation_of
from lib.network.resize import predicted_object, upsample


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


class Metrics:
    """Counts pixels sample by sample. The scores do not depend on the batch size or the number of processes.

    Only integers are kept, and the mean over samples is an exactly rounded sum, so the order of samples has no effect.
    """

    def __init__(self, counting: Counting | None = None) -> None:
        """counting: the protocol; None for the classic one."""
        self.counting = counting or Counting()
        self.numbers: list[Tensor] = []  # (B,) int64 each: indices of the expressions
        self.counts: list[Tensor] = []  # (B, 6) int64 each: the other fields of Result, up to `answer`
        self.not_finite: int | Tensor = 0  # samples with a logit, of a pixel or of the head, that is infinite or NaN

    def update(
        self, logits: Tensor, target: Tensor | Sequence[Tensor], numbers: Tensor, no_target: Tensor | None = None
    ) -> list[Tensor]:
        """Add a batch; return the masks of its samples that count, each (h, w) bool of its target's size.

        logits: (B, 2, H, W). target, numbers: as in `Batch`. no_target: as in `Output`. A mask that is called empty
        has no pixel.
        """
        predicted: list[Tensor] = []
        counts: list[Tensor] = []
        finite: list[Tensor] = []  # (b,) bool each
        for measured, truth in at_target_size(logits, target):
            found = predicted_object(measured)
            counts.append(count_pixels(found, truth.bool()))
            finite.append(measured.isfinite().flatten(1).all(1))
            predicted += found
        rows = torch.cat(counts)
        answers = torch.full_like(rows[:, :1], NO_ANSWER)
        usable = torch.cat(finite)
        if no_target is not None:
            usable &= no_target.isfinite().all(1)
            answers = (no_target[:, 1:] > no_target[:, :1]).to(answers)
        self.not_finite = self.not_finite + (~usable).sum()
        self.numbers.append(numbers)
        self.counts.append(torch.cat([rows, answers], dim=1))
        return self._emptied(predicted, rows[:, 2], None if no_target is None else answers[:, 0])

    def _emptied(self, masks: list[Tensor], areas: Tensor, answers: Tensor | None) -> list[Tensor]:
        """Return masks without the pixels of those that are called empty; areas, answers: (B,) int64."""
        if self.counting.protocol == "classic":
            return masks
        if answers is None:
            pixels = self.counting.no_target_pixels if self.counting.protocol == "gres" else 1
            kept = areas >= pixels
        else:
            kept = answers == 0
        return [mask & keep for mask, keep in zip(masks, kept, strict=True)]

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
        results = sorted(
            Result(number, *row)._replace(no_target=self.counting.means_nothing(number))
            for number, row in zip(numbers, counts, strict=True)
        )
        return evaluation_of(results, self.counting)


def count_pixels(predicted: Tensor, truth: Tensor) -> Tensor:
    """Return the pixels in every sample's intersection, union, prediction, truth and image, (B, 5) int64.

    predicted, truth: (B, H, W) bool.
    """
    columns = [mask.flatten(1).sum(1) for mask in (predicted & truth, predicted | truth, predicted, truth)]
    return torch.stack([*columns, torch.full_like(columns[0], truth[0].numel())], dim=1)
