"""The uncertainty of a difference between two networks: means, deviations and bootstrap intervals.

A bootstrap interval shows how much the difference varies with the choice of images and seeds. Every resample draws as
many images as there are, with replacement, together with all their sentences, which are not independent because they
are about the same few objects; it also draws as many seeds as there are. Both networks are scored on the same drawn
images and seeds. The interval contains the middle 95 % of the differences. It does not cover other data sets, learning
rates or lengths of training. With only three seeds the variation between seeds is poorly known, so the interval is
rather too narrow.
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
    """The mean over several seeds, and the standard deviation."""

    mean: float
    deviation: float | None  # of a sample, with n − 1 in the denominator; None for a single value

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of one or more values."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        """Return the text in tables."""
        return f"{self.mean:.2f}" if self.deviation is None else f"{self.mean:.2f} ± {self.deviation:.2f}"


class Sums(NamedTuple):
    """The sums that scores are computed from, by image."""

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
        """Return overall IoU in percent, (resamples, seeds); 0 if the union is empty. times: as in `mean_iou`."""
        intersection, union = times @ self.intersection, times @ self.union
        percent: np.ndarray = 100 * np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
        return percent


Metric: TypeAlias = Callable[[Sums, np.ndarray], np.ndarray]
METRICS: Mapping[str, Metric] = {"mean IoU": Sums.mean_iou, "overall IoU": Sums.overall_iou}


class Difference(NamedTuple):
    """The score of one network minus that of another, in points."""

    mean: float  # over the seeds
    each: tuple[float, ...]  # of every seed
    low: float  # the ends of the interval
    high: float


class Resamples(NamedTuple):
    """The number of times that every image and seed is drawn in each resample."""

    images: np.ndarray  # (resamples, images)
    seeds: np.ndarray  # (resamples, seeds)


@cache
def draw_resamples(n_images: int, n_seeds: int) -> Resamples:
    """Return RESAMPLES resamples, the same ones in every call."""
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


def observed(one: Sums, other: Sums, metric: Metric) -> np.ndarray:
    """Return the score of `one` minus that of `other`, (seeds,); both have the same images and seeds in one order."""
    everything = np.ones((1, len(one.sentences)))
    found: np.ndarray = (metric(one, everything) - metric(other, everything))[0]
    return found


def difference(one: Sums, other: Sums, metric: Metric) -> Difference:
    """Return the score of `one` minus that of `other`; both have the same images and seeds in the same order."""
    return differences([(one, other, metric)])[0]


def differences(pairs: Sequence[tuple[Sums, Sums, Metric]]) -> list[Difference]:
    """Return the `difference` of each pair; all pairs have the same images and seeds, and resamples are drawn once."""
    resampled: list[list[np.ndarray]] = [[] for _ in pairs]
    for drawn in iterate_resamples(*pairs[0][0].iou.shape) if pairs else ():
        for parts, pair in zip(resampled, pairs, strict=True):
            parts.append(_on_resamples(*pair, drawn))
    return [_summary(observed(*pair), parts) for pair, parts in zip(pairs, resampled, strict=True)]


def _on_resamples(one: Sums, other: Sums, metric: Metric, drawn: Resamples) -> np.ndarray:
    """Return the mean difference over the drawn seeds, (resamples,); without resamples that have no sentence."""
    images, seeds = drawn
    not_empty = images @ one.sentences > 0
    if not not_empty.all():  # for a rare kind of sentence; a copy of many images takes a while
        images, seeds = images[not_empty], seeds[not_empty]
    by_seed = metric(one, images) - metric(other, images)
    found: np.ndarray = (by_seed * seeds).sum(axis=1) / seeds.shape[1]
    return found


def _summary(each: np.ndarray, resampled: Sequence[np.ndarray]) -> Difference:
    low, high = np.percentile(np.concatenate(resampled), LIMITS)
    return Difference(float(each.mean()), tuple(each.tolist()), float(low), float(high))
