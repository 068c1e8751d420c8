"""Weighted draws."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping
from itertools import accumulate
from random import Random
from typing import Generic, TypeVar

T = TypeVar("T")


class Weighted(Generic[T]):
    """Values with weights; draws what `Random.choices` draws, without adding up the weights every time."""

    def __init__(self, weights: Mapping[T, float]) -> None:
        """Take the weight of every value."""
        self.values = list(weights)
        self.sums = list(accumulate(weights.values()))

    def one(self, rng: Random) -> T:
        """Return one of the values."""
        return self.values[bisect(self.sums, rng.random() * (self.sums[-1] + 0.0), 0, len(self.values) - 1)]
