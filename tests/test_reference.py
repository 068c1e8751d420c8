"""The numbers of the released implementation, to their tolerances (see tests/reference/README.md)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from CrossVLT import FUSIONS, SegModel, build_model, identify
from lib.inference import prepare
from lib.losses import LOSSES, Criterion, Losses
from lib.optim import build_optimizer, build_scheduler
from lib.precision import PRECISIONS, Precision
from tests.reference.inputs import inputs
from tests.reference.weights import fill

REFERENCE = Path(__file__).parent / "reference"
LOGITS_TOLERANCE = 2e-4
# Relative, of losses over five steps: the released code in float32 is up to 3.3e-4 from itself in float64.
FLOAT32_STEPS = 1e-3
# Instance norm over few tokens amplifies rounding from stage to stage; the logits hardly notice.
STAGES_TOLERANCE = 1e-3
PARAMETERS = {"tiny": 159_956_288, "small": 181_274_192, "base": 236_711_038, "large": 392_767_418}


@pytest.mark.parametrize("swin_type", PARAMETERS)
def test_state_dict_has_the_released_names_shapes_and_types(swin_type: str) -> None:
    with torch.device("meta"):
        model = build_model(swin_type)
    own = {name: [list(value.shape), str(value.dtype)] for name, value in model.state_dict().items()}
    released = json.loads((REFERENCE / f"state_dict_{swin_type}.json").read_text())
    assert own == {name: [shape, f"torch.{dtype}"] for name, shape, dtype in released}
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[swin_type]
    types = {"swin_type": swin_type, "bert_type": "base", "vocab_size": 30522}
    assert identify(model.state_dict()) == types | {"fusion": "cross", "alignment": True}


@pytest.mark.parametrize(
    ("name", "arguments"), [("160", (11, 2, 160, 160, 1000)), ("150x201", (12, 1, 150, 201, 1000))]
)
def test_nano_forward(nano: SegModel, name: str, arguments: tuple[int, ...]) -> None:
    reference = np.load(REFERENCE / f"forward_nano_{name}.npz")
    with torch.no_grad():
        output = nano(*inputs(*arguments)[:3])
    assert np.abs(output.logits.numpy() - reference["logits"]).max() < LOGITS_TOLERANCE
    check_mask(output.logits, reference)
    assert output.alignment == ()


def test_nano_stages(nano: SegModel) -> None:
    reference = np.load(REFERENCE / "stages_nano_160.npz")
    seen: dict[str, torch.Tensor] = {}
    for number, stage in enumerate((nano.lang_stage1, nano.lang_stage2, nano.lang_stage3, nano.lang_stage4), start=1):
        stage.register_forward_hook(lambda _m, _i, text, name=f"l{number}": seen.update({name: text}))
    for number, stage in enumerate(nano.backbone):
        stage.register_forward_hook(
            lambda _m, _i, out, n=number: seen.update({f"skip{n}": out.skip, f"v{n}": out.next})
        )
    with torch.no_grad():
        nano(*inputs(11, 2, 160, 160, 1000)[:3])
    for name in reference.files:
        own = seen[name]
        if name.startswith("skip"):
            own = own.permute(0, 3, 1, 2)
        elif name.startswith("v"):
            own = own.flatten(1, 2)
        assert own.shape == reference[name].shape, name
        assert np.abs(own.numpy() - reference[name]).max() < STAGES_TOLERANCE, name


def test_base_forward_at_480() -> None:
    reference = np.load(REFERENCE / "forward_base_480.npz")
    with skipped_initialisation():
        model = build_model().eval()
    fill(model.state_dict())
    with torch.no_grad():
        logits = model(*inputs(13, 1, 480, 480, 30522)[:3]).logits
    assert np.abs(logits[:, :, ::4, ::4].numpy() - reference["logits"]).max() < LOGITS_TOLERANCE
    check_mask(logits, reference)


@contextmanager
def skipped_initialisation() -> Iterator[None]:
    """Leave new weights as they are: drawing 237 million random numbers takes longer than the test itself."""
    names = ("normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)
        patch.setattr("lib.vision_stage.trunc_normal_", lambda tensor, *_, **__: tensor)
        yield


def check_mask(logits: torch.Tensor, reference: np.lib.npyio.NpzFile) -> None:
    """The predicted masks agree but for pixels whose two logits are nearly equal."""
    mask = logits.argmax(1).numpy()
    expected = np.unpackbits(reference["mask"])[: mask.size].reshape(mask.shape)
    undecided = (logits[:, 0] - logits[:, 1]).abs().numpy() < 2 * LOGITS_TOLERANCE
    assert ((mask == expected) | undecided).all()
    assert mask.mean() == pytest.approx(float(reference["fg"]), abs=1e-3)


def test_similarity_maps(nano: SegModel) -> None:
    reference = np.load(REFERENCE / "similarity_nano_160.npz")
    with torch.no_grad():
        maps = nano.train()(*inputs(21, 2, 160, 160, 1000)[:3]).alignment
    assert len(maps) == 4
    for name, similarity in zip(("sim1", "sim2", "sim3", "sim4"), maps, strict=True):
        assert similarity.shape == reference[name].shape
        assert np.abs(similarity.numpy() - reference[name]).max() < LOGITS_TOLERANCE


def test_five_training_steps(nano: SegModel) -> None:
    """In float32, as it is trained. `FLOAT32_STEPS` says how far rounding alone takes it from float64."""
    reference = json.loads((REFERENCE / "train_nano_160.json").read_text())
    for number, (losses, rate) in enumerate(train(nano, len(reference["steps"]))):
        expected = reference["steps"][number]
        assert losses.total.item() == pytest.approx(expected["loss"], rel=FLOAT32_STEPS)
        assert losses.mask.item() == pytest.approx(expected["ce"], rel=FLOAT32_STEPS)
        assert losses.alignment.tolist() == pytest.approx(expected["align"], rel=FLOAT32_STEPS)
        assert rate == pytest.approx(expected["lr"], rel=1e-9)
    assert norms_of(nano) == pytest.approx(reference["norms_after"], rel=1e-3)


def train(model: SegModel, n_steps: int, dtype: torch.dtype = torch.float32) -> Iterator[tuple[Losses, float]]:
    """Take the reference's steps; yield the losses of each, with its gradients in place, and the rate after it."""
    criterion = Criterion()
    optimizer = build_optimizer(model.train(), lr=3e-5, weight_decay=1e-2)
    scheduler = build_scheduler(optimizer, total_steps=40)
    model.requires_grad_(True)  # the reference measured gradients of frozen parameters, too
    for step in range(n_steps):
        image, token_ids, attention_mask, target = inputs(21 + step, 2, 160, 160, 1000)
        optimizer.zero_grad()
        losses = criterion(model(image.to(dtype), token_ids, attention_mask), target)
        losses.total.backward()
        optimizer.step()
        scheduler.step()
        yield losses, scheduler.get_last_lr()[0]


def norms_of(model: SegModel) -> dict[str, float]:
    """Return the norm of every tensor of the state dict."""
    return {name: value.norm().item() for name, value in model.state_dict().items() if value.is_floating_point()}


# In float64 rounding is 10⁻⁹ times smaller: what is left would be a difference of the arithmetic itself.


@pytest.mark.parametrize(
    ("name", "arguments"), [("160", (11, 2, 160, 160, 1000)), ("150x201", (12, 1, 150, 201, 1000))]
)
def test_nano_forward_in_float64(nano: SegModel, name: str, arguments: tuple[int, ...]) -> None:
    expected = np.load(REFERENCE / "float64_nano.npz")[f"logits_{name}"]
    image, token_ids, attention_mask, _ = inputs(*arguments)
    with torch.no_grad():
        logits = nano.double()(image.double(), token_ids, attention_mask).logits[:, :, ::2, ::2]
    assert logits.dtype == torch.float64
    assert logits.shape == expected.shape
    assert np.abs(logits.numpy() - expected).max() < 1e-11


def test_similarity_maps_in_float64(nano: SegModel) -> None:
    reference = np.load(REFERENCE / "float64_nano.npz")
    image, token_ids, attention_mask, _ = inputs(21, 2, 160, 160, 1000)
    with torch.no_grad():
        maps = nano.double().train()(image.double(), token_ids, attention_mask).alignment
    assert len(maps) == 4
    for number, similarity in enumerate(maps, start=1):
        expected = reference[f"similarity_{number}"]
        assert similarity.dtype == torch.float64
        assert similarity.shape == expected.shape
        assert np.abs(similarity.numpy() - expected).max() < 1e-11


def test_five_training_steps_in_float64(nano: SegModel) -> None:
    reference = json.loads((REFERENCE / "float64_train_nano_160.json").read_text())
    model = nano.double()
    for number, (losses, rate) in enumerate(train(model, len(reference["steps"]), torch.float64)):
        expected = reference["steps"][number]
        assert losses.total.dtype == torch.float64
        assert losses.total.item() == pytest.approx(expected["loss"], rel=1e-9)
        assert losses.mask.item() == pytest.approx(expected["ce"], rel=1e-9)
        assert losses.alignment.tolist() == pytest.approx(expected["align"], rel=1e-9)
        assert rate == pytest.approx(expected["lr"], rel=1e-9)
        if number == 0:
            norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
            # Biases before a softmax or an instance norm have no gradient but rounding, here up to 10⁻¹³.
            assert norms == pytest.approx(reference["grad_norms"], rel=1e-9, abs=1e-11)
    assert norms_of(model) == pytest.approx(reference["norms_after"], rel=1e-9)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_float64_stays_float64(fusion: str, loss: str) -> None:
    model = build_model("nano", "nano", vocab_size=1000, fusion=fusion, checkpointing=True).double().train()
    image, token_ids, attention_mask, target = inputs(1, 2, 64, 64, 1000)
    output = model(image.double(), token_ids, attention_mask)
    losses = Criterion(loss)(output, target)
    losses.total.backward()
    parts = [output.logits, *output.alignment, *losses, *(p.grad for p in model.parameters() if p.grad is not None)]
    assert {part.dtype for part in parts} == {torch.float64}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_prepared_float64_stays_float64(nano: SegModel, precision: str) -> None:
    batch = inputs(1, 2, 64, 64, 1000)
    image = batch[0].double()
    prepared = prepare(nano.double(), Precision(precision, torch.device("cpu")))
    with torch.inference_mode():
        exact, fast = (network(image, *batch[1:3]).logits for network in (nano, prepared))
    assert fast.dtype == torch.float64
    assert (fast - exact).abs().max() < 1e-11
