"""Alignment that learns: temperature and bias in the maps, in files, and how well maps find the object."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bert.tokenizer import build_tokenizer
from CrossVLT import SegModel
from data.loaders import build_datasets
from experiments.maps import _ranking, map_quality
from lib.network.losses import Criterion
from lib.training.optim import build_optimizer
from lib.weights.checkpoint import Checkpoint
from lib.weights.identify import identify
from tests.networks import fill
from tests.reference.inputs import inputs
from tests.training_runs import training_flags
from train import parse_args
from trained import from_checkpoint


def nano(*, bias: bool, alignment: bool = True) -> SegModel:
    torch.manual_seed(3)
    return SegModel("nano", "nano", vocab_size=1000, drop_path=0.0, align_bias=bias, alignment=alignment)


def test_maps_are_divided_by_the_temperature_and_begin_at_the_prior() -> None:
    """Of the paper's network with the same weights; nothing else changes."""
    paper, ours = nano(bias=False).eval(), nano(bias=True).eval()
    ours.start_alignment(0.1, 0.04)
    batch = inputs(1, 2, 64, 64, 1000)[:3]
    with torch.no_grad():
        expected, found = (model(*batch, with_alignment=True) for model in (paper, ours))
    assert torch.equal(expected.logits, found.logits)
    for own, similarity in zip(found.alignment, expected.alignment, strict=True):
        torch.testing.assert_close(own, similarity / 0.1 + math.log(0.04 / 0.96), rtol=1e-5, atol=1e-5)


@pytest.mark.slow  # builds several networks
def test_the_bias_is_the_only_new_name_and_is_trained_without_decay() -> None:
    plain, ours = nano(bias=False), nano(bias=True)
    assert ours.state_dict().keys() - plain.state_dict().keys() == {"align_bias"}
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in plain.state_dict().items())
    *batch, target = inputs(1, 2, 64, 64, 1000)
    Criterion()(ours.train()(*batch), target).total.backward()
    assert ours.align_bias is not None and ours.align_bias.grad is not None and ours.align_bias.grad.all()
    groups = {group["name"]: group for group in build_optimizer(ours, 0.1, 0.01).param_groups}
    assert groups["align_bias"]["weight_decay"] == 0 and groups["align_bias"]["params"] == [ours.align_bias]
    assert nano(bias=True, alignment=False).state_dict().keys() == nano(bias=False, alignment=False).state_dict().keys()


@pytest.mark.slow  # builds several networks
def test_weights_tell_whether_there_is_a_bias(tmp_path: Path) -> None:
    model = nano(bias=True).eval()
    fill(model.state_dict())
    model.start_alignment(0.2, 0.3)
    assert identify(model.state_dict())["align_bias"] and not identify(nano(bias=False).state_dict())["align_bias"]
    model.save_pretrained(tmp_path)
    assert "alignment map has a bias" in (tmp_path / "README.md").read_text()
    batch = inputs(1, 2, 64, 64, 1000)[:3]
    again = (from_checkpoint(Checkpoint(Path("a.pth"), model.state_dict())), SegModel.from_pretrained(tmp_path).eval())
    with torch.no_grad():
        expected = model(*batch, with_alignment=True).alignment
        for copy in again:
            found = copy(*batch, with_alignment=True).alignment
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


# ---------------------------------------------------------------- how well maps find the object


def test_a_ranking_is_what_counting_pairs_and_thresholds_gives() -> None:
    random = np.random.default_rng(0)
    values, mask = random.integers(5, size=(6, 7)).astype(float), random.random((6, 7)) < 0.3
    inside, outside = values[mask], values[~mask]
    wins = [(own > other) + (own == other) / 2 for own in inside for other in outside]
    precision = sum((inside == level).sum() * mask[values >= level].mean() for level in np.unique(values)) / mask.sum()
    found = _ranking(torch.from_numpy(values), torch.from_numpy(mask.astype(int)))
    assert found == pytest.approx((np.mean(wins), precision))


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.0, 1, 1, 1], (0.5, 0.25)), ([2.0, 1, 1, 1], (1, 1)), ([0.0, 1, 1, 1], (0, 0.25))],
)
def test_flat_right_and_wrong_maps(values: list[float], expected: tuple[float, float]) -> None:
    assert _ranking(torch.tensor([values]), torch.tensor([[1, 0, 0, 0]])) == pytest.approx(expected)


def test_every_stage_of_a_network_is_measured(few_root: Path, tmp_path: Path) -> None:
    args = parse_args(training_flags(few_root, tmp_path))
    tokenizer = build_tokenizer(args.bert_tokenizer)
    (dataset,) = build_datasets(args, ("val",), tokenizer)
    model = SegModel("nano", "nano", vocab_size=len(tokenizer)).eval()
    stages = map_quality(model, dataset, range(3))
    assert len(stages) == 4
    for stage in stages:
        assert 0 <= stage.auc <= 1
        assert 0 < stage.precision <= 1
        assert -1 <= stage.low <= stage.high <= 1
