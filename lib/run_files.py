"""The files of one training run: what it goes on from, what it keeps, and what it never replaces."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import utils
from errors import UserError
from lib.checkpoint.files import Checkpoint, DamagedFileError, check_bytes, read_checkpoint, save_checkpoint
from lib.files import temporary_prefix, write_atomically
from lib.outputs import make_folder
from lib.texts import showable

AUTO = "auto"  # as in --resume auto
STATE = ("optimizer", "lr_scheduler", "scaler", "epoch", "step", "meter", "log")  # beside weights, to go on exactly

# Options that must be the same before and after an interruption for both halves to be one run.
FIXED_OPTIONS = (
    "dataset",
    "splitBy",
    "split",
    "data",
    "overlap",
    "limit_train",
    "limit_val",
    "swin_type",
    "bert_type",
    "fusion",
    "alignment",
    "img_size",
    "global_batch",
    "epochs",
    "steps",
    "lr",
    "weight_decay",
    "amsgrad",
    "clip_grad",
    "loss",
    "precision",
    "freeze_bert",
    "train_embeddings",
    "train_temperature",
    "dropout",
    "drop_path",
    "seed",
)
# What the options were in states that were written before there was a choice.
FORMER_OPTIONS = {"fusion": "cross", "alignment": True, "train_embeddings": False, "overlap": "background"}


class RunFiles:
    """`last_{dataset}.pth`, its predecessors `last_{dataset}.1.pth` … and `best_{dataset}.pth` in a run's folder.

    The log beside them belongs to `lib.run_log`. The main process alone writes, renames and removes.
    """

    def __init__(self, folder: str | Path, dataset: str, keep: int = 2) -> None:
        """keep: how many of the newest states stay, `last` among them."""
        self.folder, self.keep = Path(folder), keep
        self.last = self.folder / f"last_{dataset}.pth"
        self.best = self.folder / f"best_{dataset}.pth"
        self.log = self.folder / f"log_{dataset}.jsonl"
        self.run = self.folder / f"run_{dataset}.json"
        self.newest: Path | None = None  # the file that holds this run's newest state
        self.goes_on_here = False  # whether the states in the folder are this run's own
        self.best_is_own = False  # whether `best` is

    def open(self, resume: str = "", *, overwrite: bool = False) -> Checkpoint | None:
        """Return the state to go on from, None for a fresh start.

        resume: a file, "auto" for the newest valid one in the folder if there is any, or nothing. Raises UserError
        where the file is damaged or holds no training state, where the folder takes no files, and where files of
        another run would be replaced.
        """
        checkpoint = self._open(resume, overwrite) if utils.is_main() else None
        self.newest = utils.from_main(checkpoint.path if checkpoint else None)
        if self.newest and checkpoint is None:
            checkpoint = read_checkpoint(self.newest)
        return checkpoint

    def _open(self, resume: str, overwrite: bool) -> Checkpoint | None:
        make_folder(self.folder, "--output-dir")
        self._remove_leftovers()
        checkpoint = self._newest_valid() if resume == AUTO else self._named(resume) if resume else None
        own = self._states() or [path for path in [self.best] if path.exists()]
        self.goes_on_here = checkpoint is not None and any(checkpoint.path.samefile(path) for path in own)
        self.best_is_own = self.goes_on_here or (
            checkpoint is not None and self.best.exists() and checkpoint.path.samefile(self.best)
        )
        if not (self.goes_on_here or overwrite):
            self._refuse_to_replace()
        return checkpoint

    def _named(self, resume: str) -> Checkpoint:
        try:
            return read_state(Path(resume))
        except DamagedFileError as error:
            raise UserError(f"{error}. --resume auto goes on from the newest sound file in --output-dir") from error

    def _newest_valid(self) -> Checkpoint | None:
        """Return the newest state in the folder whose bytes are sound; damaged ones are put aside, and it is said."""
        for path in self._states():
            try:
                return read_state(path)
            except DamagedFileError as error:
                aside = path.with_name(f"{path.name}.damaged")
                path.replace(aside)
                utils.log(f"--resume auto: {error}. It is now {aside.name}; looking for the one before")
        if self.best.exists():
            try:
                return read_state(self.best)
            except UserError as error:  # released weights, perhaps, which stay where they are
                utils.log(f"--resume auto: {error}")
        utils.log(f"--resume auto: no state of this run in {self.folder}, so it starts from the beginning")
        self._put_log_aside()
        return None

    def _put_log_aside(self) -> None:
        """Keep the log of a run whose states were moved; later ones are of starts that ended before they saved."""
        aside = self.log.with_name(f"{self.log.name}.old")
        if self.log.exists() and not aside.exists():
            self.log.replace(aside)
        self.log.unlink(missing_ok=True)

    def _states(self) -> list[Path]:
        """Return `last` and its predecessors that exist, newest first."""
        return [path for path in (self.last, *map(self._predecessor, sorted(self._ages()))) if path.exists()]

    def _ages(self) -> list[int]:
        pattern = re.compile(re.escape(self.last.stem) + r"\.([1-9]\d*)\.pth")
        return [int(match[1]) for path in self.folder.iterdir() if (match := pattern.fullmatch(path.name))]

    def _predecessor(self, age: int) -> Path:
        return self.last.with_name(f"{self.last.stem}.{age}.pth") if age else self.last

    def _refuse_to_replace(self) -> None:
        states = self._states()
        present = [path.name for path in (*states, self.best, self.log) if path.exists()]
        if present:
            go_on = f"go on with --resume {states[0]} (or auto), " if states else ""
            raise UserError(
                f"{', '.join(present)} in {self.folder} would be replaced: {go_on}choose another --output-dir, "
                "or pass --overwrite"
            )

    def _remove_leftovers(self) -> None:
        """Remove unfinished files that a killed process left."""
        for target in (self.last, self.best, self.log, self.run):
            for path in self.folder.glob(f"{temporary_prefix(target)}*.tmp"):
                path.unlink(missing_ok=True)

    def save(self, content: Mapping[str, Any], *, best: bool = False) -> None:
        """Write a state as the newest one and, where it is the best, too, as that."""
        self.newest = self.last
        if not utils.is_main():
            return
        if best:
            save_checkpoint(self.best, content)
            self.best_is_own = True
        save_checkpoint(self.last, content, before_replacing=self._make_way)

    def _make_way(self) -> None:
        """Let every state become one older, and drop those beyond `keep`, or all of a run that is replaced."""
        oldest = self.keep - 1 if self.goes_on_here else 0
        for age in range(oldest, 0, -1):
            if self._predecessor(age - 1).exists():
                self._predecessor(age - 1).replace(self._predecessor(age))
        for age in self._ages():
            if age > oldest:
                self._predecessor(age).unlink()
        if not self.best_is_own:
            self.best.unlink(missing_ok=True)
        self.goes_on_here = self.best_is_own = True

    def describe(self, content: Mapping[str, Any]) -> None:
        """Write what this run is made of as `run_{dataset}.json`; what earlier starts differed in stays there."""
        if utils.is_main():
            plain = json.loads(json.dumps(content, default=str))
            text = json.dumps(plain | {"earlier": self._earlier(plain)}, indent=2, ensure_ascii=False) + "\n"
            write_atomically(self.run, lambda file: file.write(showable(text).encode()))

    def _earlier(self, content: dict[str, Any]) -> list[dict[str, Any]]:
        """Return what the starts before were made with, as far as it was something else each time."""
        if not (self.goes_on_here and self.run.exists()):
            return []
        try:
            before = json.loads(self.run.read_text(encoding="utf-8"))
            earlier = before.pop("earlier")
        except (ValueError, KeyError, AttributeError):
            return []  # no file of ours: nothing depends on it
        different = {name: value for name, value in before.items() if value != content.get(name) and name != "command"}
        return [*earlier, different] if different else earlier

    def last_good(self) -> str:
        """Say which file holds the newest state, for a run that ends early."""
        if self.newest is None:
            return "There is no checkpoint of this run yet."
        return f"The last good checkpoint is {self.newest}."


def read_state(path: Path) -> Checkpoint:
    """Read a training state and check every byte of it; UserError where it cannot be continued."""
    check_bytes(path)
    checkpoint = read_checkpoint(path)
    missing = [name for name in STATE if name not in checkpoint.state]
    if missing:
        raise UserError(
            f"--resume {path} holds weights but no {', '.join(missing)}: only a last_….pth or best_….pth that this "
            "train.py wrote can be continued"
        )
    return checkpoint


def refuse_other_run(checkpoint: Checkpoint, options: Mapping[str, Any]) -> None:
    """Raise UserError where a state belongs to a run with other options, naming both values of each."""
    saved = FORMER_OPTIONS | checkpoint.args
    differences = [
        f"{name} was {saved.get(name)} and is now {options[name]}"
        for name in FIXED_OPTIONS
        if saved.get(name) != options[name]
    ]
    if differences:
        raise UserError(
            f"--resume {checkpoint.path} belongs to another run: {'; '.join(differences)}. Pass that run's options; a "
            "longer training is a run of its own, because the learning rate depends on --epochs"
        )
