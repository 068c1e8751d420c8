"""Fixtures of the tests in a browser. `make test-web` runs them; they need requirements-web.txt and a Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page
from safetensors.torch import save

from CrossVLT import SegModel
from data.sample.make import VOCABULARY_SIZE, vocabulary
from lib.weights.layouts import store, write_about
from tests.web.browsing import browsing, keep_picture, served, visiting
from utils import seeded


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two untrained networks, a file that is cut short and one that is none of weights."""
    folder = tmp_path_factory.mktemp("weights")
    for seed, name in enumerate(("sample_nano.safetensors", "another.safetensors")):
        with seeded(seed):
            network = SegModel("nano", "nano", vocab_size=VOCABULARY_SIZE)
        content = save(store(network.state_dict(), "fp32"), write_about({"img_size": 56}, {}, vocabulary()))
        (folder / name).write_bytes(content)
    (folder / "damaged.safetensors").write_bytes(content[:1000])
    (folder / "notes.txt").write_text("no weights\n")
    return folder


@pytest.fixture(scope="session")
def address(weights: Path) -> Iterator[str]:
    """The address of the page."""
    with served(weights) as found:
        yield found


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with browsing() as found:
        yield found


@pytest.fixture
def page(browser: Browser, address: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page as a new visitor finds it; how it looks in the end can be kept as a picture."""
    with visiting(browser, address) as found:
        yield found
        keep_picture(found, request.node.name)
