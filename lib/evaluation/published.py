"""The published scores, and how a test differs from the published protocol."""

from __future__ import annotations

from typing import NamedTuple

from lib.variants import IMG_SIZE, MAX_TOKENS


class Published(NamedTuple):
    """A row of the table in the paper, in percent."""

    precision: tuple[float, ...]  # P@0.5 to P@0.9
    mean_iou: float
    overall_iou: float
    # This row repeats LAVT's P@X, and its mean IoU is LAVT's overall IoU. Only its overall IoU is CrossVLT's.
    repeats_lavt: bool = False


# By data set, way of splitting and split.
PUBLISHED = {
    ("refcoco", "unc", "val"): Published((85.82, 82.80, 77.49, 67.21, 35.97), 75.48, 73.44),
    ("refcoco", "unc", "testA"): Published((88.92, 86.25, 81.62, 69.79, 36.68), 77.54, 76.16),
    ("refcoco", "unc", "testB"): Published((81.35, 77.74, 72.27, 62.63, 37.64), 72.69, 70.15),
    ("refcoco+", "unc", "val"): Published((76.41, 73.09, 68.49, 59.09, 31.39), 67.27, 63.60),
    ("refcoco+", "unc", "testA"): Published((82.43, 79.57, 74.80, 64.65, 32.89), 72.00, 69.10),
    ("refcoco+", "unc", "testB"): Published((67.19, 63.31, 58.89, 49.93, 29.15), 60.09, 55.23),
    ("refcocog", "umd", "val"): Published((74.75, 70.45, 64.58, 54.21, 28.57), 66.21, 62.68),
    ("refcocog", "umd", "test"): Published((71.54, 66.38, 59.00, 48.21, 23.10), 62.09, 63.75, repeats_lavt=True),
}
NETWORK = ("base", "base")  # types of Swin and BERT
FUSION = ("cross", True)  # fusion, alignment


class Measurement(NamedTuple):
    """The settings of a test."""

    dataset: str
    split_by: str
    split: str
    checkpoint: str  # file of the weights
    swin_type: str
    bert_type: str
    img_size: int  # side of the images in pixels
    precision: str = "fp32"
    max_tokens: int = MAX_TOKENS  # of a sentence that were read
    n_published: int | None = None  # expressions of the published split, if known
    own_size: bool = False  # masks were compared at the size of each image
    overlap: str = "background"  # the label of pixels that two parts of an object cover
    shuffled: bool = False  # every sample had the sentence of another object
    fusion: str = "cross"
    alignment: bool = True  # the network was trained with the alignment loss

    @property
    def published(self) -> Published | None:
        """The published scores of this split, if there are any."""
        return PUBLISHED.get((self.dataset, self.split_by, self.split))


def departures(measurement: Measurement, n_expressions: int) -> list[str]:
    """Return how a test differs from the published protocol, one phrase each; n_expressions: how many were scored."""
    n_published, fusion = measurement.n_published, (measurement.fusion, measurement.alignment)
    checks = (
        (measurement.own_size, "--eval_ori_size: masks were compared at the size of each image, not at --img_size"),
        (
            measurement.overlap != "background",
            f"--overlap {measurement.overlap}: where an object's parts overlap, the published masks are background",
        ),
        (measurement.shuffled, "--shuffle_expressions: every sample had the sentence of another object"),
        (measurement.img_size != IMG_SIZE, f"--img_size {measurement.img_size}: published at {IMG_SIZE}"),
        (
            n_published not in (None, n_expressions),
            f"other data: {n_expressions:,} expressions, the published split has {n_published or 0:,}",
        ),
        (
            (measurement.swin_type, measurement.bert_type) != NETWORK,
            f"another network: Swin {measurement.swin_type} and BERT {measurement.bert_type}, published with "
            f"Swin {NETWORK[0]} and BERT {NETWORK[1]}",
        ),
        (
            fusion != FUSION,
            f"another network: fusion {fusion[0]}, {'with' if fusion[1] else 'without'} alignment; published with "
            f"fusion {FUSION[0]} and alignment",
        ),
    )
    return [phrase for differs, phrase in checks if differs]
