"""The types that data, network, loss and metric exchange, so that none of these modules imports another.

A data set makes samples, and a loader makes batches of them. The network turns a batch into an output, which the loss
and the metric read. To look at predictions, pass `engine.evaluate` a callback `on_batch`.
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
    """One expression, its image and its target mask."""

    image: Tensor  # (3, S, S) float32, normalised
    token_ids: Tensor  # (N,) int64, padded with 0
    attention_mask: Tensor  # (N,) int64, 1 on tokens and 0 on padding
    target: Tensor  # (S, S) int64, or (H, W) if the transform keeps the mask's size; 1 on the object, 0 elsewhere
    number: int  # index of the expression in its data set


class Batch(NamedTuple):
    """B samples."""

    image: Tensor  # (B, 3, S, S) float32, normalised
    token_ids: Tensor  # (B, N) int64, padded with 0
    attention_mask: Tensor  # (B, N) int64, 1 on tokens and 0 on padding
    target: Tensor | Sequence[Tensor]  # (B, S, S) int64, or a list of (H, W) if their sizes differ
    numbers: Tensor  # (B,) int64, indices of the expressions in their data set

    @property
    def stacked_target(self) -> Tensor:
        """The targets as one tensor (B, S, S) int64; ValueError if their sizes differ."""
        if not isinstance(self.target, Tensor):
            raise ValueError("the targets of this batch differ in size")
        return self.target


class Output(NamedTuple):
    """The network's output for a batch, in training and in evaluation alike.

    float32 in every precision, or float64 if the network and its images are float64.
    """

    logits: Tensor  # (B, 2, H, W) at the image's size; channel 1 is the object
    # Four maps (B, 1, H_i, W_i): cosine similarity of pixel and sentence, divided by the temperature, plus the bias if
    # there is one. () in evaluation, unless asked for.
    alignment: tuple[Tensor, ...]
    no_target: Tensor | None = None  # (B, 2) logits; channel 1: the sentence means nothing here. None without a head.


# The cosine of every pixel of a stage and the sentence, (H_i, W_i), -1 to 1; what an alignment map shows.
Similarity: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"

Tokenizer: TypeAlias = Callable[[list[str]], list[list[int]]]  # texts → token ids of each

# Receives a batch, the network's output and the masks of its samples that count, each (h, w) bool of its target's size:
# a mask that the protocol calls empty has no pixel.
BatchCallback = Callable[[Batch, Output, Sequence[Tensor]], None]


class Batches(Protocol):
    """A loader of known length, for evaluation."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


class Expression(NamedTuple):
    """One sentence and the object it refers to, by the ids of the data set."""

    ref_id: int
    ann_id: int | tuple[int, ...]  # several for data sets with sets of objects; (): no target in the image
    image_id: int
    sent_id: int
    text: str  # the sentence as it was typed (`raw`)


class Expressions(Protocol):
    """What pictures and reports read of a data set, by index of its expressions."""

    @property
    def expressions(self) -> Sequence[Expression]:
        """Every expression, in the data set's order."""

    @property
    def object_of(self) -> Sequence[int]:
        """For each expression, the index of its object."""

    @property
    def no_target(self) -> Sequence[bool]:
        """For each expression, whether it means nothing in its image."""

    def __len__(self) -> int: ...

    def load(self, index: int, /) -> tuple[Image.Image, Pixels]:
        """Return an expression's RGB image and its object's mask, (H, W) uint8 of 0 and 1, at the image's size."""

    def truth(self, index: int, /) -> Pixels:
        """Return the mask of an expression's object as `load` does, without opening the image."""

    def image_size(self, index: int, /) -> tuple[int, int]:
        """Return height and width of an expression's image, without opening it."""

    def category(self, index: int, /) -> str:
        """Return the category of an expression's object; "" if it has none, or several names joined by commas."""

    def image_path(self, index: int, /) -> Path:
        """Return the file of an expression's image."""
