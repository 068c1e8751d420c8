"""What a network knows that was trained on the sample data: drawn shapes, and nothing of photographs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from refer.datasets import is_drawn

ONLY_DRAWINGS = (
    "these weights know only the drawn shapes of the sample data: what they find in photographs, or for words about "
    "them, means nothing"
)
SHAPE_WORDS = {"circle", "heart", "star", "triangle"}
PHOTO_WORDS = {"car", "dog", "man", "people", "person", "woman"}  # every vocabulary for photographs has some of them


def knows_only_drawings(words: Iterable[str]) -> bool:
    """Return whether a vocabulary is for the sample data: it has words of shapes, and none that photographs need."""
    known = {*words}
    return known >= SHAPE_WORDS and not PHOTO_WORDS & known


def is_drawing(image: Path) -> bool:
    """Return whether an image file lies in a folder of the sample data, at any depth."""
    return any(is_drawn(folder) for folder in image.absolute().parents)
