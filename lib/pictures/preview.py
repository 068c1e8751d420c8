"""A picture of predictions for a few sentences, drawn after every epoch."""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from lib.contracts import Expressions
from lib.network.resize import predicted_mask
from lib.pictures.panels import evenly_spaced, sheet, side_by_side


class PreviewSheet:
    """Draws predictions for the same few expressions after every epoch."""

    def __init__(self, dataset: Expressions, count: int = 6, *, limit: int | None = None) -> None:
        """limit: choose only among the first `limit` expressions of the data set.

        Attribute indices: the chosen expressions, evenly spaced; fewer than `count` if there are not enough.
        """
        self.dataset = dataset
        self.indices = evenly_spaced(min(len(dataset), limit or len(dataset)), count)

    def draw(self, logits: Tensor) -> Image.Image:
        """Return image, truth and prediction of every expression; logits: (len(indices), 2, H, W), in their order."""
        panels = []
        for index, sample_logits in zip(self.indices, logits, strict=True):
            image, truth = self.dataset.load(index)
            prediction = predicted_mask(sample_logits, truth.shape)
            panels.append(side_by_side(image, self.dataset.expressions[index].text, truth, prediction))
        return sheet(panels, columns=2)
