"""The state of a training: everything that its next step depends on.

It contains no random states. Every step reseeds the generators from (seed, epoch, step, rank) by
`utils.seed_everything`, and every sample has a seed drawn with the order of its epoch (`data/loaders.py`). So the
random state follows from the position alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import utils
from lib.contents import STAGES
from lib.network.losses import Losses
from lib.schema import check
from lib.training.optim import restore_optimizer
from lib.training.run_files import refuse_other_images, refuse_other_run
from lib.training.run_log import RunLog
from lib.training.saved_state import position_kind, state_kind
from lib.weights.checkpoint import Checkpoint, load_weights
from lib.weights.tensors import all_finite

ADVICE = "Resume from another state, such as the previous one"


class DivergedError(Exception):
    """The loss or the weights became infinite or NaN; the message names the step."""


class Means(NamedTuple):
    """Means of the losses over some steps."""

    loss: float
    mask_loss: float
    alignment_loss: list[float]  # by stage
    no_target_loss: float | None = None  # of the no-target head, if there is one

    def as_dict(self) -> dict[str, object]:
        """Return the losses by name for a log, without one that the network does not have."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    def __str__(self) -> str:
        """Return the loss and its parts; alignment: the sum over the stages."""
        parts = [f"mask {self.mask_loss:.4f}"]
        if self.alignment_loss:
            parts.append(f"alignment {sum(self.alignment_loss):.4f}")
        if self.no_target_loss is not None:
            parts.append(f"no target {self.no_target_loss:.4f}")
        return f"loss {self.loss:.4f} ({', '.join(parts)})"


class EpochMeter:
    """The losses of the steps of an epoch so far, and the times spent.

    Losses are read from the device only now and then, so that steps need not wait for it.
    """

    def __init__(self) -> None:
        self.rows: list[list[float]] = []  # per step: total, mask, 4 alignment losses or none, no-target loss or none
        self.seconds = 0.0
        self.waiting = 0.0  # seconds of these spent waiting for data
        self._pending: list[Tensor] = []

    def add(self, losses: Losses) -> None:
        """Add the losses of one step."""
        parts = [losses.total[None], losses.mask[None], losses.alignment, losses.no_target]
        self._pending.append(torch.cat(parts).detach())

    def read(self, epoch: int) -> None:
        """Read the losses added since the last call, as means over all processes.

        Raises DivergedError in every process if one is not finite.
        """
        if not self._pending:
            return
        # Summed in the order of ranks, so that the mean does not depend on how many steps are read at once.
        gathered = utils.gather(torch.stack(self._pending).cpu())
        rows = sum(gathered[1:], gathered[0]) / len(gathered)
        self._pending.clear()
        for row in rows:
            if not row.isfinite().all():
                raise DivergedError(f"the loss is {row[0].item()} at epoch {epoch + 1}, step {len(self.rows) + 1}")
            self.rows.append(row.tolist())

    def means(self, first: int = 0) -> Means:
        """Return the means over the steps that were read, from step `first` (0-based) on."""
        total, mask, *others = torch.tensor(self.rows[first:], dtype=torch.float64).mean(0).tolist()
        n_alignment = len(others) // STAGES * STAGES
        return Means(total, mask, others[:n_alignment], *others[n_alignment:])

    def state_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint; call `read` first."""
        return {
            "rows": torch.tensor(self.rows, dtype=torch.float64),
            "seconds": self.seconds,
            "waiting": self.waiting,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the values of `state_dict`."""
        self.rows = state["rows"].tolist()
        self.seconds, self.waiting = state["seconds"], state["waiting"]


@dataclass
class TrainingState:
    """Network, optimizer, schedule, gradient scaler, position and log of a training."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LambdaLR
    scaler: torch.amp.GradScaler
    log: RunLog
    options: dict[str, Any]  # flags and values derived from them; a resumed run must have the same ones
    images: dict[str, str] = field(default_factory=dict)  # content digests of a few image files, by name
    epoch: int = 0  # the current epoch, 0-based
    step: int = 0  # optimizer steps done in the current epoch
    meter: EpochMeter = field(default_factory=EpochMeter)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        steps: int = self.options["steps_per_epoch"]
        return steps

    @property
    def global_step(self) -> int:
        """Optimizer steps done in total."""
        return self.epoch * self.steps_per_epoch + self.step

    def next_epoch(self) -> None:
        """Go to the beginning of the next epoch."""
        self.epoch, self.step, self.meter = self.epoch + 1, 0, EpochMeter()

    def check_finite(self) -> None:
        """Raise DivergedError if weights, running statistics or moments are infinite or NaN."""
        moments = [value for entries in self.optimizer.state.values() for value in entries.values()]
        if not all_finite([*self.network.state_dict().values(), *moments]):
            raise DivergedError(f"the weights or their moments are no longer finite after step {self.global_step}")

    def state_dict(self) -> dict[str, Any]:
        """Return the content of a checkpoint. All processes must call this together.

        Raises DivergedError if the state is not finite.
        """
        self.meter.read(self.epoch)
        self.check_finite()  # the last loss was finite, but it was computed before the last step
        return {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "meter": self.meter.state_dict(),
            "best_oIoU": self.log.best_score,
            "log": self.log.records,
            "args": self.options,
            "images": self.images,
        }

    def begin(self, saved: Checkpoint | None) -> None:
        """Restore the state of a checkpoint, if there is one, and start the log.

        Raises UserError if the checkpoint belongs to another run, or is not a state of this training.
        """
        if saved is None:
            self.log.start([], global_step=0)
            return
        refuse_other_run(saved, self.options)
        self._check(saved)
        refuse_other_images(saved, self.images)
        load_weights(self.network, saved.weights, saved.path, expected=self.network.state_dict(), exact=True)
        state = saved.state
        self.epoch, self.step = state["epoch"], state["step"]
        restore_optimizer(self.optimizer, self.scheduler, state["optimizer"]["state"], self.global_step)
        self.scaler.load_state_dict(self.scaler.state_dict() | state["scaler"])
        self.meter.load_state_dict(state["meter"])
        self.log.start(state["log"], self.global_step)
        utils.log(f"resumed {saved.path}: {self.epoch} epochs and {self.step} steps are done")

    def _check(self, saved: Checkpoint) -> None:
        """Raise UserError if an entry of the state is not as this training saves it."""
        check(saved.state, position_kind(self.options), saved.path, ADVICE)
        parts = (self.optimizer, self.scheduler, self.scaler, self.options)
        check(saved.state, state_kind(*parts, saved.state["epoch"], saved.state["step"]), saved.path, ADVICE)
