"""Take five training steps plain and wrapped for several processes, and say what was used; run by test_cuda.py.

wrapped_worker.py DEVICE RESULT.json
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import torch
from torch import nn

import utils
from CrossVLT import SegModel
from lib.engine import warm_up_ddp_buckets
from lib.network.losses import Criterion
from lib.training.optim import build_optimizer
from tests.reference.inputs import inputs
from tests.reference.weights import fill

STEPS = 5


def train(model: nn.Module, device: torch.device) -> list[float]:
    """Return the losses of the steps."""
    optimizer, criterion = build_optimizer(utils.unwrap(model), lr=1e-4, weight_decay=1e-2), Criterion().to(device)
    losses = []
    for step in range(STEPS):
        *batch, target = (part.to(device) for part in inputs(step, 2, 64, 64, 1000))
        loss = criterion(model.train()(*batch), target).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Write losses, backend and kinds of modules."""
    device = utils.start_processes(torch.device(sys.argv[1]))
    network = SegModel("nano", "nano", vocab_size=1000, dropout=0.0, drop_path=0.0)
    fill(network.state_dict())
    wrapped = utils.wrap(copy.deepcopy(network).to(device), device)
    warm_up_ddp_buckets(wrapped, device)
    content = {
        "plain": train(network.to(device), device),
        "wrapped": train(wrapped, device),
        "kinds": sorted({type(module).__name__ for module in wrapped.modules()}),
        "backend": torch.distributed.get_backend_config(),
    }
    Path(sys.argv[2]).write_text(json.dumps(content))


if __name__ == "__main__":
    utils.run(main)
