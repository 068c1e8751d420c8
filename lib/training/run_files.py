"""The files of a training run: which state it resumes, which files it keeps, and which it never replaces."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import utils
from errors import UserError, few
from lib.contents import RUN
from lib.files import put_aside, temporary_prefix, write_atomically, write_text
from lib.options import FIXED_NAMES, FORMER
from lib.outputs import make_folder
from lib.schema import check, list_of, option, parse_json, record, whole
from lib.training.folder_lock import FolderLock
from lib.weights.checkpoint import (
    Checkpoint,
    DamagedFileError,
    check_bytes,
    holds_state,
    read_checkpoint,
    save_checkpoint,
)

AUTO = "auto"  # as in --resume auto
STATE = ("optimizer", "lr_scheduler", "scaler", "epoch", "step", "meter", "log")  # needed in addition to the weights

# The options that are read from a saved state.
OPTIONS = record(
    {"epochs": option},
    optional={
        **dict.fromkeys(FIXED_NAMES, option),
        **dict.fromkeys(("batch_size", "processes", "accumulate"), whole(1)),
        "asked": list_of(whole(1), 2),
    },
)


class RunFiles:
    """`last_{dataset}.pth`, its predecessors `last_{dataset}.1.pth` … and `best_{dataset}.pth` in a run's folder.

    The log in the same folder is written by `lib.training.run_log`. Only the main process writes, renames and removes
    files, and only in one training per data set at a time: it holds the folder's lock from `open` to `close`.
    """

    def __init__(self, folder: str | Path, dataset: str, keep: int = 2) -> None:
        """keep: number of newest states to keep, including `last`."""
        self.folder, self.keep = Path(folder), keep
        self.last = self.folder / f"last_{dataset}.pth"
        self.best = self.folder / f"best_{dataset}.pth"
        self.log = self.folder / f"log_{dataset}.jsonl"
        self.run = self.folder / f"run_{dataset}.json"
        self.pictures = [self.folder / f"{kind}_{dataset}" for kind in ("tensorboard", "strips")]
        self.lock = self.folder / f".lock_{dataset}"
        self._lock: FolderLock | None = None
        self._best_elsewhere: Path | None = None  # the best state of this run, if it resumes from another folder
        self.newest: Path | None = None  # the file of this run's newest state
        self.states_are_ours = False  # whether the states in the folder belong to this run
        self.best_is_ours = False  # whether `best` belongs to this run

    def open(self, resume: str = "", *, overwrite: bool = False) -> Checkpoint | None:
        """Return the state to resume, or None for a new run.

        resume: a file, "auto" for the newest valid state in the folder if there is one, or "". Raises UserError if the
        file is damaged or has no training state, if the folder cannot be written to or another training uses it, and if
        files of another run would be replaced. The folder is left unchanged then.
        """
        checkpoint = self._open(resume, overwrite) if utils.is_main() else None
        self.newest = utils.from_main(checkpoint.path if checkpoint else None)
        if self.newest and checkpoint is None:
            checkpoint = read_checkpoint(self.newest)
        return checkpoint

    def _open(self, resume: str, overwrite: bool) -> Checkpoint | None:
        make_folder(self.folder, "--output-dir")
        self._lock = FolderLock(self.lock, "--output-dir")
        checkpoint = self._newest_valid() if resume == AUTO else self._named(resume) if resume else None
        present = self._states() or [path for path in [self.best] if path.exists()]
        self.states_are_ours = checkpoint is not None and any(checkpoint.path.samefile(path) for path in present)
        is_foreign = self.best.is_file() and not holds_state(self.best)  # such as released weights, put there meanwhile
        self.best_is_ours = (self.states_are_ours and not is_foreign) or (
            checkpoint is not None and self.best.exists() and checkpoint.path.samefile(self.best)
        )
        if not (self.states_are_ours or overwrite):
            self._refuse_to_replace([] if resume == AUTO else [self.log, *self.pictures])
        if resume == AUTO and checkpoint is None:
            self._put_log_aside()
        self._remove_leftovers()
        if checkpoint and not self.best_is_ours:
            self._best_elsewhere = checkpoint.path.with_name(self.best.name)
        return checkpoint

    def close(self) -> None:
        """Release the folder for other trainings."""
        if self._lock:
            self._lock.release()

    def _named(self, resume: str) -> Checkpoint:
        try:
            return read_state(Path(resume))
        except DamagedFileError as error:
            raise UserError(f"{error}. --resume auto takes the newest intact file in --output-dir") from error

    def _newest_valid(self) -> Checkpoint | None:
        """Return the newest intact state in the folder; damaged ones are renamed and logged."""
        for path in self._states():
            try:
                return read_state(path)
            except DamagedFileError as error:
                aside = put_aside(path, "damaged")
                utils.log(f"--resume auto: {error}. It is now {aside.name}; trying the previous one")
        if self.best.exists():
            try:
                return read_state(self.best)
            except UserError as error:  # perhaps released weights, which are left in place
                utils.log(f"--resume auto: {error}")
        utils.log(f"--resume auto: there is no state in {self.folder}, so the training starts from the beginning")
        return None

    def _put_log_aside(self) -> None:
        """Rename the log of a run whose states were moved away. An empty log, of a start that failed, is not kept."""
        if not (self.log.exists() and self.log.stat().st_size == 0):
            for path in filter(Path.exists, (self.log, *self.pictures)):
                put_aside(path)

    def present(self) -> list[Path]:
        """Return the states and the best network that are in the folder, which need not exist."""
        return [*(self._states() if self.folder.is_dir() else []), *([self.best] if self.best.exists() else [])]

    def _states(self) -> list[Path]:
        """Return `last` and its predecessors that exist, newest first."""
        return [path for path in (self.last, *map(self._predecessor, sorted(self._ages()))) if path.exists()]

    def _ages(self) -> list[int]:
        pattern = re.compile(re.escape(self.last.stem) + r"\.([1-9]\d*)\.pth")
        return [int(match[1]) for path in self.folder.iterdir() if (match := pattern.fullmatch(path.name))]

    def _predecessor(self, age: int) -> Path:
        return self.last.with_name(f"{self.last.stem}.{age}.pth") if age else self.last

    def _refuse_to_replace(self, shown: list[Path]) -> None:
        """Raise UserError if files of another run would be replaced; shown: log and pictures, if they count."""
        states = self._states()
        present = [path.name for path in (*states, self.best, *shown) if path.exists()]
        if present:
            resume = f"resume with --resume {states[0]} (or auto), " if states else ""
            raise UserError(
                f"{', '.join(present)} in {self.folder} would be replaced: {resume}choose another --output-dir, "
                "or pass --overwrite"
            )

    def _remove_leftovers(self) -> None:
        """Remove unfinished files of killed processes."""
        for target in (self.last, self.best, self.log, self.run):
            for path in self.folder.glob(f"{temporary_prefix(target)}*.tmp"):
                path.unlink(missing_ok=True)

    def save(self, content: Mapping[str, Any], *, best: bool = False) -> None:
        """Write a state as `last`, and also as `best` if it is the best one."""
        self.newest = self.last
        if not utils.is_main():
            return
        if best:
            save_checkpoint(self.best, content, before_replacing=self._put_best_aside)
            self.best_is_ours = True
        elif self._best_elsewhere and _is_best(self._best_elsewhere, content):
            _copy(self._best_elsewhere, self.best, before_replacing=self._put_best_aside)
            self.best_is_ours = True
        self._best_elsewhere = None
        if best and self.best.is_file():  # no device; a copy is cheaper than to pack all tensors again
            _copy(self.best, self.last, before_replacing=self._rotate_states)
        else:
            save_checkpoint(self.last, content, before_replacing=self._rotate_states)

    def _put_best_aside(self) -> None:
        """Rename the best state of another run instead of replacing it."""
        if not self.best_is_ours and self.best.exists():
            utils.log(f"{self.best} belongs to another run: it is now {put_aside(self.best)}")

    def _rotate_states(self) -> None:
        """Rename every state to the next older number; remove those beyond `keep`, or all of a replaced run."""
        oldest = self.keep - 1 if self.states_are_ours else 0
        for age in sorted([*self._ages(), *([0] if self.last.exists() else [])], reverse=True):
            if age < oldest:
                self._predecessor(age).replace(self._predecessor(age + 1))
            elif age > oldest:
                self._predecessor(age).unlink()
        self._put_best_aside()
        self.states_are_ours = self.best_is_ours = True

    def write_description(self, content: Mapping[str, Any]) -> None:
        """Write the settings of this run to `run_{dataset}.json`, with the different settings of earlier starts."""
        if utils.is_main():
            plain = json.loads(json.dumps(content, default=str))
            text = json.dumps(plain | {"earlier": self._earlier(plain)}, indent=2, ensure_ascii=False) + "\n"
            write_text(self.run, text)

    def _earlier(self, content: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the settings of earlier starts that differ from this one."""
        if not (self.states_are_ours and self.run.exists()):
            return []
        try:
            before = parse_json(self.run.read_bytes(), RUN, self.run, "no description of a run")
        except (OSError, UserError):
            return []  # not written by us, and nothing depends on it
        earlier = before.pop("earlier")
        different = {
            name: value
            for name, value in before.items()
            if value != content.get(name) and name not in ("command", "time")  # every start has its own
        }
        return [*earlier, different] if different else earlier

    def last_good(self) -> str:
        """Return a sentence about the file of the newest state, for a run that ends early."""
        if self.newest is None:
            return "There is no checkpoint of this run yet."
        return f"The last good checkpoint is {self.newest}."


def _copy(source: Path, path: Path, before_replacing: Callable[[], object]) -> None:
    """Copy a state; see `write_atomically`."""
    with source.open("rb") as file:
        write_atomically(path, lambda target: shutil.copyfileobj(file, target), before_replacing)


def _is_best(path: Path, content: Mapping[str, Any]) -> bool:
    """Return whether a file is the best state of the run with this state, whose log begins with the file's log."""
    try:
        before = read_checkpoint(path).state
    except UserError:
        return False
    log = before.get("log")
    is_prefix = isinstance(log, list) and bool(log) and content["log"][: len(log)] == log
    return is_prefix and before.get("best_oIoU") == content["best_oIoU"]


def read_state(path: Path) -> Checkpoint:
    """Read a training state and check all its bytes; UserError if a training cannot resume from it."""
    if path.is_dir() or not zipfile.is_zipfile(path):  # perhaps weights in a layout without checksums
        _refuse_weights(path)
    check_bytes(path)
    checkpoint = read_checkpoint(path)
    _refuse_without_state(checkpoint)
    check({"args": checkpoint.args}, record({"args": OPTIONS}), path)
    return checkpoint


def _refuse_weights(path: Path) -> None:
    """Raise UserError if a file has weights that can be read, but no training state."""
    try:
        checkpoint = read_checkpoint(path)
    except UserError:
        return  # missing or damaged
    _refuse_without_state(checkpoint)


def _refuse_without_state(checkpoint: Checkpoint) -> None:
    """Raise UserError if these weights have no training state beside them, or one that is not whole."""
    missing = [name for name in STATE if name not in checkpoint.state]
    if missing:
        path = checkpoint.path
        raise UserError(
            f"--resume {path} holds only weights (no {', '.join(missing)}): a training resumes only from a last_….pth "
            f"or best_….pth that train.py wrote itself. To start a new training from these weights: --init {path}"
        )


def refuse_other_run(checkpoint: Checkpoint, options: Mapping[str, Any], *, so_far: bool = False) -> None:
    """Raise UserError, with both values of each option, if a state belongs to a run with other options.

    so_far: some options are not known yet; do not compare them.
    """
    saved = FORMER | checkpoint.args
    differences = [
        f"{name} was {saved.get(name)} and is now {options[name]}"
        for name in FIXED_NAMES
        if not (so_far and name not in options) and saved.get(name) != options[name]
    ]
    if differences:
        raise UserError(
            f"--resume {checkpoint.path} belongs to another run: {'; '.join(differences)}. Pass the options of that "
            "run. A longer training must be a new run, because the learning rate depends on --epochs"
        )


def refuse_other_images(checkpoint: Checkpoint, images: Mapping[str, str]) -> None:
    """Log if an image changed since a state was saved; raise UserError if several did.

    A single image may have been damaged and downloaded again. images: content digests of some image files, by name;
    names that the state does not have are not compared.
    """
    before: Mapping[str, str] = checkpoint.state.get("images", {})
    compared = images.keys() & before.keys()
    changed = sorted(name for name in compared if images[name] != before[name])
    if len(changed) > 1:
        raise UserError(
            f"--resume {checkpoint.path} belongs to a run on other images: of {len(compared)} that were compared, "
            f"{len(changed)} have another content now ({few(changed)}). Restore those images, or start a new run"
        )
    if changed:
        utils.log(f"the content of image {changed[0]} has changed since {checkpoint.path} was saved")
