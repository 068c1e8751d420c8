"""From flags to batches: data sets, the samples of each process, and their loaders."""

from __future__ import annotations

import argparse
import atexit
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple, TypedDict, TypeVar, Unpack

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from data.dataset_refer_bert import ReferDataset
from data.transforms import PairTransform, normalize
from errors import UserError, few
from lib.contracts import Batch, Sample, Tokenizer
from refer.jsonl import read_jsonl
from refer.mixed import mix
from refer.open import open_data_set
from refer.refer import Index
from refer.splits import data_sets, title_of
from utils import end_workers, garbage_uncollected, ignore_stop_signals, log, seeded

T = TypeVar("T")


def build_datasets(
    args: argparse.Namespace,
    splits: Sequence[str],
    tokenizer: Tokenizer,
    *,
    resize_mask: bool = True,
    training: bool = False,
) -> list[ReferDataset]:
    """Return splits of the data set that the flags name, and log how many of their objects are unusable.

    resize_mask: False keeps masks at the size of their images. training: the first split is for training, so objects
    with an empty mask are left out. With `--cache`, all processes of a training must call this together.
    """
    transform = PairTransform(args.img_size, resize_mask=resize_mask)
    title = title_of(args.dataset, args.splitBy, args.name)
    datasets = []
    with garbage_uncollected():
        refer = open_index(args)
    cache = None
    if args.cache:
        from data.cache import open_cache  # imports HDF5

        cache = open_cache(args.cache, refer, args.img_size, args.workers)
    with garbage_uncollected():
        for number, split in enumerate(splits):
            left_out = training and number == 0
            dataset = ReferDataset(
                refer, split, tokenizer, transform, args.max_tokens, cache=cache, without_empty=left_out
            )
            log_odd_objects(dataset, f"{title} {split}", left_out=left_out)
            datasets.append(dataset)
        del refer  # so that the collector, once it is back, does not look through its records
    return datasets


def log_odd_objects(dataset: ReferDataset, name: str, *, left_out: bool) -> None:
    """Log how many objects have no sentence or an empty mask.

    name: of the split. left_out: whether objects with an empty mask are left out.
    """
    fate = "left out" if left_out else "scored, but no prediction can score above 0"
    for ref_ids, oddity in (
        (dataset.without_sentence, "no sentence: left out"),
        (dataset.empty, f"no pixel in the mask: {fate}"),
    ):
        if ref_ids:
            objects = f"{len(ref_ids):,} object{'s' if len(ref_ids) > 1 else ''}"
            log(f"{name}: {objects} with {oddity} (ref_id {few(ref_ids)})")
    if any(dataset.no_target):
        log(f"{name}: {sum(dataset.no_target):,} of {len(dataset):,} sentences mean nothing in their image")


@garbage_uncollected()
def open_index(args: argparse.Namespace) -> Index:
    """Return the index of the data set that the flags name, of several mixed ones, or of the user's own files."""
    pairs = data_sets(args.dataset, args.splitBy, args.data_files)
    names = [f"{name} ({split_by})" for name, split_by in pairs] or args.data_files
    log(f"reading {', '.join(map(str, names))}")
    if not pairs:
        return read_jsonl(args.data_files, args.overlap)
    if len(pairs) == 1:
        return open_data_set(args.refer_data_root, *pairs[0], args.overlap)
    index, left_out = mix([open_data_set(args.refer_data_root, *pair, args.overlap) for pair in pairs])
    log(
        f"{', '.join(names)} mixed; left out of train, because their "
        f"images are also in another split: {left_out['objects']} objects on {left_out['images']} images"
    )
    return index


class Batching(NamedTuple):
    """How the samples of an optimizer step are distributed."""

    batch_size: int  # samples per batch of one process
    processes: int = 1
    accumulate: int = 1  # batches per process and step

    @property
    def total(self) -> int:
        """Samples of one optimizer step."""
        return self.batch_size * self.processes * self.accumulate

    def __str__(self) -> str:
        parts = f"{self.batch_size} per process × {self.processes} process{'es' if self.processes > 1 else ''}"
        return f"{self.total} = {parts}" + (f" × {self.accumulate} accumulated" if self.accumulate > 1 else "")


class SampleRequest(NamedTuple):
    """A sample to load for training."""

    number: int  # index of the expression
    seed: int  # for random transforms


class SeededDataset(Dataset[Sample]):
    """Seeds the generators for every sample that it loads.

    So a random transform gives the same sample in any worker of any process, and also in a resumed training.
    """

    def __init__(self, dataset: Dataset[Sample]) -> None:
        self.dataset = dataset

    def __getitem__(self, request: SampleRequest) -> Sample:
        with seeded(request.seed):
            return self.dataset[request.number]


class TrainBatches(Sampler[list[SampleRequest]]):
    """One epoch: every object once, in random order, each with one of its expressions drawn at random.

    The order depends on seed and epoch alone. A step is a run of that order, cut into `accumulate` parts, of which
    each process takes its slice. So the steps have the same samples for any number of processes with the same global
    batch size. An incomplete last step is dropped.
    """

    def __init__(self, objects: Sequence[Sequence[int]], batching: Batching, *, seed: int, rank: int = 0) -> None:
        """objects: for each object, the indices of its expressions. Raises UserError if they do not fill one step."""
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
        """Set the epoch of the next iteration, and its first step."""
        self.epoch, self.first_step = epoch, first_step

    def __len__(self) -> int:
        """Return the number of this process's batches from the first step on."""
        return (self.steps - self.first_step) * self.batching.accumulate

    def __iter__(self) -> Iterator[list[SampleRequest]]:
        random = np.random.default_rng((self.seed, self.epoch))
        order = [int(random.choice(self.objects[number])) for number in random.permutation(len(self.objects))]
        requests = [
            SampleRequest(*pair) for pair in zip(order, random.integers(2**32, size=len(order)).tolist(), strict=True)
        ]
        part = self.batching.batch_size * self.batching.processes
        first = self.first_step * self.batching.total + self.rank * self.batching.batch_size
        for number in range(len(self)):
            begin = first + number * part
            yield requests[begin : begin + self.batching.batch_size]


def train_loader(dataset: Dataset[Sample], batches: TrainBatches, *, workers: int, pin_memory: bool) -> Iterable[Batch]:
    """Return the loader of the training batches; call `batches.start` before each epoch."""
    return _loader(SeededDataset(dataset), workers, pin_memory, batch_sampler=batches, collate_fn=collate)


def evaluation_loader(
    dataset: ReferDataset,
    *,
    batch_size: int,
    workers: int,
    pin_memory: bool,
    device: torch.device | str = "cpu",
    limit: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> EvaluationLoader:
    """Return the loader of this process's part of all expressions, or of the first `limit` of them."""
    batches = evaluation_batches(dataset, batch_size, limit=limit, rank=rank, world_size=world_size)
    return EvaluationLoader(dataset, batches, workers=workers, pin_memory=pin_memory, device=device)


def evaluation_batches(
    dataset: ReferDataset, batch_size: int, *, limit: int | None = None, rank: int = 0, world_size: int = 1
) -> list[list[int]]:
    """Return this process's batches of expression indices, of the first `limit` or all; those of an image are adjacent.

    Each process gets consecutive whole batches, and at most one more than another process. So a batch has the same
    samples, and bit for bit the same results, for any number of processes.
    """
    by_image: dict[int, list[int]] = {}
    for index, expression in enumerate(dataset.expressions[:limit]):
        by_image.setdefault(expression.image_id, []).append(index)
    order = list(chain(*by_image.values()))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    first, end = (number * len(batches) // world_size for number in (rank, rank + 1))
    return batches[first:end]


class LoadedImage(NamedTuple):
    """An image and the masks of objects in it."""

    image: Tensor  # (3, S, S) float32, normalised
    targets: Tensor  # (objects, S, S) uint8, or (objects, H, W) if the transform keeps the masks' size


class ImageDataset(Dataset[LoadedImage]):
    """The images of a split, each with the masks of the requested objects."""

    def __init__(self, dataset: ReferDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, expressions: Sequence[int]) -> LoadedImage:
        """Return an image and its masks; expressions: indices of expressions about this image, one per object."""
        masks = np.stack([self.dataset.mask(index) for index in expressions])
        loaded = LoadedImage(normalize(self.dataset.image(expressions[0])), torch.from_numpy(masks))
        if get_worker_info() is not None:
            # Copied to shared memory here, and not by the worker's queue: if memory ran out there, the image would be
            # lost, and the main process would wait for it forever.
            for part in loaded:
                part.share_memory_()
        return loaded


class BatchSlot(NamedTuple):
    """The positions of an expression's image and target."""

    image: int  # in the order of loading
    target: int  # among the objects of the image


class EvaluationLoader:
    """Batches for scoring; every image is decoded and sent to the device only once.

    Workers load image by image. Batches are assembled on the device, which repeats an image for all its expressions.
    batches: indices of expressions, those of an image adjacent (`evaluation_batches`).
    """

    def __init__(
        self,
        dataset: ReferDataset,
        batches: Sequence[Sequence[int]],
        *,
        workers: int,
        pin_memory: bool,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dataset, self.batches, self.device = dataset, batches, device
        self.slots: dict[int, BatchSlot] = {}  # by index of the expression
        numbers: dict[int, int] = {}  # position of each image in the order of loading, by its id
        wanted: list[dict[int, int]] = []  # by image: object → index of one expression about it
        for index in chain(*batches):
            number = numbers.setdefault(dataset.expressions[index].image_id, len(numbers))
            if number == len(wanted):
                wanted.append({})
            objects = wanted[number]
            objects.setdefault(dataset.object_of[index], index)
            self.slots[index] = BatchSlot(number, list(objects).index(dataset.object_of[index]))
        self._images = _loader(
            ImageDataset(dataset),
            workers,
            pin_memory,
            batch_size=None,
            sampler=[list(objects.values()) for objects in wanted],
            prefetch_factor=_images_ahead(workers, max(map(len, batches), default=1)),
        )

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        arriving = enumerate(self._images)
        held: dict[int, LoadedImage] = {}
        for batch in self.batches:
            last = self.slots[batch[-1]].image
            while last not in held:
                number, loaded = next(arriving)
                held[number] = LoadedImage(*(part.to(self.device, non_blocking=True) for part in loaded))
            collated = self._collate(batch, held)
            held = {last: held[last]}  # a later batch can only need the last image
            yield collated

    def _collate(self, batch: Sequence[int], held: dict[int, LoadedImage]) -> Batch:
        slots = [self.slots[index] for index in batch]
        image = torch.stack([held[slot.image].image for slot in slots])
        targets = [held[slot.image].targets[slot.target] for slot in slots]
        target = torch.stack(targets).long() if _same_size(targets) else [target.long() for target in targets]
        token_ids, attention_mask = (part.to(self.device, non_blocking=True) for part in self.dataset.tokens(batch))
        return Batch(image, token_ids, attention_mask, target, torch.tensor(batch))


def _images_ahead(workers: int, batch_size: int) -> int | None:
    """Return how many images each worker loads ahead: together one batch, if every expression has another image."""
    # Limited, because every waiting image keeps two files open.
    return max(2, -(-min(batch_size, 128) // workers)) if workers else None


class LoaderOptions(TypedDict, total=False):
    """Arguments of DataLoader that select and collate the items."""

    batch_sampler: TrainBatches
    collate_fn: Callable[[list[Sample]], Batch]
    batch_size: None
    sampler: Sequence[Sequence[int]]
    prefetch_factor: int | None


def _loader(dataset: Dataset[T], workers: int, pin_memory: bool, **options: Unpack[LoaderOptions]) -> DataLoader[T]:
    if workers:
        atexit.register(end_workers)
    return DataLoader(
        dataset,
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=ignore_stop_signals,
        generator=torch.Generator(),  # a separate one, so that loading does not change the global random state
        **options,
    )


def collate(samples: list[Sample]) -> Batch:
    """Return samples as a batch; targets of different sizes stay a list."""
    targets = [sample.target for sample in samples]
    return Batch(
        _stack([sample.image for sample in samples]),
        _stack([sample.token_ids for sample in samples]),
        _stack([sample.attention_mask for sample in samples]),
        _stack(targets) if _same_size(targets) else targets,
        torch.tensor([sample.number for sample in samples]),
    )


def _stack(tensors: list[Tensor]) -> Tensor:
    stacked: Tensor = default_collate(tensors)  # unlike torch.stack, it writes directly to shared memory in a worker
    return stacked


def _same_size(tensors: Sequence[Tensor]) -> bool:
    return len({tensor.shape for tensor in tensors}) == 1
