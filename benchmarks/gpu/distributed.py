"""Compare several processes, each on a separate GPU, with one process: the same results, and the speedup.

Every process first does everything alone, then all do it together: five training steps on the same samples must have
the same losses, and an evaluation the same scores. Without GPUs two processes on the CPU try the command itself.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import utils
from benchmarks.cases import Case, build_network, random_batch
from benchmarks.machine import describe_machine
from errors import UserError
from lib.contracts import Batch
from lib.engine import EpochConfig, evaluate, train_step
from lib.files import write_text
from lib.network.inference import optimize_for_inference
from lib.network.losses import Criterion
from lib.network.precision import Precision
from lib.training.optim import build_optimizer, build_scheduler
from lib.training.run_log import RunLog
from lib.training.state import TrainingState

STEPS = 5
RATE = 1e-4  # learning rate
# Relative. Another order of summation changes losses of nano by 1e-6, a wrong normalisation per process by 2e-4, and
# gradients that are not averaged by 1e-2. Larger networks amplify rounding too much for this test.
LOSS_TOLERANCE = 1e-4


class Setup(NamedTuple):
    """The settings of the comparison."""

    compared: Case  # whose losses and scores; samples of a process in a step
    batches: int  # that are scored
    timed: Case
    steps: int  # that are timed
    precision: str  # of them


SETUP = Setup(Case("nano", 160, 2), 24, Case("base", 480, 12), 10, "bf16")
QUICK = Setup(Case("nano", 64, 2), 4, Case("nano", 64, 2), 2, "fp32")


class Found(NamedTuple):
    """The results of some number of processes."""

    losses: list[float]  # of the steps
    scores: dict[str, Any]
    samples_per_second: float  # of all these processes together, in training


def compare(device: torch.device, *, quick: bool, out: Path | None) -> None:
    """Compare, print, and write into `out` if it is given. Raises UserError if the numbers differ."""
    if "LOCAL_RANK" not in os.environ:
        raise UserError("--distributed: start it with torchrun --nproc_per_node 2 -m benchmarks.gpu --distributed")
    setup, size = QUICK if quick else SETUP, int(os.environ["WORLD_SIZE"])
    if device.type == "cuda":
        device = utils.make_current(torch.device("cuda", int(os.environ["LOCAL_RANK"])))
    alone = compute(setup, device, size)
    device = utils.start_processes(device)
    together = compute(setup, device, size)
    speeds = utils.gather(alone.samples_per_second)
    loss_difference = difference(alone.losses, together.losses)
    content = {
        "processes": size,
        "setup": {"compared": str(setup.compared), "timed": f"{setup.timed}, {setup.precision}"},
        "alone": alone._asdict(),
        "together": together._asdict(),
        "loss_difference": loss_difference,
        "scaling_efficiency": together.samples_per_second / sum(speeds),
        "environment": describe_machine(device),
    }
    if utils.is_main():
        report(content, out)
    if loss_difference > LOSS_TOLERANCE or alone.scores != together.scores:
        raise UserError(f"{size} processes compute something else than one; see above")


def compute(setup: Setup, device: torch.device, size: int) -> Found:
    """Train and score on the samples of `size` processes, in as many processes as there are now."""
    return Found(losses(setup, device, size), scores(setup, device), speed(setup, device))


def losses(setup: Setup, device: torch.device, size: int) -> list[float]:
    """Return the losses of a few steps in float32, means over all samples of a step."""
    name, img_size, samples = setup.compared
    steps = (varied_batch(img_size, samples * size, device, number) for number in range(STEPS))
    network = build_network(name, device)
    state = take_steps(network, map(own_part, steps), Precision("fp32", device), samples * size)
    state.meter.read(0)
    return [row[0] for row in state.meter.rows]


def varied_batch(img_size: int, batch_size: int, device: torch.device, seed: int) -> Batch:
    """Return a random batch whose objects differ in size, so that the losses of the processes also differ."""
    batch = random_batch(img_size, batch_size, device, seed)
    target = batch.stacked_target
    for number in range(batch_size):
        target[number, :, : img_size // 3 + number * img_size // (3 * batch_size)] = 0
    return batch._replace(target=target)


def own_part(batch: Batch) -> Batch:
    """Return this process's part of the samples."""
    share = len(batch.numbers) // utils.world_size()
    own = slice(utils.rank() * share, (utils.rank() + 1) * share)
    return Batch(
        batch.image[own], batch.token_ids[own], batch.attention_mask[own], batch.target[own], batch.numbers[own]
    )


def take_steps(network: nn.Module, batches: Iterator[Batch], precision: Precision, total: int) -> TrainingState:
    """Take a training step for each batch; total: samples of a step in all processes."""
    device = precision.device
    model = utils.distribute(network.train(), device)
    if device.type != "cuda":  # batch norm is not synchronised there, so it must not use batch statistics
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    optimizer, criterion = build_optimizer(network, RATE, weight_decay=1e-2), Criterion().to(device)
    scheduler = build_scheduler(optimizer, total_steps=10**6)
    state = TrainingState(network, optimizer, scheduler, precision.scaler, RunLog(Path(), "none"), {})
    config = EpochConfig(epochs=1, global_batch=total, precision=precision)
    for batch in batches:
        found, _ = train_step(model, criterion, [batch], state, device, config, measure=False)
        state.meter.add(found)
    return state


def scores(setup: Setup, device: torch.device) -> dict[str, Any]:
    """Return the scores of a network on batches that are distributed to the processes."""
    own = range(utils.rank(), setup.batches, utils.world_size())
    batches = [random_batch(*setup.compared[1:], device, seed=number) for number in own]
    precision = Precision("fp32", device)
    network = optimize_for_inference(build_network(setup.compared.swin_type, device), precision)
    return evaluate(network, batches, device, precision).scores._asdict()


def speed(setup: Setup, device: torch.device) -> float:
    """Return the samples a second of training, of all processes together."""
    name, img_size, samples = setup.timed
    network, precision = build_network(name, device), Precision(setup.precision, device)
    batch, total = random_batch(img_size, samples, device), samples * utils.world_size()

    def batches() -> Iterator[Batch]:
        for number in range(2 + setup.steps):
            if number == 2:  # after two steps to warm up
                clock.append(now(device))
            yield batch

    clock: list[float] = []
    take_steps(network, batches(), precision, total)
    return total * setup.steps / (now(device) - clock[0])


def now(device: torch.device) -> float:
    """Wait until all processes have finished their work; return the time in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    utils.gather(None)
    return time.perf_counter()


def difference(own: list[float], other: list[float]) -> float:
    """Return the largest relative difference."""
    return max(abs(one - two) / abs(one) for one, two in zip(own, other, strict=True))


def report(content: dict[str, Any], out: Path | None) -> None:
    """Print the comparison, and write it if a folder is given."""
    alone, together, size = content["alone"], content["together"], content["processes"]
    print(f"{'':<24}{'1 process':>16}{f'{size} processes':>16}")
    for number, pair in enumerate(zip(alone["losses"], together["losses"], strict=True), start=1):
        print(f"{f'loss of step {number}':<24}{pair[0]:>16.6f}{pair[1]:>16.6f}")
    for name in ("mean_iou", "overall_iou"):
        print(f"{name:<24}{alone['scores'][name]:>16.4f}{together['scores'][name]:>16.4f}")
    print(f"{'training, samples/s':<24}{alone['samples_per_second']:>16.2f}{together['samples_per_second']:>16.2f}")
    print(f"largest relative difference of losses: {content['loss_difference']:.1e}, tolerance {LOSS_TOLERANCE:g}")
    print(f"scaling efficiency: {100 * content['scaling_efficiency']:.1f} %", flush=True)
    if out:
        name = f"distributed-{size}-{date.today()}.json"
        write_text(out / name, json.dumps(content, indent=1) + "\n")
