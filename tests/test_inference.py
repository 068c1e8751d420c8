"""The network made ready for evaluation computes what the network computes."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

import lib.network.linear
import utils
from CrossVLT import SegModel
from lib.contracts import Output
from lib.network.compilation import compile_training
from lib.network.inference import FixedBatch, optimize_for_inference
from lib.network.linear import PackedLinear
from lib.network.losses import Criterion
from lib.network.precision import Precision
from tests.reference.inputs import inputs
from tests.test_reference import LOGITS_TOLERANCE, REFERENCE, check_mask

CPU = torch.device("cpu")


@pytest.fixture(params=["packed", "plain"])
def packing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """With oneDNN's linear layers and, as on other devices, without."""
    if request.param == "plain":
        monkeypatch.setattr(lib.network.linear, "can_pack", lambda dtype, device: False)
    return request.param


@pytest.mark.parametrize(
    ("name", "arguments"), [("160", (11, 2, 160, 160, 1000)), ("150x201", (12, 1, 150, 201, 1000))]
)
def test_numbers_are_the_reference_s(nano: SegModel, packing: str, name: str, arguments: tuple[int, ...]) -> None:
    reference = np.load(REFERENCE / f"forward_nano_{name}.npz")
    prepared = optimize_for_inference(nano.train(), Precision("fp32", CPU))
    assert any(isinstance(module, PackedLinear) for module in prepared.modules()) == (packing == "packed")
    with torch.inference_mode():
        output = prepared(*inputs(*arguments)[:3])
    assert np.abs(output.logits.numpy() - reference["logits"]).max() < LOGITS_TOLERANCE
    check_mask(output.logits, reference)
    assert output.alignment == ()


def test_a_prepared_network_rounds_no_more_than_autocast(nano: SegModel, packing: str) -> None:
    """Distances from float32 logits, root of the mean square, over images of two sizes."""
    precision = Precision("bf16", CPU)
    with torch.inference_mode():  # as `engine.evaluate` does it
        prepared = optimize_for_inference(nano, precision)
    errors = {"network": 0.0, "prepared": 0.0}
    for seed, size in ((1, 64), (2, 50)):
        batch = inputs(seed, 2, size, size, 1000)[:3]
        with torch.inference_mode():
            exact = nano(*batch).logits
            for who, model in (("network", nano), ("prepared", prepared)):
                with precision.autocast():
                    logits = model(*batch).logits
                errors[who] += (logits - exact).square().mean().sqrt().item()
                assert logits.dtype == torch.float32
    assert 0 < errors["prepared"] < 1.25 * errors["network"]


def test_batch_norm_is_folded_into_its_convolution(nano: SegModel) -> None:
    for module in nano.modules():
        if isinstance(module, nn.BatchNorm2d):  # averages as a training leaves them
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    prepared = optimize_for_inference(nano, Precision("fp32", CPU))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.modules())
    batch = inputs(3, 1, 64, 64, 1000)[:3]
    with torch.inference_mode():
        torch.testing.assert_close(prepared(*batch).logits, nano(*batch).logits, atol=2e-4, rtol=0)


def test_the_network_itself_is_left_alone(nano: SegModel) -> None:
    before, batch = copy.deepcopy(nano.state_dict()), inputs(1, 1, 64, 64, 1000)[:3]
    frozen = {name for name, parameter in nano.named_parameters() if not parameter.requires_grad}
    precision = Precision("bf16", CPU)
    prepared = optimize_for_inference(nano.train(), precision)
    assert nano.training
    assert not prepared.training
    assert all(torch.equal(value, before[name]) for name, value in nano.state_dict().items())
    assert all(value.dtype == before[name].dtype for name, value in nano.state_dict().items())
    assert frozen == {name for name, parameter in nano.named_parameters() if not parameter.requires_grad}
    with torch.no_grad(), precision.autocast():
        earlier = prepared(*batch).logits
        for parameter in nano.parameters():
            parameter.add_(1)
        assert torch.equal(prepared(*batch).logits, earlier)


def test_small_batches_are_filled_up() -> None:
    sizes = []

    class Network(nn.Module):
        def forward(self, image: torch.Tensor, *_: torch.Tensor, with_alignment: bool) -> Output:
            sizes.append(len(image))
            return Output(image * 2, (image + 1,) * with_alignment, image[:, :, 0, 0] if with_alignment else None)

    network = FixedBatch(Network())
    for n_samples in (3, 2, 1, 4, 3):
        image = torch.randn(n_samples, 2, 4, 4)
        words = torch.ones(n_samples, 5, dtype=torch.int64)
        logits, (stage,), no_target = network(image, words, words, with_alignment=True)
        assert torch.equal(logits, image * 2) and torch.equal(stage, image + 1)
        assert torch.equal(no_target, image[:, :, 0, 0])
        assert network(image, words, words)[1:] == ((), None)
    assert sizes[::2] == sizes[1::2] == [3, 3, 3, 4, 4]


@pytest.mark.slow  # tracing takes as long as a hundred steps
@pytest.mark.parametrize("with_alignment", [False, True])
def test_the_network_compiles_into_one_graph_for_all_batches_of_a_size(
    nano: SegModel, graphs: CompileCounter, with_alignment: bool
) -> None:
    """No graph breaks; nothing is compiled again for other contents, a smaller batch or another kind of tensor."""
    options = {"with_alignment": True} if with_alignment else {}
    prepared, network = (optimize_for_inference(nano, Precision("fp32", CPU), compiled=flag) for flag in (False, True))
    for seed, n_samples in ((1, 2), (2, 2), (3, 1)):
        batch = [part[:n_samples] for part in inputs(seed, 2, 64, 64, 1000)[:3]]
        with torch.inference_mode():
            found, expected = network(*batch, **options), prepared(*batch, **options)
            assert len(found.alignment) == (4 if with_alignment else 0)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
            network(*(part.clone() for part in batch), **options)
    assert graphs.frame_count == 1


@pytest.mark.slow
def test_training_compiles_into_one_graph(graphs: CompileCounter) -> None:
    model = SegModel("nano", "nano", vocab_size=1000, checkpointing=True).train()
    compile_training(model, torch.device("cpu"))
    names = list(model.state_dict())
    for seed in (1, 2):
        image, token_ids, attention_mask, target = inputs(seed, 2, 64, 64, 1000)
        Criterion()(model(image, token_ids, attention_mask), target).total.backward()
    assert graphs.frame_count == 1
    assert list(model.state_dict()) == names
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.slow  # imports the compiler
@pytest.mark.parametrize(("device", "missing"), [("cpu", "C++"), ("cuda", "C")])
def test_a_missing_compiler_is_named_before_anything_is_traced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], device: str, missing: str
) -> None:
    from torch._inductor import config as inductor_config
    from torch._inductor import cpp_builder

    monkeypatch.setenv("CC", "no-such-compiler")
    cpp_builder.cpp_compiler_search.cache_clear()
    network = torch.nn.Linear(1, 1)
    with inductor_config.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(SystemExit):
        utils.run(lambda: compile_training(network, torch.device(device)))
    assert f"--compile needs a {missing} compiler" in capsys.readouterr().err
    cpp_builder.cpp_compiler_search.cache_clear()
