"""Sentences that mean nothing in the image: the loss on an empty target, the no-target head, and what it answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import predict
import train as train_script
from bert.tokenizer import read_vocabulary
from CrossVLT import SegModel
from data.sample.make import make_sample
from errors import UserError
from lib.contracts import Output
from lib.network.inference import optimize_for_inference
from lib.network.losses import Criterion, Losses
from lib.network.precision import Precision
from lib.training.optim import build_optimizer
from lib.variants import LOSSES, NO_TARGET_WEIGHT
from lib.weights import __main__ as weights_command
from lib.weights.layouts import store, write_about
from page.html import describe_prediction
from tests.helpers import naming
from tests.networks import fill
from tests.reference.inputs import inputs
from tests.training_runs import ROOT, launch, training_flags
from trained import open_trained

CPU = torch.device("cpu")
HEAD = {f"no_target_head.{layer}.{part}" for layer in ("project", "classify") for part in ("weight", "bias")}


def network(*, head: bool = True, **options: Any) -> SegModel:
    torch.manual_seed(3)
    return SegModel("nano", "nano", vocab_size=1000, dropout=0.0, drop_path=0.0, no_target_head=head, **options)


# ---------------------------------------------------------------- losses on an empty target


def answers(size: int = 8) -> tuple[Output, Tensor]:
    """The output on four samples, of which the second and the third have no target."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 2, size, size, generator=random, dtype=torch.float64)
    alignment = tuple(torch.randn(4, 1, 2, 2, generator=random, dtype=torch.float64) for _ in range(4))
    target = torch.zeros(4, size, size, dtype=torch.int64)
    target[0, :3], target[3, 5:] = 1, 1
    head = torch.randn(4, 2, generator=random, dtype=torch.float64).requires_grad_()
    return Output(logits.requires_grad_(), tuple(part.requires_grad_() for part in alignment), head), target


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_an_empty_target_pushes_every_pixel_to_the_background(loss: str, dtype: torch.dtype) -> None:
    """At any certainty without infinities, also at every stage's similarity map."""
    for certainty in (-80.0, -1.0, 0.0, 1.0, 80.0):
        logits = torch.zeros(2, 2, 16, 16, dtype=dtype)
        logits[:, 1] = certainty
        similarity = torch.full((2, 1, 4, 4), certainty / 80, dtype=dtype, requires_grad=True)
        output = Output(logits.requires_grad_(), (similarity,) * 4)
        losses = Criterion(loss)(output, torch.zeros(2, 16, 16, dtype=torch.int64))
        losses.total.backward()
        assert losses.total.isfinite() and losses.total.dtype == dtype
        assert logits.grad is not None and logits.grad.isfinite().all()
        assert (logits.grad[:, 1] >= 0).all() and (logits.grad[:, 0] <= 0).all()
        if abs(certainty) < 80:
            assert (logits.grad[:, 1] > 0).all()
        assert similarity.grad is not None and (similarity.grad > 0).all()


def test_dice_of_an_empty_target_is_0_where_nothing_is_predicted() -> None:
    logits = torch.stack([torch.full((1, 8, 8), 40.0), torch.full((1, 8, 8), -40.0)], dim=1)
    empty = torch.zeros(1, 8, 8, dtype=torch.int64)
    assert Criterion("dice")(Output(logits, ()), empty).mask < 1e-6
    assert Criterion("dice")(Output(-logits, ()), empty).mask > 0.98


def test_the_head_learns_which_targets_are_empty() -> None:
    output, target = answers()
    losses = Criterion("ce", 0.25)(output, target)
    assert output.no_target is not None
    expected = F.cross_entropy(output.no_target, torch.tensor([0, 1, 1, 0]))
    torch.testing.assert_close(losses.no_target, expected[None])
    torch.testing.assert_close(losses.total, 2 * losses.mask + losses.alignment.sum() + 0.25 * expected)


def test_losses_without_a_head_are_unchanged() -> None:
    output, target = answers()
    without = Criterion()(output._replace(no_target=None), target)
    assert without.no_target.shape == (0,)
    assert torch.equal(without.total, 2 * without.mask + without.alignment.sum())


def test_micro_batches_add_up_to_the_loss_of_the_step() -> None:
    output, target = answers()
    criterion = Criterion("ce+dice")
    whole = criterion(output, target)
    parts, normalizer = (slice(0, 2), slice(2, 4)), criterion.normalizer([target[:2], target[2:]], torch.float64)
    assert output.no_target is not None
    halves = [
        criterion(
            Output(output.logits[s], tuple(one[s] for one in output.alignment), output.no_target[s]),
            target[s],
            normalizer,
        )
        for s in parts
    ]
    torch.testing.assert_close(Losses(*(sum(values) for values in zip(*halves, strict=True))), whole)


# ---------------------------------------------------------------- the network


@pytest.mark.slow  # training steps of two networks
def test_the_head_moves_nothing_of_the_papers_network() -> None:
    """Names, and what one seed draws; the random numbers drawn afterwards are others."""
    plain, ours = network(head=False), network()
    assert ours.state_dict().keys() - plain.state_dict().keys() == HEAD
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in plain.state_dict().items())
    batch = inputs(1, 2, 64, 64, 1000)[:3]
    with torch.inference_mode():
        expected, found = plain.eval()(*batch), ours.eval()(*batch)
    assert expected.no_target is None and torch.equal(expected.logits, found.logits)


@pytest.mark.parametrize(("fusion", "alignment"), [("cross", True), ("none", False), ("late", True)])
def test_every_parameter_takes_part_in_every_step(fusion: str, alignment: bool) -> None:
    """As several processes need it; the optimizer holds the head in a group of its own."""
    model = network(fusion=fusion, alignment=alignment).train()
    *batch, target = inputs(1, 2, 64, 64, 1000)
    Criterion()(model(*batch), target).total.backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert [name for name, parameter in trained.items() if parameter.grad is None] == []
    assert all(trained[name].grad.any() for name in HEAD)
    groups = {group["name"]: group for group in build_optimizer(model, 0.1, 0.01).param_groups}
    assert len(groups["no_target_head"]["params"]) == 4 and groups["no_target_head"]["weight_decay"] == 0.01


def test_one_answer_for_any_batch_and_padding() -> None:
    model = network().eval()
    image, token_ids, attention_mask, _ = inputs(1, 3, 64, 64, 1000)
    attention_mask[:, 5:] = 0
    with torch.inference_mode():
        together = model(image, token_ids, attention_mask).no_target
        alone = model(image[1:2], token_ids[1:2, :5], attention_mask[1:2, :5]).no_target
    assert together is not None and alone is not None and together.shape == (3, 2)
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "tolerance"), [("fp32", 1e-4), ("bf16", 0.05)])
def test_the_prepared_network_gives_the_answer_of_the_head(name: str, tolerance: float) -> None:
    model, precision = network(), Precision(name, CPU)
    fill(model.state_dict())
    batch = inputs(1, 2, 64, 64, 1000)[:3]
    with torch.inference_mode():
        expected = model.eval()(*batch).no_target
        with precision.autocast():
            found = optimize_for_inference(model, precision)(*batch).no_target
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@pytest.mark.slow  # tracing takes as long as a hundred steps
def test_the_head_compiles_into_the_networks_graph(graphs: CompileCounter) -> None:
    prepared, compiled = (
        optimize_for_inference(network(), Precision("fp32", CPU), compiled=flag) for flag in (False, True)
    )
    for n_samples in (2, 1):
        batch = [part[:n_samples] for part in inputs(1, 2, 64, 64, 1000)[:3]]
        with torch.inference_mode():
            torch.testing.assert_close(compiled(*batch), prepared(*batch), atol=1e-4, rtol=0)
    assert graphs.frame_count == 1


def test_float64_stays_float64() -> None:
    model = network().double().eval()
    image, token_ids, attention_mask, target = inputs(1, 2, 64, 64, 1000)
    output = model(image.double(), token_ids, attention_mask)
    assert output.no_target is not None and output.no_target.dtype == torch.float64
    assert Criterion()(output, target).no_target.dtype == torch.float64


# ---------------------------------------------------------------- weights in files


def write_weights(model: SegModel, path: Path, root: Path) -> Path:
    words = list(read_vocabulary(root / "vocab.txt"))
    save_file(store(model.state_dict(), "fp32"), path, write_about({"img_size": 64}, {}, words))
    return path


def constant(answer: int) -> SegModel:
    """A network whose head always says the same, 1 for nothing."""
    model = network()
    assert model.no_target_head is not None
    with torch.no_grad():
        model.no_target_head.classify.weight.zero_()
        model.no_target_head.classify.bias.copy_(F.one_hot(torch.tensor(answer), 2))
    return model


def test_weights_say_that_they_have_a_head(sample_root: Path, tmp_path: Path) -> None:
    """In every layout, and so do model card and description."""
    path = write_weights(network(), tmp_path / "nano.safetensors", sample_root)
    for target in (tmp_path / "hub", tmp_path / "nano.pth"):
        weights_command.main(["export", str(path), str(target)])
        trained = open_trained(target, bert_tokenizer=str(sample_root / "vocab.txt"), img_size=64)
        assert trained.network.options["no_target_head"] and trained.network.state_dict().keys() >= HEAD
    assert "a head says whether" in (tmp_path / "hub/README.md").read_text()
    assert json.loads((tmp_path / "hub/config.json").read_text())["no_target_head"] is True
    assert "no-target head" in weights_command.description_as_text(weights_command.inspect(path), keys=False)


def test_half_a_head_is_refused(sample_root: Path, tmp_path: Path) -> None:
    model = network()
    weights = {name: value for name, value in model.state_dict().items() if name != "no_target_head.project.bias"}
    save_file(store(weights, "fp32"), tmp_path / "half.safetensors")
    with naming("no_target_head.project.bias"):
        open_trained(tmp_path / "half.safetensors", bert_tokenizer=str(sample_root / "vocab.txt"), img_size=64)


# ---------------------------------------------------------------- answers


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.mark.parametrize("answer", [0, 1])
def test_no_target_is_an_empty_mask_with_a_note(
    answer: int, sample_root: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_weights(constant(answer), tmp_path / "nano.safetensors", sample_root)
    out = tmp_path / "out"
    flags = ["--image", photo, "--text", "the red circle", "--out", out, "--json", out / "x.json", "--resume", path]
    predict.main(list(map(str, flags)))
    (entry,) = json.loads((out / "x.json").read_text())["annotations"]
    (mask,) = (np.asarray(Image.open(file)) for file in (out / "masks").iterdir())
    printed = capsys.readouterr().out
    assert entry["no_target"] is bool(answer) and ("nothing here" in printed) == bool(answer)
    assert ("of them 1 empty" in printed) == (not mask.any())
    assert (entry["area"] == 0) == (not mask.any())
    assert not (answer and mask.any())
    if answer:
        assert (entry["score"], entry["bbox"]) == (0, [0, 0, 0, 0])


@pytest.mark.slow  # a whole test
def test_a_network_without_a_head_predicts_no_answer(sample_root: Path, photo: Path, tmp_path: Path) -> None:
    """And a head that finds something changes no pixel."""
    found = [
        predict.segment(
            predict.load(write_weights(model, tmp_path / f"{number}.safetensors", sample_root)), photo, "the red circle"
        )
        for number, model in enumerate((network(head=False), constant(0)))
    ]
    assert [one.no_target for one in found] == [None, False]
    assert np.array_equal(found[0].mask, found[1].mask) and found[0].score == found[1].score


def test_the_page_reports_no_target(sample_root: Path, photo: Path, tmp_path: Path) -> None:
    model = predict.load(write_weights(constant(1), tmp_path / "nano.safetensors", sample_root))
    assert "Nothing here" in describe_prediction("the dog", predict.segment(model, photo, "the dog"))


# ---------------------------------------------------------------- training


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sample data like gRefCOCO."""
    root = tmp_path_factory.mktemp("drawn") / "data"
    make_sample(root, images=16, like="grefcoco")
    return root


LIMITS = ["--dataset", "grefcoco", "--limit-train", 12, "--limit-val", 4, "-j", 0]


def train(root: Path, out: Path, *more: object) -> None:
    train_script.main(training_flags(root, out, *LIMITS, "-b", 4, *more))


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log_grefcoco.jsonl").read_text().splitlines()]


@pytest.mark.slow  # trains
def test_a_head_is_trained_saved_and_continued(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its loss is in the log; its weight is fixed for a training that continues, and its weights are found again."""
    train(drawn, tmp_path, "--epochs", 1, "--no-target-head", "--save-every", 2)
    records = log_of(tmp_path)
    assert all(record["no_target_loss"] > 0 for record in records)
    options = json.loads((tmp_path / "run_grefcoco.json").read_text())["options"]
    assert (options["no_target_head"], options["no_target_weight"]) == (True, NO_TARGET_WEIGHT)
    log = capsys.readouterr().out
    assert "sentences mean nothing in their image" in log and "with a no-target head" in log
    with pytest.raises(UserError, match=r"no_target_weight .*0\.1 .*0\.5"):
        train(drawn, tmp_path, "--epochs", 1, "--no-target-head", "--no-target-weight", 0.5, "--resume", "auto")
    with pytest.raises(UserError, match=r"no_target_head .*True .*False"):
        train(drawn, tmp_path, "--epochs", 1, "--resume", "auto")
    (older,) = tmp_path.glob("last_grefcoco.?.pth")
    train(drawn, tmp_path, "--epochs", 1, "--no-target-head", "--resume", older)
    assert [record["no_target_loss"] for record in log_of(tmp_path)] == [record["no_target_loss"] for record in records]
    assert open_trained(tmp_path / "last_grefcoco.pth").network.options["no_target_head"]


@pytest.mark.slow  # trains twice
def test_two_processes_train_the_head_of_one(drawn: Path, tmp_path: Path) -> None:
    """All parameters take part in every step, or they would wait for each other."""
    flags = ["--no-target-head", "--epochs", 1, "--print-freq", 1, "--dropout", 0, "--drop_path", 0]
    train(drawn, tmp_path / "1", *flags)
    two = training_flags(drawn, tmp_path / "2", *LIMITS, "-b", 2, *flags)
    outcome = launch(2, ROOT / "train.py", *two)
    assert outcome.returncode == 0, outcome.stderr
    one, other = ([record["no_target_loss"] for record in log_of(tmp_path / name)] for name in "12")
    assert one[0] == pytest.approx(other[0], rel=1e-4) and len(one) == len(other) == 4


def test_a_head_without_anything_to_learn_is_refused(few_root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--no-target-head: every sentence of refcoco \(unc\) train"):
        train_script.main(training_flags(few_root, tmp_path, "-j", 0, "--no-target-head"))


def test_a_weight_without_a_head_is_refused() -> None:
    with naming("--no-target-weight", "--no-target-head"):
        train_script.parse_args(["--no-target-weight", "0.2"])
