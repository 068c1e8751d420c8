"""A state is resumed with equal numbers or refused by name, whatever its entries are."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import utils
from errors import UserError
from lib.network.losses import Losses
from lib.options import FIXED_NAMES
from lib.training.optim import build_optimizer, build_scheduler
from lib.training.run_files import read_state
from lib.training.run_log import RunLog
from lib.training.state import TrainingState
from tests.fuzz import EVERYTHING, REMOVED, at, cases, names_entry, replaced

# PyTorch warns of what the files with odd tensors hold.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

STEPS, EPOCHS, PRINT_FREQ = 3, 2, 2
LEARNING_RATE, WEIGHT_DECAY = 0.01, 0.1
SCORES = {
    "n_expressions": 4,
    "mean_iou": 50.0,
    "overall_iou": 40.0,
    "precision": {"0.5": 50.0, "0.6": 40.0, "0.7": 30.0, "0.8": 20.0, "0.9": 10.0},
}
BATCHING = {"batch_size": 2, "processes": 1, "accumulate": 1, "asked": [2, 1]}
OPTIONS = dict.fromkeys(FIXED_NAMES) | BATCHING
OPTIONS |= {"epochs": EPOCHS, "steps": STEPS * EPOCHS, "steps_per_epoch": STEPS, "alignment": True}
OPTIONS |= {"lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "precision": "fp32"}
OPTIONS |= {"dataset": "refcoco", "amsgrad": False, "seed": 0}


@pytest.fixture(autouse=True)
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log keeps its records and writes nothing."""
    monkeypatch.setattr(utils, "is_main", lambda: False)


class Tiny(nn.Module):
    """Parameters of two groups, buffers of two types."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(3, 2)
        self.classifier = nn.BatchNorm1d(2)

    def forward(self, points: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.backbone(points))
        return scores


def build(folder: Path, *, amsgrad: bool = False, scaled: bool = False) -> TrainingState:
    torch.manual_seed(0)
    network = Tiny()
    options = OPTIONS | {"amsgrad": amsgrad}
    optimizer = build_optimizer(network, LEARNING_RATE, WEIGHT_DECAY, amsgrad)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    scheduler = build_scheduler(optimizer, STEPS * EPOCHS)
    return TrainingState(network, optimizer, scheduler, scaler, RunLog(folder, "refcoco"), options, {"a.jpg": "0f"})


def step_record(state: TrainingState) -> dict[str, Any]:
    means = state.meter.means()
    return {
        "kind": "step",
        "epoch": state.epoch,
        "step": state.step,
        "global_step": state.global_step,
        **means._asdict(),
        "lr": 0.1,
        "grad_norm": 1.0,
        "samples_per_second": 2.0,
        "data_wait": 0.0,
        "memory_gib": 1.0,
    }


def train(state: TrainingState, steps: int) -> TrainingState:
    """Take some steps, as an epoch does; whatever a state holds decides their numbers."""
    for _ in range(steps):
        torch.manual_seed(state.global_step)
        output = state.network(torch.rand(5, 3))
        loss = (output * torch.rand(5, 2)).sum()
        state.scaler.scale(loss).backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad()
        state.scheduler.step()
        state.meter.add(Losses(loss.detach(), loss.detach(), torch.rand(4), torch.zeros(0)))
        state.step += 1
        if state.step % PRINT_FREQ == 0:
            state.meter.read(state.epoch)
            state.log.add(step_record(state))
        if state.step == STEPS:
            state.meter.read(state.epoch)
            record = step_record(state) | {"kind": "epoch", "val": SCORES, "seconds": 1.0}
            state.log.add(record)
            state.next_epoch()
    return state


def resumed(folder: Path, content: dict[str, Any], **options: bool) -> TrainingState:
    """Save a state's content, and return the training that continues from the file."""
    path = folder / "last.pth"
    torch.save(content, path)
    state = build(folder, **options)
    state.begin(read_state(path))
    return state


def numbers(value: Any) -> Any:
    """Return a state in a form that == compares to the last bit."""
    if isinstance(value, Tensor):
        return value.dtype, value.shape, value.tolist()
    if isinstance(value, dict):
        return {name: numbers(part) for name, part in value.items()}
    return [numbers(part) for part in value] if isinstance(value, list | tuple) else value


def outcome(folder: Path, content: dict[str, Any], **options: bool) -> Any:
    """Return what a training is two steps after it was resumed from this content."""
    return numbers(train(resumed(folder, content, **options), 2).state_dict())


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"scaled": True}], ids=str)
@pytest.mark.parametrize("done", range(STEPS + 2))
def test_a_state_of_every_moment_is_continued(tmp_path: Path, done: int, options: dict[str, bool]) -> None:
    whole = build(tmp_path, **options)
    whole.begin(None)
    saved = copy.deepcopy(train(whole, done).state_dict())
    assert outcome(tmp_path, saved, **options) == numbers(train(whole, 2).state_dict())


def test_steps_that_overflowed_are_no_fault(tmp_path: Path) -> None:
    """Also the very first step under fp16: then the optimizer has counted none."""
    state = build(tmp_path, scaled=True)
    state.begin(None)
    state.network.get_parameter("backbone.weight").register_hook(lambda gradient: gradient * torch.inf)
    saved = train(state, 1).state_dict()
    assert saved["optimizer"]["state"][0]["step"] == 0
    resumed(tmp_path, saved, scaled=True)


def test_names_of_files_may_hold_what_python_does_not_call_printable(tmp_path: Path) -> None:
    """A narrow no-break space, as in the names of screenshots on macOS, a joiner, bytes that are no UTF-8."""
    state = build(tmp_path)
    state.begin(None)
    state.images = {"Screenshot at 3.45\u202fPM.png": "0f", "\udce9t\u00e9\n.jpg": "1e"}
    state.options |= {"init": "داده\u200cها/a\u00a0b.pth", "bert_tokenizer": "داده\u200cها/vocab.txt"}
    path = tmp_path / "last.pth"
    torch.save(train(state, 1).state_dict(), path)
    again = build(tmp_path)
    again.options |= {"init": state.options["init"]}
    again.begin(read_state(path))
    assert again.global_step == 1


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "\x1b[31m", "\u202eb", "\udce9"])
def test_an_option_that_would_change_a_terminal_is_refused(tmp_path: Path, name: str) -> None:
    state = build(tmp_path)
    state.begin(None)
    with pytest.raises(UserError, match=r"args\.dataset"):
        resumed(tmp_path, state.state_dict() | {"args": OPTIONS | {"dataset": name}})


@pytest.fixture(scope="module", params=[{"amsgrad": True, "scaled": True}], ids=str)
def fuzzed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Any, Any]:
    """Content of a state in the second epoch, what comes of it, and how it was trained."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(utils, "is_main", lambda: False)
        state = build(folder, **request.param)
        state.begin(None)
        content = copy.deepcopy(train(state, STEPS + 1).state_dict())
        return content, outcome(folder, content, **request.param), request.param


def try_all(folder: Path, fuzzed: tuple[dict[str, Any], Any, Any], count: int | None) -> None:
    content, expected, options = fuzzed
    for path, kind, changed in cases(content, seed=3, count=count):
        try:
            result = outcome(folder, changed, **options)
        except UserError as error:
            message = str(error)
            assert str(folder / "last.pth") in message, (path, kind)
            assert names_entry(message, path) or fits_no_other(path, message), (path, kind, message)
            assert len(message) < 1000, (path, kind)
        else:
            assert same_but_for(path, result, expected), (path, kind)


def fits_no_other(path: tuple[Any, ...], message: str) -> bool:
    """Tell of a position or a score that is possible, but not with the other entries: one of those is named then."""
    return path in (("epoch",), ("step",)) or (path[0] == "log" and "val" in path and "best_oIoU" in message)


def same_but_for(path: tuple[Any, ...], result: Any, expected: Any) -> bool:
    """Return whether two states are equal, except for entries that may have any number: losses, times, a scale."""
    if path[0] in ("meter", "log", "scaler"):
        kept = ("meter", "log", "scaler", *(("model", "optimizer") if path[1:] == ("scale",) else ()))
        result, expected = ({k: v for k, v in each.items() if k not in kept} for each in (result, expected))
    return result == expected


def test_an_entry_of_another_kind_is_refused_or_not_needed(
    tmp_path: Path, fuzzed: tuple[dict[str, Any], Any, Any]
) -> None:
    try_all(tmp_path, fuzzed, count=40)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ((), {}),
        ((0,), {}),
        ((0,), REMOVED),
        ((1, "step"), REMOVED),
        ((1, "exp_avg"), REMOVED),
        ((0, "exp_avg_sq"), REMOVED),
        ((1, "max_exp_avg_sq"), REMOVED),
    ],
)
def test_missing_moments_are_refused(
    tmp_path: Path, fuzzed: tuple[dict[str, Any], Any, Any], entry: tuple[int | str, ...], value: object
) -> None:
    """AdamW would begin them anew, and say nothing."""
    content, _, options = fuzzed
    with pytest.raises(UserError, match=r"its entry optimizer\.state\[\d\]\S* is missing"):
        outcome(tmp_path, replaced(content, ("optimizer", "state", *entry), value), **options)


def test_squares_are_never_negative(tmp_path: Path, fuzzed: tuple[dict[str, Any], Any, Any]) -> None:
    """AdamW takes their root."""
    content, _, options = fuzzed
    moments = ("optimizer", "state", 1, "exp_avg_sq")
    changed = replaced(content, moments, -1 - at(content, moments))
    with pytest.raises(UserError, match=r"optimizer\.state\[1\]\.exp_avg_sq is .* smaller numbers"):
        outcome(tmp_path, changed, **options)


def test_moments_that_share_memory_are_continued_as_numbers(
    tmp_path: Path, fuzzed: tuple[dict[str, Any], Any, Any]
) -> None:
    """The kernels write to them in place: one would see what was meant for another."""
    content, expected, options = fuzzed
    moments = ("optimizer", "state", 0)
    first = at(content, moments)
    squares = first["exp_avg_sq"]
    apart, shared, turned = (
        replaced(content, moments, first | {"exp_avg": mean})
        for mean in (squares.clone(), squares, first["exp_avg"].t().contiguous().t())
    )
    assert outcome(tmp_path, shared, **options) == outcome(tmp_path, apart, **options)
    assert outcome(tmp_path, turned, **options) == expected


@pytest.mark.slow
def test_many_entries_of_other_kinds(tmp_path: Path, fuzzed: tuple[dict[str, Any], Any, Any]) -> None:
    """FUZZ=all tries every entry with every kind, which takes minutes."""
    try_all(tmp_path, fuzzed, count=None if EVERYTHING else 150)
