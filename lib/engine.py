"""One epoch of training and one evaluation, used by training and testing alike."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

import utils
from lib.decoder import upsample
from lib.losses import Criterion, Losses
from lib.metrics import Metrics, Scores

CURVE_POINTS = 20
REPORT_BATCHES = 100  # of an evaluation, between two plain lines of progress


class DivergedError(Exception):
    """The loss or the weights became infinite or not a number; the message names the step."""


class EpochSummary(NamedTuple):
    """Means over an epoch's steps."""

    loss: float
    mask_loss: float
    alignment_loss: list[float]  # by stage
    loss_curve: list[float]  # the loss in up to CURVE_POINTS equal parts of the epoch
    seconds: float
    samples_per_second: float  # of all processes together


def train_one_epoch(
    model: nn.Module,
    criterion: Criterion,
    loader: Iterable[Any],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    device: torch.device,
    *,
    epoch: int,
    print_freq: int,
) -> EpochSummary:
    """Take one optimizer step per batch of `loader` (batches of `data.Sample`).

    Raises DivergedError at most `print_freq` steps after the loss or the weights went bad.
    """
    model.train()
    history = LossHistory()
    start, n_samples = time.perf_counter(), 0
    bar = progress(loader, f"epoch {epoch}")
    for step, batch in enumerate(bar, start=1):
        output = model(*inputs(batch, device))
        losses = criterion(output, batch.target.to(device, non_blocking=True))
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        scheduler.step()

        history.add(losses)
        n_samples += len(batch.index) * utils.world_size()
        if step % print_freq == 0 or step == len(loader):
            history.flush(epoch)
            speed = n_samples / (time.perf_counter() - start)
            text = f"loss {history.last:.4f}  lr {scheduler.get_last_lr()[0]:.3g}  {speed:.1f} samples/s"
            report(bar, f"epoch {epoch}  step {step}/{len(loader)}", text)
    utils.share_buffers(utils.unwrap(model))
    # Every loss was finite, but the last one was computed before the last step.
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise DivergedError(f"the weights are no longer finite after the last step of epoch {epoch}")
    seconds = time.perf_counter() - start
    return EpochSummary(*history.means(), seconds, n_samples / seconds)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    device: torch.device,
    visit: Callable[[Any, Tensor], None] | None = None,
) -> Scores:
    """Score the model on this process's share of a split, together with all other processes.

    visit: called with every batch and its logits (B, 2, H, W), for those who keep predictions.
    """
    model = utils.unwrap(model).eval()
    metrics = Metrics()
    bar = progress(loader, "testing")
    for step, batch in enumerate(bar, start=1):
        logits = model(*inputs(batch, device)).logits.float()
        if isinstance(batch.target, Tensor) and batch.target.shape[-2:] == logits.shape[-2:]:
            metrics.update(logits, batch.target.to(device, non_blocking=True))
        else:  # targets at their images' own sizes
            for sample_logits, target in zip(logits, batch.target, strict=True):
                metrics.update(upsample(sample_logits[None], target.shape), target[None].to(device))
        if visit:
            visit(batch, logits)
        if step % REPORT_BATCHES == 0:
            report(bar, f"testing  step {step}/{len(loader)}")
    metrics.reduce()
    return metrics.compute()


def inputs(batch: Any, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the network reads of a batch, on the device."""
    fields = (batch.image, batch.token_ids, batch.attention_mask)
    image, token_ids, attention_mask = (field.to(device, non_blocking=True) for field in fields)
    return image, token_ids, attention_mask


class LossHistory:
    """The losses of an epoch, read from the device only now and then, so that steps never wait for it."""

    def __init__(self) -> None:
        self.pending: list[Tensor] = []
        self.rows: list[list[float]] = []  # total, mask and the four alignment losses of each step

    def add(self, losses: Losses) -> None:
        """Remember one step's losses."""
        self.pending.append(torch.cat([losses.total[None], losses.mask[None], losses.alignment]).detach())

    def flush(self, epoch: int) -> None:
        """Average the remembered losses over processes and read them; raises DivergedError."""
        rows = utils.mean_over_processes(torch.stack(self.pending)).cpu()
        self.pending.clear()
        for row in rows:
            if not row.isfinite().all():
                raise DivergedError(f"the loss is {row[0].item()} at epoch {epoch}, step {len(self.rows) + 1}")
            self.rows.append(row.tolist())

    @property
    def last(self) -> float:
        """The newest total loss that was read."""
        return self.rows[-1][0]

    def means(self) -> tuple[float, float, list[float], list[float]]:
        """Return the epoch's mean total, mask and alignment losses, and the curve of the total."""
        rows = torch.tensor(self.rows, dtype=torch.float64)
        total, mask, *alignment = rows.mean(0).tolist()
        curve = [part.mean().item() for part in rows[:, 0].tensor_split(min(CURVE_POINTS, len(rows)))]
        return total, mask, alignment, curve


def progress(loader: Iterable[Any], title: str) -> tqdm:
    """Show a bar on the main process's terminal; elsewhere leave progress to plain lines."""
    return tqdm(loader, desc=title, leave=False, disable=not (utils.is_main() and sys.stderr.isatty()))


def report(bar: tqdm, where: str, text: str = "") -> None:
    """Say how far it is: beside the bar, or in a line where no bar is shown."""
    if bar.disable:
        utils.log(f"{where}  {text}".rstrip())
    else:
        bar.set_postfix_str(text)
