"""The loss: its arithmetic, and that parts of a step add up to the step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import utils
from lib.contracts import Output
from lib.network.losses import CLASS_WEIGHTS, Criterion, Losses, StepNormalization
from lib.variants import ALIGN_LOSSES, LOSSES

SAMPLES = 6


def batch() -> tuple[Output, Tensor]:
    """An output with gradients and masks of different sizes; the first is empty, the second full."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(4, 5), (2, 3), (1, 2), (1, 1)]
    logits = 3 * torch.randn(SAMPLES, 2, 16, 20, generator=generator)
    alignment = [torch.rand(SAMPLES, 1, *size, generator=generator) * 2 - 1 for size in sizes]
    target = (torch.rand(SAMPLES, 16, 20, generator=generator) < torch.linspace(0, 0.7, SAMPLES)[:, None, None]).long()
    target[1] = 1
    return Output(logits.requires_grad_(), tuple(value.requires_grad_() for value in alignment)), target


def part(output: Output, samples: slice) -> Output:
    return Output(output.logits[samples], tuple(value[samples] for value in output.alignment))


def gradients(output: Output) -> list[Tensor]:
    return [value.grad.clone() for value in (output.logits, *output.alignment)]


def in_parts(criterion: Criterion, parts: int, samples: slice = slice(0, SAMPLES)) -> tuple[Losses, list[Tensor]]:
    """Summed losses and gradients of some samples of `batch`, taken as that many parts of a step."""
    output, target = batch()
    size = (samples.stop - samples.start) // parts
    slices = [slice(first, first + size) for first in range(samples.start, samples.stop, size)]
    normalizer = criterion.normalizer([target[chosen] for chosen in slices])
    assert normalizer.parts == parts
    losses = [criterion(part(output, chosen), target[chosen], normalizer) for chosen in slices]
    for values in losses:
        values.total.backward()
    return Losses(*(torch.stack(values).sum(0).detach() for values in zip(*losses, strict=True))), gradients(output)


def test_cross_entropy_is_the_weighted_mean_over_the_batch() -> None:
    output, target = batch()
    losses = Criterion()(output, target)
    expected = F.cross_entropy(output.logits, target, weight=torch.tensor(CLASS_WEIGHTS))
    assert torch.equal(losses.mask, expected)
    assert torch.equal(losses.total, 2 * expected + losses.alignment.sum())


def test_dice_is_what_numpy_computes() -> None:
    output, target = batch()
    exponentials = np.exp(output.logits.detach().numpy().astype(np.float64))
    expected = 0.0
    for sample, mask in zip(exponentials, target.numpy(), strict=True):
        probability = sample[1] / (sample[0] + sample[1])
        expected += 1 - (2 * (probability * mask).sum() + 1) / (probability.sum() + mask.sum() + 1)
    dice = Criterion("dice")(output, target).mask
    assert dice.item() == pytest.approx(expected / SAMPLES, rel=1e-6)
    both = Criterion("ce+dice")(output, target).mask
    torch.testing.assert_close(both, Criterion()(output, target).mask + dice, rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("parts", [2, 3])
def test_parts_add_up_to_the_step(loss: str, parts: int) -> None:
    criterion = Criterion(loss)
    output, target = batch()
    expected = criterion(output, target)
    expected.total.backward()
    losses, grads = in_parts(criterion, parts)
    for own, whole in zip((*losses, *grads), (*expected, *gradients(output)), strict=True):
        torch.testing.assert_close(own, whole.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_mean_over_processes_is_the_loss_of_the_global_batch(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    criterion = Criterion(loss)
    output, target = batch()
    expected = criterion(output, target)
    expected.total.backward()
    mean = criterion.normalizer([target]).weight_sum / 2
    monkeypatch.setattr(utils, "mean_over_processes", lambda value: mean)
    halves = [in_parts(criterion, 3, samples) for samples in (slice(0, 3), slice(3, 6))]
    for own, whole in zip(zip(*(losses for losses, _ in halves), strict=True), expected, strict=True):
        torch.testing.assert_close((own[0] + own[1]) / 2, whole.detach(), rtol=1e-6, atol=1e-6)
    for own, whole in zip(zip(*(grads for _, grads in halves), strict=True), gradients(output), strict=True):
        torch.testing.assert_close((own[0] + own[1]) / 2, whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("confidence", [0.0, 1e4])
def test_empty_and_full_masks_have_finite_losses(loss: str, value: int, confidence: float) -> None:
    for wrong in (False, True):
        sign = 1 if bool(value) != wrong else -1
        logits = torch.stack([torch.zeros(2, 8, 8), torch.full((2, 8, 8), sign * confidence)], dim=1).requires_grad_()
        losses = Criterion(loss)(Output(logits, (torch.zeros(2, 1, 2, 2),) * 4), torch.full((2, 8, 8), value))
        losses.total.backward()
        assert losses.total.isfinite()
        assert logits.grad.isfinite().all()


def test_half_precision_outputs_are_compared_in_float32() -> None:
    output, target = batch()
    half = Output(output.logits.bfloat16(), tuple(value.bfloat16() for value in output.alignment))
    rounded = Output(half.logits.float(), tuple(value.float() for value in half.alignment))
    for loss in LOSSES:
        for own, expected in zip(Criterion(loss)(half, target), Criterion(loss)(rounded, target), strict=True):
            assert own.dtype == torch.float32
            assert torch.equal(own, expected)


def test_a_normalizer_of_one_process_counts_its_own_samples() -> None:
    target = torch.tensor([[[0, 1], [1, 1]]])
    parts, weight_sum = Criterion().normalizer([target, 1 - target])
    assert (parts, weight_sum.item()) == (2, pytest.approx(4 * sum(CLASS_WEIGHTS)))
    assert StepNormalization._fields == ("parts", "weight_sum")


def test_unknown_losses_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'focal'.*ce, dice, ce\+dice, dice2, ce\+dice2"):
        Criterion("focal")


def test_dice_of_both_classes_is_what_numpy_computes() -> None:
    output, target = batch()
    exponentials = np.exp(output.logits.detach().numpy().astype(np.float64))
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    expected = 0.0
    for sample, mask in zip(probabilities, target.numpy(), strict=True):
        for probability, pixels in ((sample[0], mask == 0), (sample[1], mask == 1)):
            expected += 1 - (2 * probability[pixels].sum() + 1) / (probability.sum() + pixels.sum() + 1)
    dice = Criterion("dice2")(output, target).mask
    assert dice.item() == pytest.approx(expected / SAMPLES / 2, rel=1e-6)
    for loss, part in (("ce+dice2", dice), ("ce+dice", Criterion("dice")(output, target).mask)):
        weighted = Criterion(loss, dice_weight=0.25)(output, target).mask
        torch.testing.assert_close(weighted, Criterion()(output, target).mask + 0.25 * part, rtol=1e-6, atol=0)


def logistic(similarity: Tensor, target: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The upsampled similarity's probabilities, cross-entropies and the mask, in NumPy."""
    large = F.interpolate(similarity.detach(), target.shape[-2:], mode="bilinear", align_corners=True)[:, 0]
    probability = 1 / (1 + np.exp(-large.double().numpy()))
    mask = target.numpy()
    return probability, -np.log(np.where(mask == 1, probability, 1 - probability)), mask


def test_balanced_alignment_is_the_mean_over_the_classes_of_each_image() -> None:
    output, target = batch()
    losses = Criterion(align_loss="balanced")(output, target).alignment
    for similarity, found in zip(output.alignment, losses, strict=True):
        _, entropy, mask = logistic(similarity, target)
        samples = [
            np.mean([one[own == value].mean() for value in np.unique(own)])
            for one, own in zip(entropy, mask, strict=True)
        ]
        assert found.item() == pytest.approx(np.mean(samples), rel=1e-5)


def test_focal_alignment_counts_what_surprises() -> None:
    output, target = batch()
    losses = Criterion(align_loss="focal")(output, target).alignment
    for similarity, found in zip(output.alignment, losses, strict=True):
        probability, entropy, mask = logistic(similarity, target)
        right = np.where(mask == 1, probability, 1 - probability)
        assert found.item() == pytest.approx(((1 - right) ** 2 * entropy).mean(), rel=1e-5)


@pytest.mark.parametrize("align_loss", ALIGN_LOSSES)
def test_alignment_adds_up_to_the_step(align_loss: str) -> None:
    criterion = Criterion(align_loss=align_loss)
    output, target = batch()
    expected = criterion(output, target)
    expected.total.backward()
    losses, grads = in_parts(criterion, 3)
    for own, whole in zip((*losses, *grads), (*expected, *gradients(output)), strict=True):
        torch.testing.assert_close(own, whole.detach(), rtol=1e-6, atol=1e-6)
