"""The benchmarks: the baseline computes what the network computes, and the command leaves its tables.

No time is compared with anything.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import test as test_script
from benchmarks import plain_test, profile_main
from benchmarks.__main__ import main
from benchmarks.cases import Case
from benchmarks.compare import MismatchError, Row, check_logits, check_step
from benchmarks.end_to_end import ONE_AT_A_TIME, Evaluation, Training
from benchmarks.plain import PlainNetwork, plain_loss
from benchmarks.report import markdown
from benchmarks.targets import TARGETS, Results
from benchmarks.timing import side_by_side
from benchmarks.variants import PLAIN, Variant
from CrossVLT import SegModel
from lib.network.losses import Criterion
from tests.helpers import naming
from tests.networks import reference_nano
from tests.reference.inputs import inputs

CPU = torch.device("cpu")
LOGITS_TOLERANCE = 2e-4


@pytest.mark.parametrize("arguments", [(11, 2, 160, 160, 1000), (12, 1, 150, 201, 1000)], ids=["160", "150x201"])
def test_the_baseline_predicts_what_the_network_predicts(nano: SegModel, arguments: tuple[int, ...]) -> None:
    plain = PlainNetwork(nano).eval()
    with torch.no_grad():
        own, other = (model(*inputs(*arguments)[:3]) for model in (nano, plain))
    assert (own.logits - other.logits).abs().max() < LOGITS_TOLERANCE
    assert other.alignment == ()


@pytest.mark.slow  # builds two networks
def test_the_baseline_has_the_gradients_of_the_network(nano: SegModel) -> None:
    nano.train()
    *batch, target = inputs(21, 2, 160, 160, 1000)
    own = Criterion()(nano(*batch), target).total
    expected = gradients(nano, own)
    other = plain_loss(PlainNetwork(nano)(*batch), target)
    found = gradients(nano, other)
    assert other.item() == pytest.approx(own.item(), rel=1e-5)
    assert found.keys() == expected.keys()
    # As far as rounding decides them: it puts a few of the decoder's ReLU inputs on the other side of zero.
    errors = {name: (found[name] - value).norm() / (value.norm() + 1e-3) for name, value in expected.items()}
    assert max(errors.values()) < 5e-2
    own_total, difference = (
        torch.cat([tensor.flatten() for tensor in tensors]).norm()
        for tensors in (expected.values(), [found[name] - value for name, value in expected.items()])
    )
    assert difference < 2e-2 * own_total


def gradients(network: SegModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the gradients of all trained parameters and clear them."""
    loss.backward()
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return found


def test_the_baseline_moves_the_same_running_averages(nano: SegModel) -> None:
    before = {name: value.clone() for name, value in nano.named_buffers()}
    batch = inputs(21, 2, 64, 64, 1000)[:3]
    moved = []
    for model in (nano, PlainNetwork(nano)):
        for name, value in nano.named_buffers():
            value.copy_(before[name])
        with torch.no_grad():
            model.train()(*batch)
        moved.append(nano.get_buffer("classifier.bn2_2.running_var").clone())
    assert not torch.equal(moved[0], before["classifier.bn2_2.running_var"])
    torch.testing.assert_close(*moved)


def test_rounds_are_interleaved_and_an_error_ends_only_its_own_variant() -> None:
    called = []

    def fail() -> None:
        called.append("bad")
        raise RuntimeError("out of memory\nand more")

    times = side_by_side({"a": lambda: called.append("a"), "bad": fail, "b": lambda: called.append("b")}, 3)
    assert called == ["a", "bad", "b", "b", "a", "b", "a"]
    assert [len(times["a"]), len(times["b"]), times["bad"]] == [3, 3, "RuntimeError: out of memory and more"]


def test_wrong_outcomes_are_refused() -> None:
    logits = torch.zeros(1, 2, 4, 4)
    assert check_logits(logits + 1e-4, logits, Variant())["agreement"] == 1
    assert check_logits(logits + 1, logits, Variant("bf16"))["logits"] == 1
    with naming("logits", 1, kind=MismatchError):
        check_logits(logits + 1, logits, Variant())
    with pytest.raises(MismatchError):
        check_logits(logits + torch.nan, logits, Variant())
    step = torch.tensor([5.0, 10.0])
    assert check_step(step * 1.5, step, Variant("bf16")) == {"loss": 0.5, "gradient_norm": 0.5}
    with naming("loss", 0.01, kind=MismatchError):
        check_step(step * 1.01, step, Variant())
    with naming("gradients", kind=MismatchError):
        check_step(step * torch.inf, step, Variant("fp16"))


def row(part: str, case: Case, variant: Variant, second: float, above: float = 1.0) -> Row:
    """Return a row of 100 GFLOP on a device that makes 100 GFLOP/s."""
    memory = {"peak_gib": 1 + above, "above_gib": above}
    return Row(part, case, variant, 10**11, [second], 1.0, memory=memory, rates={"matmul": [1e11], "conv": [1e11]})


def test_verdicts_follow_from_what_was_measured() -> None:
    base, tiny = Case("base", 480, 1), Case("tiny", 480, 2)
    results = Results("cpu", {}, {})
    assert {goal.verdict(results)[1] for goal in TARGETS} == {"unmeasured", "unmeasured: needs a GPU"}
    failed = row("forward", base, Variant("fp32", compiled=True), 0.1)
    failed.failure, failed.seconds = "RuntimeError: no compiler", []
    results.rows = [
        row("forward", base, PLAIN, 3.0),
        row("forward", base, Variant(), 2.0),
        failed,
        row("forward", base, Variant("bf16"), 1.2),
        row("forward", base, Variant("bf16", compiled=True), 1.0),
        row("training", tiny, PLAIN, 2.0, above=2.0),
        row("training", tiny, Variant("bf16"), 1.0, above=1.0),
    ]
    times = {part: [6.0] for part in ("command", "main", "evaluate")}
    scores = {"testA": {"n_expressions": 3, "overall_iou": 50.0}}
    own = Evaluation("test.py", {part: [1.0] for part in times}, scores)
    results.evaluations = [Evaluation(ONE_AT_A_TIME, times, scores), own]
    epochs = [{"data_wait": wait, "samples_per_second": 9.0} for wait in (0.5, 0.1, 0.02, 0.01)]
    results.trainings = [Training("train.py", 9.0, epochs), Training("train.py --cache", 9.0, epochs)]
    verdicts = [goal.verdict(results) for goal in TARGETS]
    assert verdicts == [
        ("1.50× (eager fp32, batch 1)", "reached"),
        ("–", "unmeasured"),
        ("3.00× (compiled bf16, batch 1)", "reached"),
        ("100.0 % (compiled bf16, batch 1)", "reached"),
        ("2.00× (eager bf16, batch 2)", "not reached"),
        ("0.50× (eager bf16, batch 2)", "reached"),
        ("0.67× (eager bf16, batch 2)", "not reached"),
        ("6.00× (3 sentences)", "reached"),
        ("6.00× (3 sentences)", "reached"),
        ("2.0 % (3 epochs)", "reached"),
        *[("–", "unmeasured: needs a GPU")] * 3,
    ]
    text = markdown(results)
    assert "**failed** RuntimeError: no compiler" in text
    assert "all equal" in text


@pytest.mark.slow  # measures
def test_the_command_writes_json_and_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--device cpu --quick --no-compiled --repeats 1 --skip-memory --skip-end-to-end"
    main([*flags.split(), "--out", str(tmp_path)])
    (json_file,), (table_file,) = tmp_path.glob("cpu-*.json"), tmp_path.glob("cpu-*.md")
    content = json.loads(json_file.read_text())
    assert [found["part"] for found in content["rows"]] == ["forward"] * 3 + ["training"] * 3
    assert not any(found["failure"] for found in content["rows"])
    assert all(len(found["seconds"]) == 1 and found["share_of_matmul"] > 0 for found in content["rows"])
    assert {(rate["operation"], rate["precision"]) for rate in content["rates"]} == {
        (operation, precision) for operation in ("matmul", "conv") for precision in ("fp32", "bf16")
    }
    table = table_file.read_text()
    assert table in capsys.readouterr().out
    for block in table.split("\n\n"):
        widths = {line.count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(widths) <= 1, block


@pytest.mark.slow  # tests twice
def test_one_sentence_at_a_time_gives_the_same_scores(few_root: Path, tmp_path: Path) -> None:
    weights, scores = tmp_path / "weights.pth", {}
    torch.save(reference_nano().state_dict(), weights)
    data = ["--refer_data_root", few_root, "--bert_tokenizer", few_root / "vocab.txt", "--split", "testA"]
    for script in (test_script, plain_test):
        out, times = tmp_path / "scores.json", tmp_path / "seconds.json"
        flags = [*data, "--resume", weights, "--json", out, "--img_size", 56, "--workers", 0, "--device", "cpu"]
        profile_main.main([str(times), script.__name__, *map(str, flags)])
        scores[script.__name__] = json.loads(out.read_text())
        spent = json.loads(times.read_text())
        assert 0 < spent["waiting"] < spent["evaluate"] < spent["main"]
    assert scores["benchmarks.plain_test"] == scores["test"]
