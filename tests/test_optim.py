"""Optimizer groups and schedule of the default settings."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from CrossVLT import SegModel
from lib.training.optim import (
    GROUPS,
    build_optimizer,
    build_scheduler,
    clip_gradients,
    describe_groups,
    parameter_group,
    rates_after,
)


def test_every_parameter_is_in_exactly_one_group_or_frozen() -> None:
    model = SegModel("nano", "nano", vocab_size=1000)
    optimizer = build_optimizer(model, lr=3e-5, weight_decay=1e-2)
    grouped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(grouped) == len({id(parameter) for parameter in grouped})
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert {id(parameter) for parameter in grouped} == trainable


def test_norms_and_position_biases_of_the_backbone_alone_do_not_decay() -> None:
    model = SegModel("nano", "nano", vocab_size=1000)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in build_optimizer(model, lr=3e-5, weight_decay=1e-2).param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            exempt = name.startswith("backbone") and ("norm" in name or "relative_position_bias_table" in name)
            assert group["weight_decay"] == (0.0 if exempt else 1e-2), name


def test_a_module_that_no_group_claims_is_an_error() -> None:
    model = SegModel("nano", "nano", vocab_size=1000)
    model.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"extra\.weight"):
        build_optimizer(model, lr=3e-5, weight_decay=1e-2)
    with pytest.raises(ValueError, match="temper"):
        parameter_group("temper")


def test_the_temperature_has_a_group_where_it_is_trained() -> None:
    assert parameter_group("temp") == "temperature"
    recipe = build_optimizer(SegModel("nano", "nano", vocab_size=10), lr=3e-5, weight_decay=1e-2)
    assert [group["name"] for group in recipe.param_groups] == list(GROUPS)
    model = SegModel("nano", "nano", vocab_size=10, train_temperature=True)
    *groups, temperature = build_optimizer(model, lr=3e-5, weight_decay=1e-2).param_groups
    assert [group["name"] for group in groups] == list(GROUPS)
    assert (temperature["name"], temperature["weight_decay"]) == ("temperature", 0.0)
    assert [id(parameter) for parameter in temperature["params"]] == [id(model.temp)]


def test_the_embeddings_have_a_group_where_they_are_trained() -> None:
    model = SegModel("nano", "nano", vocab_size=10, train_embeddings=True, train_temperature=True)
    *groups, temperature, embeddings = build_optimizer(model, lr=3e-5, weight_decay=1e-2).param_groups
    assert [group["name"] for group in groups] == list(GROUPS)
    assert [group["name"] for group in (temperature, embeddings)] == ["temperature", "embeddings"]
    assert embeddings["weight_decay"] == 1e-2
    own = {id(parameter) for parameter in model.lang_stage1.embeddings.parameters()}
    assert {id(parameter) for parameter in embeddings["params"]} == own
    assert not any(id(parameter) in own for group in groups for parameter in group["params"])


def test_groups_may_be_empty() -> None:
    model = SegModel("nano", "nano", vocab_size=10)
    model.backbone.requires_grad_(False)
    model.lang_stage1.requires_grad_(False)
    optimizer = build_optimizer(model, lr=1e-3, weight_decay=1e-2)
    sizes = {group["name"]: len(group["params"]) for group in optimizer.param_groups}
    assert list(sizes) == list(GROUPS)
    assert [name for name, size in sizes.items() if not size] == ["backbone_no_decay", "backbone", "lang_stage1"]
    assert "   0 tensors" in describe_groups(optimizer)
    for parameter in model.classifier.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    other = build_optimizer(model, lr=1e-3, weight_decay=1e-2)
    other.load_state_dict(optimizer.state_dict())
    assert str(other.state_dict()) == str(optimizer.state_dict())


def test_everything_may_be_frozen() -> None:
    model = SegModel("nano", "nano", vocab_size=10).requires_grad_(False)
    optimizer = build_optimizer(model, lr=1e-3, weight_decay=1e-2)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert describe_groups(optimizer).count("   0 tensors") == len(GROUPS)
    assert clip_gradients(model.parameters(), 1.0) == 0


def with_gradients() -> list[nn.Parameter]:
    """Parameters whose gradients 3, 4 and 12 have the norm 13, and one without."""
    parameters = [nn.Parameter(torch.zeros(size)) for size in (1, 2, 1)]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0]), torch.tensor([4.0, 12.0])
    return parameters


@pytest.mark.parametrize("max_norm", [None, 13.5, 1.3])
def test_gradients_are_measured_and_clipped(max_norm: float | None) -> None:
    parameters = with_gradients()
    norm = clip_gradients(iter(parameters), max_norm)
    assert (norm.item(), norm.shape, norm.dtype) == (13.0, (), torch.float32)
    scale = 0.1 if max_norm == 1.3 else 1.0
    assert parameters[0].grad.tolist() == pytest.approx([3 * scale])
    assert parameters[1].grad.tolist() == pytest.approx([4 * scale, 12 * scale])
    assert parameters[2].grad is None
    if max_norm:
        expected = with_gradients()
        nn.utils.clip_grad_norm_(expected, max_norm)
        for own, one in zip(parameters[:2], expected[:2], strict=True):
            torch.testing.assert_close(own.grad, one.grad, rtol=0, atol=0)


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
    model = SegModel("nano", "nano", vocab_size=10)
    assert build_optimizer(model, 1e-3, 0.0, amsgrad=True).defaults["amsgrad"]


def test_encoders_have_their_own_rate_on_request() -> None:
    """They are what pretrained files fill; the decay of every parameter is as before."""
    model = SegModel("nano", "nano", vocab_size=10, train_embeddings=True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    plain, scaled = (build_optimizer(model, 1e-4, 1e-2, encoder_lr_scale=scale) for scale in (1.0, 0.1))
    rates: dict[str, float] = {}
    decays: dict[str, float] = {}
    before: dict[str, float] = {}
    for optimizer, found in ((plain, before), (scaled, decays)):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                found[names[id(parameter)]] = group["weight_decay"]
                rates[names[id(parameter)]] = group["lr"]
    assert decays == before
    encoder = {
        name
        for name in rates
        if name.startswith(("lang_stage1.embeddings.", "lang_stage1.encoder.layer."))
        or any(part in name for part in (".patch_embed.", ".blocks.", ".downsample."))
    }
    assert encoder and encoder == {name for name, rate in rates.items() if rate == pytest.approx(1e-5)}
    assert {rate for name, rate in rates.items() if name not in encoder} == {1e-4}
    assert {name.split(".")[3] for name in rates if name.startswith("backbone.1.layers.") and name not in encoder} >= {
        "attn1",
        "attn2",
        "linear1",
        "linear2",
        "proj",
    }


def test_rates_warm_up_linearly_and_decay_as_before() -> None:
    optimizer = torch.optim.AdamW([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (2.0, 0.2)])
    scheduler = build_scheduler(optimizer, total_steps=8, warmup=4)
    rates = []
    for _ in range(8):
        rates.append(scheduler.get_last_lr())
        optimizer.step()
        scheduler.step()
    factors = [0.001, 0.25075, 0.5005, 0.75025, 1, 1, 1, 1]
    expected = [factor * (1 - step / 8) ** 0.9 for step, factor in enumerate(factors)]
    assert [rate for rate, _ in rates] == pytest.approx([2 * value for value in expected])
    assert [rate for _, rate in rates] == pytest.approx([0.2 * value for value in expected])
    assert rates_after(scheduler, 2) == pytest.approx(rates[2])
