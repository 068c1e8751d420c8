"""The published evaluation protocol."""

from __future__ import annotations

import pytest
import torch

from errors import UserError
from lib.evaluation.metrics import Metrics, Scores
from lib.network.resize import predicted_object


def logits_of(masks: torch.Tensor) -> torch.Tensor:
    """Return logits whose argmax is `masks` (B, H, W)."""
    return torch.stack([1 - masks, masks], dim=1).float()


def scores_of(predicted: torch.Tensor, target: torch.Tensor, batch_size: int = 2) -> Scores:
    metrics = Metrics()
    for start in range(0, len(target), batch_size):
        own = slice(start, start + batch_size)
        metrics.update(logits_of(predicted[own]), target[own], torch.arange(len(target))[own])
    metrics.reduce()
    return metrics.compute().scores


def test_by_hand() -> None:
    target = torch.zeros(3, 4, 4, dtype=torch.int64)
    predicted = torch.zeros_like(target)
    target[0, 0] = predicted[0, 0] = 1  # IoU 4/4
    target[1, :2] = 1  # 8 pixels …
    predicted[1, 0] = 1  # … of which 4 are found: IoU 4/8
    predicted[2, 3, 0] = 1  # nothing is there: IoU 0/1
    scores = scores_of(predicted, target)
    assert scores.n_expressions == 3
    assert scores.mean_iou == pytest.approx(100 * (1 + 0.5 + 0) / 3)
    assert scores.overall_iou == pytest.approx(100 * 8 / 13)
    assert scores.precision[0.5] == pytest.approx(200 / 3)
    assert scores.precision[0.6] == pytest.approx(100 / 3)


def test_an_empty_union_counts_as_zero() -> None:
    empty = torch.zeros(1, 4, 4, dtype=torch.int64)
    scores = scores_of(empty, empty)
    assert scores.mean_iou == scores.overall_iou == scores.precision[0.5] == 0


def test_a_tie_is_background() -> None:
    """As the argmax of the published protocol has it: the first of equals."""
    logits = torch.tensor([[0.5, -1.0, 2.0], [0.5, 1.0, 1.0]])[None, :, None]  # 1, 2, 1, 3
    assert predicted_object(logits).tolist() == [[[False, True, False]]]
    assert predicted_object(logits).equal(logits.argmax(1).bool())


@pytest.mark.parametrize("tenths", [5, 6, 7, 8, 9])
def test_thresholds_are_inclusive(tenths: int) -> None:
    target = torch.zeros(1, 1, 10, dtype=torch.int64)
    target[..., :] = 1
    predicted = torch.zeros_like(target)
    predicted[..., :tenths] = 1
    assert scores_of(predicted, target).precision[tenths / 10] == 100


def test_batching_and_order_change_no_digit() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, target = torch.randint(0, 2, (2, 37, 9, 11), generator=generator)
    one_by_one = scores_of(predicted, target, batch_size=1)
    assert scores_of(predicted, target, batch_size=8) == one_by_one
    assert scores_of(predicted.flip(0), target.flip(0), batch_size=5) == one_by_one


def test_nothing_counted_is_an_error() -> None:
    with pytest.raises(ValueError, match="no sample"):
        Metrics().compute()


def test_answers_that_are_no_numbers_have_no_score() -> None:
    """They would count as wrong answers: a table of zeros."""
    metrics, logits = Metrics(), logits_of(torch.ones(3, 4, 4))
    logits[1, 0, 2, 2] = torch.nan
    metrics.update(logits[:2], torch.ones(2, 4, 4), torch.arange(2))
    metrics.update(logits[2:], torch.ones(1, 4, 4), torch.arange(2, 3))
    metrics.reduce()
    with pytest.raises(UserError, match="1 of 3 expressions"):
        metrics.compute()
