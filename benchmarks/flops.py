"""Floating-point operations of the network, counted on shapes alone."""

from __future__ import annotations

from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import Case, random_batch
from benchmarks.plain import PlainNetwork, plain_loss
from CrossVLT import SegModel
from lib.engine import to_model_inputs
from lib.variants import BERT_VARIANTS


@cache
def count_flops(case: Case, *, training: bool = False) -> int:
    """Return the operations of a forward pass in evaluation, or of forward and backward pass in training.

    Counts matrix products and convolutions of the plain assembly, a multiplication and its addition as two operations.
    All variants are compared with this one number. It leaves out what the released implementation computes in
    evaluation but never reads (the alignment projections and the last gate: 0.7 % of base at 480).
    """
    device = torch.device("meta")
    with device:
        network = SegModel(case.swin_type, case.swin_type if case.swin_type in BERT_VARIANTS else "base")
    plain = PlainNetwork(network).train(training)
    batch = random_batch(case.img_size, case.batch_size, device)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        output = plain(*to_model_inputs(batch, device))
        if training:
            plain_loss(output, batch.stacked_target).backward()
    flops: int = counter.get_total_flops()
    return flops
