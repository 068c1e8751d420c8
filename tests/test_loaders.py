"""Which samples an epoch and a process see."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from data.dataset_refer_bert import Sample
from data.loaders import TrainBatches, collate, evaluation_loader
from utils import UserError

# Ten objects with three expressions each: object n has the numbers 3n to 3n + 2.
OBJECTS = [[3 * number, 3 * number + 1, 3 * number + 2] for number in range(10)]


def epoch(number: int, *, batch_size: int = 2, seed: int = 1, **world: int) -> list[list[int]]:
    batches = TrainBatches(OBJECTS, batch_size, seed=seed, **world)
    batches.epoch = number
    assert len(batches) == len(list(batches))
    return list(batches)


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


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_share_the_global_batches_of_one(world_size: int) -> None:
    whole = epoch(3, batch_size=4)
    shards = [epoch(3, batch_size=4 // world_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [list(chain(*parts)) for parts in zip(*shards, strict=True)] == whole
    assert len(whole) == 2, "two of ten objects do not fill a third batch of four"


def test_too_few_objects_for_a_batch_are_an_error() -> None:
    with pytest.raises(UserError, match=r"10 objects do not fill one batch of 12 \(6 in each of 2 processes\)"):
        TrainBatches(OBJECTS, 6, seed=0, world_size=2)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 9])
def test_evaluation_shards_hold_every_expression_once(world_size: int) -> None:
    """Also where some processes get nothing."""
    dataset = [sample(index) for index in range(7)]
    seen = []
    for rank in range(world_size):
        loader = evaluation_loader(dataset, batch_size=2, workers=0, pin_memory=False, rank=rank, world_size=world_size)
        seen += [index for batch in loader for index in batch.index.tolist()]
    assert sorted(seen) == list(range(7))


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
