"""One epoch of training and one evaluation, used by training and testing alike."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import NamedTuple, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

import utils
from lib.contracts import Batch, Batches, Output, Visit
from lib.environment import peak_memory_gib
from lib.evaluation.metrics import Evaluation, Metrics, Scores
from lib.network.losses import Criterion, Losses
from lib.network.precision import Precision
from lib.training.optim import clip_gradients
from lib.training.state import TrainingState

T = TypeVar("T")

REPORT_BATCHES = 100  # of an evaluation, between two plain lines of progress


class Plan(NamedTuple):
    """How an epoch is trained."""

    epochs: int  # of the whole run
    global_batch: int  # samples of an optimizer step, in all processes
    precision: Precision
    accumulate: int = 1  # batches of this process that make one step
    clip_grad: float | None = None  # largest L2 norm of all gradients together
    seed: int = 0
    print_freq: int = 10  # steps between two lines of the log
    save_every: int = 0  # steps between two calls of `save`; 0: none
    save: Callable[[], None] = lambda: None
    stop: Callable[[], bool] = lambda: False  # asked before each step, in all processes together


def train_one_epoch(
    model: nn.Module,
    criterion: Criterion,
    loader: Iterable[Batch],
    state: TrainingState,
    device: torch.device,
    plan: Plan,
) -> None:
    """Take an optimizer step for every `plan.accumulate` batches of `loader`.

    The loader begins at `state.step`. Raises utils.Stopped between two steps where `plan.stop` says so, and
    DivergedError at most `plan.print_freq` steps after the loss or the weights went bad.
    """
    model.train()
    pace = Pace(state, plan)
    with progress(f"epoch {state.epoch}", state.steps_per_epoch, state.step) as bar:
        for batches in pace.timed(groups(loader, plan.accumulate)):
            if plan.stop():
                raise utils.Stopped
            utils.seed_everything(plan.seed, state.epoch, state.step, utils.rank())
            reporting = (state.step + 1) % plan.print_freq == 0 or state.step + 1 == state.steps_per_epoch
            losses, norm = train_step(model, criterion, batches, state, device, plan, measure=reporting)
            state.meter.add(losses)
            state.step += 1
            bar.update()
            if reporting:
                state.meter.read(state.epoch)
                state.log.add(pace.record(norm))
                report(bar, f"epoch {state.epoch}  step {state.step}/{state.steps_per_epoch}", pace.text())
            if plan.save_every and state.global_step % plan.save_every == 0:
                plan.save()
    state.check_finite()  # every loss was finite, but the last one was computed before the last step
    utils.share_buffers(state.network)
    if plan.stop():
        raise utils.Stopped


def train_step(
    model: nn.Module,
    criterion: Criterion,
    batches: Sequence[Batch],
    state: TrainingState,
    device: torch.device,
    plan: Plan,
    *,
    measure: bool,
) -> tuple[Losses, Tensor | None]:
    """Take one optimizer step, whose samples come in one or more batches.

    Returns its losses and, with `measure` or where gradients are clipped, their L2 norm before clipping.
    """
    targets = [batch.stacked_target.to(device, non_blocking=True) for batch in batches]
    normalizer = criterion.normalizer(targets, batches[0].image.dtype)
    parts = []
    for number, (batch, target) in enumerate(zip(batches, targets, strict=True), start=1):
        with utils.without_averaging(model, active=number < len(batches)):
            with plan.precision.training():
                output = respond(model, batch, device)
            losses = criterion(output, target, normalizer)
            state.scaler.scale(losses.total).backward()
        parts.append(Losses(*(value.detach() for value in losses)))

    norm = None
    if measure or plan.clip_grad:
        state.scaler.unscale_(state.optimizer)
        norm = clip_gradients(model.parameters(), plan.clip_grad)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()
    state.scheduler.step()
    return Losses(*(sum(values[1:], values[0]) for values in zip(*parts, strict=True))), norm


def settle_buckets(model: nn.Module, device: torch.device) -> None:
    """Let DistributedDataParallel order its gradients once and for all, before the first step; changes nothing else.

    It sorts them after its first backward pass, and with three or more processes their order decides how sums are
    rounded: a resumed training, sorted after a first pass of its own, would part from the uninterrupted one.
    """
    if utils.world_size() == 1:
        return
    network = utils.unwrap(model).train()
    averages = [buffer.clone() for buffer in network.buffers()]
    words = torch.ones(1, 2, dtype=torch.int64, device=device)
    image = torch.zeros(1, 3, 64, 64, dtype=next(network.parameters()).dtype, device=device)
    output: Output = model(image, words, words)
    (output.logits.mean() + sum(part.mean() for part in output.alignment)).backward()
    network.zero_grad()
    for buffer, before in zip(network.buffers(), averages, strict=True):
        buffer.copy_(before)


def groups(batches: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` batches."""
    group = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []


class Pace:
    """Where the time of an epoch goes, and the log's lines about its steps."""

    def __init__(self, state: TrainingState, plan: Plan) -> None:
        self.state, self.plan = state, plan
        # Lines end at multiples of print_freq: a resumed epoch finishes the line that was begun.
        self.logged = state.step // plan.print_freq * plan.print_freq
        self.mark = (state.step, state.meter.seconds, state.meter.waiting)
        self.clock = time.perf_counter()
        self.speed = self.loss = math.nan  # of the newest line

    def lap(self) -> float:
        """Add the seconds since the last call to the epoch's, and return them."""
        before, self.clock = self.clock, time.perf_counter()
        self.state.meter.seconds += self.clock - before
        return self.clock - before

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield batches, adding up how long they were waited for."""
        iterator = iter(batches)
        while True:
            self.lap()
            batch = next(iterator, None)
            self.state.meter.waiting += self.lap()
            if batch is None:
                return
            yield batch

    def record(self, norm: Tensor | None) -> dict[str, object]:
        """Return the log's line for the steps since the one before; norm: of the newest step's gradients."""
        self.lap()
        state, meter = self.state, self.state.meter
        step, seconds, waiting = self.mark
        self.mark = (state.step, meter.seconds, meter.waiting)
        means = meter.means(self.logged)
        self.logged, self.loss = state.step, means.loss
        self.speed = (state.step - step) * self.plan.global_batch / (meter.seconds - seconds)
        return {
            "kind": "step",
            "epoch": state.epoch,
            "step": state.step,
            "global_step": state.global_step,
            **means._asdict(),
            "lr": state.scheduler.get_last_lr()[0],
            "grad_norm": None if norm is None else norm.item(),
            "samples_per_second": self.speed,
            "data_wait": (meter.waiting - waiting) / (meter.seconds - seconds),
            "memory_gib": peak_memory_gib(self.plan.precision.device),
        }

    def text(self) -> str:
        """Return the newest line for a reader, with the time that the rest of the training takes at this speed."""
        remaining = self.plan.epochs * self.state.steps_per_epoch - self.state.global_step
        end = timedelta(seconds=math.ceil(remaining * self.plan.global_batch / self.speed))
        rate = self.state.scheduler.get_last_lr()[0]
        return f"loss {self.loss:.4f}  lr {rate:.3g}  {self.speed:.1f} samples/s  training ends in {end}"


def epoch_record(state: TrainingState, plan: Plan, scores: Scores | None) -> dict[str, object]:
    """Return the log's line for a finished epoch; scores: None where it was not validated."""
    meter = state.meter
    return {
        "kind": "epoch",
        "epoch": state.epoch,
        "global_step": state.global_step,
        **meter.means()._asdict(),
        "lr": state.scheduler.get_last_lr()[0],
        "seconds": meter.seconds,
        "samples_per_second": state.step * plan.global_batch / meter.seconds,
        "data_wait": meter.waiting / meter.seconds,
        "memory_gib": peak_memory_gib(plan.precision.device),
        "val": scores.as_dict() if scores else None,
    }


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Batches,
    device: torch.device,
    precision: Precision,
    *,
    visit: Visit | None = None,
    stop: utils.StopSignal | None = None,
) -> Evaluation:
    """Score the model on this process's share of a split, together with all other processes.

    model: in evaluation mode, as `lib.network.inference.prepare` makes it faster. visit: called with every batch and
    what was predicted, for those who keep predictions. stop: if it came, in any process, all raise utils.Stopped.
    """
    metrics = Metrics()
    with progress("testing", len(loader)) as bar:
        for step, batch in enumerate(loader, start=1):
            if stop and stop.came:
                break
            logits = predict(model, batch, device, precision)
            masks = metrics.update(logits, batch.target, batch.numbers)
            if visit:
                visit(batch, logits, masks)
            bar.update()
            if step % REPORT_BATCHES == 0:
                report(bar, f"testing  step {step}/{len(loader)}")
    if stop and stop.agreed():
        raise utils.Stopped
    metrics.reduce()
    return metrics.compute()


def each_of(*visits: Visit | None) -> Visit:
    """Return a `visit` for `evaluate` that calls several in turn; None stands for one that is not wanted."""

    def visit(batch: Batch, logits: Tensor, masks: Sequence[Tensor]) -> None:
        for wanted in filter(None, visits):
            wanted(batch, logits, masks)

    return visit


@torch.inference_mode()
def predict(model: nn.Module, batch: Batch, device: torch.device, precision: Precision) -> Tensor:
    """Return a batch's logits (B, 2, H, W), as in `Output`; the model must be in evaluation mode."""
    with precision.autocast():
        return respond(model, batch, device).logits


def respond(model: nn.Module, batch: Batch, device: torch.device) -> Output:
    """Return the network's output on a batch; PyTorch itself says of no module what it returns."""
    output: Output = model(*inputs(batch, device))
    return output


def inputs(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the network reads of a batch, on the device."""
    fields = (batch.image, batch.token_ids, batch.attention_mask)
    image, token_ids, attention_mask = (field.to(device, non_blocking=True) for field in fields)
    return image, token_ids, attention_mask


def progress(title: str, total: int, done: int = 0) -> tqdm[NoReturn]:
    """Show a bar on the main process's terminal; elsewhere leave progress to plain lines."""
    hidden = not (utils.is_main() and sys.stderr.isatty())
    return tqdm(desc=title, total=total, initial=done, leave=False, disable=hidden)


def report(bar: tqdm[NoReturn], where: str, text: str = "") -> None:
    """Say how far it is: beside the bar, or in a line where no bar is shown."""
    if bar.disable:
        utils.log(f"{where}  {text}".rstrip())
    else:
        bar.set_postfix_str(text)
