"""Optimizer groups and schedule of the recipe."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from CrossVLT import build_model
from lib.optim import build_optimizer, build_scheduler, parameter_group


def test_every_parameter_is_in_exactly_one_group_or_frozen() -> None:
    model = build_model("nano", "nano", vocab_size=1000)
    optimizer = build_optimizer(model, lr=3e-5, weight_decay=1e-2)
    grouped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(grouped) == len({id(parameter) for parameter in grouped})
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert {id(parameter) for parameter in grouped} == trainable


def test_norms_and_position_biases_of_the_backbone_alone_do_not_decay() -> None:
    model = build_model("nano", "nano", vocab_size=1000)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in build_optimizer(model, lr=3e-5, weight_decay=1e-2).param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            exempt = name.startswith("backbone") and ("norm" in name or "relative_position_bias_table" in name)
            assert group["weight_decay"] == (0.0 if exempt else 1e-2), name


def test_a_module_that_no_group_claims_is_an_error() -> None:
    model = build_model("nano", "nano", vocab_size=1000)
    model.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"extra\.weight"):
        build_optimizer(model, lr=3e-5, weight_decay=1e-2)
    with pytest.raises(ValueError, match="temp"):
        parameter_group("temp")


def test_learning_rate_decays_polynomially_to_zero() -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = build_scheduler(optimizer, total_steps=4)
    rates = []
    for _ in range(6):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([2.0, 2 * 0.75**0.9, 2 * 0.5**0.9, 2 * 0.25**0.9, 0.0, 0.0])


def test_amsgrad_reaches_the_optimizer() -> None:
    model = build_model("nano", "nano", vocab_size=10)
    assert build_optimizer(model, 1e-3, 0.0, amsgrad=True).defaults["amsgrad"]
