"""Features of a GPU: deterministic algorithms, nccl, CUDA graphs, full memory, the scripts on it.

`pytest -m cuda` runs these on a GPU, with all other tests that have a device. On the CPU the same code runs as far as
there is something to see. `test_cuda_placement.py` tries without a GPU what can be tried without one.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lib.network.inference
import train
import utils
from CrossVLT import SegModel
from lib import engine
from lib.contracts import Batch
from lib.engine import predict
from lib.network.inference import optimize_for_inference
from lib.network.losses import Criterion
from lib.network.precision import Precision
from lib.variants import LOSSES
from tests.reference.inputs import inputs
from tests.resume_worker import after, send_signal
from tests.training_runs import ROOT, differences, launch, launch_anew, launch_by_forks, training_flags

pytestmark = pytest.mark.usefixtures("float32_settings")
# What CUDA computes in another order every time, by the loss of the mask that needs it. All else that a training step
# calls is deterministic, or has an algorithm that is.
NONDETERMINISTIC = {
    "ce": {"nll_loss2d_forward_out_cuda_template"},
    "dice": set(),
    "ce+dice": {"nll_loss2d_forward_out_cuda_template"},
}
SAMPLE_WEIGHTS = ROOT / "checkpoints" / "sample_nano.safetensors"
SMALL = ["--limit-train", 18, "--limit-val", 5, "--workers", 0, "-b", 6]


def on(device: torch.device, batch: tuple[Tensor, ...]) -> list[Tensor]:
    return [part.to(device) for part in batch]


# ---------------------------------------------------------------- deterministic algorithms


@pytest.mark.parametrize("loss", LOSSES)
def test_operators_without_a_deterministic_algorithm_are_those_named(
    nano: SegModel, device: torch.device, loss: str
) -> None:
    network = nano.train().to(device)
    *batch, target = on(device, inputs(1, 2, 64, 64, 1000))
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            Criterion(loss).to(device)(network(*batch), target).total.backward()
    finally:
        torch.use_deterministic_algorithms(False)
    messages = [re.search(r"(\w+) does not have a deterministic implementation", str(w.message)) for w in caught]
    assert {found[1] for found in messages if found} == (NONDETERMINISTIC[loss] if device.type == "cuda" else set())


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize(
    ("device", "precision"),
    [
        pytest.param(torch.device("cpu"), "fp32", marks=pytest.mark.slow),
        *(pytest.param(torch.device("cuda"), name, marks=pytest.mark.cuda) for name in ("fp32", "bf16", "fp16")),
    ],
)
def test_a_resumed_training_is_the_uninterrupted_one(
    device: torch.device, sample_root: Path, tmp_path: Path, precision: str
) -> None:
    """To the last bit, with the loss that has deterministic algorithms: weights, optimizer, scaler and log."""
    more = [*SMALL, "--epochs", 2, "--loss", "dice", "--precision", precision, "--device", device.type]
    train.main(training_flags(sample_root, tmp_path / "whole", *more))
    parts = training_flags(sample_root, tmp_path / "parts", *more, "--resume", "auto")
    with after("train_step", 2, send_signal):
        train.main(parts)
    train.main(parts)
    assert differences(tmp_path / "whole" / "last_refcoco.pth", tmp_path / "parts" / "last_refcoco.pth") == []


# ---------------------------------------------------------------- processes


@pytest.mark.parametrize(
    "device",
    [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.cuda)],
)
def test_one_process_under_torchrun_trains_as_one_without(device: str, tmp_path: Path) -> None:
    """Wrapped for several processes, on a GPU with nccl and batch norm that is synchronised."""
    file = tmp_path / "result.json"
    run = launch_anew if device == "cuda" else launch_by_forks  # what uses CUDA cannot be forked
    outcome = run(1, ROOT / "tests" / "wrapped_worker.py", device, file, launcher="--standalone")
    assert outcome.returncode == 0, outcome.stderr
    found = json.loads(file.read_text())
    assert found["wrapped"] == pytest.approx(found["plain"], rel=1e-4)
    assert found["plain"][0] > found["plain"][-1]
    assert "DistributedDataParallel" in found["kinds"]
    assert ("SyncBatchNorm" in found["kinds"]) == (device == "cuda")
    assert ("nccl" in found["backend"]) == (device == "cuda")


# ---------------------------------------------------------------- CUDA graphs


@pytest.mark.slow  # traces the network
def test_replayed_graphs_give_what_the_network_gives(
    nano: SegModel, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For other contents and smaller batches, and what was returned before is not written over."""
    if device.type == "cpu":  # compiling takes minutes here, and there are no graphs
        monkeypatch.setattr(lib.network.inference, "compile_for_inference", lambda network, device: network)
    network, precision = nano.to(device), Precision("fp32", device)
    fast, plain = optimize_for_inference(network, precision, compiled=True), optimize_for_inference(network, precision)
    batches = [
        Batch(*(*(part[:n_samples] for part in inputs(seed, 3, 64, 64, 1000)), torch.arange(n_samples)))
        for seed, n_samples in ((1, 3), (2, 3), (3, 3), (4, 2), (5, 1), (6, 3))
    ]
    found = [predict(fast, batch, device, precision) for batch in batches]
    for logits, batch in zip(found, batches, strict=True):
        torch.testing.assert_close(logits, predict(plain, batch, device, precision), atol=2e-4, rtol=0)
    assert replays(lambda: predict(fast, batches[0], device, precision)) == (device.type == "cuda")


def replays(call: Callable[[], object]) -> bool:
    """Tell whether a call launches a CUDA graph."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        call()
    return any("cudaGraphLaunch" in event.name for event in profile.events())


# ---------------------------------------------------------------- memory


def test_full_memory_ends_with_advice(
    device: torch.device,
    sample_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = training_flags(sample_root, tmp_path, *SMALL, "--epochs", 1, "--device", device.type)
    if device.type == "cuda":
        flags += ["--img_size", "480"]
        torch.cuda.empty_cache()
        room = torch.cuda.memory_reserved() + 2**28
        torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(device).total_memory)
    else:
        monkeypatch.setattr(engine, "train_step", out_of_memory)
    try:
        with pytest.raises(SystemExit) as ended:
            utils.run(lambda: train.main(flags))
    finally:
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)
    assert ended.value.code == 1
    message = capsys.readouterr().err
    assert "error: the GPU's memory is full" in message
    assert "--batch-size" in message


def out_of_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


# ---------------------------------------------------------------- scripts


SCRIPT_WAYS = [
    pytest.param("cpu", [], marks=pytest.mark.slow),  # other tests also run the scripts on the CPU
    pytest.param("cuda", [], marks=pytest.mark.cuda),
    pytest.param("cuda", ["--compile", "--precision", "bf16"], marks=pytest.mark.cuda),
]


def run_script(device: str, name: str, *flags: object) -> None:
    """Run a script to its end; what uses CUDA cannot be forked."""
    outcome = (launch_anew if device == "cuda" else launch)(1, ROOT / name, *flags, "--device", device)
    assert outcome.returncode == 0, outcome.stderr


@pytest.mark.parametrize(("device", "flags"), SCRIPT_WAYS)
def test_train_runs(sample_root: Path, tmp_path: Path, device: str, flags: list[str]) -> None:
    run_script(device, "train.py", *training_flags(sample_root, tmp_path, *SMALL, "--epochs", 2, *flags))
    records = [json.loads(record) for record in (tmp_path / "log_refcoco.jsonl").read_text().splitlines()]
    first, last = (record for record in records if record["kind"] == "epoch")
    assert last["loss"] < first["loss"]
    assert last["memory_gib"] > 0


@pytest.mark.parametrize(("device", "flags"), SCRIPT_WAYS)
def test_test_runs(sample_root: Path, tmp_path: Path, device: str, flags: list[str]) -> None:
    scores = tmp_path / "scores.json"
    line = ["--refer_data_root", sample_root, "--resume", SAMPLE_WEIGHTS, "--json", scores, "--workers", 1]
    run_script(device, "test.py", *line, *flags)
    assert json.loads(scores.read_text())["overall_iou"] > 55


@pytest.mark.parametrize(("device", "flags"), SCRIPT_WAYS)
def test_predict_runs(sample_root: Path, tmp_path: Path, device: str, flags: list[str]) -> None:
    photo = next((sample_root / "images/mscoco/images/train2014").glob("*.jpg"))
    run_script(device, "predict.py", "--image", photo, "--text", "big circle", "--out", tmp_path, *flags)
    assert len(list((tmp_path / "masks").glob("*.png"))) == 1
