"""Whether alignment maps say anything: how well each stage's map finds the object of its sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from CrossVLT import SegModel
from data.dataset_refer_bert import ReferDataset
from data.loaders import collate
from lib.engine import to_model_inputs
from lib.network.resize import upsample

BATCH = 16
CPU = torch.device("cpu")


class MapQuality(NamedTuple):
    """The maps of one stage, over many sentences."""

    auc: float  # mean area under the ROC curve of a sentence's pixels, in [0, 1]: 0.5 by chance
    precision: float  # mean average precision of a sentence's pixels, in [0, 1]: the object's share by chance
    low: float  # 1st percentile of all values
    high: float  # 99th percentile of all values


@torch.inference_mode()
def map_quality(network: SegModel, dataset: ReferDataset, indices: Sequence[int]) -> list[MapQuality]:
    """Return the quality of each stage's maps on some expressions; [] for a network without alignment.

    A map is upsampled to the image, as in the loss, and compared with the mask pixel by pixel. Expressions whose mask
    is empty or full are left out.
    """
    ranks: list[list[tuple[float, float]]] = []
    values: list[list[np.ndarray]] = []
    for start in range(0, len(indices), BATCH):
        batch = collate([dataset[index] for index in indices[start : start + BATCH]])
        output = network(*to_model_inputs(batch, CPU), with_alignment=True)
        target = batch.stacked_target
        for stage, similarity in enumerate(output.alignment):
            if stage == len(ranks):
                ranks.append([])
                values.append([])
            large = upsample(similarity, target.shape[-2:])[:, 0]
            pairs = zip(large, target, strict=True)
            ranks[stage] += [_ranking(*pair) for pair in pairs if 0 < pair[1].sum() < pair[1].numel()]
            values[stage].append(similarity.flatten().numpy())
    return [_quality(pairs, np.concatenate(parts)) for pairs, parts in zip(ranks, values, strict=True)]


def _quality(pairs: Sequence[tuple[float, float]], values: np.ndarray) -> MapQuality:
    means = np.mean(pairs, axis=0).round(4).tolist()
    return MapQuality(*means, *np.percentile(values, (1, 99)).round(4).tolist())


def _ranking(values: Tensor, mask: Tensor) -> tuple[float, float]:
    """Return area under the ROC curve and average precision of a map (H, W).

    mask: (H, W) of 0 and 1, neither empty nor full. Equal values count as if they stood in a random order: a flat map
    has an area of 0.5, and the object's share as precision.
    """
    _, level = torch.unique(values.flatten(), return_inverse=True)
    n_levels = int(level.max()) + 1
    inside = mask.flatten().bool()
    hits = torch.bincount(level[inside], minlength=n_levels).double().flip(0)  # from the highest value down
    misses = torch.bincount(level[~inside], minlength=n_levels).double().flip(0)
    found, wrong = hits.cumsum(0), misses.cumsum(0)
    area = (misses * (found - hits / 2)).sum() / (found[-1] * wrong[-1])
    precision = (hits * found / (found + wrong)).sum() / found[-1]
    return area.item(), precision.item()
