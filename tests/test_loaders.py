"""Which samples an epoch and a process see."""

from __future__ import annotations

import random
import sys
import weakref
from itertools import chain, groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

import utils
from bert.tokenizer import WordPiece, build_tokenizer
from data.dataset_refer_bert import ReferDataset
from data.loaders import Batching, TrainBatches, collate, evaluation_batches, evaluation_loader, train_loader
from data.objects import open_image
from data.transforms import PairTransform, normalize
from lib.contracts import Sample
from refer.refer import REFER
from tests.helpers import ended_within, few_files, naming

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
    return [[draw.number for draw in batch] for batch in draws(number, **options)]


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
    with naming(10, "12 = 6 per process × 2 processes"):
        TrainBatches(OBJECTS, Batching(6, processes=2), seed=0)
    with naming(10, "12 = 6 per process × 1 process × 2 accumulated"):
        TrainBatches(OBJECTS, Batching(6, accumulate=2), seed=0)


class Noise(Dataset):
    """Samples that are random numbers of all three generators."""

    def __getitem__(self, index: int) -> Sample:
        values = [torch.rand(()), torch.tensor(np.random.random()), torch.tensor(random.random())]
        return sample(index)._replace(image=torch.stack([value.double() for value in values]))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_chance_in_a_sample_depends_on_its_place_alone(workers: int) -> None:
    """Not on the worker or process that loads it, nor on the step at which a resumed epoch begins."""

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


# ---------------------------------------------------------------- evaluation


@pytest.fixture(scope="module")
def tokenizer(sample_root: Path) -> WordPiece:
    return build_tokenizer(str(sample_root / "vocab.txt"))


def split(root: Path, tokenizer: WordPiece, *, resize_mask: bool = True) -> ReferDataset:
    return ReferDataset(REFER(root), "val", tokenizer, PairTransform(24, resize_mask=resize_mask))


@pytest.fixture
def dataset(sample_root: Path, tokenizer: WordPiece) -> ReferDataset:
    """Eight images, each with several objects and more expressions."""
    return split(sample_root, tokenizer)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 1000])
@pytest.mark.parametrize("limit", [1, 30, 31, None])
def test_evaluation_deals_runs_of_whole_batches(dataset: ReferDataset, batch_size: int, limit: int | None) -> None:
    """Every expression once, in the same batches for any number of processes; some processes may get nothing."""
    whole = evaluation_batches(dataset, batch_size, limit=limit)
    expected = min(limit or len(dataset), len(dataset))
    assert sorted(chain(*whole)) == list(range(expected))
    assert {len(batch) for batch in whole[:-1]} <= {batch_size}
    assert 0 < len(whole[-1]) <= batch_size
    for world_size in (2, 3, 5, 50):
        shares = [
            evaluation_batches(dataset, batch_size, limit=limit, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        assert list(chain(*shares)) == whole
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_expressions_of_an_image_come_one_after_another(dataset: ReferDataset) -> None:
    """Images by their first expression, and expressions of an image in the data set's order."""
    order = list(chain(*evaluation_batches(dataset, 5)))
    image_ids = [dataset.expressions[index].image_id for index in order]
    runs = [image_id for image_id, _ in groupby(image_ids)]
    assert runs == list(dict.fromkeys(expression.image_id for expression in dataset.expressions))
    for _, run in groupby(order, key=lambda index: dataset.expressions[index].image_id):
        indices = list(run)
        assert indices == sorted(indices)


@pytest.mark.parametrize("resize_mask", [True, False])
@pytest.mark.parametrize(("workers", "batch_size"), [(0, 5), (1, 1), (2, 5), (2, 1000)])
def test_evaluation_brings_the_data_sets_own_samples(
    sample_root: Path, tokenizer: WordPiece, workers: int, batch_size: int, resize_mask: bool
) -> None:
    """In every epoch, a broken off one before it or not."""
    dataset = split(sample_root, tokenizer, resize_mask=resize_mask)
    loader = evaluation_loader(dataset, batch_size=batch_size, workers=workers, pin_memory=False)
    next(iter(loader))
    batches = list(loader)
    assert len(batches) == len(loader)
    for batch in batches:
        expected = collate([dataset[index] for index in batch.numbers.tolist()])
        for name in ("image", "token_ids", "attention_mask", "numbers"):
            assert_same(getattr(batch, name), getattr(expected, name))
        assert isinstance(batch.target, list) == isinstance(expected.target, list)
        for target, other in zip(batch.target, expected.target, strict=True):
            assert_same(target, other)
    assert any(isinstance(batch.target, list) for batch in batches) == (not resize_mask and batch_size > 1)


def assert_same(one: Tensor, other: Tensor) -> None:
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert torch.equal(one, other)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_is_decoded_once_an_epoch(
    dataset: ReferDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    opened = tmp_path / "opened"

    def note(path: Path) -> Image.Image:
        with opened.open("a") as file:
            file.write(f"{path}\n")
        return open_image(path)

    monkeypatch.setattr("data.objects.open_image", note)
    images = sorted({str(dataset.image_path(index)) for index in range(len(dataset))})
    loader = evaluation_loader(dataset, batch_size=3, workers=workers, pin_memory=False)
    for _ in range(2):
        opened.write_text("")
        assert sum(len(batch.numbers) for batch in loader) == len(dataset)
        assert sorted(opened.read_text().split("\n")[:-1]) == images

    opened.write_text("")
    world_size = 3
    for rank in range(world_size):
        list(evaluation_loader(dataset, batch_size=3, workers=0, pin_memory=False, rank=rank, world_size=world_size))
    assert len(opened.read_text().split("\n")[:-1]) <= len(images) + world_size - 1, "shared at the seams alone"


@pytest.mark.parametrize("more", [4, 24])
def test_too_few_files_for_the_workers_end_with_the_remedy(
    dataset: ReferDataset, more: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Nothing waits for workers that never came."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # which an end with a message replaces
    loader = evaluation_loader(dataset, batch_size=1, workers=8, pin_memory=False)
    with pytest.raises(SystemExit), few_files(more), ended_within(60):
        utils.run(lambda: list(loader))
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ") and "--workers" in message and "ulimit -n" in message


def test_an_image_is_kept_no_longer_than_it_is_needed(dataset: ReferDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def watched(pixels: np.ndarray) -> Tensor:
        image = normalize(pixels)
        made.append(weakref.ref(image))
        return image

    monkeypatch.setattr("data.loaders.normalize", watched)
    for batch in evaluation_loader(dataset, batch_size=4, workers=0, pin_memory=False):
        shown = {dataset.expressions[index].image_id for index in batch.numbers.tolist()}
        assert sum(reference() is not None for reference in made) <= min(len(shown), 1)
    assert len(made) == 8


def test_batches_are_assembled_on_the_device(dataset: ReferDataset) -> None:
    """All that the network and the scores need; the numbers of the expressions stay with the reader."""
    batch = next(iter(evaluation_loader(dataset, batch_size=6, workers=0, pin_memory=False, device="meta")))
    assert [field.device.type for field in batch] == ["meta"] * 4 + ["cpu"]
    assert [tuple(field.shape) for field in batch] == [(6, 3, 24, 24), (6, 21), (6, 21), (6, 24, 24), (6,)]
    assert [field.dtype for field in batch] == [torch.float32, *[torch.int64] * 4]


def test_targets_of_different_sizes_stay_a_list() -> None:
    same = collate([sample(0), sample(1)])
    assert same.target.shape == (2, 4, 4)
    mixed = collate([sample(0), sample(1, size=5)])
    assert [target.shape for target in mixed.target] == [(4, 4), (5, 5)]
    assert mixed.image.shape == (2, 3, 4, 4)
    assert mixed.numbers.tolist() == [0, 1]


def sample(index: int, size: int = 4) -> Sample:
    tokens = torch.zeros(3, dtype=torch.int64)
    return Sample(torch.zeros(3, 4, 4), tokens, tokens, torch.zeros(size, size, dtype=torch.int64), index)
