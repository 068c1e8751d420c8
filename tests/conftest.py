"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from CrossVLT import SegModel, build_model
from data.sample import make_sample
from tests.reference.weights import fill

# Where several files of tests run at a time, threads that wait for each other would slow all of them down.
N_THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
os.environ.setdefault("OMP_NUM_THREADS", str(N_THREADS))
torch.set_num_threads(N_THREADS)


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
