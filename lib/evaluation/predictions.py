"""Every mask of a test in one file: `test.py --predictions`, which `score.py` reads."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

import utils
from errors import UserError
from lib.contracts import Batch, Expressions, Output
from lib.evaluation.metrics import at_target_size
from lib.files import write_atomically
from lib.network.resize import predicted_object
from lib.outputs import make_folder
from lib.photo import Places
from lib.run_lengths import encode_mask


class PredictionFile:
    """Writes every predicted mask, at the size it was compared at, as JSON lines; pass it to `engine.evaluate`.

    A line has the ids of sentence, object and image, the mask as COCO run lengths and the sentence. With a no-target
    head it also has the head's answer, and the mask is the one before that. Lines are written during the test, into a
    temporary file; the file appears when all processes have finished.
    """

    def __init__(self, path: str | Path, dataset: Expressions) -> None:
        """dataset: the one that is tested. Raises UserError if the folder cannot be written to."""
        self.path, self.dataset = Path(path), dataset
        make_folder(self.path.parent, "--predictions")
        self.lines = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the test runs)

    def __call__(self, batch: Batch, output: Output, _: Sequence[Tensor]) -> None:
        """Add a batch. Raises UserError if the disk is full."""
        masks = [
            mask for measured, _ in at_target_size(output.logits, batch.target) for mask in predicted_object(measured)
        ]
        answers = [None] * len(masks) if output.no_target is None else output.no_target.argmax(1).tolist()
        try:
            for index, mask, answer in zip(batch.numbers.tolist(), masks, answers, strict=True):
                self.lines.write(self._line(index, mask.cpu().numpy(), answer))
            self.lines.flush()  # here, as at the end all processes wait for each other
        except OSError as error:
            raise UserError(f"--predictions {self.path} could not be written ({error.strerror or error})") from error

    def _line(self, index: int, mask: Places, answer: int | None) -> bytes:
        expression = self.dataset.expressions[index]
        line: dict[str, Any] = {
            "sent_id": expression.sent_id,
            "ref_id": expression.ref_id,
            "image_id": expression.image_id,
            "segmentation": encode_mask(mask),
        }
        if answer is not None:
            line["no_target"] = bool(answer)
        return (json.dumps(line | {"sentence": expression.text}) + "\n").encode()

    def finish(self) -> None:
        """Write the file; all processes must call this together. Raises UserError if it cannot be written.

        Each process has a run of consecutive batches, so the file is the same for any number of processes.
        """
        self.lines.seek(0)
        others = utils.gather(b"" if utils.is_main() else self.lines.read())
        if utils.is_main():
            write_atomically(self.path, lambda file: self._write(file, others))
        self.lines.close()

    def _write(self, file: BinaryIO, others: Sequence[bytes]) -> None:
        self.lines.seek(0)
        shutil.copyfileobj(self.lines, file)
        for share in others:
            file.write(share)
