"""Train a few steps and evaluate in as many processes as the launcher starts; used by test_processes.py.

    process_worker.py DATA_ROOT BATCH_SIZE ACCUMULATE RESULT.json

Batch norm uses its running averages: with gloo it is not synchronised (see utils.distribute), and this test is about
everything else. A batch size of 0 trains nothing. The odd evaluation batch makes shards and batches end unevenly.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn

import utils
from bert.tokenizer import MASK, build_tokenizer
from data.dataset_refer_bert import ReferDataset
from data.loaders import Batching, TrainBatches, evaluation_loader, train_loader
from data.transforms import PairTransform
from lib.engine import EpochConfig, chunked, evaluate, train_step
from lib.network.inference import optimize_for_inference
from lib.network.losses import Criterion
from lib.network.precision import Precision
from lib.training.masking import Masking, Words
from lib.training.optim import build_optimizer, build_scheduler
from lib.training.run_log import RunLog
from lib.training.state import TrainingState
from refer.refer import REFER
from tests.networks import reference_nano

STEPS = 3


def train(
    network: nn.Module, train_set: ReferDataset, batching: Batching, device: torch.device, masking: Masking | None
) -> list[float]:
    """Return the losses of a few steps."""
    batches = TrainBatches(train_set.objects, batching, seed=1, rank=utils.rank())
    loader = train_loader(train_set, batches, workers=0, pin_memory=False)
    model = utils.distribute(network, device).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    precision, optimizer = Precision("fp32", device), build_optimizer(network, 1e-4, 1e-2)
    scheduler = build_scheduler(optimizer, total_steps=STEPS)
    state = TrainingState(network, optimizer, scheduler, precision.scaler, RunLog(Path(), "refcoco"), {})
    config = EpochConfig(1, batching.total, precision, accumulate=batching.accumulate, masking=masking)
    criterion = Criterion(masked=masking is not None)
    for _, parts in zip(range(STEPS), chunked(loader, batching.accumulate), strict=False):
        losses, _ = train_step(model, criterion, parts, state, device, config, measure=False)
        state.meter.add(losses)
    state.meter.read(0)
    return [row[0] for row in state.meter.rows]


def main() -> None:
    root, batch_size, accumulate, result = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    device = utils.start_processes(torch.device("cpu"))
    tokenizer = build_tokenizer(f"{root}/vocab.txt")
    refer = REFER(root, "refcoco", "unc")
    train_set, val_set = (ReferDataset(refer, split, tokenizer, PairTransform(32)) for split in ("train", "val"))
    batching = Batching(batch_size, utils.world_size(), accumulate)
    words = Words(len(tokenizer), tokenizer.special_ids[MASK], tokenizer.special_ids.values())
    ways = {"losses": None, "masked_losses": Masking(0.75, 0.5, words, seed=1, patch=8)}
    nano = partial(reference_nano, vocab_size=len(tokenizer))
    content: dict[str, object] = {
        name: train(nano(), train_set, batching, device, masking) if batch_size else []
        for name, masking in ways.items()
    }

    # Rounding differs between worlds, so the trained weights do: every world scores the same ones.
    awkward = max(n for n in range(len(val_set)) if all(n % processes for processes in (2, 3, 5)))
    rank, size = utils.rank(), utils.world_size()
    val_loader = evaluation_loader(
        val_set, batch_size=3, workers=0, pin_memory=False, limit=awkward, rank=rank, world_size=size
    )
    precision = Precision("fp32", device)
    scores = evaluate(optimize_for_inference(nano(), precision), val_loader, device, precision).scores
    if utils.is_main():
        result.write_text(json.dumps(content | {"scores": scores._asdict(), "n_expressions": awkward}))


if __name__ == "__main__":
    utils.run(main)
