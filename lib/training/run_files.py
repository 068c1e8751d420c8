"""The files of one training run: what it goes on from, what it keeps, and what it never replaces."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
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
from lib.weights.checkpoint import Checkpoint, DamagedFileError, check_bytes, read_checkpoint, save_checkpoint

AUTO = "auto"  # as in --resume auto
STATE = ("optimizer", "lr_scheduler", "scaler", "epoch", "step", "meter", "log")  # beside weights, to go on exactly

# What is read of a saved state's options: beside those, how the samples of its steps were spread.
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

    The log beside them belongs to `lib.training.run_log`. The main process alone writes, renames and removes, and one
    training of a data set at a time: from `open` to `close` it holds the folder's lock.
    """

    def __init__(self, folder: str | Path, dataset: str, keep: int = 2) -> None:
        """keep: how many of the newest states stay, `last` among them."""
        self.folder, self.keep = Path(folder), keep
        self.last = self.folder / f"last_{dataset}.pth"
        self.best = self.folder / f"best_{dataset}.pth"
        self.log = self.folder / f"log_{dataset}.jsonl"
        self.run = self.folder / f"run_{dataset}.json"
        self.pictures = [self.folder / f"{kind}_{dataset}" for kind in ("tensorboard", "strips")]
        self.lock = self.folder / f".lock_{dataset}"
        self._lock: FolderLock | None = None
        self._best_elsewhere: Path | None = None  # what the run that goes on here calls its best so far
        self.newest: Path | None = None  # the file that holds this run's newest state
        self.goes_on_here = False  # whether the states in the folder are this run's own
        self.best_is_own = False  # whether `best` is

    def open(self, resume: str = "", *, overwrite: bool = False) -> Checkpoint | None:
        """Return the state to go on from, None for a fresh start.

        resume: a file, "auto" for the newest valid one in the folder if there is any, or nothing. Raises UserError
        where the file is damaged or holds no training state, where the folder takes no files or another training
        writes into it, and where files of another run would be replaced. What is in the folder is left alone then.
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
        own = self._states() or [path for path in [self.best] if path.exists()]
        self.goes_on_here = checkpoint is not None and any(checkpoint.path.samefile(path) for path in own)
        self.best_is_own = self.goes_on_here or (
            checkpoint is not None and self.best.exists() and checkpoint.path.samefile(self.best)
        )
        if not (self.goes_on_here or overwrite):
            self._refuse_to_replace([] if resume == AUTO else [self.log, *self.pictures])
        if resume == AUTO and checkpoint is None:
            self._put_log_aside()
        self._remove_leftovers()
        if checkpoint and not self.best_is_own:
            self._best_elsewhere = checkpoint.path.with_name(self.best.name)
        return checkpoint

    def close(self) -> None:
        """Let other trainings have the folder."""
        if self._lock:
            self._lock.release()

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
                aside = put_aside(path, "damaged")
                utils.log(f"--resume auto: {error}. It is now {aside.name}; looking for the one before")
        if self.best.exists():
            try:
                return read_state(self.best)
            except UserError as error:  # released weights, perhaps, which stay where they are
                utils.log(f"--resume auto: {error}")
        utils.log(f"--resume auto: no state of this run in {self.folder}, so it starts from the beginning")
        return None

    def _put_log_aside(self) -> None:
        """Keep the log of a run whose states were moved; an empty one is of a start that ended early."""
        if not (self.log.exists() and self.log.stat().st_size == 0):
            for path in filter(Path.exists, (self.log, *self.pictures)):
                put_aside(path)

    def _states(self) -> list[Path]:
        """Return `last` and its predecessors that exist, newest first."""
        return [path for path in (self.last, *map(self._predecessor, sorted(self._ages()))) if path.exists()]

    def _ages(self) -> list[int]:
        pattern = re.compile(re.escape(self.last.stem) + r"\.([1-9]\d*)\.pth")
        return [int(match[1]) for path in self.folder.iterdir() if (match := pattern.fullmatch(path.name))]

    def _predecessor(self, age: int) -> Path:
        return self.last.with_name(f"{self.last.stem}.{age}.pth") if age else self.last

    def _refuse_to_replace(self, shown: list[Path]) -> None:
        """shown: files and folders beside the states that another run's would replace."""
        states = self._states()
        present = [path.name for path in (*states, self.best, *shown) if path.exists()]
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
            save_checkpoint(self.best, content, before_replacing=self._put_best_aside)
            self.best_is_own = True
        elif self._best_elsewhere:
            self._bring_best(self._best_elsewhere, content)
        self._best_elsewhere = None
        save_checkpoint(self.last, content, before_replacing=self._make_way)

    def _put_best_aside(self) -> None:
        """Keep the best of another run: nobody can make it again."""
        if not self.best_is_own and self.best.exists():
            utils.log(f"{self.best} is another run's: it is now {put_aside(self.best)}")

    def _bring_best(self, source: Path, content: Mapping[str, Any]) -> None:
        """Copy this run's best so far from the folder that it comes from, if it is still there."""
        if not _is_best(source, content):
            return
        with source.open("rb") as file:
            write_atomically(
                self.best, lambda target: shutil.copyfileobj(file, target), before_replacing=self._put_best_aside
            )
        self.best_is_own = True

    def _make_way(self) -> None:
        """Let every state become one older, and drop those beyond `keep`, or all of a run that is replaced."""
        oldest = self.keep - 1 if self.goes_on_here else 0
        for age in range(oldest, 0, -1):
            if self._predecessor(age - 1).exists():
                self._predecessor(age - 1).replace(self._predecessor(age))
        for age in self._ages():
            if age > oldest:
                self._predecessor(age).unlink()
        self._put_best_aside()
        self.goes_on_here = self.best_is_own = True

    def describe(self, content: Mapping[str, Any]) -> None:
        """Write what this run is made of as `run_{dataset}.json`; what earlier starts differed in stays there."""
        if utils.is_main():
            plain = json.loads(json.dumps(content, default=str))
            text = json.dumps(plain | {"earlier": self._earlier(plain)}, indent=2, ensure_ascii=False) + "\n"
            write_text(self.run, text)

    def _earlier(self, content: dict[str, Any]) -> list[dict[str, Any]]:
        """Return what the starts before were made with, as far as it was something else each time."""
        if not (self.goes_on_here and self.run.exists()):
            return []
        try:
            before = parse_json(self.run.read_bytes(), RUN, self.run, "no description of a run")
        except (OSError, UserError):
            return []  # no file of ours: nothing depends on it
        earlier = before.pop("earlier")
        different = {name: value for name, value in before.items() if value != content.get(name) and name != "command"}
        return [*earlier, different] if different else earlier

    def last_good(self) -> str:
        """Say which file holds the newest state, for a run that ends early."""
        if self.newest is None:
            return "There is no checkpoint of this run yet."
        return f"The last good checkpoint is {self.newest}."


def _is_best(path: Path, content: Mapping[str, Any]) -> bool:
    """Tell whether a file is the best so far of the run with this state: its log is how this one's begins."""
    try:
        before = read_checkpoint(path).state
    except UserError:
        return False
    log = before.get("log")
    began_so = isinstance(log, list) and bool(log) and content["log"][: len(log)] == log
    return began_so and before.get("best_oIoU") == content["best_oIoU"]


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
    check({"args": checkpoint.args}, record({"args": OPTIONS}), path)
    return checkpoint


def refuse_other_run(checkpoint: Checkpoint, options: Mapping[str, Any], *, so_far: bool = False) -> None:
    """Raise UserError where a state belongs to a run with other options, naming both values of each.

    so_far: some options are not known yet, and not compared.
    """
    saved = FORMER | checkpoint.args
    differences = [
        f"{name} was {saved.get(name)} and is now {options[name]}"
        for name in FIXED_NAMES
        if not (so_far and name not in options) and saved.get(name) != options[name]
    ]
    if differences:
        raise UserError(
            f"--resume {checkpoint.path} belongs to another run: {'; '.join(differences)}. Pass that run's options; a "
            "longer training is a run of its own, because the learning rate depends on --epochs"
        )


def refuse_other_images(checkpoint: Checkpoint, images: Mapping[str, str]) -> None:
    """Say that an image changed since a state was saved; raise UserError where several did.

    A single one may have been damaged, and got again. images: prints of some images' files, by name; those that the
    state does not know are not compared.
    """
    before: Mapping[str, str] = checkpoint.state.get("images", {})
    compared = images.keys() & before.keys()
    changed = sorted(name for name in compared if images[name] != before[name])
    if len(changed) > 1:
        raise UserError(
            f"--resume {checkpoint.path} belongs to a run on other images: of {len(compared)} that were compared, "
            f"{len(changed)} have another content now ({few(changed)}). Go on with the images of then, or train again"
        )
    if changed:
        utils.log(f"the image {changed[0]} has another content than when {checkpoint.path} was saved")
