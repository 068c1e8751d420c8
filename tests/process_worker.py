"""Train a few steps and evaluate in as many processes as the launcher starts; used by test_processes.py.

    process_worker.py DATA_ROOT BATCH_SIZE RESULT.json

Batch norm uses its running averages: with gloo it is not synchronised (see utils.distribute), and this test is about
everything else. The odd evaluation batch makes shards and batches end unevenly.
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Subset

import utils
from CrossVLT import build_model
from data.dataset_refer_bert import ReferDataset, build_tokenizer
from data.loaders import TrainBatches, evaluation_loader, train_loader
from data.transforms import PairTransform
from lib.engine import evaluate, inputs
from lib.losses import Criterion
from lib.optim import build_optimizer, build_scheduler
from refer.refer import REFER
from tests.reference.weights import fill

STEPS = 5


def main() -> None:
    root, batch_size, result = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    device = utils.start_processes(torch.device("cpu"))
    world = {"rank": utils.rank(), "world_size": utils.world_size()}
    tokenizer = build_tokenizer(f"{root}/vocab.txt")
    refer = REFER(root, "refcoco", "unc")
    train_set, val_set = (ReferDataset(refer, split, tokenizer, PairTransform(64)) for split in ("train", "val"))
    batches = TrainBatches(train_set.objects, batch_size, seed=1, **world)
    loader = train_loader(train_set, batches, workers=0, pin_memory=False)

    network = build_model("nano", "nano", vocab_size=len(tokenizer), dropout=0.0, drop_path=0.0)
    fill(network.state_dict())
    model = utils.distribute(network, device).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    criterion, optimizer = Criterion(), build_optimizer(network, 1e-4, 1e-2)
    scheduler = build_scheduler(optimizer, total_steps=STEPS)
    losses = []
    for _, batch in zip(range(STEPS), loader, strict=False):
        loss = criterion(model(*inputs(batch, device)), batch.target).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(utils.mean_over_processes(loss).item())

    # Rounding differs between worlds, so the trained weights do: every world scores the same ones.
    fill(network.state_dict())
    uneven = Subset(val_set, range(len(val_set) // 6 * 6 - 5))  # one more than a multiple of two and three
    val_loader = evaluation_loader(uneven, batch_size=5, workers=0, pin_memory=False, **world)
    scores = evaluate(model, val_loader, device)
    if utils.is_main():
        content = {"losses": losses, "scores": scores._asdict(), "n_expressions": len(uneven)}
        result.write_text(json.dumps(content))


if __name__ == "__main__":
    utils.run(main)
