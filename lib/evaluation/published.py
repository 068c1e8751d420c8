"""The published scores, and how a test differs from the published protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lib.scores import SCORE_NAMES
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


class Other(NamedTuple):
    """A row published by others: of another network, or on a data set that the paper does not test on."""

    network: str
    source: str
    scores: Mapping[str, float]  # percent, by name of the column; some columns may be missing
    note: str = ""


DICOR = "DiCoR, tables I to III"
GRES = "GRES, arXiv 2306.00968"
COHD = "CoHD, arXiv 2405.15658"
RETRAINED = "retrained by the authors of DiCoR, not by those of CrossVLT"


def _classic(network: str, *values: float, note: str = "") -> Other:
    return Other(network, DICOR, dict(zip([*SCORE_NAMES[:5], "oIoU", "mIoU"], values, strict=True)), note)


def _sets(network: str, source: str, ciou: float, giou: float) -> Other:
    note = "answers with a no-target head" if network != "LAVT" else "answers by the rule of pixels"
    return Other(network, source, {"gIoU": giou, "cIoU": ciou}, note)


class Paper(NamedTuple):
    """A network of others, and its scores on the splits of RefCOCO, RefCOCO+ and G-Ref."""

    network: str
    source: str  # with the year
    protocol: str
    metric: str  # the one of overall and mean IoU that it tells
    values: tuple[float, ...]  # percent, in the order of PUBLISHED


# As printed in the papers, which trained their own networks.
PAPERS = (
    Paper(
        "VLT",
        "ICCV 2021, as listed by LAVT",
        "416×416 pixels",
        "oIoU",
        (65.65, 68.29, 62.73, 55.50, 59.20, 49.36, 52.99, 56.65),
    ),
    Paper(
        "LAVT",
        "CVPR 2022",
        "480×480 pixels",
        "oIoU",
        (72.73, 75.82, 68.79, 62.14, 68.38, 55.10, 61.24, 62.09),
    ),
    Paper(
        "ReLA",
        "CVPR 2023",
        "480×480 pixels",
        "oIoU",
        (73.82, 76.48, 70.18, 66.04, 71.02, 57.65, 65.00, 65.97),
    ),
    Paper(
        "CRIS",
        "CVPR 2022",
        "416×416 pixels, masks compared at the size of each image",
        "mIoU",
        (70.47, 73.18, 66.10, 62.27, 68.08, 53.68, 59.87, 60.36),
    ),
)


def _refcoco() -> dict[tuple[str, str, str], Sequence[Other]]:
    """Return the numbers of PAPERS by data set, way of splitting and split."""
    return {
        split: [Other(one.network, one.source, {one.metric: one.values[place]}, one.protocol) for one in PAPERS]
        for place, split in enumerate(PUBLISHED)
    }


# By data set, way of splitting and split. No number of CrossVLT is published for gRefCOCO, Ref-ZOM, RefCOCO-M or
# aRefCOCO.
OTHERS: Mapping[tuple[str, str, str], Sequence[Other]] = {
    **_refcoco(),
    ("refsegrs", "phrases", "test"): (
        _classic("CrossVLT", 71.16, 58.28, 34.51, 16.35, 5.06, 77.44, 58.84, note=RETRAINED),
        _classic("LAVT", 51.84, 30.27, 17.34, 9.52, 2.09, 71.86, 47.40),
    ),
    ("rrsisd", "unc", "test"): (
        _classic("CrossVLT", 70.38, 63.83, 52.86, 42.11, 25.02, 76.32, 61.00, note=RETRAINED),
        _classic("LAVT", 69.52, 63.63, 53.29, 41.60, 24.94, 77.19, 61.04),
    ),
    ("risbench", "phrases", "test"): (
        _classic("CrossVLT", 70.62, 65.05, 57.40, 45.80, 26.10, 74.33, 62.84, note=RETRAINED),
        _classic("LAVT", 69.40, 63.66, 56.10, 44.95, 25.21, 74.15, 61.93),
    ),
    ("grefcoco", "unc", "val"): (
        _sets("LAVT", GRES, 57.64, 58.40),
        _sets("ReLA", GRES, 62.42, 63.60),
        _sets("CoHD", COHD, 65.17, 68.42),
    ),
    ("grefcoco", "unc", "testA"): (
        _sets("LAVT", GRES, 65.32, 65.90),
        _sets("ReLA", GRES, 69.26, 70.03),
        _sets("CoHD", COHD, 71.85, 72.67),
    ),
    ("grefcoco", "unc", "testB"): (
        _sets("LAVT", GRES, 55.04, 55.83),
        _sets("ReLA", GRES, 59.88, 61.02),
        _sets("CoHD", COHD, 62.63, 63.60),
    ),
}
NETWORK = ("base", "base")  # types of Swin and BERT
FUSION = ("cross", True)  # fusion, alignment


class Measurement(NamedTuple):
    """The settings of a test."""

    dataset: str
    split_by: str  # "" for own data
    split: str
    checkpoint: str  # file of the weights, or of the masks
    swin_type: str  # "" if masks from files were scored
    bert_type: str
    img_size: int  # side of the images in pixels
    precision: str = "fp32"
    max_tokens: int = MAX_TOKENS  # of a sentence that were read
    usual_tokens: int = MAX_TOKENS  # that the users of the data set read
    n_published: int | None = None  # expressions of the published split, if known
    own_size: bool = False  # masks were compared at the size of each image
    overlap: str = "background"  # the label of pixels that two parts of an object cover
    shuffled: bool = False  # every sample had the sentence of another object
    fusion: str = "cross"
    alignment: bool = True  # the network was trained with the alignment loss
    unpublished: str = ""  # why the data are not the published ones, see `refer.splits.why_unpublished`

    @property
    def title(self) -> str:
        """The data and the split."""
        return " ".join(filter(None, (self.dataset, self.split_by and f"({self.split_by})", self.split)))

    @property
    def published(self) -> Published | None:
        """The scores of the paper on this split, if there are any; None for other data than the published ones."""
        return None if self.unpublished else PUBLISHED.get((self.dataset, self.split_by, self.split))

    @property
    def others(self) -> Sequence[Other]:
        """The scores that others published on this split; none for other data than the published ones."""
        return () if self.unpublished else OTHERS.get((self.dataset, self.split_by, self.split), ())

    @property
    def masks_only(self) -> bool:
        """Whether masks from files were scored: the network is unknown."""
        return not self.swin_type

    @property
    def measured_at(self) -> str:
        """The size at which masks were compared."""
        return "the size of each image" if self.own_size else f"{self.img_size}×{self.img_size} pixels"


def departures(measurement: Measurement, n_expressions: int) -> list[str]:
    """Return how a test differs from the published protocol, one phrase each; n_expressions: how many were scored.

    Returns nothing if no scores are published for the split.
    """
    if not (measurement.published or measurement.others):
        return []
    n_published, fusion = measurement.n_published, (measurement.fusion, measurement.alignment)
    checks = (
        (measurement.own_size, f"masks were compared at the size of each image: published at {IMG_SIZE}"),
        (
            measurement.published is not None and measurement.overlap != "background",
            f"--overlap {measurement.overlap}: the published masks are background if parts of an object overlap",
        ),
        (measurement.shuffled, "--shuffle_expressions: every sample had the sentence of another object"),
        (
            # Without a network, the image size is only that of the comparison.
            not (measurement.masks_only and measurement.own_size) and measurement.img_size != IMG_SIZE,
            f"--img_size {measurement.img_size}: published at {IMG_SIZE}",
        ),
        (
            not measurement.masks_only and measurement.max_tokens != measurement.usual_tokens,
            f"--max-tokens {measurement.max_tokens}: published with {measurement.usual_tokens}",
        ),
        (
            n_published not in (None, n_expressions),
            f"{n_expressions:,} expressions were tested, the published split has {n_published or 0:,}",
        ),
        (
            not measurement.masks_only and (measurement.swin_type, measurement.bert_type) != NETWORK,
            f"another network: Swin {measurement.swin_type} and BERT {measurement.bert_type}, published with "
            f"Swin {NETWORK[0]} and BERT {NETWORK[1]}",
        ),
        (
            not measurement.masks_only and fusion != FUSION,
            f"another network: fusion {fusion[0]}, {'with' if fusion[1] else 'without'} alignment; published with "
            f"fusion {FUSION[0]} and alignment",
        ),
    )
    return [phrase for differs, phrase in checks if differs]
