"""How sure a difference between two networks is: means, deviations and bootstrap intervals.

A bootstrap interval here answers: how far could the difference have come out otherwise, had other images been drawn
and had training begun from other seeds? Every resample draws as many images as there are, with replacement, and takes
all sentences of a drawn image along, because they are about the same few objects and so are not independent; and it
draws as many seeds as there are. Both networks are scored on the same drawn images and seeds. The interval holds the
middle 95 % of the resamples' differences. It does not cover another data set, another learning rate or a longer
training; and with three seeds, what differs between seeds is known so poorly that it is rather too narrow.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple, TypeAlias

import numpy as np

RESAMPLES = 10_000
BOOTSTRAP_SEED = 0
LIMITS = (2.5, 97.5)  # percent of the resamples below the interval's ends
MOST_DRAWN = 2**26  # numbers of drawn images that are held at a time: 512 MiB


class Spread(NamedTuple):
    """The mean of what several seeds gave, and their standard deviation."""

    mean: float
    deviation: float | None  # of a sample, n − 1 in its denominator; None where there is one value

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Describe values, at least one."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        """As it stands in tables."""
        return f"{self.mean:.2f}" if self.deviation is None else f"{self.mean:.2f} ± {self.deviation:.2f}"


class Sums(NamedTuple):
    """What scores are made of, added up by image."""

    intersection: np.ndarray  # (images, seeds) pixels
    union: np.ndarray  # (images, seeds) pixels
    iou: np.ndarray  # (images, seeds), the sum of the sentences' IoU
    sentences: np.ndarray  # (images,), how many

    @classmethod
    def of(cls, counts: np.ndarray, images: np.ndarray, n_images: int, ious: np.ndarray | None = None) -> Sums:
        """Add up the sentences of every image.

        counts: (2, seeds, sentences), intersections and unions. images: (sentences,), the number of the image of each,
        below n_images. ious: (seeds, sentences), 0 to 1, if they do not follow from the counts.
        """
        intersection, union = counts.astype(np.float64)
        iou = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0) if ious is None else ious
        by_image = (
            np.stack([np.bincount(images, values, n_images) for values in rows], axis=1)
            for rows in (intersection, union, iou)
        )
        intersections, unions, sums = by_image
        return cls(intersections, unions, sums, np.bincount(images, minlength=n_images).astype(np.float64))

    def mean_iou(self, times: np.ndarray) -> np.ndarray:
        """Return mean IoU in percent, (resamples, seeds); times: (resamples, images), how often an image counts."""
        percent: np.ndarray = 100 * (times @ self.iou) / (times @ self.sentences)[:, None]
        return percent

    def overall_iou(self, times: np.ndarray) -> np.ndarray:
        """Return overall IoU in percent, (resamples, seeds); 0 where the union is empty. times: as `mean_iou`."""
        intersection, union = times @ self.intersection, times @ self.union
        percent: np.ndarray = 100 * np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
        return percent


Metric: TypeAlias = Callable[[Sums, np.ndarray], np.ndarray]
METRICS: Mapping[str, Metric] = {"mean IoU": Sums.mean_iou, "overall IoU": Sums.overall_iou}


class Difference(NamedTuple):
    """By how much one network scores higher than another, in points."""

    mean: float  # over the seeds
    each: tuple[float, ...]  # of every seed
    low: float  # the ends of the interval
    high: float


class Resamples(NamedTuple):
    """How often every image and seed is drawn in each resample."""

    images: np.ndarray  # (resamples, images)
    seeds: np.ndarray  # (resamples, seeds)


@cache
def draw_resamples(n_images: int, n_seeds: int) -> Resamples:
    """Draw RESAMPLES resamples, the same ones every time."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    drawn = (rng.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(np.float64) for n in (n_images, n_seeds))
    return Resamples(*drawn)


def iterate_resamples(n_images: int, n_seeds: int) -> Iterator[Resamples]:
    """Yield RESAMPLES resamples in total, the same ones every time; in chunks if there are many images."""
    size = max(1, MOST_DRAWN // n_images)
    if size >= RESAMPLES:
        yield draw_resamples(n_images, n_seeds)
        return
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    for start in range(0, RESAMPLES, size):
        count = min(size, RESAMPLES - start)
        drawn = (rng.multinomial(n, np.full(n, 1 / n), count).astype(np.float64) for n in (n_images, n_seeds))
        yield Resamples(*drawn)


def difference(one: Sums, other: Sums, metric: Metric) -> Difference:
    """Return by how much `one` scores higher than `other`, both with the same images and seeds in the same order."""
    n_images, n_seeds = one.iou.shape
    everything = np.ones((1, n_images))
    each = (metric(one, everything) - metric(other, everything))[0]
    found = []
    for images, seeds in iterate_resamples(n_images, n_seeds):
        # Of a rare kind of sentence a resample may hold none.
        some = images @ one.sentences > 0
        by_seed = metric(one, images[some]) - metric(other, images[some])
        found.append((by_seed * seeds[some]).sum(axis=1) / n_seeds)
    low, high = np.percentile(np.concatenate(found), LIMITS)
    return Difference(float(each.mean()), tuple(each.tolist()), float(low), float(high))
