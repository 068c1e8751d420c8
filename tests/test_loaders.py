"""Which samples an epoch and a process see."""

from __future__ import annotations

import random
from itertools import chain

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.dataset_refer_bert import Sample
from data.loaders import Batching, TrainBatches, collate, evaluation_loader, train_loader
from utils import UserError

# Ten objects with three expressions each: object n has the numbers 3n to 3n + 2.
OBJECTS = [[3 * number, 3 * number + 1, 3 * number + 2] for number in range(10)]


def draws(
    number: int, *, batch_size: int = 2, seed: int = 1, rank: int = 0, first_step: int = 0, **spread: int
) -> list:
    batches = TrainBatches(OBJECTS, Batching(batch_size, **spread), seed=seed, rank=rank)
    batches.start(number, first_step)
    assert len(batches) == len(list(batches))
    return list(batches)


def epoch(number: int, **options: int) -> list[list[int]]:
    return [[draw.index for draw in batch] for batch in draws(number, **options)]


def test_every_object_comes_once_an_epoch_with_one_of_its_expressions() -> None:
    expressions = [index for batch in epoch(0) for index in batch]
    assert sorted(index // 3 for index in expressions) == list(range(10))


def test_epochs_and_seeds_differ_in_order_and_expressions_and_repeat_exactly() -> None:
    assert epoch(0) == epoch(0)
    for other in (epoch(1), epoch(0, seed=2)):
        assert [index // 3 for index in chain(*other)] != [index // 3 for index in chain(*epoch(0))]
        assert set(chain(*other)) != set(chain(*epoch(0)))


def test_every_expression_is_drawn_sooner_or_later() -> None:
    assert {index for number in range(30) for batch in epoch(number) for index in batch} == set(range(30))


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 1), (2, 1), (4, 1), (1, 2), (1, 4), (2, 2)])
def test_any_spread_makes_steps_of_the_same_samples(processes: int, accumulate: int) -> None:
    whole = draws(3, batch_size=4)
    spread = {"batch_size": 4 // processes // accumulate, "processes": processes, "accumulate": accumulate}
    shards = [draws(3, rank=rank, **spread) for rank in range(processes)]
    in_order = list(chain(*(chain(*parts) for parts in zip(*shards, strict=True))))
    assert in_order == list(chain(*whole))
    assert len(whole) == 2, "two of ten objects do not fill a third batch of four"


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("first_step", [0, 1, 2])
def test_an_epoch_can_begin_at_any_step(first_step: int, accumulate: int) -> None:
    options = {"batch_size": 2, "accumulate": accumulate}
    assert draws(5, first_step=first_step, **options) == draws(5, **options)[first_step * accumulate :]


def test_too_few_objects_for_a_batch_are_an_error() -> None:
    with pytest.raises(UserError, match=r"10 objects do not fill one batch of 12 = 6 per process × 2 processes"):
        TrainBatches(OBJECTS, Batching(6, processes=2), seed=0)
    with pytest.raises(UserError, match=r"12 = 6 per process × 1 process × 2 accumulated"):
        TrainBatches(OBJECTS, Batching(6, accumulate=2), seed=0)


class Noise(Dataset):
    """Samples that are nothing but chance, of all three generators."""

    def __getitem__(self, index: int) -> Sample:
        values = [torch.rand(()), torch.tensor(np.random.random()), torch.tensor(random.random())]
        return sample(index)._replace(image=torch.stack([value.double() for value in values]))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_chance_in_a_sample_depends_on_its_place_alone(workers: int) -> None:
    """Not on the worker or process that loads it, nor on where a resumed epoch begins."""

    def images(first_step: int, spread: Batching, rank: int = 0) -> Tensor:
        batches = TrainBatches(OBJECTS, spread, seed=4, rank=rank)
        batches.start(1, first_step)
        loader = train_loader(Noise(), batches, workers=workers, pin_memory=False)
        return torch.cat([batch.image for batch in loader])

    torch.manual_seed(0)
    before = torch.get_rng_state()
    whole = images(0, Batching(2))
    assert len({value.item() for value in whole.flatten()}) == whole.numel()
    assert torch.equal(images(3, Batching(2)), whole[6:])
    assert torch.equal(images(0, Batching(1, processes=2), rank=1), whole[1::2])
    assert torch.equal(torch.get_rng_state(), before), "loading draws nothing from the network's generator"


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 9])
def test_evaluation_deals_whole_batches(world_size: int) -> None:
    """Every expression once, in the same batches for any number of processes; some processes may get nothing."""
    dataset = [sample(index) for index in range(7)]
    seen = []
    for rank in range(world_size):
        loader = evaluation_loader(dataset, batch_size=2, workers=0, pin_memory=False, rank=rank, world_size=world_size)
        assert len(loader) == len(list(loader))
        seen += [batch.index.tolist() for batch in loader]
    assert sorted(seen) == [[0, 1], [2, 3], [4, 5], [6]]


@pytest.mark.parametrize(("limit", "expected"), [(3, 3), (7, 7), (100, 7), (None, 7)])
def test_evaluation_can_be_limited(limit: int | None, expected: int) -> None:
    dataset = [sample(index) for index in range(7)]
    loader = evaluation_loader(dataset, batch_size=2, workers=0, pin_memory=False, limit=limit)
    assert [index for batch in loader for index in batch.index.tolist()] == list(range(expected))


def test_targets_of_different_sizes_stay_a_list() -> None:
    same = collate([sample(0), sample(1)])
    assert same.target.shape == (2, 4, 4)
    mixed = collate([sample(0), sample(1, size=5)])
    assert [target.shape for target in mixed.target] == [(4, 4), (5, 5)]
    assert mixed.image.shape == (2, 3, 4, 4)
    assert mixed.index.tolist() == [0, 1]


def sample(index: int, size: int = 4) -> Sample:
    tokens = torch.zeros(3, dtype=torch.int64)
    return Sample(torch.zeros(3, 4, 4), tokens, tokens, torch.zeros(size, size, dtype=torch.int64), index)
