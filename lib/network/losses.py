"""The training loss: weighted cross-entropy of the mask, and an alignment loss at every stage (arXiv 2408.07539).

Not in the paper are the dice losses of the mask, instead of the cross-entropy or in addition to it, other losses of
alignment, and the loss of masked samples (MaskRIS, arXiv 2411.19067).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import utils
from lib.contracts import Output
from lib.network.precision import at_least_float32
from lib.network.resize import upsample
from lib.variants import ALIGN_LOSSES, LOSSES, NO_TARGET_WEIGHT, check_name

CLASS_WEIGHTS = (0.9, 1.1)  # background, object
MASK_WEIGHT = 2.0
DICE_SMOOTHING = 1.0
MASKED_SHARE = 0.5  # of the mask loss, if there is a pass over masked samples; the rest is that of the clean ones
FOCAL_POWER = 2.0  # as published, arXiv 1708.02002


class Losses(NamedTuple):
    """The parts of the loss: float32, or float64 if the network's output is."""

    total: Tensor  # (), the objective: 2·mask + the sum of alignment + the weighted loss of the no-target head
    mask: Tensor  # (), weighted cross-entropy of the logits, dice loss, or a sum of both
    alignment: Tensor  # (4,), binary cross-entropy of each stage's similarity map; (0,) for networks without alignment
    no_target: Tensor  # (1,), cross-entropy of the no-target head; (0,) for networks without one


class StepNormalization(NamedTuple):
    """Scales the losses of a step's micro-batches, so that they add up to the loss of the whole step."""

    parts: int  # micro-batches of this step, all of the same size
    weight_sum: Tensor  # (), class weights of the step's pixels: sum over this process's parts, mean over processes


class Criterion(nn.Module):
    """The loss of the network's output in training mode."""

    class_weights: Tensor

    def __init__(
        self,
        loss: str = "ce",
        no_target_weight: float = NO_TARGET_WEIGHT,
        *,
        dice_weight: float = 1.0,
        align_loss: str = "bce",
        masked: bool = False,
    ) -> None:
        """loss: of the mask, one of `LOSSES`. no_target_weight: of the no-target head's loss. dice_weight: of a dice
        loss that is added to the cross-entropy. align_loss: one of `ALIGN_LOSSES`. masked: every step also has passes
        over masked samples, see `masked`; both passes share the mask loss.

        Raises ValueError for any other loss.
        """
        super().__init__()
        check_name("alignment loss", align_loss, ALIGN_LOSSES)
        self.align_loss = align_loss
        self.clean_share = 1 - MASKED_SHARE if masked else 1.0
        self.no_target_weight = no_target_weight
        check_name("loss", loss, LOSSES)
        self.mask_losses = loss.split("+")
        self.dice_weight = dice_weight if "+" in loss else 1.0
        # In float64, so that losses in float64 do not contain the rounding of 0.9 to float32.
        self.register_buffer("class_weights", torch.tensor(CLASS_WEIGHTS, dtype=torch.float64), persistent=False)

    def normalizer(self, targets: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> StepNormalization:
        """Return the normalization of a step; targets: of this process's micro-batches, each (B, H, W) int64.

        dtype: of the losses, see `Losses`. All processes must call this together.
        """
        weight_sum = torch.stack([self._weights(target, dtype).sum() for target in targets]).sum()
        return StepNormalization(len(targets), utils.mean_over_processes(weight_sum))

    def forward(self, output: Output, target: Tensor, normalizer: StepNormalization | None = None) -> Losses:
        """Return the losses of `output`; target: (B, H, W) int64, 1 on the object and 0 elsewhere.

        normalizer: of the step that this batch is a part of; None if it is the whole step. The losses of the parts add
        up to the loss of one batch with all their samples, and so do the gradients, averaged over processes.
        """
        logits = at_least_float32(output.logits)
        normalizer = normalizer or self.normalizer([target], logits.dtype)
        mask = self.clean_share * self._mask_loss(logits, target, normalizer)
        stages = [_alignment_loss(similarity, target, self.align_loss)[None] for similarity in output.alignment]
        alignment = torch.cat([mask.new_zeros(0), *stages]) / normalizer.parts
        no_target = mask.new_zeros(0)
        if output.no_target is not None:
            no_target = _no_target_loss(output.no_target, target)[None] / normalizer.parts
        total = MASK_WEIGHT * mask + alignment.sum() + self.no_target_weight * no_target.sum()
        return Losses(total, mask, alignment, no_target)

    if TYPE_CHECKING:  # PyTorch does not type the result of calling a module
        __call__ = forward

    def masked(self, output: Output, clean: Tensor, normalizer: StepNormalization) -> Losses:
        """Return the losses of a pass over the masked samples of a batch, which add to those of the clean ones.

        clean: (B, 2, H, W), detached logits of the pass over the clean samples, whose probabilities are the target. The
        cross-entropy has the class weights of the clean pass, and is a mean over pixels. Alignment and no-target head
        have no loss here.
        """
        logits = at_least_float32(output.logits)
        target = at_least_float32(clean).softmax(dim=1)
        cross_entropy = F.cross_entropy(logits, target, weight=self.class_weights.to(logits))
        mask = MASKED_SHARE * cross_entropy / normalizer.parts
        # Zeros that depend on all outputs, because processes average the gradients of all parameters in every step.
        alignment = torch.cat([mask.new_zeros(0), *(0 * similarity.mean()[None] for similarity in output.alignment)])
        no_target = mask.new_zeros(0) if output.no_target is None else 0 * output.no_target.mean()[None]
        return Losses(MASK_WEIGHT * mask + alignment.sum() + no_target.sum(), mask, alignment, no_target)

    def _mask_loss(self, logits: Tensor, target: Tensor, normalizer: StepNormalization) -> Tensor:
        loss = logits.new_zeros(())
        if "ce" in self.mask_losses:
            loss = loss + self._cross_entropy(logits, target, normalizer.weight_sum)
        if "dice" in self.mask_losses:
            loss = loss + self.dice_weight * _dice_loss(logits, target) / normalizer.parts
        if "dice2" in self.mask_losses:
            loss = loss + self.dice_weight * _dice2_loss(logits, target) / normalizer.parts
        return loss

    def _cross_entropy(self, logits: Tensor, target: Tensor, weight_sum: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, target, weight=self.class_weights.to(logits))
        # The weighted mean divides by the class weights of this part's pixels. Rescaled to those of the step, the sum
        # over parts and mean over processes is exactly the weighted mean of the global batch.
        return loss * (self._weights(target, logits.dtype).sum() / weight_sum)

    def _weights(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        return self.class_weights.to(target.device, dtype)[target]


def _dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return 1 − (2·Σpg + 1)/(Σp + Σg + 1), averaged over samples; p: probability of the object, g: the mask."""
    return (1 - _dice(logits.softmax(dim=1)[:, 1], target)).mean()


def _dice2_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the dice loss of object and background, averaged over both and over samples."""
    background, thing = logits.softmax(dim=1).unbind(1)
    return (1 - (_dice(background, 1 - target) + _dice(thing, target)) / 2).mean()


def _dice(probability: Tensor, target: Tensor) -> Tensor:
    """Return (2·Σpg + 1)/(Σp + Σg + 1) of each sample; p: probability (B, H, W) of a class, g: 1 on its pixels."""
    probability, mask = probability.flatten(1), target.flatten(1).to(probability.dtype)
    overlap = 2 * (probability * mask).sum(dim=1) + DICE_SMOOTHING
    return overlap / (probability.sum(dim=1) + mask.sum(dim=1) + DICE_SMOOTHING)


def _alignment_loss(similarity: Tensor, target: Tensor, kind: str) -> Tensor:
    """Return a stage's alignment loss; kind: one of `ALIGN_LOSSES`."""
    similarity = upsample(at_least_float32(similarity), target.shape[-2:]).squeeze(1)
    mask = target.to(similarity.dtype)
    if kind == "balanced":
        return F.binary_cross_entropy_with_logits(similarity, mask, weight=_class_balance(mask))
    if kind == "focal":
        surprise = (similarity.sigmoid() - mask).abs()
        return (surprise**FOCAL_POWER * F.binary_cross_entropy_with_logits(similarity, mask, reduction="none")).mean()
    return F.binary_cross_entropy_with_logits(similarity, mask)


def _class_balance(mask: Tensor) -> Tensor:
    """Return a weight for each pixel of a mask (B, H, W) of 0 and 1: object and background count alike in each image.

    The weights of an image have the mean 1. In an image with only one of the two, all are 1.
    """
    share = mask.mean((1, 2), keepdim=True)
    balanced = torch.where(mask > 0, 0.5 / share, 0.5 / (1 - share))
    return torch.where((share > 0) & (share < 1), balanced, torch.ones_like(mask))


def _no_target_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of the no-target head's logits (B, 2): no target is a target without a pixel."""
    return F.cross_entropy(at_least_float32(logits), (~target.flatten(1).any(1)).long())
