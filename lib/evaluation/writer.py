"""Mask and overlay files of all tested expressions: `test.py --save-masks`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from lib.contracts import Batch, Expressions, Output
from lib.evaluation.background import Background
from lib.files import write_atomically
from lib.network.resize import predicted_mask
from lib.outputs import make_folder
from lib.photo import Pixels
from lib.pictures.panels import Shared, share_of, views_of, with_prediction

FASTEST = 1  # zlib's level: of pictures of this size a third of the usual time, for a quarter more bytes


class PredictionWriter:
    """Writes a mask and a side-by-side overlay of every expression; pass it to `engine.evaluate` as `on_batch`.

    Files are named by expression, object and sentence: `masks/000012_ref7_sent19.png` (0 and 255, at the image's size)
    and `overlays/000012_ref7_sent19.png`. Threads write them while the network runs; call `finish` at the end.
    """

    def __init__(self, folder: str | Path, dataset: Expressions) -> None:
        """dataset: the one that is tested. Raises UserError if the folder cannot be written to."""
        self.dataset = dataset
        self.masks = Path(folder) / "masks"
        self.overlays = Path(folder) / "overlays"
        for directory in (self.masks, self.overlays):
            make_folder(directory, "--save-masks")
        self._threads = Background()

    def __call__(self, batch: Batch, output: Output, masks: Sequence[Tensor]) -> None:
        """Begin to write the files of a batch. Masks are made at the size of each image; one without a pixel stays so.

        Raises UserError if a file of this batch or of an earlier one cannot be written.
        """
        found = zip(batch.numbers.tolist(), output.logits, masks, strict=True)
        for _, sentences in groupby(found, key=lambda one: self.dataset.expressions[one[0]].image_id):
            predictions = {index: self._at_image_size(index, logits, mask) for index, logits, mask in sentences}
            self._threads.add(partial(self._write, predictions))

    def _at_image_size(self, index: int, logits: Tensor, mask: Tensor) -> Pixels:
        size = self.dataset.image_size(index)
        return predicted_mask(logits, size) if mask.any() else np.zeros(size, np.uint8)

    def finish(self) -> None:
        """Wait until all files are written. Raises UserError if one cannot be written."""
        self._threads.finish()

    def _write(self, predictions: Mapping[int, Pixels]) -> None:
        """Write the files of sentences about one image; predictions: by index of the expression."""
        image, _ = self.dataset.load(next(iter(predictions)))
        views = views_of(image)
        for _, sentences in groupby(predictions, key=lambda index: self.dataset.object_of[index]):
            indices = list(sentences)
            shared = share_of(views, self.dataset.truth(indices[0]))
            for index in indices:
                self._write_sentence(index, predictions[index], shared)

    def _write_sentence(self, index: int, prediction: Pixels, shared: Shared) -> None:
        expression = self.dataset.expressions[index]
        name = f"{index:06d}_ref{expression.ref_id}_sent{expression.sent_id}.png"
        shown = with_prediction(shared, expression.text, prediction)
        for folder, picture in ((self.masks, Image.fromarray(prediction * 255)), (self.overlays, shown)):
            save = partial(picture.save, format="PNG", compress_level=FASTEST)
            write_atomically(folder / name, save, durable=False)
