"""The log of a run: JSON lines, TensorBoard events, and pictures of predictions.

tensorboard --logdir ./checkpoints
python -m lib.pictures curves ./checkpoints
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

import utils
from errors import UserError
from lib.contents import best_score
from lib.files import write_atomically
from lib.scores import COLUMNS, leading, leading_name, protocol_of

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from torch.utils.tensorboard import SummaryWriter

Record = dict[str, Any]

# Patterns of the files that a run writes into its folders of events and pictures; other files there are not ours.
EVENTS = "events.out.tfevents.*"
STRIPS = "epoch_*.png"

# TensorBoard tags of the values of each kind of record; `_points` adds alignment losses and scores.
TAGS = {
    "step": {
        "loss": "train/loss",
        "mask_loss": "train/mask_loss",
        "no_target_loss": "train/no_target_loss",
        "lr": "train/lr",
        "grad_norm": "train/grad_norm",
        "samples_per_second": "speed/samples_per_second",
        "data_wait": "speed/data_wait",
        "memory_gib": "memory/gib",
    },
    "epoch": {"loss": "epoch/loss", "mask_loss": "epoch/mask_loss", "seconds": "epoch/seconds"},
}


class RunLog:
    """`log_{dataset}.jsonl`, `tensorboard_{dataset}/` and `strips_{dataset}/` in a run's output folder.

    The records are part of the training state and of its checkpoints; the files are written from them. So the log of a
    resumed run equals that of an uninterrupted one. Every process keeps the records, but only the main process writes
    files.
    """

    def __init__(self, folder: Path, dataset: str) -> None:
        """Writes no file before `start`."""
        self.records: list[Record] = []
        self.path = folder / f"log_{dataset}.jsonl"
        self.events = folder / f"tensorboard_{dataset}"
        self.strips = folder / f"strips_{dataset}"
        self._writer: SummaryWriter | None = None

    def start(self, records: list[Record], global_step: int) -> None:
        """Continue after the records of a checkpoint ([] for a new run); afterwards the files show only these records.

        global_step: optimizer steps done at that checkpoint. Removes everything else from the files: records of other
        runs, and records that this run wrote after the checkpoint. Raises UserError if a file cannot be written.
        """
        self.records = list(records)
        if not utils.is_main():
            return
        with _os_errors_as_user_errors(self.path):
            self._remove_others(self._text())
            self._write_all()
        if self._has_events():
            # TensorBoard hides existing points from purge_step on; those of the checkpoint's own step must stay.
            self._open_events(purge_step=global_step + 1)
        else:
            self._begin_events()

    def _text(self) -> bytes:
        return "".join(map(_line, self.records)).encode()

    def _write_all(self) -> None:
        text = self._text()
        write_atomically(self.path, lambda file: file.write(text))

    def _has_events(self) -> bool:
        return any(self.events.glob(EVENTS))

    def _open_events(self, purge_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with _os_errors_as_user_errors(self.events):
            self._writer = SummaryWriter(str(self.events), purge_step=purge_step)

    def _begin_events(self) -> None:
        """Start new TensorBoard files, with the points of all records."""
        self._open_events()
        for record in self.records:
            self._plot(record)

    def _keep_events(self) -> None:
        """Start new TensorBoard files if the old ones were removed."""
        if not self._has_events():
            with suppress(OSError):  # its file is gone
                self._shown().close()
            self._begin_events()

    def _remove_others(self, text: bytes) -> None:
        """Remove pictures and points of another run, and pictures of epochs that are not in the records."""
        before = self.path.read_bytes() if self.path.exists() else b""
        # The first line has losses and times to the last digit, so it identifies a run.
        if not text or before.partition(b"\n")[0] != text.partition(b"\n")[0]:
            for folder, ours in ((self.events, EVENTS), (self.strips, STRIPS)):
                for path in folder.glob(ours):
                    path.unlink()
                with suppress(OSError):  # it does not exist, or has files that are not ours
                    folder.rmdir()
        finished = {_strip_name(record["epoch"]) for record in self.records if record["kind"] == "epoch"}
        for path in self.strips.glob(STRIPS):
            if path.name not in finished:
                path.unlink()

    def add(self, record: Record) -> None:
        """Append a record of kind "step" or "epoch" to log and TensorBoard; infinite numbers and NaN become null.

        Raises UserError if a file cannot be written.
        """
        if utils.is_main():
            self._keep_events()
        self.records.append(_plain(record))
        if not utils.is_main():
            return
        with _os_errors_as_user_errors(self.path):
            if self.path.exists():
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(_line(self.records[-1]))
            else:  # it was removed
                self._write_all()
        self._plot(self.records[-1])

    def _plot(self, record: Record) -> None:
        with _os_errors_as_user_errors(self.events):
            for tag, value in _points(record).items():
                self._shown().add_scalar(tag, value, record["global_step"])
            self._shown().flush()

    def _shown(self) -> SummaryWriter:
        if self._writer is None:
            raise RuntimeError("the log has no files yet: call start() first")
        return self._writer

    def add_strip(self, picture: Image.Image, epoch: int, global_step: int) -> None:
        """Write the picture of an epoch (from 0) to `epoch_001.png` (from 1) and to TensorBoard.

        Raises UserError as `add` does.
        """
        if not utils.is_main():
            return
        path, png = self.strips / _strip_name(epoch), _as_png(picture)
        with _os_errors_as_user_errors(path):
            write_atomically(path, lambda file: file.write(png))
        self._keep_events()
        with _os_errors_as_user_errors(self.events):
            # Its `add_image` would make a PNG of its own, in three times the time.
            self._shown()._get_file_writer().add_summary(_as_summary("val/predictions", picture, png), global_step)
            self._shown().flush()

    @property
    def best_score(self) -> float:
        """The best leading number of any validation, in percent; -1 before the first."""
        return best_score(self.records)

    def describe_best(self) -> str:
        """Return the name and value of the best leading number, and its epoch from 1, the first one to reach it."""
        validated = [record for record in self.records if record.get("val")]
        first = max(validated, key=lambda record: leading(record["val"]))
        return f"{leading_name(protocol_of(first['val']))} {leading(first['val']):.2f} after epoch {first['epoch'] + 1}"

    def close(self) -> None:
        """End TensorBoard's thread after it has written everything."""
        if self._writer:
            with _os_errors_as_user_errors(self.events), suppress(FileNotFoundError):  # its files were removed
                self._writer.close()


def _plain(value: Any) -> Any:
    """Replace infinite numbers and NaN by None, at any depth."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(record: Record) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _points(record: Record) -> dict[str, float]:
    """Return the values of a record by TensorBoard tag, without those that are null."""
    points = {tag: record.get(name) for name, tag in TAGS[record["kind"]].items()}
    if record["kind"] == "step":
        points |= {
            f"train/alignment_stage{stage}": loss for stage, loss in enumerate(record["alignment_loss"], start=1)
        }
    elif record["val"]:
        keys = {column.key for column in COLUMNS[protocol_of(record["val"])] if not column.threshold}
        points |= {f"val/{key}": record["val"][key] for key in sorted(keys)}
        points |= {f"val/precision_{threshold}": value for threshold, value in record["val"]["precision"].items()}
    return {tag: value for tag, value in points.items() if value is not None}


def _as_png(picture: Image.Image) -> bytes:
    """Return the file of a picture, an eighth larger than at best, in half the time."""
    file = io.BytesIO()
    picture.save(file, format="PNG", compress_level=3)
    return file.getvalue()


def _as_summary(tag: str, picture: Image.Image, png: bytes) -> Summary:
    """Return what TensorBoard shows for a picture in RGB and its file."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    image = Summary.Image(width=picture.width, height=picture.height, colorspace=3, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def _strip_name(epoch: int) -> str:
    return f"epoch_{epoch + 1:03d}.png"


@contextmanager
def _os_errors_as_user_errors(path: Path) -> Iterator[None]:
    """Turn an OSError, as from a full disk, into a UserError; errors of TensorBoard appear at its next call."""
    advice = "No checkpoint was changed: make room on the disk, and resume with --resume"
    try:
        yield
    except UserError as error:  # of write_atomically; it names the file
        raise UserError(f"{error}. {advice}") from error
    except OSError as error:
        raise UserError(f"{path} could not be written ({error.strerror or error}). {advice}") from error
