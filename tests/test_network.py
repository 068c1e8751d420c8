"""What must hold for the network whatever its weights are."""

from __future__ import annotations

import pytest
import torch

from CrossVLT import SegModel
from lib.network.losses import Criterion
from lib.weights.identify import identify
from tests.helpers import mostly_slow, naming
from tests.reference.inputs import inputs


@pytest.mark.parametrize("batch", mostly_slow([1, 2], always=[1]))
@pytest.mark.parametrize("size", [(96, 96), (90, 70), (33, 65), (16, 16), (3, 5)])
def test_any_size_trains_and_tests(nano: SegModel, size: tuple[int, int], batch: int) -> None:
    image, token_ids, attention_mask, target = inputs(1, batch, *size, 1000)
    output = nano.train()(image, token_ids, attention_mask)
    losses = Criterion()(output, target)
    losses.total.backward()
    assert output.logits.shape == (batch, 2, *size)
    assert losses.total.isfinite()
    with torch.no_grad():
        assert nano.eval()(image, token_ids, attention_mask).logits.isfinite().all()


def test_padding_a_sentence_changes_nothing(nano: SegModel) -> None:
    image, token_ids, attention_mask, _ = inputs(5, 1, 96, 96, 1000)
    length = int(attention_mask.sum())
    assert length < 21, "the sentence must have padding for this test"
    with torch.no_grad():
        padded = nano(image, token_ids, attention_mask).logits
        token_ids[:, length:] = 7  # the content of the padding must not matter either
        noisy = nano(image, token_ids, attention_mask).logits
        short = nano(image, token_ids[:, :length], attention_mask[:, :length]).logits
    torch.testing.assert_close(padded, short, atol=1e-4, rtol=0)
    torch.testing.assert_close(padded, noisy, atol=1e-4, rtol=0)


def test_a_batch_gives_what_its_samples_give_alone(nano: SegModel) -> None:
    image, token_ids, attention_mask, _ = inputs(6, 3, 96, 80, 1000)
    with torch.no_grad():
        together = nano(image, token_ids, attention_mask).logits
        alone = [nano(image[i : i + 1], token_ids[i : i + 1], attention_mask[i : i + 1]).logits for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)


def test_image_and_sentence_both_matter(nano: SegModel) -> None:
    image, token_ids, attention_mask, _ = inputs(7, 1, 96, 96, 1000)
    other_image, other_ids, _, _ = inputs(8, 1, 96, 96, 1000)
    with torch.no_grad():
        logits = nano(image, token_ids, attention_mask).logits
        assert (nano(other_image, token_ids, attention_mask).logits - logits).abs().max() > 1e-2
        assert (nano(image, other_ids, attention_mask).logits - logits).abs().max() > 1e-2


def test_evaluation_computes_no_alignment(nano: SegModel) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the projections are read by the alignment loss alone")

    for module in [stage.layers.proj for stage in nano.backbone] + [
        nano.lang_stage1.encoder.proj,
        nano.lang_stage4.proj,
    ]:
        module.register_forward_hook(refuse)
    with torch.no_grad():
        nano(*inputs(1, 1, 64, 64, 1000)[:3])
    with pytest.raises(AssertionError):
        nano.train()(*inputs(1, 2, 64, 64, 1000)[:3])


def test_every_trainable_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    model = SegModel("nano", "nano", vocab_size=1000, dropout=0.0, drop_path=0.0).train()
    image, token_ids, attention_mask, target = inputs(1, 2, 64, 64, 1000)
    Criterion()(model(image, token_ids, attention_mask), target).total.backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    still = [name for name, p in model.named_parameters() if p.requires_grad and not p.grad.abs().sum() > 0]
    # Keys' biases shift every score of a softmax alike and biases before instance norm are subtracted again:
    # their gradient is zero but for rounding.
    assert all(name.endswith((".key.bias", "l_q.bias", "v_q.0.bias", "w_v.0.bias")) for name in still), still


def test_frozen_parameters_are_those_the_recipe_does_not_train(nano: SegModel) -> None:
    frozen = {name for name, parameter in nano.named_parameters() if not parameter.requires_grad}
    embeddings = {f"lang_stage1.embeddings.{name}" for name in nano.lang_stage1.embeddings.state_dict()}
    unread = {"backbone.3.layers.linear1.0.weight", "backbone.3.layers.linear1.2.weight"}
    assert frozen == {"temp"} | embeddings | unread


def test_dropout_and_drop_path_act_in_training_alone() -> None:
    torch.manual_seed(0)
    model = SegModel("nano", "nano", vocab_size=1000, dropout=0.5, drop_path=0.5)
    batch = inputs(1, 2, 64, 64, 1000)[:3]
    with torch.no_grad():
        assert not torch.equal(model.train()(*batch).logits, model(*batch).logits)
        assert torch.equal(model.eval()(*batch).logits, model(*batch).logits)


def test_initialisation_follows_the_recipe() -> None:
    torch.manual_seed(0)
    model = SegModel("nano", "nano", vocab_size=1000)
    state = model.state_dict()
    for name in ("backbone.0.layers.blocks.0.attn.qkv", "lang_stage2.intermediate.dense", "lang_stage3.proj"):
        assert state[f"{name}.weight"].std().item() == pytest.approx(0.02, rel=0.15)
        assert not state[f"{name}.bias"].any()
    kaiming = state["backbone.1.layers.attn1.v_q.0.weight"]
    assert kaiming.std().item() == pytest.approx((2 / kaiming.shape[1]) ** 0.5, rel=0.15)
    default = state["lang_stage1.encoder.proj.weight"]
    assert default.abs().max().item() == pytest.approx(default.shape[1] ** -0.5, rel=0.05)
    assert torch.equal(state["temp"], torch.ones(4))


@pytest.mark.parametrize("names", [("nano", "nano"), ("nano", "base"), ("tiny", "nano")])
def test_weights_say_which_network_they_belong_to(names: tuple[str, str]) -> None:
    with torch.device("meta"):
        weights = SegModel(*names, vocab_size=77).state_dict()
    types = {"swin_type": names[0], "bert_type": names[1], "vocab_size": 77}
    assert identify(weights) == types | {
        "fusion": "cross",
        "alignment": True,
        "no_target_head": False,
        "align_bias": False,
    }


def test_foreign_weights_are_not_identified() -> None:
    with naming("CrossVLT", kind=ValueError):
        identify({"layer.weight": torch.zeros(1)})
    with torch.device("meta"):
        weights = SegModel("nano", "nano").state_dict()
    with naming("CrossVLT", "dimensions", kind=ValueError):
        identify(weights | {"lang_stage1.embeddings.position_embeddings.weight": torch.tensor(0.0)})


def test_unknown_types_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"Swin type 'huge'.*nano, tiny"):
        SegModel("huge")
    with naming("BERT type 'large'", "nano, base", kind=ValueError):
        SegModel("nano", "large")
