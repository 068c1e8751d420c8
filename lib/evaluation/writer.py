"""Masks and overlays of all that is tested, as files: `test.py --save-masks`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image
from torch import Tensor

from lib.contracts import Batch, Expressions
from lib.files import write_atomically
from lib.outputs import make_folder
from lib.pictures.overlay import predicted_mask
from lib.pictures.panels import side_by_side


class PredictionWriter:
    """Write the predicted mask and a side-by-side overlay of every expression; a `visit` for `engine.evaluate`.

    Files are named by expression, object and sentence: `masks/000012_ref7_sent19.png` (0 and 255, at the image's own
    size) and `overlays/000012_ref7_sent19.png`.
    """

    def __init__(self, folder: str | Path, dataset: Expressions) -> None:
        """dataset: the one whose samples will come."""
        self.dataset = dataset
        self.masks = Path(folder) / "masks"
        self.overlays = Path(folder) / "overlays"
        for place in (self.masks, self.overlays):
            make_folder(place, "--save-masks")

    def __call__(self, batch: Batch, logits: Tensor, _: Sequence[Tensor]) -> None:
        """Write the pictures of a batch; logits: (B, 2, H, W). Masks are made anew, at the images' own sizes.

        Raises UserError as `write_atomically` does.
        """
        for index, sample_logits in zip(batch.numbers.tolist(), logits, strict=True):
            self._write(index, sample_logits)

    def _write(self, index: int, logits: Tensor) -> None:
        expression = self.dataset.expressions[index]
        image, truth = self.dataset.load(index)
        prediction = predicted_mask(logits, truth.shape)
        name = f"{index:06d}_ref{expression.ref_id}_sent{expression.sent_id}.png"
        shown = side_by_side(image, expression.text, truth, prediction)
        for folder, picture in ((self.masks, Image.fromarray(prediction * 255)), (self.overlays, shown)):
            write_atomically(folder / name, partial(picture.save, format="PNG"))
