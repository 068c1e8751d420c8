"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from CrossVLT import SegModel, build_model
from data.sample import make_sample
from lib.precision import Precision
from tests.reference.weights import fill

# Where several files of tests run at a time, threads that wait for each other would slow all of them down.
N_THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
os.environ.setdefault("OMP_NUM_THREADS", str(N_THREADS))
torch.set_num_threads(N_THREADS)
# Without it, cuBLAS has no deterministic matrix products. It is read at the first one.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave tests marked `cuda` out where there is no GPU; `pytest -m cuda` runs them alone."""
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device that a test is about."""
    return torch.device(request.param)


@pytest.fixture
def deterministic(device: torch.device) -> Iterator[None]:
    """Let CUDA compute the same bits every time, and refuse what it cannot; the CPU does so anyway."""
    torch.use_deterministic_algorithms(device.type == "cuda")
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def float32_settings() -> Iterator[None]:
    """Leave the way in which this process computes float32 on CUDA as it was."""
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [setting.fp32_precision for setting in settings]
    yield
    for setting, value in zip(settings, before, strict=True):
        setting.fp32_precision = value


@pytest.fixture
def exact_float32(float32_settings: None) -> None:
    """Compute float32 on CUDA as float32, without TF32."""
    Precision("fp32", torch.device("cpu"))


@pytest.fixture
def nano() -> SegModel:
    """The nano network with the reference weights, no dropout, in evaluation."""
    model = build_model("nano", "nano", vocab_size=1000, dropout=0.0, drop_path=0.0)
    fill(model.state_dict())
    return model.eval()


@pytest.fixture(scope="session")
def sample_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sample data set: 16 training images, 8 in every other split."""
    root = tmp_path_factory.mktemp("sample") / "data"
    make_sample(root, images=16, seed=3)
    return root
