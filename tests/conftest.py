"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from errors import end_imports

# The process that distributes the tests also reads this file, so it imports nothing heavy.
if TYPE_CHECKING:
    import torch
    from torch._dynamo.testing import CompileCounter

    from CrossVLT import SegModel

# Torch reads the number of threads when it is imported. If several files of tests run at a time, threads that wait for
# each other would slow all of them down: workers have one, whatever they inherit from the process that starts them.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
else:
    os.environ.setdefault("OMP_NUM_THREADS", "2")
# Tests of signals expect them as a terminal leaves them; in the background of a shell and under nohup they are ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Without it, cuBLAS has no deterministic matrix products. It is read at the first one.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


# Collecting imports the whole stack, in which there is no garbage; see `errors.answer_first`.
gc.disable()


def pytest_collection_finish() -> None:
    """Wake the garbage collector; it need not look at modules and tests before every test of seconds."""
    end_imports()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that hold slow tests: one of minutes that came last would be waited for by idle workers.

    A file's tests stay together, so that what they share is made once.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `cuda` if there is no GPU; `pytest -m cuda` runs only them."""
    if item.get_closest_marker("cuda"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device that a test is about."""
    import torch

    return torch.device(request.param)


@pytest.fixture
def deterministic(device: torch.device) -> Iterator[None]:
    """Let CUDA compute the same bits every time, and refuse what it cannot; the CPU does so anyway."""
    import torch

    torch.use_deterministic_algorithms(device.type == "cuda")
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def float32_settings() -> Iterator[None]:
    """Leave the way in which this process computes float32 on CUDA as it was."""
    import torch

    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # made by its import
    settings = (torch.backends.cuda.matmul, conv)
    before = [setting.fp32_precision for setting in settings]
    yield
    for setting, value in zip(settings, before, strict=True):
        setting.fp32_precision = value


@pytest.fixture
def exact_float32(float32_settings: None) -> None:
    """Compute float32 on CUDA as float32, without TF32."""
    import torch

    from lib.network.precision import Precision

    Precision("fp32", torch.device("cpu"))


@pytest.fixture
def nano() -> SegModel:
    """The nano network with the reference weights, no dropout, in evaluation."""
    from tests.networks import reference_nano

    return reference_nano().eval()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounter]:
    """Count the graphs that `lib.network.compilation` asks for; the compiler, which takes minutes here, makes none."""
    import torch
    from torch._dynamo.testing import CompileCounter
    from torch._inductor import config as inductor_config

    from lib.network import compilation

    counter, compile_module = CompileCounter(), torch.nn.Module.compile

    def compile_by_counter(module: torch.nn.Module, *, dynamic: bool, **_: object) -> None:
        compile_module(module, backend=counter, fullgraph=True, dynamic=dynamic)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_by_counter)
    monkeypatch.setattr(compilation, "check_compiler", lambda _: None)
    with inductor_config.patch(freezing=inductor_config.freezing):  # which is set for good otherwise
        yield counter


@pytest.fixture(scope="session")
def sample_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sample data set, version 1: 16 training images, 8 in every other split."""
    from data.sample.make import make_sample

    root = tmp_path_factory.mktemp("sample") / "data"
    make_sample(root, images=16, seed=3, version=1)
    return root


@pytest.fixture(scope="session")
def few_root(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample data set with 8 objects in every split but train: for whatever evaluates whole splits."""
    root = tmp_path_factory.mktemp("few") / "data"
    shutil.copytree(sample_root, root)
    for file in root.glob("*/refs(*).p"):
        kept: dict[str, list[object]] = {}
        for ref in pickle.loads(file.read_bytes()):
            kept.setdefault(ref["split"], []).append(ref)
        refs = [ref for split, own in kept.items() for ref in (own if split == "train" else own[:8])]
        file.write_bytes(pickle.dumps(refs, protocol=2))
    return root
