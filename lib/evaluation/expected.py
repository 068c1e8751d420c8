"""The IoU that a network expects of its own mask, for `test.py --csv` and `--jsonl`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import utils
from lib.contracts import Batch, Output
from lib.evaluation.metrics import at_target_size


def expected_iou(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the IoU to expect if every pixel is of the object with its own probability: (B,) float, 0 to 1.

    logits: (B, 2, H, W); channel 1 is the object. mask: (B or 1, H, W) bool; None for that of the logits. The ratio of
    two expected numbers of pixels: those of the mask that are of the object, and those of mask and object together. 0
    if the mask is empty. Unlike the mean probability of the mask's pixels, which is above one half, it is low if the
    network is undecided, also about pixels outside the mask.
    """
    probability = logits.softmax(1)[:, 1].flatten(1)
    inside = (logits[:, 1] > logits[:, 0] if mask is None else mask).flatten(1)
    outside = probability.masked_fill(inside, 0).sum(1)
    whole = inside.sum(1) + outside  # 0 if every probability is too small for the dtype
    return probability.masked_fill(~inside, 0).sum(1) / whole.clamp(min=torch.finfo(whole.dtype).tiny)


class ExpectedIoU:
    """Collects the expected IoU of every sentence; pass it to `engine.evaluate`."""

    def __init__(self) -> None:
        self.values: dict[int, float] = {}  # by index of the expression

    def __call__(self, batch: Batch, output: Output, _: Sequence[Tensor]) -> None:
        """Add a batch."""
        parts = [expected_iou(measured) for measured, _ in at_target_size(output.logits, batch.target)]
        values = torch.cat(parts).tolist()  # at once, as every reading waits for the GPU
        self.values |= {number: round(value, 4) for number, value in zip(batch.numbers.tolist(), values, strict=True)}

    def finish(self) -> None:
        """Collect the sentences of all processes; they must call this together."""
        self.values = {number: value for part in utils.gather(self.values) for number, value in part.items()}
