"""On a GPU every tensor is on it, and nothing waits for it: tried without one, on pretended tensors and on the CPU.

What needs a real GPU is in `test_cuda.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import train
import utils
from bert.tokenizer import build_tokenizer
from CrossVLT import SegModel
from data.dataset_refer_bert import ReferDataset
from data.loaders import Batching
from data.transforms import PairTransform
from lib.contracts import Batch, Output
from lib.engine import EpochConfig, predict, train_step
from lib.evaluation.metrics import Metrics
from lib.network.fusion import Gate
from lib.network.inference import optimize_for_inference
from lib.network.losses import Criterion
from lib.network.precision import Precision
from lib.training.optim import build_optimizer, build_scheduler
from lib.training.run_log import RunLog
from lib.training.state import TrainingState
from lib.variants import FUSIONS, LOSSES, PRECISIONS
from refer.refer import REFER
from tests.helpers import mostly_slow, naming
from tests.networks import reference_nano
from tests.pretended_gpu import DEVICE, on_pretended_gpu, pretended_gpu
from tests.reference.inputs import inputs
from tests.waiting import NoWaiting, WaitingError, found_waiting, no_waiting

pytestmark = pytest.mark.usefixtures("float32_settings")
CPU = torch.device("cpu")
SIZE = 40  # windows of 7 leave padding at every stage
Way = tuple[str, str, bool]
WAYS: list[Way] = [
    *[(precision, "cross", False) for precision in PRECISIONS],
    *[("bf16", "cross", True), ("fp32", "cross", True)],
    *[("bf16", fusion, False) for fusion in FUSIONS if fusion != "cross"],
]
# Pretended tensors take as long in every precision: each is tried always in one way, and in the others with the rest.
ALWAYS = [("bf16", "cross", True)]


@pytest.fixture(scope="module")
def networks() -> dict[tuple[str, bool], SegModel]:
    """Nano by fusion and checkpointing, with dropout and drop path."""
    return {
        (fusion, checkpointing): reference_nano(
            dropout=0.1, drop_path=0.3, fusion=fusion, checkpointing=checkpointing, alignment=fusion != "late"
        )
        for _, fusion, checkpointing in WAYS
    }


def pretended_batch() -> Batch:
    """Return a batch as a loader brings it: on the CPU."""
    words = torch.ones(2, 21, dtype=torch.int64)
    return Batch(torch.empty(2, 3, SIZE, SIZE), words, words, torch.zeros(2, SIZE, SIZE, dtype=torch.int64), words)


def real_batch(device: torch.device) -> Batch:
    """Return a batch as a loader brings it: on the CPU, for a GPU in pinned memory."""
    fields = (*inputs(1, 2, SIZE, SIZE, 1000), torch.arange(2))
    return Batch(*(field.pin_memory() if device.type == "cuda" else field for field in fields))


def step_of(network: nn.Module, precision: Precision, loss: str = "ce") -> Callable[[Batch], Tensor]:
    """Return a training step, with gradients clipped, as `train_one_epoch` takes it: seeds, step, meter."""
    optimizer = build_optimizer(network, lr=1e-4, weight_decay=1e-2)
    scheduler = build_scheduler(optimizer, total_steps=9)
    state = TrainingState(network, optimizer, scheduler, precision.scaler, RunLog(Path(), "none"), {})
    config = EpochConfig(epochs=1, global_batch=2, precision=precision, clip_grad=1.0)
    criterion = Criterion(loss).to(precision.device)
    network.train()

    def step(batch: Batch) -> Tensor:
        utils.seed_everything(1)
        losses, norm = train_step(network, criterion, [batch], state, precision.device, config, measure=True)
        state.meter.add(losses)
        assert {value.device.type for value in (*losses, norm)} == {precision.device.type}
        return losses.total

    return step


def evaluation_of(network: nn.Module, precision: Precision) -> Callable[[Batch], Tensor]:
    """Return what `evaluate` does with a batch, on a network that is prepared for it."""
    prepared, metrics = optimize_for_inference(network, precision), Metrics()

    def batch_of(batch: Batch) -> Tensor:
        logits = predict(prepared, batch, precision.device, precision)
        metrics.update(logits, batch.target, batch.numbers)
        return metrics.counts[-1]

    return batch_of


@pytest.mark.slow  # seconds of training steps
@pytest.mark.parametrize(("name", "fusion", "checkpointing"), WAYS)
def test_a_training_step_stays_on_the_gpu(
    networks: dict, monkeypatch: pytest.MonkeyPatch, name: str, fusion: str, checkpointing: bool
) -> None:
    """Everything but the backward pass, in whose place gradients are made up."""
    with pretended_gpu():
        network = on_pretended_gpu(networks[fusion, checkpointing])
        made_up = made_up_gradients(network)
        monkeypatch.setattr(Tensor, "backward", lambda loss: made_up())
        step = step_of(network, Precision(name, DEVICE))
        with NoWaiting():
            loss = step(pretended_batch())
    assert (loss.device, loss.dtype, loss.shape) == (DEVICE, torch.float32, ())


def made_up_gradients(network: nn.Module) -> Callable[[], None]:
    def make() -> None:
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)

    return make


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_stay_on_the_gpu(loss: str) -> None:
    with pretended_gpu():
        maps = tuple(torch.empty(2, 1, side, side, device=DEVICE) for side in (10, 5, 3, 2))
        output = Output(torch.empty(2, 2, SIZE, SIZE, device=DEVICE), maps)
        target = torch.empty(2, SIZE, SIZE, dtype=torch.int64, device=DEVICE)
        criterion = Criterion(loss).to(DEVICE)
        with NoWaiting():
            losses = criterion(output, target)
    assert {value.device for value in losses} == {DEVICE}


@pytest.mark.parametrize(
    ("name", "fusion", "checkpointing"), mostly_slow([way for way in WAYS if not way[2]], always=ALWAYS)
)
def test_a_prepared_evaluation_stays_on_the_gpu(networks: dict, name: str, fusion: str, checkpointing: bool) -> None:
    with pretended_gpu():
        evaluation = evaluation_of(on_pretended_gpu(networks[fusion, checkpointing]), Precision(name, DEVICE))
        with NoWaiting():
            counts = evaluation(pretended_batch())
    assert (counts.device, counts.dtype, counts.shape) == (DEVICE, torch.int64, (2, 6))


# ---------------------------------------------------------------- the same watch sees what is wrong


class Misplaced(Gate):
    """Adds a tensor that was made where tensors are made by default."""

    def forward(self, x: Tensor, fused: Tensor) -> Tensor:
        return super().forward(x, fused) + torch.zeros(x.shape[-1])


class Reading(Gate):
    """Looks at a value."""

    def forward(self, x: Tensor, fused: Tensor) -> Tensor:
        return super().forward(x, fused) * (1.0 if x.isfinite().all() else 0.0)


class Fetching(Gate):
    """Goes by way of the CPU."""

    def forward(self, x: Tensor, fused: Tensor) -> Tensor:
        return super().forward(x, fused.cpu().to(x.device))


class Masking(Gate):
    """Selects by a mask, which must be counted for that."""

    def forward(self, x: Tensor, fused: Tensor) -> Tensor:
        return super().forward(x, fused) + x[x > 0].mean()


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (Misplaced, "devices,? cuda:0"),
        (Reading, "_local_scalar_dense"),
        (Fetching, "copies between devices"),
        (Masking, "index.Tensor"),
    ],
)
def test_a_hidden_mistake_is_found(networks: dict, gate: type[Gate], message: str) -> None:
    with pretended_gpu():
        network = on_pretended_gpu(networks["cross", False])
        network.get_submodule("backbone.0.layers.linear1").__class__ = gate
        step = step_of(network, Precision("fp32", DEVICE))
        with NoWaiting(), pytest.raises((RuntimeError, AssertionError), match=message):
            step(pretended_batch())


WAITING = {
    "a number": lambda x: x.sum().item(),
    "a decision": lambda x: bool(x.any()),
    "places": lambda x: x.nonzero(),
    "a selection": lambda x: x[x > 0],
    "an assignment": lambda x: x.clone().index_put_((x > 0,), torch.ones(1, device=x.device)),
    "kinds": lambda x: x.unique(),
    "equality": lambda x: torch.equal(x, x + 1),
}


@pytest.mark.parametrize("name", WAITING)
def test_reading_values_waits(device: torch.device, name: str) -> None:
    x = torch.arange(4.0, device=device)
    assert found_waiting(lambda: WAITING[name](x), device)


@pytest.mark.parametrize("read", [Tensor.cpu, lambda x: x.to("cpu", non_blocking=True)])
def test_copying_to_the_cpu_waits(read: Callable[[Tensor], object]) -> None:
    """The last one must be waited for before anybody reads it."""
    with pretended_gpu():
        x = torch.empty(4, device=DEVICE)
        with pytest.raises(WaitingError), NoWaiting():
            read(x)


def test_computing_does_not_wait(device: torch.device) -> None:
    x, places = torch.arange(4.0, device=device, requires_grad=True), torch.tensor([1, 2], device=device)
    assert not found_waiting(lambda: (torch.where(x > 0, x, 0.0)[places].sum() * 2).backward(), device)


# ---------------------------------------------------------------- real tensors, and the backward pass


@pytest.mark.parametrize("name", mostly_slow(PRECISIONS, always=["fp32"]))
def test_a_whole_training_step_reads_no_value(networks: dict, device: torch.device, name: str) -> None:
    step, batch = step_of(real_network(networks, device), Precision(name, device)), real_batch(device)
    step(batch)  # makes layouts and the optimizer's state
    with no_waiting(device):
        step(batch)


def test_an_evaluation_batch_reads_no_value(networks: dict, device: torch.device) -> None:
    evaluation = evaluation_of(real_network(networks, device), Precision("fp32", device))
    batch = real_batch(device)
    evaluation(batch)
    with no_waiting(device):
        evaluation(batch)


def test_a_value_read_in_the_backward_pass_is_found(networks: dict, device: torch.device) -> None:
    network, batch = real_network(networks, device), real_batch(device)
    step = step_of(network, Precision("fp32", device))
    step(batch)
    network.classifier.conv1_1.weight.register_hook(lambda gradient: gradient * float(gradient.norm()))
    assert found_waiting(lambda: step(batch), device)


def real_network(networks: dict, device: torch.device) -> SegModel:
    return copy.deepcopy(networks["cross", False]).to(device)


# ---------------------------------------------------------------- processes and loaders


@pytest.mark.parametrize(("device", "backend"), [("cuda", "cpu:gloo,cuda:nccl"), ("cpu", "gloo")])
def test_gpus_talk_through_nccl_and_everything_else_through_gloo(
    monkeypatch: pytest.MonkeyPatch, device: str, backend: str
) -> None:
    world = {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}
    for name, value in world.items():
        monkeypatch.setenv(name, str(value))
    asked: list[Any] = []
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(utils, "rendezvous", lambda _, **__: iter([(torch.distributed.HashStore(), 1, 2)]))
    monkeypatch.setattr(utils.dist, "init_process_group", lambda backend, **world: asked.append((backend, world)))
    own = utils.start_processes(torch.device(device))
    assert own == torch.device("cuda", 1) if device == "cuda" else own == CPU
    assert chosen == ([own] if device == "cuda" else [])
    ((found, arguments),) = asked
    assert (found, arguments["rank"], arguments["world_size"]) == (backend, 1, 2)


@pytest.mark.parametrize(("name", "number"), [("cuda", 0), ("cuda:1", 1)])
def test_a_single_process_takes_a_gpu_with_a_number(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """PyTorch itself, which is asked here up to its driver, refuses to choose `cuda` without a number."""
    chosen: list[int] = []
    monkeypatch.setattr(torch._C, "_cuda_setDevice", chosen.append, raising=False)
    assert utils.start_processes(torch.device(name)) == torch.device("cuda", number)
    assert chosen == [number]


def test_a_gpu_that_the_launcher_does_not_give_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be another one than the user named."""
    for name in utils.LAUNCHER_VARIABLES:
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with naming("--device cuda:1", "GPU 0", "CUDA_VISIBLE_DEVICES"):
        utils.start_processes(torch.device("cuda", 1))


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_memory_is_pinned_for_gpus(sample_root: Path, device: str) -> None:
    refer, tokenizer = REFER(sample_root), build_tokenizer(str(sample_root / "vocab.txt"))
    sets = [ReferDataset(refer, split, tokenizer, PairTransform(32)) for split in ("train", "val")]
    args = train.parse_args(["--workers", "0", "--device", "cpu"])
    loaders: Any = train.build_loaders(args, Batching(2), sets[0], sets[1], torch.device(device))[1:]
    assert [loaders[0].pin_memory, loaders[1]._images.pin_memory] == [device == "cuda"] * 2
