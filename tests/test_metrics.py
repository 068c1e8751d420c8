"""The published evaluation protocols."""

from __future__ import annotations

import pytest
import torch

from errors import UserError
from lib.evaluation.metrics import Metrics
from lib.evaluation.protocols import HEAD, AnyScores, Counting, Result, Scores, counted, evaluation_of, score
from lib.network.resize import predicted_object
from lib.scores import COLUMNS, formulas, leading


def logits_of(masks: torch.Tensor) -> torch.Tensor:
    """Return logits whose argmax is `masks` (B, H, W)."""
    return torch.stack([1 - masks, masks], dim=1).float()


def scores_of(predicted: torch.Tensor, target: torch.Tensor, batch_size: int = 2) -> Scores:
    metrics = Metrics()
    for start in range(0, len(target), batch_size):
        own = slice(start, start + batch_size)
        metrics.update(logits_of(predicted[own]), target[own], torch.arange(len(target))[own])
    metrics.reduce()
    scores = metrics.compute().scores
    assert isinstance(scores, Scores)
    return scores


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


def test_nan_logits_have_no_score() -> None:
    """They would count as wrong answers: a table of zeros."""
    metrics, logits = Metrics(), logits_of(torch.ones(3, 4, 4))
    logits[1, 0, 2, 2] = torch.nan
    metrics.update(logits[:2], torch.ones(2, 4, 4), torch.arange(2))
    metrics.update(logits[2:], torch.ones(1, 4, 4), torch.arange(2, 3))
    metrics.reduce()
    with pytest.raises(UserError, match="1 of 3 expressions"):
        metrics.compute()


def test_nan_logits_of_the_head_have_no_score() -> None:
    """NaN is not larger than anything: it would mean that there is a target."""
    metrics, words = Metrics(Counting("gres")), torch.zeros(3, 2)
    words[1, 1] = torch.nan
    metrics.update(logits_of(torch.ones(3, 4, 4)), torch.ones(3, 4, 4), torch.arange(3), words)
    with pytest.raises(UserError, match="1 of 3 expressions"):
        metrics.compute()


# ---------------------------------------------------------------- several objects, or none

# (truth empty, called empty, pixels predicted, pixels of the truth, pixels of the intersection)
SAMPLES = [
    (False, False, 90, 100, 80),
    (False, False, 100, 100, 100),
    (True, True, 0, 0, 0),
    (True, False, 30, 0, 0),
    (False, True, 0, 50, 0),
    (False, False, 20, 40, 0),
]


def results_of(samples: list[tuple], *, words: bool) -> list[Result]:
    return [
        Result(number, both, found + truth - both, found, truth, 1000, int(called) if words else -1, empty)
        for number, (empty, called, found, truth, both) in enumerate(samples)
    ]


def rounded(scores: AnyScores, *names: str) -> list[float | None]:
    return [value if value is None else round(value, 4) for value in (getattr(scores, name) for name in names)]


@pytest.mark.parametrize("words", [False, True])
def test_the_worked_example_of_several_or_none(words: bool) -> None:
    """By the rule of pixels and by the network's own word."""
    found = evaluation_of(results_of(SAMPLES, words=words), Counting("gres"))
    assert rounded(found.scores, "giou", "ciou", "n_acc", "t_acc") == [45.4545, 51.4286, 50, 75]
    assert found.scores.precision == {0.7: 50, 0.8: 25, 0.9: 25}
    assert found.scores.as_dict()["no_target_pixels"] == (None if words else 1)
    assert leading(found.scores.as_dict()) == 45.45


def test_the_worked_example_of_the_classic_protocol() -> None:
    scores = score([(50, 100), (90, 100), (1, 1000), (0, 0)])
    assert rounded(scores, "mean_iou", "overall_iou") == [35.025, 11.75]
    assert scores.precision == {0.5: 50, 0.6: 25, 0.7: 25, 0.8: 25, 0.9: 25}


def test_always_answering_nothing_reaches_the_share_without_target() -> None:
    rows = evaluation_of(results_of(SAMPLES, words=False), Counting("gres")).rows()
    nothing = rows['always "no target"']
    assert rounded(nothing, "giou", "ciou", "n_acc", "t_acc") == [round(100 * 2 / 6, 4), 0, 100, 0]
    assert list(rows) == ["empty below 1 pixel", "empty below 50 pixels", 'always "no target"']


def test_fewer_pixels_than_the_rule_are_no_answer() -> None:
    """Only the mask of 20 pixels outside its target and the one of 30 without a target count as empty."""
    samples = [*SAMPLES, (False, False, 50, 100, 50)]
    found = evaluation_of(results_of(samples, words=False), Counting("gres", no_target_pixels=50))
    assert rounded(found.scores, "n_acc", "t_acc") == [100, 60]
    assert found.scores.ciou == 100 * 230 / (110 + 100 + 50 + 40 + 100)
    assert list(found.rows())[:2] == ["empty below 50 pixels", "empty below 1 pixel"]


def test_an_answer_of_the_head_keeps_the_union_of_the_mask() -> None:
    """As gRefCOCO's own code counts; the rule of pixels empties the mask."""
    (result,) = results_of([(False, True, 40, 50, 10)], words=True)
    assert counted(result, HEAD, empties=False)[:4] == (0, 0, 80, 0)
    assert counted(result, 50, empties=True)[:4] == (0, 0, 50, 0)


def test_a_missing_kind_of_sentences_has_no_score() -> None:
    (target, *_), (*_, nothing) = SAMPLES, [SAMPLES[2]]
    with_target, without = (
        evaluation_of(results_of([sample], words=False), Counting("gres")).scores for sample in (target, nothing)
    )
    assert (with_target.n_acc, without.t_acc, without.precision[0.7]) == (None, None, None)
    assert "–" in without.table()


def test_ref_zom_scores_sentences_without_target_apart() -> None:
    """One pixel is an answer there, and a sentence that means nothing enters no other number."""
    samples = [(False, False, 100, 100, 50), (True, False, 1, 0, 0), (True, True, 0, 0, 0)]
    found = evaluation_of(results_of(samples, words=False), Counting("ref-zom", no_target_pixels=50))
    assert found.scores.as_dict() == {
        "protocol": "ref-zom",
        "n_expressions": 3,
        "n_no_target": 2,
        "mean_iou": 33.33,
        "overall_iou": 33.33,
        "precision": dict.fromkeys(["0.5", "0.6", "0.7", "0.8", "0.9"], 0.0),
        "accuracy": 50.0,
    }
    assert found.rows()['always "no target"'].accuracy == 100


@pytest.mark.parametrize("pixels", [1, 50])
@pytest.mark.parametrize("words", [False, True])
def test_masks_that_are_called_empty_have_no_pixel(pixels: int, words: bool) -> None:
    """The counts stay as they were predicted, for any batch size and order."""
    draw = torch.Generator().manual_seed(0)
    predicted, target = (torch.rand(2, 9, 12, 10, generator=draw) < 0.4).long()
    predicted[::3] *= torch.zeros(12, 10, dtype=torch.int64).index_fill(0, torch.tensor([0]), 1)  # a row at most
    target[4:6] = predicted[6] = 0
    answers = torch.rand(9, 2, generator=draw)
    counting, evaluations = Counting("gres", [4 <= number < 6 for number in range(9)], pixels), []
    for size in (1, 4):
        metrics, masks = Metrics(counting), []
        for start in range(0, 9, size):
            own = slice(start, start + size)
            spoken = answers[own] if words else None
            masks += metrics.update(logits_of(predicted[own]), target[own], torch.arange(9)[own], spoken)
        metrics.reduce()
        evaluations.append(metrics.compute())
        empty = answers.argmax(1).bool() if words else predicted.sum((1, 2)) < pixels
        assert empty.any() and not empty.all()
        for mask, was, is_empty in zip(masks, predicted, empty, strict=True):
            assert mask.equal(torch.zeros_like(was).bool() if is_empty else was.bool())
    assert evaluations[0] == evaluations[1]
    assert [result.predicted for result in evaluations[0].results] == predicted.sum((1, 2)).tolist()


def test_a_table_never_says_iou_alone() -> None:
    for protocol, columns in COLUMNS.items():
        assert "IoU" not in [column.name for column in columns]
        assert all(formulas(protocol).values())
