"""The numbers of the released implementation, to their tolerances (see tests/reference/README.md)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from CrossVLT import SegModel
from lib.network.losses import Criterion
from lib.training.optim import build_optimizer, build_scheduler
from lib.weights.identify import identify
from tests.helpers import mostly_slow
from tests.reference.inputs import inputs
from tests.reference.weights import fill

pytestmark = pytest.mark.usefixtures("exact_float32")
REFERENCE = Path(__file__).parent / "reference"
FORWARDS = [("160", (11, 2, 160, 160, 1000)), ("150x201", (12, 1, 150, 201, 1000))]
# How far float32 is from float64, in the reference or in this code, whichever is more: measured on one core of an AMD
# EPYC with torch 2.14.1. Both round, each in its own way, so they may be twice as far apart; other processors, BLAS
# libraries and versions round otherwise again, and training steps enlarge that. So each tolerance is ten times that.
HEADROOM = 10
NANO_TOLERANCE = {"cpu": HEADROOM * 2.4e-6, "cuda": 2e-4}  # logits; CUDA sums in another order
SIMILARITY_TOLERANCE = {"cpu": HEADROOM * 2.6e-6, "cuda": 2e-4}
FLOAT64_TOLERANCE = {"cpu": 1e-11, "cuda": 1e-9}
# Base at 480: the reference's float32 is 2.4e-5 from its float64.
LOGITS_TOLERANCE = 2e-4
# Instance norm over few tokens amplifies rounding from stage to stage; the logits hardly notice.
STAGES = {
    "l1": 1.4e-6,
    "skip0": 1.5e-5,
    "v0": 2.6e-5,
    "l2": 2.3e-6,
    "skip1": 3.7e-5,
    "v1": 4.1e-5,
    "l3": 4.9e-6,
    "skip2": 1.1e-4,
    "v2": 2.0e-4,
    "l4": 1.4e-5,
    "skip3": 2.8e-4,
}
# Relative, of the losses of five steps, of every tensor's norm afterwards, of the norm of all gradients of the first
# step together, and of single ones that no ReLU follows. The float64 tests cover the others without rounding noise.
STEP_TOLERANCES = [HEADROOM * distance for distance in (1.9e-6, 2.6e-5, 4.1e-5, 8.8e-5, 1.3e-4)]
NORMS_TOLERANCE = HEADROOM * 3.8e-4
GRADIENT_TOLERANCE = HEADROOM * 3.9e-4
SMOOTH_GRADIENT_TOLERANCE = HEADROOM * 6.6e-7
WITHOUT_EFFECT = (".self.key.bias", ".v_q.0.bias", ".l_q.bias", ".values_l.bias", ".w_v.0.bias")
PARAMETERS = {"tiny": 159_956_288, "small": 181_274_192, "base": 236_711_038, "large": 392_767_418}


@pytest.mark.parametrize("swin_type", mostly_slow(PARAMETERS, always=["base"]))
def test_state_dict_has_the_released_names_shapes_and_types(swin_type: str) -> None:
    with torch.device("meta"):
        model = SegModel(swin_type)
    own = {name: [list(value.shape), str(value.dtype)] for name, value in model.state_dict().items()}
    released = json.loads((REFERENCE / f"state_dict_{swin_type}.json").read_text())
    assert own == {name: [shape, f"torch.{dtype}"] for name, shape, dtype in released}
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[swin_type]
    types = {"swin_type": swin_type, "bert_type": "base", "vocab_size": 30522}
    assert identify(model.state_dict()) == types | {
        "fusion": "cross",
        "alignment": True,
        "no_target_head": False,
        "align_bias": False,
    }


@pytest.mark.parametrize(("name", "arguments"), FORWARDS)
def test_nano_forward(nano: SegModel, device: torch.device, name: str, arguments: tuple[int, ...]) -> None:
    reference = np.load(REFERENCE / f"forward_nano_{name}.npz")
    with torch.no_grad():
        output = nano.to(device)(*on(device, *arguments)[:3])
    assert np.abs(output.logits.cpu().numpy() - reference["logits"]).max() < NANO_TOLERANCE[device.type]
    check_mask(output.logits.cpu(), reference)
    assert output.alignment == ()


def test_nano_stages(nano: SegModel) -> None:
    reference = np.load(REFERENCE / "stages_nano_160.npz")
    seen: dict[str, torch.Tensor] = {}
    for number, language in enumerate(
        (nano.lang_stage1, nano.lang_stage2, nano.lang_stage3, nano.lang_stage4), start=1
    ):
        language.register_forward_hook(lambda _m, _i, text, name=f"l{number}": seen.update({name: text}))
    for number, stage in enumerate(nano.backbone):
        stage.register_forward_hook(
            lambda _m, _i, out, n=number: seen.update({f"skip{n}": out.skip, f"v{n}": out.next})
        )
    with torch.no_grad():
        nano(*inputs(11, 2, 160, 160, 1000)[:3])
    assert set(reference.files) == STAGES.keys()
    for name in reference.files:
        own = seen[name]
        if name.startswith("skip"):
            own = own.permute(0, 3, 1, 2)
        elif name.startswith("v"):
            own = own.flatten(1, 2)
        assert own.shape == reference[name].shape, name
        assert np.abs(own.numpy() - reference[name]).max() < HEADROOM * STAGES[name], name


@pytest.mark.slow  # draws 237 million weights
def test_base_forward_at_480(device: torch.device) -> None:
    reference = np.load(REFERENCE / "forward_base_480.npz")
    model = SegModel.unfilled().eval()
    fill(model.state_dict())
    with torch.no_grad():
        logits = model.to(device)(*on(device, 13, 1, 480, 480, 30522)[:3]).logits.cpu()
    assert np.abs(logits[:, :, ::4, ::4].numpy() - reference["logits"]).max() < LOGITS_TOLERANCE
    check_mask(logits, reference)


def on(device: torch.device, *arguments: int) -> tuple[torch.Tensor, ...]:
    """Return a reference's inputs on a device."""
    return tuple(part.to(device) for part in inputs(*arguments))


def check_mask(logits: torch.Tensor, reference: np.lib.npyio.NpzFile) -> None:
    """The predicted masks agree but for pixels whose two logits are nearly equal."""
    mask = logits.argmax(1).numpy()
    expected = np.unpackbits(reference["mask"])[: mask.size].reshape(mask.shape)
    undecided = (logits[:, 0] - logits[:, 1]).abs().numpy() < 2 * LOGITS_TOLERANCE
    assert ((mask == expected) | undecided).all()
    assert mask.mean() == pytest.approx(float(reference["fg"]), abs=1e-3)


def test_similarity_maps(nano: SegModel, device: torch.device) -> None:
    reference = np.load(REFERENCE / "similarity_nano_160.npz")
    with torch.no_grad():
        maps = nano.to(device).train()(*on(device, 21, 2, 160, 160, 1000)[:3]).alignment
    assert len(maps) == 4
    for name, similarity in zip(("sim1", "sim2", "sim3", "sim4"), maps, strict=True):
        assert similarity.shape == reference[name].shape
        assert np.abs(similarity.cpu().numpy() - reference[name]).max() < SIMILARITY_TOLERANCE[device.type]


class Steps(NamedTuple):
    """What five training steps gave."""

    gradient_norms: dict[str, float]  # of the first step, by parameter
    losses: list[list[float]]  # of each step: total, mask and the four of alignment
    rates: list[float]  # learning rate after each step
    norms: dict[str, float]  # of every tensor afterwards


def train_five_steps(model: SegModel, device: torch.device, dtype: torch.dtype) -> Steps:
    """Train like the reference, which also measured gradients of frozen parameters."""
    model, criterion = model.to(device, dtype).train(), Criterion().to(device)
    optimizer = build_optimizer(model, lr=3e-5, weight_decay=1e-2)
    scheduler = build_scheduler(optimizer, total_steps=40)
    model.requires_grad_(True)
    steps = Steps({}, [], [], {})
    for step in range(5):
        image, token_ids, attention_mask, target = on(device, 21 + step, 2, 160, 160, 1000)
        optimizer.zero_grad()
        losses = criterion(model(image.to(dtype), token_ids, attention_mask), target)
        losses.total.backward()
        if step == 0:
            steps.gradient_norms.update(
                {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
            )
        optimizer.step()
        scheduler.step()
        steps.losses.append([losses.total.item(), losses.mask.item(), *losses.alignment.tolist()])
        steps.rates.append(float(scheduler.get_last_lr()[0]))
    tensors = model.state_dict().items()
    steps.norms.update({name: value.norm().item() for name, value in tensors if value.is_floating_point()})
    return steps


def read_steps(file: str) -> Steps:
    """Return the reference's steps."""
    content = json.loads((REFERENCE / file).read_text())
    losses = [[step["loss"], step["ce"], *step["align"]] for step in content["steps"]]
    return Steps(content["grad_norms"], losses, [step["lr"] for step in content["steps"]], content["norms_after"])


def test_five_training_steps(nano: SegModel, device: torch.device) -> None:
    expected, own = read_steps("train_nano_160.json"), train_five_steps(nano, device, torch.float32)
    for found, losses, tolerance in zip(own.losses, expected.losses, STEP_TOLERANCES, strict=True):
        assert found == pytest.approx(losses, rel=tolerance)
    assert own.rates == pytest.approx(expected.rates, rel=1e-9)
    assert own.norms == pytest.approx(expected.norms, rel=NORMS_TOLERANCE)
    total, expected_total = (math.hypot(*steps.gradient_norms.values()) for steps in (own, expected))
    assert total == pytest.approx(expected_total, rel=GRADIENT_TOLERANCE)
    # Four vision and four language projections and the last convolution, weight and bias: no ReLU follows them,
    # which rounding could switch on or off.
    smooth = [name for name in own.gradient_norms if ".proj." in name or ".conv1_1." in name]
    smooth = [name for name in smooth if ".attn." not in name and "patch_embed" not in name]
    assert len(smooth) == 18
    ours, norms = ({name: steps.gradient_norms[name] for name in smooth} for steps in (own, expected))
    assert ours == pytest.approx(norms, rel=SMOOTH_GRADIENT_TOLERANCE)


# ---------------------------------------------------------------- float64


@pytest.mark.parametrize(("name", "arguments"), FORWARDS)
def test_nano_forward_in_float64(nano: SegModel, device: torch.device, name: str, arguments: tuple[int, ...]) -> None:
    expected = np.load(REFERENCE / "float64_nano.npz")[f"logits_{name}"]
    image, *words = on(device, *arguments)[:3]
    with torch.no_grad():
        logits = nano.double().to(device)(image.double(), *words).logits[:, :, ::2, ::2].cpu().numpy()
    assert logits.dtype == expected.dtype == np.float64
    assert np.abs(logits - expected).max() < FLOAT64_TOLERANCE[device.type]  # measured 7.5e-15


def test_similarity_maps_in_float64(nano: SegModel, device: torch.device) -> None:
    reference = np.load(REFERENCE / "float64_nano.npz")
    image, *words = on(device, 21, 2, 160, 160, 1000)[:3]
    with torch.no_grad():
        maps = nano.double().to(device).train()(image.double(), *words).alignment
    assert len(maps) == 4
    for stage, similarity in enumerate(maps, start=1):
        expected = reference[f"similarity_{stage}"]
        assert similarity.shape == expected.shape
        assert np.abs(similarity.cpu().numpy() - expected).max() < FLOAT64_TOLERANCE[device.type]  # measured 7.7e-15


@pytest.mark.slow  # five training steps
def test_five_training_steps_in_float64(nano: SegModel, device: torch.device) -> None:
    expected, own = read_steps("float64_train_nano_160.json"), train_five_steps(nano, device, torch.float64)
    for found, losses in zip(own.losses, expected.losses, strict=True):
        assert found == pytest.approx(losses, rel=1e-9)  # measured 1.2e-14
    assert own.rates == pytest.approx(expected.rates, rel=1e-9)
    assert own.norms == pytest.approx(expected.norms, rel=1e-9)  # measured 1.5e-10
    check_gradient_norms(own.gradient_norms, expected.gradient_norms)


def check_gradient_norms(own: dict[str, float], expected: dict[str, float]) -> None:
    """Every norm agrees to 1e-9; those that are zero but for rounding are as small as rounding.

    A bias is without effect if it moves all keys of a softmax alike, or all tokens of an instance norm. What is left of
    its gradient is rounding: of the order of float64's epsilon times the norm of all gradients, 9.6, so 2e-15. The
    reference has up to 53 times that, this code up to 1.4 times. The smallest other norm is 7e-5.
    """
    nothing = {name for name in own if name.endswith(WITHOUT_EFFECT)}
    assert len(nothing) == 36  # 8 keys of words, and of each of 7 fusions four biases
    floor = 500 * np.finfo(np.float64).eps * math.hypot(*expected.values())
    assert all(max(own[name], expected[name]) < floor for name in nothing)
    found, norms = ({n: v for n, v in group.items() if n not in nothing} for group in (own, expected))
    assert found == pytest.approx(norms, rel=1e-9, abs=0)  # measured 1.8e-12
