"""MaskRIS (arXiv 2411.19067): samples with masked patches and words, for a second pass in every step.

What is masked follows from seed, epoch and expression alone. So it is the same in a resumed training, and for any
number of processes, workers and accumulated batches.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.contracts import Batch
from lib.variants import MASK_PATCH

STREAM = 1  # another stream of random numbers than that of an epoch's order
# Of the chosen words, as for BERT: most become [MASK], some another word, and the rest stays.
MASKED, REPLACED = 0.8, 0.1


class Words(NamedTuple):
    """What masking must know of a vocabulary."""

    size: int
    mask_id: int
    special_ids: Collection[int]  # tokens that are not words; never masked


class Masking(NamedTuple):
    """How to mask samples."""

    image: float  # share of an image's patches that are removed, in [0, 1)
    text: float  # probability of each word to be chosen, in [0, 1)
    words: Words
    seed: int
    patch: int = MASK_PATCH  # side of a patch in pixels

    def __call__(self, batch: Batch, epoch: int) -> Batch:
        """Return a batch's samples, masked: removed patches are 0, the mean colour; the attention mask is unchanged."""
        height, width = batch.image.shape[-2:]
        randoms = [np.random.default_rng((self.seed, epoch, number, STREAM)) for number in batch.numbers.tolist()]
        kept = torch.stack([self._kept_pixels(height, width, random) for random in randoms])
        token_ids = [self._mask_words(ids, random) for ids, random in zip(batch.token_ids, randoms, strict=True)]
        return batch._replace(image=batch.image * kept[:, None], token_ids=torch.stack(token_ids))

    def n_kept(self, height: int, width: int) -> int:
        """Return how many patches of an image stay."""
        rows, columns = self._grid(height, width)
        return int(rows * columns * (1 - self.image) + 1e-9)  # 100·(1 − 0.9) is 9.99…98 in floating point

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        return -(-height // self.patch), -(-width // self.patch)

    def _kept_pixels(self, height: int, width: int, random: np.random.Generator) -> Tensor:
        """Return which pixels stay, (height, width) bool; patches at the right and bottom edge may be cut."""
        rows, columns = self._grid(height, width)
        kept = random.permutation(rows * columns).reshape(rows, columns) < self.n_kept(height, width)
        pixels = torch.from_numpy(kept).repeat_interleave(self.patch, 0).repeat_interleave(self.patch, 1)
        return pixels[:height, :width]

    def _mask_words(self, ids: Tensor, random: np.random.Generator) -> Tensor:
        """Return token ids (N,) with masked words."""
        chosen, action = random.random((2, len(ids)))
        is_word = ~np.isin(ids.numpy(), list(self.words.special_ids))
        chosen = (chosen < self.text) & is_word
        others = random.integers(self.words.size, size=len(ids))
        masked = np.where(chosen & (action < MASKED), self.words.mask_id, ids.numpy())
        masked = np.where(chosen & (action >= MASKED) & (action < MASKED + REPLACED), others, masked)
        return torch.from_numpy(masked)
