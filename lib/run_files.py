"""The files of one training run: last and best checkpoint and the log, and going on from them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import utils
from lib.checkpoint import load_weights, read_checkpoint, save_checkpoint, write_atomically
from lib.engine import EpochSummary
from lib.metrics import Scores
from utils import UserError

# Options that must be the same before and after an interruption for both halves to be one run.
FIXED_OPTIONS = (
    "dataset",
    "splitBy",
    "split",
    "swin_type",
    "bert_type",
    "img_size",
    "global_batch",
    "epochs",
    "lr",
    "weight_decay",
    "amsgrad",
    "dropout",
    "drop_path",
    "seed",
)


class RunFiles:
    """`last_{dataset}.pth`, `best_{dataset}.pth` and `log_{dataset}.jsonl` in a run's output folder."""

    def __init__(self, options: Mapping[str, Any], *, overwrite: bool) -> None:
        """options: the run's command line. Raises UserError where files of another run would be replaced."""
        folder, dataset = Path(options["output_dir"]), options["dataset"]
        # Processes may change from one half of a run to the other as long as they share the same global batch.
        self.options = dict(options) | {"global_batch": options["batch_size"] * utils.world_size()}
        self.last = folder / f"last_{dataset}.pth"
        self.best = folder / f"best_{dataset}.pth"
        self.log = folder / f"log_{dataset}.jsonl"
        self.newest: Path | None = None  # the checkpoint of the newest finished epoch
        self.history: list[dict[str, Any]] = []  # one entry per finished epoch: the log's lines
        _check_writable(folder)
        if not overwrite:
            self._refuse_to_replace()

    def _refuse_to_replace(self) -> None:
        resumed = Path(self.options["resume"]) if self.options["resume"] else None
        if resumed and resumed.exists() and self.last.exists() and resumed.samefile(self.last):
            return  # the run goes on in its own files
        present = [path.name for path in (self.last, self.best, self.log) if path.exists()]
        if present:
            go_on = f"go on with --resume {self.last}, " if self.last.exists() else ""
            raise UserError(
                f"{', '.join(present)} in {self.last.parent} would be replaced: {go_on}choose another --output-dir, "
                "or pass --overwrite"
            )

    @property
    def best_overall_iou(self) -> float:
        """The best overall IoU of any finished epoch, in percent; below zero before the first."""
        return max((entry["val"]["overall_iou"] for entry in self.history), default=-1.0)

    def resume(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
    ) -> int:
        """Restore everything from `--resume` and return the first epoch to train; 0 without `--resume`."""
        if not self.options["resume"]:
            return 0
        checkpoint = read_checkpoint(self.options["resume"])
        needed = {"optimizer", "lr_scheduler", "epoch", "history"} - set(checkpoint.state)
        if needed:
            raise UserError(
                f"--resume {checkpoint.path} holds weights but no {', '.join(sorted(needed))}: "
                "only a last_….pth or best_….pth that train.py wrote can be continued"
            )
        self._refuse_other_run(checkpoint.args)
        load_weights(network, checkpoint.weights, checkpoint.path)
        optimizer.load_state_dict(checkpoint.state["optimizer"])
        scheduler.load_state_dict(checkpoint.state["lr_scheduler"])
        self.history = checkpoint.state["history"]
        self.newest = checkpoint.path
        utils.log(f"resumed {checkpoint.path} after epoch {checkpoint.state['epoch']}")
        return checkpoint.state["epoch"] + 1

    def _refuse_other_run(self, saved: Mapping[str, Any]) -> None:
        differences = [
            f"{name} was {saved.get(name)} and is now {self.options[name]}"
            for name in FIXED_OPTIONS
            if saved.get(name) != self.options[name]
        ]
        if differences:
            raise UserError(
                f"--resume {self.options['resume']} belongs to another run: {'; '.join(differences)}. Pass that run's "
                "options; a longer training is a run of its own, because the learning rate depends on --epochs"
            )

    def finish_epoch(
        self,
        epoch: int,
        summary: EpochSummary,
        scores: Scores,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        """Add an epoch to the log and write its network, as the best one, too, where its overall IoU is."""
        improved = scores.as_dict()["overall_iou"] > self.best_overall_iou
        entry = {"model_id": self.options["model_id"], "epoch": epoch, "lr": scheduler.get_last_lr()[0]}
        self.newest = self.last
        self.history.append(entry | summary._asdict() | {"val": scores.as_dict()})
        if not utils.is_main():
            return
        content = {
            "model": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": scheduler.state_dict(),
            "epoch": epoch,
            "best_oIoU": self.best_overall_iou,
            "history": self.history,
            "args": self.options,
        }
        if improved:
            save_checkpoint(self.best, content)
        save_checkpoint(self.last, content)
        lines = "".join(json.dumps(line) + "\n" for line in self.history)
        write_atomically(self.log, lambda file: file.write(lines.encode()))

    def last_good(self) -> str:
        """Say which checkpoint holds the newest finished epoch, for a run that ends early."""
        if self.newest is None:
            return "No epoch was finished, so there is no checkpoint of this run yet."
        return f"The last good checkpoint is {self.newest} (epoch {self.history[-1]['epoch']})."


def _check_writable(folder: Path) -> None:
    """Raise UserError now rather than after the first epoch where a folder cannot take files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--output-dir {folder} cannot be written to ({error.strerror}): choose another") from error
