"""Pictures of predictions: masks, overlays side by side, sheets of them.

Put the overlays that `test.py --save-masks DIR` wrote onto one sheet:
    python -m lib.pictures DIR --out sheet.png
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

from errors import UserError, run
from lib.arguments import Parser, positive_int


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the checked flags; arguments: None for those of the command line."""
    parser = Parser("python -m lib.pictures", description=__doc__)
    parser.add_argument("folder", type=Path, help="what test.py --save-masks wrote")
    parser.add_argument("--out", type=Path, default=Path("sheet.png"), help="a PNG file")
    parser.add_argument("--count", type=positive_int, default=18, help="overlays on the sheet")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from data.photo import Pixels, open_photo
from lib.contracts import Batch, Expressions, Similarity
from lib.decoder import upsample
from lib.files import write_atomically
from lib.metrics import predicted_object
from lib.outputs import check_output, make_folder
from lib.texts import showable

TRUTH_COLOUR = (40, 170, 90)
PREDICTION_COLOUR = (220, 50, 60)
PANEL_SIZE = 170  # pixels on a side; images are fitted in
FADED_CONTRAST = 0.35  # of what an overlay leaves out
STRIP_WIDTH, STRIP_HEIGHT = 400, 200  # pixels, at most, of a panel with an alignment map
CAPTION_HEIGHT = 22
GAP = 4


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

    def __call__(self, batch: Batch, logits: Tensor) -> None:
        """Write the pictures of a batch; logits: (B, 2, H, W)."""
        for index, sample_logits in zip(batch.numbers.tolist(), logits, strict=True):
            try:
                self._write(index, sample_logits)
            except OSError as error:
                raise UserError(f"--save-masks: {self.masks.parent} cannot be written to ({error.strerror})") from error

    def _write(self, index: int, logits: Tensor) -> None:
        expression = self.dataset.expressions[index]
        image, truth = self.dataset.load(index)
        prediction = predicted_mask(logits, truth.shape)
        name = f"{index:06d}_ref{expression.ref_id}_sent{expression.sent_id}.png"
        Image.fromarray(prediction * 255).save(self.masks / name)
        side_by_side(image, expression.text, truth, prediction).save(self.overlays / name)


class Strip:
    """Draw the same few expressions again and again, to watch a network learn."""

    def __init__(self, dataset: Expressions, count: int = 6, *, limit: int | None = None) -> None:
        """limit: choose among the data set's first expressions only, as many as this.

        indices: the chosen expressions, evenly spaced; fewer than `count` where there are not that many.
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


def evenly_spaced(n: int, count: int) -> list[int]:
    """Return `count` numbers spread over range(n), or all of them where there are fewer."""
    count = min(count, n)
    return [number * n // count for number in range(count)]


def predicted_mask(logits: Tensor, size: Sequence[int]) -> Pixels:
    """Turn a sample's logits (2, H, W) into a mask of `size` (height, width), uint8 with 1 on the object."""
    return predicted_object(upsample(logits[None], size))[0].cpu().numpy().astype(np.uint8)


def overlay(image: Image.Image, mask: Pixels, colour: tuple[int, int, int], *, wider: int = 0) -> Image.Image:
    """Fade what lies outside the mask of an RGB image and outline the inside, which keeps its own colours.

    mask: (H, W) of the image's size, 1 on the object. wider: pixels that the outline grows to both sides.
    """
    from skimage.morphology import isotropic_dilation
    from skimage.segmentation import find_boundaries

    pixels = np.array(image)
    inside = mask.astype(bool)
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    faded = (FADED_CONTRAST * grey + (1 - FADED_CONTRAST) * 255).astype(np.uint8)
    pixels[~inside] = np.broadcast_to(faded, pixels.shape)[~inside]
    edge = find_boundaries(inside, mode="thick")
    # What is empty stays so; of nothing, the dilation makes a corner.
    pixels[isotropic_dilation(edge, wider) if wider and edge.any() else edge] = colour
    return Image.fromarray(pixels)


def outline_growth(size: Sequence[int]) -> int:
    """Return how much wider than a pixel an outline must be to be seen on a large photo."""
    return max(size) // 800


def alignment_strip(image: Image.Image, text: str, maps: Sequence[Similarity]) -> Image.Image:
    """Return what each stage finds similar to the sentence, side by side: dark where little, yellow where much.

    maps: of each stage, (H_i, W_i) float. Each has its own range of colours, which its caption names.
    """
    from matplotlib import colormaps

    scale = min(STRIP_HEIGHT / image.height, STRIP_WIDTH / image.width)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    grey = np.asarray(image.convert("L").resize(size, Image.Resampling.BILINEAR), dtype=np.float32)[..., None]
    panels = [image.resize(size, Image.Resampling.BILINEAR)]
    captions = [text]
    for number, values in enumerate(maps, start=1):
        low, high = float(values.min()), float(values.max())
        shares = Image.fromarray((values.astype(np.float32) - low) / max(high - low, 1e-6)).resize(size)
        colours = colormaps["viridis"](np.asarray(shares).clip(0, 1))[..., :3] * 255
        panels.append(Image.fromarray((0.3 * grey + 0.7 * colours).astype(np.uint8)))
        captions.append(f"stage {number}: {low:.3f} to {high:.3f}")
    return captioned(panels, captions)


def captioned(panels: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Return pictures of one size side by side, each under its caption."""
    width, height = panels[0].size
    strip = Image.new("RGB", (len(panels) * (width + GAP) - GAP, CAPTION_HEIGHT + height), "white")
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(size=14)
    for column, (panel, caption) in enumerate(zip(panels, captions, strict=True)):
        left = column * (width + GAP)
        strip.paste(panel, (left, CAPTION_HEIGHT))
        draw.text((left + 2, 3), fitting(caption, font, width - 4), fill="black", font=font)
    return strip


def side_by_side(image: Image.Image, text: str, truth: Pixels, prediction: Pixels) -> Image.Image:
    """Return image, truth (green) and prediction (red) next to each other under the expression."""
    panels = (image, overlay(image, truth, TRUTH_COLOUR), overlay(image, prediction, PREDICTION_COLOUR))
    strip = Image.new("RGB", (3 * PANEL_SIZE + 2 * GAP, CAPTION_HEIGHT + PANEL_SIZE), "white")
    for column, panel in enumerate(panels):
        fitted = ImageOps.pad(panel, (PANEL_SIZE, PANEL_SIZE), Image.Resampling.BILINEAR, color="white")
        strip.paste(fitted, (column * (PANEL_SIZE + GAP), CAPTION_HEIGHT))
    font = ImageFont.load_default(size=14)
    ImageDraw.Draw(strip).text((2, 3), fitting(text, font, strip.width - 4), fill="black", font=font)
    return strip


def fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return as much of a text's beginning as fits on one line of so many pixels; nothing on a very short line."""
    text = showable(" ".join(text.split()))
    if font.getlength(text) <= width:
        return text
    cuts = (f"{text[:end].rstrip()} …" for end in range(len(text), -1, -1))
    return next((cut for cut in cuts if font.getlength(cut) <= width), "")


def sheet(pictures: Sequence[Image.Image], columns: int = 3) -> Image.Image:
    """Arrange pictures in rows on one white sheet."""
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    column_width = max(picture.width for picture in pictures) + 3 * GAP
    heights = [max(picture.height for picture in row) + 3 * GAP for row in rows]
    page = Image.new("RGB", (column_width * min(columns, len(pictures)), sum(heights)), "white")
    for number, row in enumerate(rows):
        for column, picture in enumerate(row):
            page.paste(picture, (column * column_width, sum(heights[:number])))
    return page


def small_png(image: Image.Image) -> bytes:
    """Return an RGB image as a PNG of at most 256 colours."""
    content = io.BytesIO()
    # Of Pillow's ways the one that keeps strong colours, refined: others make purple hearts pink.
    few = image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    few.save(content, format="PNG", optimize=True)
    return content.getvalue()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a sheet of evenly spaced overlays."""
    args = parse_args(arguments)
    files = sorted((args.folder / "overlays").glob("*.png"))
    if not files:
        raise UserError(f"{args.folder} holds no overlays/*.png: make them with test.py --save-masks {args.folder}")
    check_output(args.out, "--out", "a PNG picture", files)
    chosen = [files[number] for number in evenly_spaced(len(files), args.count)]
    page = sheet([open_photo(file) for file in chosen])
    write_atomically(args.out, lambda file: page.save(file, format="PNG"))
    print(f"{len(chosen)} of {len(files)} overlays on {args.out}")


if __name__ == "__main__":
    run(main)
