"""From the command line to batches: data sets, which samples each process sees, and the loaders that bring them."""

from __future__ import annotations

import argparse
import atexit
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from transformers import BertTokenizer

from data.dataset_refer_bert import ReferDataset, Sample
from data.transforms import PairTransform
from refer.refer import REFER
from utils import UserError, end_workers, ignore_stop_signals, seeded


def build_datasets(
    args: argparse.Namespace, splits: Sequence[str], tokenizer: BertTokenizer, *, resize_mask: bool = True
) -> list[ReferDataset]:
    """Return splits of the data set that the flags name; resize_mask: False keeps masks at their images' size."""
    refer = REFER(args.refer_data_root, args.dataset, args.splitBy)
    transform = PairTransform(args.img_size, resize_mask=resize_mask)
    return [ReferDataset(refer, split, tokenizer, transform) for split in splits]


class Batching(NamedTuple):
    """How many samples make an optimizer step, and how they are spread."""

    batch_size: int  # samples that a process holds at a time
    processes: int = 1
    accumulate: int = 1  # batches of a process that add up to one step

    @property
    def total(self) -> int:
        """Samples of one optimizer step."""
        return self.batch_size * self.processes * self.accumulate

    def __str__(self) -> str:
        parts = f"{self.batch_size} per process × {self.processes} process{'es' if self.processes > 1 else ''}"
        return f"{self.total} = {parts}" + (f" × {self.accumulate} accumulated" if self.accumulate > 1 else "")


class Draw(NamedTuple):
    """A sample to load for training."""

    index: int  # of the expression
    seed: int  # of whatever its loading draws at random


class SeededDataset(Dataset[Sample]):
    """Load every draw with generators of its own.

    So a random transform gives the same sample in any worker of any process, in a resumed training too.
    """

    def __init__(self, dataset: Dataset[Sample]) -> None:
        self.dataset = dataset

    def __getitem__(self, draw: Draw) -> Sample:
        with seeded(draw.seed):
            return self.dataset[draw.index]


class TrainBatches(Sampler[list[Draw]]):
    """One epoch: every object once, in random order, each with one of its expressions drawn at random.

    The order depends on seed and epoch alone. A step is a run of that order, cut into `accumulate` parts, and of each
    part every process takes its slice; so any number of processes with the same total sees the same samples in the
    same steps. What does not fill a last step is left out.
    """

    def __init__(self, objects: Sequence[Sequence[int]], batching: Batching, *, seed: int, rank: int = 0) -> None:
        """objects: for each object the numbers of its expressions."""
        self.objects = objects
        self.batching = batching
        self.seed = seed
        self.rank = rank
        self.epoch = self.first_step = 0
        self.steps = len(objects) // batching.total  # of a whole epoch
        if self.steps == 0:
            raise UserError(
                f"{len(objects)} objects do not fill one batch of {batching}: "
                "use a smaller --batch-size or --accumulate"
            )

    def start(self, epoch: int, first_step: int = 0) -> None:
        """Choose the epoch that the next iteration goes through, and the step it begins with."""
        self.epoch, self.first_step = epoch, first_step

    def __len__(self) -> int:
        """Count this process's batches from the first step on."""
        return (self.steps - self.first_step) * self.batching.accumulate

    def __iter__(self) -> Iterator[list[Draw]]:
        random = np.random.default_rng((self.seed, self.epoch))
        order = [int(random.choice(self.objects[number])) for number in random.permutation(len(self.objects))]
        draws = [Draw(*pair) for pair in zip(order, random.integers(2**32, size=len(order)).tolist(), strict=True)]
        part = self.batching.batch_size * self.batching.processes
        first = self.first_step * self.batching.total + self.rank * self.batching.batch_size
        for number in range(len(self)):
            begin = first + number * part
            yield draws[begin : begin + self.batching.batch_size]


class EvaluationBatches(Sampler[list[int]]):
    """Every expression once. Whole batches are dealt to the processes in turn.

    So a batch holds the same samples for any number of processes, and its numbers are the same to the last bit.
    """

    def __init__(self, n_expressions: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        starts = range(rank * batch_size, n_expressions, world_size * batch_size)
        self.batches = [list(range(start, min(start + batch_size, n_expressions))) for start in starts]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def train_loader(dataset: ReferDataset, batches: TrainBatches, *, workers: int, pin_memory: bool) -> DataLoader[Sample]:
    """Return the loader of the training batches; call `batches.start` before each epoch."""
    return _loader(SeededDataset(dataset), batches, workers, pin_memory)


def evaluation_loader(
    dataset: ReferDataset,
    *,
    batch_size: int,
    workers: int,
    pin_memory: bool,
    limit: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[Sample]:
    """Return the loader of this process's share of all expressions, or of the first `limit` of them."""
    n_expressions = min(len(dataset), limit or len(dataset))
    batches = EvaluationBatches(n_expressions, batch_size, rank=rank, world_size=world_size)
    return _loader(dataset, batches, workers, pin_memory)


def _loader(
    dataset: Dataset[Sample], batches: TrainBatches | EvaluationBatches, workers: int, pin_memory: bool
) -> DataLoader[Sample]:
    if workers:
        atexit.register(end_workers)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        collate_fn=collate,
        persistent_workers=workers > 0,
        worker_init_fn=ignore_stop_signals,
        generator=torch.Generator(),  # its own, so that loading draws nothing from the network's random state
    )


def collate(samples: list[Sample]) -> Sample:
    """Batch samples; targets of different sizes (each its image's own) stay a list."""
    targets = [sample.target for sample in samples]
    if len({target.shape for target in targets}) == 1:
        return default_collate(samples)
    return default_collate([sample._replace(target=0) for sample in samples])._replace(target=targets)
