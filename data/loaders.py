"""From the command line to batches: data sets, which samples each process sees, and the loaders that bring them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, default_collate
from transformers import BertTokenizer

from data.dataset_refer_bert import ReferDataset, Sample
from data.transforms import PairTransform
from refer.refer import REFER
from utils import UserError


def build_datasets(
    args: argparse.Namespace, splits: Sequence[str], tokenizer: BertTokenizer, *, resize_mask: bool = True
) -> list[ReferDataset]:
    """Return splits of the data set that the flags name; resize_mask: False keeps masks at their images' size."""
    refer = REFER(args.refer_data_root, args.dataset, args.splitBy)
    transform = PairTransform(args.img_size, resize_mask=resize_mask)
    return [ReferDataset(refer, split, tokenizer, transform) for split in splits]


class TrainBatches(Sampler[list[int]]):
    """One epoch: every object once, in random order, each with one of its expressions drawn at random.

    The order depends on seed and epoch alone. A global batch is a run of that order, and each process takes its
    slice, so any number of processes with the same global batch sees the same samples in the same steps. What does
    not fill a last global batch is left out.
    """

    def __init__(
        self, objects: Sequence[Sequence[int]], batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        """objects: for each object the numbers of its expressions. batch_size: samples per process."""
        self.objects = objects
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.global_batch = batch_size * world_size
        self.epoch = 0
        if len(self) == 0:
            raise UserError(
                f"{len(objects)} objects do not fill one batch of {self.global_batch} "
                f"({batch_size} in each of {world_size} processes): use a smaller --batch-size"
            )

    def __len__(self) -> int:
        return len(self.objects) // self.global_batch

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        order = [int(random.choice(self.objects[number])) for number in random.permutation(len(self.objects))]
        for step in range(len(self)):
            first = step * self.global_batch + self.rank * self.batch_size
            yield order[first : first + self.batch_size]


def train_loader(dataset: ReferDataset, batches: TrainBatches, *, workers: int, pin_memory: bool) -> DataLoader[Sample]:
    """Return the loader of the training batches; set `batches.epoch` before each epoch."""
    return _loader(dataset, workers, pin_memory, batch_sampler=batches)


def evaluation_loader(
    dataset: ReferDataset, *, batch_size: int, workers: int, pin_memory: bool, rank: int = 0, world_size: int = 1
) -> DataLoader[Sample]:
    """Return the loader of this process's share of all expressions; nothing is padded or counted twice."""
    share = range(rank, len(dataset), world_size)
    return _loader(dataset, workers, pin_memory, batch_size=batch_size, sampler=share)


def _loader(dataset: ReferDataset, workers: int, pin_memory: bool, **batching: object) -> DataLoader[Sample]:
    return DataLoader(
        dataset,
        num_workers=workers,
        pin_memory=pin_memory,
        collate_fn=collate,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # its own, so that loading draws nothing from the network's random state
        **batching,
    )


def collate(samples: list[Sample]) -> Sample:
    """Batch samples; targets of different sizes (each its image's own) stay a list."""
    targets = [sample.target for sample in samples]
    if len({target.shape for target in targets}) == 1:
        return default_collate(samples)
    return default_collate([sample._replace(target=0) for sample in samples])._replace(target=targets)
