"""What data, network, loss and metric hand on to one another: the contracts between rooms that do not know each other.

A data set makes samples, a loader batches of them; the network answers a batch with an output, which the loss and the
metric read. Whoever wants to see predictions gives `engine.evaluate` a visit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

from lib.photo import Pixels


class Sample(NamedTuple):
    """One expression: what the network takes and is measured by."""

    image: Tensor  # (3, S, S) float32, normalised
    token_ids: Tensor  # (N,) int64, padded with 0
    attention_mask: Tensor  # (N,) int64, 1 on tokens and 0 on padding
    target: Tensor  # (S, S) int64, or (H, W) if the transform keeps it so; 1 on the object and 0 elsewhere
    number: int  # of the expression in its data set


class Batch(NamedTuple):
    """Samples put together, B of them."""

    image: Tensor  # (B, 3, S, S) float32, normalised
    token_ids: Tensor  # (B, N) int64, padded with 0
    attention_mask: Tensor  # (B, N) int64, 1 on tokens and 0 on padding
    target: Tensor | Sequence[Tensor]  # (B, S, S) int64, or a list of (H, W) if their sizes differ
    numbers: Tensor  # (B,) int64, of the expressions in their data set

    @property
    def stacked_target(self) -> Tensor:
        """The targets as one tensor (B, S, S) int64; ValueError if their sizes differ."""
        if not isinstance(self.target, Tensor):
            raise ValueError("the targets of this batch differ in size")
        return self.target


class Output(NamedTuple):
    """What the network says about a batch, in training and in evaluation alike.

    float32 in every precision, or float64 if the network and its images are.
    """

    logits: Tensor  # (B, 2, H, W) at the image's size; channel 1 is the object
    # Four maps (B, 1, H_i, W_i): cosine of pixel and sentence over temperature. () in evaluation, unless asked for.
    alignment: tuple[Tensor, ...]
    no_target: Tensor | None = None  # (B, 2) logits; channel 1: the sentence means nothing here. None without a head.


# How similar a stage finds every place to the sentence, (H_i, W_i): one of an output's alignment maps.
Similarity: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"

Tokenizer: TypeAlias = Callable[[list[str]], list[list[int]]]  # texts → ids of each

# Takes a batch, its logits (B, 2, H, W) and the predicted masks of its samples, each (h, w) bool of its target's size.
Visit = Callable[[Batch, Tensor, Sequence[Tensor]], None]


class Batches(Protocol):
    """A loader of one evaluation: it knows how many batches it brings."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


class Expression(NamedTuple):
    """One sentence and the object it means, by the data set's own ids."""

    ref_id: int
    ann_id: int | tuple[int, ...]  # several where the data set has sets of objects; () means nothing in the image
    image_id: int
    sent_id: int
    text: str  # the sentence as it was typed (`raw`)


class Expressions(Protocol):
    """What pictures and reports read of a data set, by the numbers of its expressions."""

    @property
    def expressions(self) -> Sequence[Expression]:
        """Every expression, in the data set's order."""

    @property
    def object_of(self) -> Sequence[int]:
        """For each expression, the number of its object."""

    @property
    def no_target(self) -> Sequence[bool]:
        """For each expression, whether it means nothing in its image."""

    def __len__(self) -> int: ...

    def load(self, index: int, /) -> tuple[Image.Image, Pixels]:
        """Return an expression's RGB image and its object's mask, (H, W) uint8 of 0 and 1, at their own size."""

    def image_path(self, index: int, /) -> Path:
        """Return the file of an expression's image."""
