"""Being asked to stop: the first signal is a wish, a later second one an order."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import utils
from tests.helpers import wait_until
from tests.training_runs import environment, launch
from tests.warm import Script

# Says when it listens and what it heard, and never ends by itself.
LISTENER = """
import time, utils
with utils.StopSignal() as stop:
    print("listening", flush=True)
    while not stop.came:
        time.sleep(0.01)
    print(stop.name, flush=True)
    time.sleep(60)
"""


# A wait inside PyTorch, in which Python's own signal handlers get no turn.
WAIT_IN_TORCH = """
    import torch
    torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False).get("never")
"""


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Script]:
    with listening(LISTENER, tmp_path) as process:
        yield process


@contextmanager
def listening(code: str, folder: Path) -> Iterator[Script]:
    """Start a listener and wait until it listens."""
    output = folder / "output.txt"
    with Script(["-c", code], environment(), output, output) as process:
        wait_until(lambda: heard(process) == "listening\n")
        yield process


def heard(process: Script) -> str:
    """Return the output of a listener so far."""
    return process.output.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_at_once(listener: Script, number: signal.Signals) -> None:
    listener.send_signal(number)
    wait_until(lambda: heard(listener) == f"listening\n{number.name}\n")
    time.sleep(utils.BURST_SECONDS + 0.2)
    assert listener.poll() is None, "one signal alone does not end it"
    listener.send_signal(number)
    assert listener.wait(timeout=10) == 128 + number


def test_the_second_signal_ends_a_process_that_hangs_in_a_library(tmp_path: Path) -> None:
    with listening(LISTENER.replace("    time.sleep(60)", WAIT_IN_TORCH), tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: heard(process) == "listening\nSIGTERM\n")
        time.sleep(utils.BURST_SECONDS + 0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 128 + signal.SIGTERM


def test_one_signal_passed_on_twice_is_one(listener: Script) -> None:
    listener.send_signal(signal.SIGTERM)
    wait_until(lambda: heard(listener) == "listening\nSIGTERM\n")
    listener.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert listener.poll() is None


def test_signal_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with utils.StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.came
        assert stop.agreed()
    assert signal.getsignal(signal.SIGTERM) == before


# Signals its own loading workers as a scheduler would, then fails in the middle of an epoch.
FAILING = """
import multiprocessing, os, signal, time
import torch
import utils
from data.loaders import Batching, TrainBatches, train_loader

class Numbers(torch.utils.data.Dataset):
    def __getitem__(self, index):
        return sample(index)

def sample(index):
    from lib.contracts import Sample
    return Sample(*[torch.tensor([index])] * 4, index)

def main():
    order = TrainBatches([[number] for number in range(1000)], Batching(1), seed=0)
    batches = iter(train_loader(Numbers(), order, workers=2, pin_memory=False))
    next(batches)
    for worker in multiprocessing.active_children():
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(worker.pid, number)
    time.sleep(0.5)
    print("loaded", sum(len(batch.numbers) for _, batch in zip(range(500), batches)), flush=True)
    raise utils.UserError("something is wrong")

if __name__ == "__main__":
    utils.run(main)
"""


@pytest.mark.slow  # a training that is stopped
def test_workers_outlive_signals_to_everybody_but_not_their_training(tmp_path: Path) -> None:
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    start = time.monotonic()
    outcome = launch(1, script)
    assert outcome.stdout == "loaded 500\n"
    assert outcome.stderr == "error: something is wrong\n"
    assert outcome.returncode == 1
    assert time.monotonic() - start < 30, "its exit waits for nobody"


def test_seeding_a_block_changes_nothing_outside() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), np.random.random(), torch.rand(()).item()

    utils.seed_everything(1)
    undisturbed = [draw(), draw()]
    utils.seed_everything(1)
    first = draw()
    with utils.seeded(7):
        inside = draw()
    assert [first, draw()] == undisturbed
    with utils.seeded(7):
        assert draw() == inside
