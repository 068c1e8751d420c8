"""One epoch of training and one evaluation, used by training and testing alike."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

import utils
from lib.contracts import Batch, BatchCallback, Batches, Output
from lib.environment import peak_memory_gib, time_and_host
from lib.evaluation.metrics import Metrics
from lib.evaluation.protocols import AnyScores, Counting, Evaluation
from lib.network.losses import Criterion, Losses
from lib.network.precision import Precision
from lib.training.masking import Masking
from lib.training.optim import clip_gradients
from lib.training.state import Means, TrainingState

T = TypeVar("T")

LONGEST_FORECAST = 1e10  # seconds, for those who train until they stop it; `datetime` ends with the year 9999
EVAL_PRINT_FREQ = 100  # batches of an evaluation between two plain lines of progress


class EpochConfig(NamedTuple):
    """How to train an epoch."""

    epochs: int  # of the whole run
    global_batch: int  # samples per optimizer step, over all processes
    precision: Precision
    accumulate: int = 1  # batches of this process per step
    clip_grad: float | None = None  # maximum L2 norm of all gradients together; None: do not clip
    masking: Masking | None = None  # a second pass over masked samples in every step; needs a `Criterion` with `masked`
    seed: int = 0
    print_freq: int = 10  # steps between two lines of the log
    save_every: int = 0  # steps between two calls of `save`; 0: none
    save: Callable[[], None] = lambda: None
    stop: Callable[[], bool] = lambda: False  # asked before each step, in all processes together


def epoch_name(state: TrainingState, config: EpochConfig) -> str:
    """Return the current epoch, from 1 as in the names of files, and how many there are; the log counts from 0."""
    return f"epoch {state.epoch + 1}/{config.epochs}"


def train_one_epoch(
    model: nn.Module,
    criterion: Criterion,
    loader: Iterable[Batch],
    state: TrainingState,
    device: torch.device,
    config: EpochConfig,
) -> None:
    """Take one optimizer step per `config.accumulate` batches of `loader`.

    The loader must begin at `state.step`. Raises utils.Stopped between two steps if `config.stop` asks for it, and
    DivergedError at most `config.print_freq` steps after the loss or the weights became infinite or NaN.
    """
    model.train()
    timer = StepTimer(state, config)
    name = epoch_name(state, config)
    with progress(name, state.steps_per_epoch, state.step) as bar:
        for batches in timer.timed(chunked(loader, config.accumulate)):
            if config.stop():
                raise utils.Stopped
            utils.seed_everything(config.seed, state.epoch, state.step, utils.rank())
            reporting = (state.step + 1) % config.print_freq == 0 or state.step + 1 == state.steps_per_epoch
            losses, norm = train_step(model, criterion, batches, state, device, config, measure=reporting)
            state.meter.add(losses)
            state.step += 1
            bar.update()
            if reporting:
                state.meter.read(state.epoch)
                state.log.add(timer.record(norm))
                show_progress(bar, f"{name}  step {state.step}/{state.steps_per_epoch}", timer.text())
            if config.save_every and state.global_step % config.save_every == 0:
                config.save()
    state.check_finite()  # the last loss was finite, but it was computed before the last step; validation follows
    utils.share_buffers(state.network)
    if config.stop():
        raise utils.Stopped


def train_step(
    model: nn.Module,
    criterion: Criterion,
    batches: Sequence[Batch],
    state: TrainingState,
    device: torch.device,
    config: EpochConfig,
    *,
    measure: bool,
) -> tuple[Losses, Tensor | None]:
    """Take one optimizer step over the samples of one or more batches.

    Returns the step's losses, and the L2 norm of the gradients before clipping: None unless `measure` asks for it or
    the gradients are clipped.
    """
    targets = [batch.stacked_target.to(device, non_blocking=True) for batch in batches]
    normalizer = criterion.normalizer(targets, batches[0].image.dtype)
    parts = []
    for number, (batch, target) in enumerate(zip(batches, targets, strict=True), start=1):
        is_last = number == len(batches)
        with utils.without_averaging(model, active=config.masking is not None or not is_last):
            loss = partial(criterion, target=target, normalizer=normalizer)
            losses, logits = run_pass(model, batch, loss, state, device, config)
        parts.append(losses)
        if config.masking:
            with utils.without_averaging(model, active=not is_last):
                loss = partial(criterion.masked, clean=logits, normalizer=normalizer)
                losses, _ = run_pass(model, config.masking(batch, state.epoch), loss, state, device, config)
            parts.append(losses)

    norm = None
    if measure or config.clip_grad:
        state.scaler.unscale_(state.optimizer)
        norm = clip_gradients(model.parameters(), config.clip_grad)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()
    state.scheduler.step()
    return Losses(*(sum(values[1:], values[0]) for values in zip(*parts, strict=True))), norm


def run_pass(
    model: nn.Module,
    batch: Batch,
    loss: Callable[[Output], Losses],
    state: TrainingState,
    device: torch.device,
    config: EpochConfig,
) -> tuple[Losses, Tensor]:
    """Run a forward and a backward pass; return losses and logits, both detached."""
    with config.precision.training():
        output = run_model(model, batch, device)
    losses = loss(output)
    state.scaler.scale(losses.total).backward()
    return Losses(*(value.detach() for value in losses)), output.logits.detach()


def warm_up_ddp_buckets(model: nn.Module, device: torch.device) -> None:
    """Run one dummy backward pass, so that DistributedDataParallel fixes its bucket order before training.

    It rebuilds its buckets after the first backward pass. With three or more processes the bucket order decides how
    sums are rounded, so a resumed training would differ from an uninterrupted one. Changes no weight and no buffer.
    """
    if utils.world_size() == 1:
        return
    network = utils.unwrap(model).train()
    buffers_before = [buffer.clone() for buffer in network.buffers()]
    token_ids = torch.ones(1, 2, dtype=torch.int64, device=device)
    image = torch.zeros(1, 3, 64, 64, dtype=next(network.parameters()).dtype, device=device)
    output: Output = model(image, token_ids, torch.ones_like(token_ids))
    parts = [output.logits, *output.alignment] + ([] if output.no_target is None else [output.no_target])
    torch.stack([part.mean() for part in parts]).sum().backward()
    network.zero_grad()
    for buffer, before in zip(network.buffers(), buffers_before, strict=True):
        buffer.copy_(before)


def chunked(batches: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` batches; a shorter rest is dropped."""
    group = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []


class StepTimer:
    """Measures the time of an epoch and the part spent waiting for data, and makes the log records of its steps."""

    def __init__(self, state: TrainingState, config: EpochConfig) -> None:
        self.state, self.config = state, config
        # Records end at multiples of print_freq: a resumed epoch finishes the record that was begun.
        self.logged = state.step // config.print_freq * config.print_freq
        self.mark = (state.step, state.meter.seconds, state.meter.waiting)
        self.clock = time.perf_counter()
        self.speed = math.nan  # of the newest record
        self.means: Means | None = None

    def lap(self) -> float:
        """Add the seconds since the last call to those of the epoch, and return them."""
        before, self.clock = self.clock, time.perf_counter()
        self.state.meter.seconds += self.clock - before
        return self.clock - before

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches, and add up the time spent waiting for them."""
        iterator = iter(batches)
        while True:
            self.lap()
            batch = next(iterator, None)
            self.state.meter.waiting += self.lap()
            if batch is None:
                return
            yield batch

    def record(self, norm: Tensor | None) -> dict[str, object]:
        """Return the log record of the steps since the last record.

        norm: L2 norm of the newest step's gradients. "seconds" are wall-clock time, "data_wait" is a fraction of it,
        "memory_gib" the peak memory in GiB.
        """
        self.lap()
        state, meter = self.state, self.state.meter
        step, seconds, waiting = self.mark
        self.mark = (state.step, meter.seconds, meter.waiting)
        means = meter.means(self.logged)
        self.logged, self.means = state.step, means
        self.speed = (state.step - step) * self.config.global_batch / (meter.seconds - seconds)
        return {
            "kind": "step",
            **time_and_host(),
            "epoch": state.epoch,
            "step": state.step,
            "global_step": state.global_step,
            **means.as_dict(),
            "lr": state.scheduler.get_last_lr()[0],
            "grad_norm": None if norm is None else norm.item(),
            "samples_per_second": self.speed,
            "data_wait": (meter.waiting - waiting) / (meter.seconds - seconds),
            "memory_gib": peak_memory_gib(self.config.precision.device),
        }

    def text(self) -> str:
        """Return the newest record as text, with the expected end at this speed and the best score so far."""
        state = self.state
        remaining = self.config.epochs * state.steps_per_epoch - state.global_step
        end = forecast(remaining * self.config.global_batch / self.speed)
        best = f"  best {state.log.describe_best()}" if state.log.best_score >= 0 else ""
        lr = state.scheduler.get_last_lr()[0]
        return f"{self.means}  lr {lr:.3g}  {self.speed:.1f} samples/s  ends {end}{best}"


def forecast(seconds: float) -> str:
    """Return when work ends that takes so many seconds, as time and duration."""
    if seconds > LONGEST_FORECAST:
        return f"in more than {timedelta(seconds=LONGEST_FORECAST).days:,} days"
    left = timedelta(seconds=math.ceil(seconds))
    return f"{datetime.now() + left:%b %d %H:%M} (in {left})"


def epoch_record(state: TrainingState, config: EpochConfig, scores: AnyScores | None) -> dict[str, object]:
    """Return the log record of a finished epoch; scores: None if it was not validated."""
    meter = state.meter
    return {
        "kind": "epoch",
        **time_and_host(),
        "epoch": state.epoch,
        "global_step": state.global_step,
        **meter.means().as_dict(),
        "lr": state.scheduler.get_last_lr()[0],
        "seconds": meter.seconds,
        "samples_per_second": state.step * config.global_batch / meter.seconds,
        "data_wait": meter.waiting / meter.seconds,
        "memory_gib": peak_memory_gib(config.precision.device),
        "val": scores.as_dict() if scores else None,
    }


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Batches,
    device: torch.device,
    precision: Precision,
    *,
    on_batch: BatchCallback | None = None,
    stop: utils.StopSignal | None = None,
    counting: Counting | None = None,
    title: str = "testing",
) -> Evaluation:
    """Score the model on a split, together with all other processes; each one passes the loader of its own part.

    model: in evaluation mode; `lib.network.inference.optimize_for_inference` makes it faster. on_batch: called with
    every batch, its output and its predicted masks. counting: the protocol; None for the classic one. title: of the
    progress. Raises utils.Stopped in every process if `stop` came in any.
    """
    metrics = Metrics(counting)
    start, n_done = time.perf_counter(), 0
    with progress(title, len(loader)) as bar:
        for step, batch in enumerate(loader, start=1):
            if stop and stop.came:
                break
            output = run_inference(model, batch, device, precision)
            masks = metrics.update(output.logits, batch.target, batch.numbers, output.no_target)
            if on_batch:
                on_batch(batch, output, masks)
            bar.update()
            n_done += len(batch.numbers)
            if step % EVAL_PRINT_FREQ == 0:
                pace = describe_pace(n_done, time.perf_counter() - start, (len(loader) - step) / step)
                show_progress(bar, f"{title}  step {step}/{len(loader)}", pace)
    if stop and stop.agreed():
        raise utils.Stopped
    metrics.reduce()
    return metrics.compute()


def describe_pace(n_done: int, seconds: float, remaining: float) -> str:
    """Return the rate of an evaluation and the time left at this rate.

    n_done: sentences of this process in `seconds`; the other processes are as fast. remaining: work that is left, as a
    multiple of what is done.
    """
    left = timedelta(seconds=math.ceil(remaining * seconds))
    return f"{utils.world_size() * n_done / seconds:.1f} sentences/s  ends in {left}"


def chain_callbacks(*callbacks: BatchCallback | None) -> BatchCallback:
    """Return a callback for `evaluate` that calls all given ones in turn, without those that are None."""

    def on_batch(batch: Batch, output: Output, masks: Sequence[Tensor]) -> None:
        for wanted in filter(None, callbacks):
            wanted(batch, output, masks)

    return on_batch


@torch.inference_mode()
def run_inference(model: nn.Module, batch: Batch, device: torch.device, precision: Precision) -> Output:
    """Return the network's output on a batch; the model must be in evaluation mode."""
    with precision.autocast():
        return run_model(model, batch, device)


def predict(model: nn.Module, batch: Batch, device: torch.device, precision: Precision) -> Tensor:
    """Return a batch's logits (B, 2, H, W), as in `Output`; the model must be in evaluation mode."""
    return run_inference(model, batch, device, precision).logits


def run_model(model: nn.Module, batch: Batch, device: torch.device) -> Output:
    """Return the network's output on a batch; PyTorch itself says of no module what it returns."""
    output: Output = model(*to_model_inputs(batch, device))
    return output


def to_model_inputs(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the network reads of a batch, on the device."""
    fields = (batch.image, batch.token_ids, batch.attention_mask)
    image, token_ids, attention_mask = (field.to(device, non_blocking=True) for field in fields)
    return image, token_ids, attention_mask


def progress(title: str, total: int, done: int = 0) -> tqdm[NoReturn]:
    """Show a progress bar, on the terminal of the main process only; `show_progress` prints plain lines otherwise."""
    hidden = not (utils.is_main() and sys.stderr.isatty())
    return tqdm(desc=title, total=total, initial=done, leave=False, disable=hidden)


def show_progress(bar: tqdm[NoReturn], position: str, text: str = "") -> None:
    """Show the progress next to the bar, or as a plain line if there is no bar."""
    if bar.disable:
        utils.log(f"{position}  {text}".rstrip())
    else:
        bar.set_postfix_str(text)
