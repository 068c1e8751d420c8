"""What may be frozen, trained and recomputed, and what that leaves alone."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from benchmarks.memory import SETTINGS, Setting, measure
from CrossVLT import SegModel
from lib.network.losses import Criterion
from lib.training.optim import build_optimizer
from tests.helpers import mostly_slow
from tests.networks import reference_nano
from tests.reference.inputs import inputs

build_nano = partial(SegModel, "nano", "nano", vocab_size=1000)


def trained_by(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def train_step(model: SegModel, size: int = 64, loss_name: str = "ce") -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and all gradients of one seeded batch."""
    batch = inputs(1, 2, size, size, 1000)
    image, token_ids, attention_mask, target = (part.to(next(model.parameters()).device) for part in batch)
    torch.manual_seed(5)
    loss = Criterion(loss_name)(model.train()(image, token_ids, attention_mask), target).total
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("size", mostly_slow([64, 56], always=[56]))
def test_checkpointing_changes_no_bit(device: torch.device, size: int) -> None:
    """With dropout and drop path: what is computed again draws the same random numbers.

    CUDA has no deterministic cross-entropy of images (`tests/test_cuda.py`).
    """
    loss_name = "dice" if device.type == "cuda" else "ce"
    results = []
    for checkpointing in (False, True):
        model = reference_nano(dropout=0.1, drop_path=0.3, checkpointing=checkpointing)
        results.append((*train_step(model.to(device), size, loss_name), model.state_dict()))
    (loss, gradients, state), (own_loss, own_gradients, own_state) = results
    assert torch.equal(loss, own_loss)
    assert gradients.keys() == own_gradients.keys()
    assert [name for name, value in gradients.items() if not torch.equal(value, own_gradients[name])] == []
    assert all(torch.equal(value, own_state[name]) for name, value in state.items()), "running averages differ"


@pytest.mark.slow  # seconds of training steps
def test_the_random_numbers_of_dropout_and_drop_path_matter() -> None:
    """Otherwise the test above would not see them."""
    losses = []
    for dropout, drop_path in ((0.0, 0.0), (0.1, 0.0), (0.0, 0.3)):
        model = reference_nano(dropout=dropout, drop_path=drop_path)
        losses.append(train_step(model)[0].item())
    assert len(set(losses)) == 3


def test_checkpointing_keeps_less() -> None:
    kept = []
    for checkpointing in (False, True):
        model = build_nano(checkpointing=checkpointing)
        parameters = {value.untyped_storage().data_ptr() for value in model.state_dict().values()}
        kept.append(kept_bytes(model, parameters))
    assert kept[1] < kept[0] / 2


def kept_bytes(model: SegModel, except_for: set[int]) -> int:
    """Bytes that a forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in except_for:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        output = model.train()(*inputs(1, 2, 64, 64, 1000)[:3])
    assert output.logits.requires_grad  # the graph, and so all that it keeps, lived until here
    return sum(kept.values())


def test_blocks_are_recomputed_in_training_alone() -> None:
    model = build_nano(checkpointing=True)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    model.backbone[0].layers.blocks[1].register_forward_pre_hook(count)
    train_step(model)
    assert calls == 2
    with torch.no_grad():
        model.train()(*inputs(1, 2, 64, 64, 1000)[:3])
    assert calls == 3
    model.eval()(*inputs(1, 2, 64, 64, 1000)[:3]).logits.sum().backward()
    assert calls == 4


def test_freezing_bert_freezes_the_layers_that_a_bert_file_fills() -> None:
    trained = trained_by(build_nano())
    layers = {name for name in trained if name.startswith("lang_stage1.encoder.layer.")}
    assert layers
    assert trained - trained_by(build_nano(freeze_bert=True)) == layers


def test_frozen_layers_keep_their_values_and_all_others_move() -> None:
    model = reference_nano(freeze_bert=True, train_temperature=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = build_optimizer(model, lr=1e-3, weight_decay=1e-2)
    _, gradients = train_step(model)
    assert gradients.keys() == trained_by(model)
    optimizer.step()
    after = dict(model.named_parameters())
    still = {name for name, value in after.items() if torch.equal(value, before[name])}
    assert still == after.keys() - trained_by(model)
    assert any(name.startswith("lang_stage1.encoder.layer.") for name in still)


def test_the_embeddings_are_trained_on_request() -> None:
    """Whether BERT's layers behind them are trained or not."""
    recipe = build_nano()
    embeddings = {f"lang_stage1.embeddings.{name}" for name, _ in recipe.lang_stage1.embeddings.named_parameters()}
    assert len(embeddings) == 5
    assert trained_by(build_nano(train_embeddings=True)) - trained_by(recipe) == embeddings
    model = build_nano(train_embeddings=True, freeze_bert=True)
    _, gradients = train_step(model)
    assert embeddings <= gradients.keys() == trained_by(model)
    assert all(gradients[name].any() for name in embeddings)


def test_the_temperature_is_trained_on_request() -> None:
    assert trained_by(build_nano(train_temperature=True)) - trained_by(build_nano()) == {"temp"}
    model = build_nano(train_temperature=True)
    _, gradients = train_step(model)
    assert gradients["temp"].shape == (4,)
    assert gradients["temp"].all()


def test_options_change_no_weight() -> None:
    states = []
    for flag in (False, True):
        torch.manual_seed(0)
        network = build_nano(checkpointing=flag, freeze_bert=flag, train_embeddings=flag, train_temperature=flag)
        states.append(network.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.slow  # a training step with each
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_the_memory_benchmark_runs_every_setting(setting: Setting) -> None:
    assert measure(setting, "nano", 32, 2, torch.device("cpu")) > 0
