"""The training loss: weighted cross-entropy on the mask, and alignment at every stage (arXiv 2408.07539)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import utils
from lib.decoder import upsample
from lib.output import Output

CLASS_WEIGHTS = (0.9, 1.1)  # background, object
MASK_WEIGHT = 2.0


class Losses(NamedTuple):
    """The parts of the loss, float32."""

    total: Tensor  # (), what to minimise: 2·mask + the sum of alignment
    mask: Tensor  # (), weighted cross-entropy of the logits
    alignment: Tensor  # (4,), binary cross-entropy of each stage's similarity map


class Criterion(nn.Module):
    """Compare the network's output in training mode with the masks."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("class_weights", torch.tensor(CLASS_WEIGHTS), persistent=False)

    def forward(self, output: Output, target: Tensor) -> Losses:
        """Return the losses of `output`; target: (B, H, W) int64, 1 on the object and 0 elsewhere."""
        mask = self._mask_loss(output.logits.float(), target)
        alignment = torch.stack([_alignment_loss(similarity, target) for similarity in output.alignment])
        return Losses(MASK_WEIGHT * mask + alignment.sum(), mask, alignment)

    def _mask_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        weights = self.class_weights.to(logits.device)
        loss = F.cross_entropy(logits, target, weight=weights)
        # The weighted mean divides by the weights of this process's pixels. Scaled to the mean over all processes,
        # averaging gradients over processes gives exactly the weighted mean of the global batch.
        weight_sum = weights[target].sum()
        return loss * (weight_sum / utils.mean_over_processes(weight_sum))


def _alignment_loss(similarity: Tensor, target: Tensor) -> Tensor:
    similarity = upsample(similarity.float(), target.shape[-2:]).squeeze(1)
    return F.binary_cross_entropy_with_logits(similarity, target.float())
