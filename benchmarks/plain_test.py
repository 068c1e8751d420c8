"""A plain `test.py`: one sentence at a time with the plain assembly; the same flags and scores.

    python -m benchmarks.plain_test --dataset refcoco --split testA --resume ./checkpoints/best_refcoco.pth

Every sample loads and decodes its image and mask, and is a batch of one, whose pixel counts are read from the device
before the next. Always float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch.utils.data import DataLoader

import test as test_script
import utils
from benchmarks.plain import PlainNetwork
from data.loaders import build_datasets, collate
from lib.contracts import Batch
from lib.engine import to_model_inputs
from lib.evaluation.metrics import count_pixels
from lib.evaluation.protocols import Counting, Evaluation, Result, evaluation_of
from lib.network.precision import Precision


def main(arguments: Sequence[str] | None = None) -> None:
    """Test one split and print its scores."""
    (args,) = test_script.by_split(test_script.parse_args(arguments))
    device = utils.start_processes(utils.find_device(args.device))
    Precision("fp32", device)
    trained = test_script.open_named(args)
    network = trained.network.to(device)
    (dataset,) = build_datasets(args, [args.split], trained.tokenizer)
    loader = DataLoader(dataset, batch_size=1, num_workers=args.workers, collate_fn=collate)
    evaluation = evaluate(PlainNetwork(network).eval(), loader, device)
    test_script.print_scores(
        args, evaluation, dataset, test_script.describe_measurement(args, trained.network, dataset)
    )


@torch.inference_mode()
def evaluate(network: PlainNetwork, loader: Iterable[Batch], device: torch.device) -> Evaluation:
    """Score the network on batches of one sample."""
    results: list[Result] = []
    for batch in loader:
        logits = network(*to_model_inputs(batch, device)).logits
        (counts,) = count_pixels(logits.argmax(1).bool(), batch.stacked_target.to(device).bool()).tolist()
        results.append(Result(int(batch.numbers), *counts))
    return evaluation_of(results, Counting())


if __name__ == "__main__":
    utils.run(main)
