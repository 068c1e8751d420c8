"""Mask and overlay files of all tested expressions: `test.py --save-masks`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from lib.contracts import Batch, Expressions, Output
from lib.files import write_atomically
from lib.outputs import make_folder
from lib.pictures.overlay import predicted_mask
from lib.pictures.panels import side_by_side


class PredictionWriter:
    """Writes a mask and a side-by-side overlay of every expression; pass it to `engine.evaluate` as `on_batch`.

    Files are named by expression, object and sentence: `masks/000012_ref7_sent19.png` (0 and 255, at the image's size)
    and `overlays/000012_ref7_sent19.png`.
    """

    def __init__(self, folder: str | Path, dataset: Expressions) -> None:
        """dataset: the one that is tested. Raises UserError if the folder cannot be written to."""
        self.dataset = dataset
        self.masks = Path(folder) / "masks"
        self.overlays = Path(folder) / "overlays"
        for directory in (self.masks, self.overlays):
            make_folder(directory, "--save-masks")

    def __call__(self, batch: Batch, output: Output, masks: Sequence[Tensor]) -> None:
        """Write the files of a batch. Masks are made at the size of each image; one without a pixel stays so.

        Raises UserError if a file cannot be written.
        """
        for index, logits, mask in zip(batch.numbers.tolist(), output.logits, masks, strict=True):
            self._write(index, logits, is_empty=not mask.any())

    def _write(self, index: int, logits: Tensor, *, is_empty: bool) -> None:
        expression = self.dataset.expressions[index]
        image, truth = self.dataset.load(index)
        prediction = np.zeros_like(truth) if is_empty else predicted_mask(logits, truth.shape)
        name = f"{index:06d}_ref{expression.ref_id}_sent{expression.sent_id}.png"
        shown = side_by_side(image, expression.text, truth, prediction)
        for folder, picture in ((self.masks, Image.fromarray(prediction * 255)), (self.overlays, shown)):
            write_atomically(folder / name, partial(picture.save, format="PNG"))
