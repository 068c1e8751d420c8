"""float64 goes in and float64 comes out: nothing on the way is rounded to fewer digits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from CrossVLT import FUSIONS, SegModel
from lib.contracts import Output
from lib.evaluation.metrics import Metrics
from lib.network.inference import optimize_for_inference
from lib.network.losses import LOSSES, Criterion
from lib.network.precision import Precision
from lib.weights.pretrained import resize_position_bias
from tests.helpers import mostly_slow
from tests.networks import reference_nano
from tests.reference.inputs import inputs

CPU = torch.device("cpu")
VARIANTS = [(fusion, alignment) for fusion in FUSIONS for alignment in (True, False)]


class OtherTypes(TorchDispatchMode):
    """Names every operator that reads or writes a floating-point tensor of another type than float64."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # Tensors without elements hold no number: checkpointing passes one around in some versions of torch.
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor) and leaf.numel()]
        if any(tensor.is_floating_point() and tensor.dtype != torch.float64 for tensor in tensors):
            self.found.add(str(func))
        return result


def network(fusion: str = "cross", *, alignment: bool = True, checkpointing: bool = False) -> SegModel:
    """Return nano in float64, with the reference weights."""
    return reference_nano(fusion=fusion, alignment=alignment, checkpointing=checkpointing, drop_path=0.3).double()


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return two images in float64, whose maps need padding, with words and masks."""
    image, token_ids, attention_mask, target = inputs(3, 2, 75, 96, 1000)
    return image.double(), token_ids, attention_mask, target


def check_training(model: SegModel, loss: str) -> None:
    """A forward and a backward pass meet no other type."""
    *words, target = batch()
    with OtherTypes() as seen:
        output = model.train()(*words)
        losses = Criterion(loss)(output, target)
        losses.total.backward()
    assert seen.found == set()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    assert {value.dtype for value in (output.logits, *output.alignment, *losses, *gradients)} == {torch.float64}


def test_the_watch_sees_a_detour() -> None:
    with OtherTypes() as seen:
        torch.ones(2, dtype=torch.float64).float().double()
    assert seen.found == {"aten._to_copy.default"}


@pytest.mark.parametrize(("fusion", "alignment"), mostly_slow(VARIANTS, always=[("none", False)]))
def test_every_variant_trains_in_float64(fusion: str, alignment: bool) -> None:
    check_training(network(fusion, alignment=alignment), "ce")


@pytest.mark.parametrize("loss", mostly_slow(LOSSES, always=["ce+dice"]))
def test_every_loss_is_float64(loss: str) -> None:
    check_training(network(), loss)


@pytest.mark.slow  # two steps in float64
def test_checkpointing_recomputes_in_float64() -> None:
    check_training(network(checkpointing=True), "ce")


@pytest.mark.parametrize(("fusion", "alignment"), mostly_slow(VARIANTS, always=[("cross", True)]))
def test_prepared_evaluation_is_the_network_in_float64(fusion: str, alignment: bool) -> None:
    model, words = network(fusion, alignment=alignment).eval(), batch()[:3]
    prepared = optimize_for_inference(model, Precision("fp32", CPU))
    with torch.no_grad(), OtherTypes() as seen:
        expected = model(*words, with_alignment=True)
        found = prepared(*words, with_alignment=True)
    assert seen.found == set()
    for own, other in zip((found.logits, *found.alignment), (expected.logits, *expected.alignment), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-11)


def test_autocast_leaves_float64_as_it_is() -> None:
    model, words, precision = network().eval(), batch()[:3], Precision("bf16", CPU)
    prepared = optimize_for_inference(model, precision)
    with torch.no_grad():
        expected = model(*words).logits
        with precision.autocast(), OtherTypes() as seen:
            assert torch.equal(model(*words).logits, expected)
            torch.testing.assert_close(prepared(*words).logits, expected, rtol=0, atol=1e-11)
    assert seen.found == set()


def test_parts_of_a_step_add_up_in_float64() -> None:
    logits = torch.randn(4, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = (logits[:, 0] > 0.3).long()
    criterion = Criterion()
    normalizer = criterion.normalizer([target[:2], target[2:]], torch.float64)
    halves = [criterion(Output(logits[s], ()), target[s], normalizer).mask for s in (slice(0, 2), slice(2, 4))]
    whole = criterion(Output(logits, ()), target).mask
    torch.testing.assert_close(sum(halves), whole, rtol=1e-14, atol=0)


def test_the_metric_sees_differences_below_float32() -> None:
    logits = torch.ones(1, 2, 4, 4, dtype=torch.float64)
    logits[:, 1] += 1e-12
    metrics = Metrics()
    metrics.update(logits, torch.ones(1, 4, 4, dtype=torch.int64), torch.arange(1))
    assert metrics.compute().scores.mean_iou == 100


def test_position_biases_are_resized_in_float64() -> None:
    table = torch.rand(169, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with OtherTypes() as seen:
        assert resize_position_bias(table, 529).dtype == torch.float64
    assert seen.found == set()
