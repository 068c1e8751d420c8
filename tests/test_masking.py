"""MaskRIS: what is masked, the loss of the second pass, and that it does not depend on how samples are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounter

from lib.contracts import Batch, Output
from lib.engine import EpochConfig, train_step
from lib.network.compilation import compile_training
from lib.network.losses import CLASS_WEIGHTS, Criterion, Losses
from lib.network.precision import Precision
from lib.training.masking import Masking, Words
from lib.training.optim import build_optimizer, build_scheduler
from lib.training.run_log import RunLog
from lib.training.state import TrainingState
from tests.networks import reference_nano
from tests.reference.inputs import inputs

CPU = torch.device("cpu")
WORDS = Words(size=1000, mask_id=103, special_ids=[0, 100, 101, 102, 103])
MASKING = Masking(0.75, 0.15, WORDS, seed=5, patch=16)


def batch_of(numbers: Sequence[int], size: int = 64, n_tokens: int = 12) -> Batch:
    """Samples that follow from their numbers."""
    samples = [inputs(number, 1, size, size, 1000) for number in numbers]
    image, token_ids, attention_mask, target = (torch.cat(parts) for parts in zip(*samples, strict=True))
    token_ids, attention_mask = (part[:, :n_tokens].contiguous() for part in (token_ids, attention_mask))
    return Batch(image, token_ids, attention_mask, target, torch.tensor(numbers))


# ---------------------------------------------------------------- what is masked


@pytest.mark.parametrize(
    ("size", "patch", "share", "kept"),
    [
        (480, 32, 0.75, 56),  # int(15·15·0.25), as published
        (64, 16, 0.75, 4),
        (56, 16, 0.75, 4),  # 4×4 patches, of which those at the edge are cut
        (160, 16, 0.9, 10),  # 100·(1 − 0.9) is a little below 10 in floating point
        (64, 16, 0.0, 16),
    ],
)
def test_so_many_patches_stay(size: int, patch: int, share: float, kept: int) -> None:
    """They keep their pixels, and the others are 0."""
    batch = batch_of([0])._replace(image=torch.rand(1, 3, size, size) + 1)
    masked = Masking(share, 0.0, WORDS, 0, patch)(batch, epoch=0).image
    stays = masked != 0
    assert torch.equal(masked[stays], batch.image[stays])
    cells = [(x, y) for x in range(0, size, patch) for y in range(0, size, patch)]
    whole = [stays[0, :, x : x + patch, y : y + patch] for x, y in cells]
    assert all(cell.all() or not cell.any() for cell in whole)
    assert sum(bool(cell.all()) for cell in whole) == kept


def test_words_are_masked_as_for_bert() -> None:
    """15 % of the words: 80 % of these are [MASK], 10 % another word, 10 % stay. Special tokens always stay."""
    n, special = 4000, torch.tensor(WORDS.special_ids)
    ids = torch.randint(200, 1000, (n, 20), generator=torch.Generator().manual_seed(0))
    ids[:, ::4] = special[torch.arange(5)]
    batch = Batch(torch.zeros(n, 3, 8, 8), ids, torch.ones_like(ids), torch.zeros(n, 8, 8), torch.arange(n))
    masked = MASKING._replace(patch=4)(batch, epoch=1)
    is_word = ~torch.isin(ids, special)
    assert masked.attention_mask is batch.attention_mask and masked.target is batch.target
    assert torch.equal(masked.token_ids[~is_word], ids[~is_word])
    before, after = ids[is_word], masked.token_ids[is_word]
    as_mask = (after == WORDS.mask_id).double().mean().item()
    replaced = ((after != before) & (after != WORDS.mask_id)).double().mean().item()
    assert as_mask == pytest.approx(0.15 * 0.8, abs=0.005)  # of 60,000 words; the standard error is 0.0013
    assert replaced == pytest.approx(0.15 * 0.1, abs=0.002)
    others = after[(after != before) & (after != WORDS.mask_id)]
    assert 0 <= others.min() < 50 and 950 < others.max() < 1000


def test_a_sample_is_masked_alike_in_any_batch_and_anew_in_each_epoch() -> None:
    masking = Masking(0.5, 0.5, WORDS, seed=5, patch=16)
    together = masking(batch_of([3, 4, 5, 6]), epoch=2)
    for number, alone in ((4, 1), (6, 3)):
        own = masking(batch_of([number]), epoch=2)
        assert torch.equal(own.image[0], together.image[alone])
        assert torch.equal(own.token_ids[0], together.token_ids[alone])
    others = [masking(batch_of([3]), 3), masking._replace(seed=6)(batch_of([3]), 2)]
    assert not any(torch.equal(other.image[0], together.image[0]) for other in others)


# ---------------------------------------------------------------- the loss


def test_the_second_pass_learns_the_first_ones_probabilities() -> None:
    """Its loss is computed here in NumPy: −Σ w_c p_c log q_c, divided by the pixels; half of it counts, twice."""
    random = np.random.default_rng(0)
    clean, masked = random.normal(size=(2, 3, 2, 5, 4))
    p = np.exp(clean) / np.exp(clean).sum(1, keepdims=True)
    log_q = masked - np.log(np.exp(masked).sum(1, keepdims=True))
    weights = np.array(CLASS_WEIGHTS)[:, None, None]
    expected = -(weights * p * log_q).sum() / (3 * 5 * 4)
    criterion, target = Criterion(masked=True), torch.zeros(3, 5, 4, dtype=torch.int64)
    maps = tuple(torch.rand(3, 1, 2, 2, dtype=torch.float64) for _ in range(4))
    output = Output(torch.from_numpy(masked), maps, torch.rand(3, 2, dtype=torch.float64))
    normalizer = criterion.normalizer([target], torch.float64)
    losses = criterion.masked(output, torch.from_numpy(clean), normalizer)
    assert losses.mask.item() == pytest.approx(expected / 2)
    assert losses.total.item() == pytest.approx(expected)
    assert losses.alignment.tolist() == [0] * 4 and losses.no_target.tolist() == [0]


def test_the_first_pass_has_half_of_the_mask_loss_and_all_of_the_others() -> None:
    random = torch.Generator().manual_seed(0)
    output = Output(torch.randn(2, 2, 8, 8, generator=random), (torch.rand(2, 1, 2, 2, generator=random),) * 4)
    target = (torch.rand(2, 8, 8, generator=random) < 0.3).long()
    plain, half = Criterion("ce+dice2")(output, target), Criterion("ce+dice2", masked=True)(output, target)
    assert torch.equal(half.mask, plain.mask / 2)
    assert torch.equal(half.alignment, plain.alignment)


# ---------------------------------------------------------------- a step


def step_of(model: nn.Module, batches: Sequence[Batch]) -> tuple[Losses, list[torch.Tensor]]:
    """Take a step with masking, but without learning; return its losses and the gradients."""
    for module in model.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # which normalises each accumulated batch by itself
    precision, optimizer = Precision("fp32", CPU), build_optimizer(model, 0.0, 0.0)
    scheduler = build_scheduler(optimizer, total_steps=4)
    state = TrainingState(model, optimizer, scheduler, precision.scaler, RunLog(Path(), "refcoco"), {})
    config = EpochConfig(1, 4, precision, accumulate=len(batches), masking=MASKING)
    kept: list[torch.Tensor] = []
    optimizer.register_step_pre_hook(lambda *_: kept.extend(gradients_of(model)))
    losses, _ = train_step(model, Criterion(masked=True), batches, state, CPU, config, measure=False)
    return losses, kept


def gradients_of(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def test_a_step_has_the_gradients_of_both_passes() -> None:
    """Of the clean samples' loss, halved, and of the masked ones' distance from the clean ones' answer."""
    batch = batch_of([0, 1])
    losses, found = step_of(reference_nano(), [batch])
    model = reference_nano().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    weights = torch.tensor(CLASS_WEIGHTS)
    clean = model(batch.image, batch.token_ids, batch.attention_mask)
    masked = MASKING(batch, epoch=0)
    again = model(masked.image, masked.token_ids, masked.attention_mask)
    size, mask = batch.stacked_target.shape[-2:], batch.stacked_target.float()
    maps = [F.interpolate(part, size, mode="bilinear", align_corners=True)[:, 0] for part in clean.alignment]
    alignment = sum(F.binary_cross_entropy_with_logits(part, mask) for part in maps)
    first = F.cross_entropy(clean.logits, batch.stacked_target, weight=weights)
    second = F.cross_entropy(again.logits, clean.logits.detach().softmax(1), weight=weights)
    total = 2 * (first / 2 + second / 2) + alignment
    total.backward()
    torch.testing.assert_close(losses.total, total.detach())
    for own, other in zip(found, gradients_of(model), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-5)


@pytest.mark.slow  # several training steps
def test_accumulated_batches_are_one_step() -> None:
    """In float64: in float32 the rounding of some processors switches a ReLU, and gradients jump."""

    def batch(*numbers: int) -> Batch:
        samples = batch_of(numbers)
        return samples._replace(image=samples.image.double())

    whole, expected = step_of(reference_nano().double(), [batch(0, 1, 2, 3)])
    parts, found = step_of(reference_nano().double(), [batch(0, 1), batch(2, 3)])
    assert whole.total.dtype == torch.float64
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=0)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-7, atol=1e-12)


@pytest.mark.slow  # tracing takes as long as a hundred steps
def test_the_second_pass_runs_the_compiled_graph(graphs: CompileCounter) -> None:
    model = reference_nano()
    compile_training(model, torch.device("cpu"))
    for _ in range(2):
        step_of(model, [batch_of([0, 1])])
    assert graphs.frame_count == 1
