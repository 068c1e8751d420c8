"""The report on the comparison: numbers against hand-made ones, and a whole report of made-up results."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image, ImageFont
from pycocotools import mask as coco_mask

from bert.tokenizer import build_tokenizer
from data.dataset_refer_bert import ReferDataset
from data.transforms import PairTransform
from errors import UserError
from experiments import figures, report, tables
from experiments.comparison import GROUPS, Comparison, find_sample, read_compared, read_comparisons
from experiments.plan import SETTINGS
from experiments.report import main, without_folders
from experiments.results import PAPER, SPLITS, VISION, Result, Variant, result_path, write_result
from lib.evaluation.protocols import score
from lib.evaluation.statistics import METRICS, Spread, Sums, difference
from lib.pictures import tiles
from refer.refer import REFER
from refer.splits import default_split_by
from tests.helpers import naming

SIZE = 28
UNION = 1000  # pixels, of every made-up sentence
STEPS = 40
LATE = Variant("late", True)
UNALIGNED = Variant("cross", False)


# ---------------------------------------------------------------- made-up results


@pytest.fixture(scope="module")
def lengths(sample_root: Path) -> dict[str, dict[str, int]]:
    """How many sentences the sample has, by data set and split."""
    found = {}
    for dataset, splits in SPLITS.items():
        refer = REFER(sample_root, dataset, default_split_by(dataset))
        refs = {split: refer.loadRefs(refer.getRefIds(split=split)) for split in splits}
        found[dataset] = {split: sum(len(ref["sentences"]) for ref in own) for split, own in refs.items()}
    return found


@pytest.fixture(scope="module")
def make(sample_root: Path, lengths: dict[str, dict[str, int]]) -> Callable[..., Result]:
    """Return a function that makes up a result on the sample data."""
    sample = json.loads((sample_root / "sample.json").read_text())

    def make_result(dataset: str, variant: Variant, seed: int, iou: float = 0.5, **changes: object) -> Result:
        """iou: of every sentence."""
        rng = np.random.default_rng(seed)
        steps = list(range(1, STEPS + 1))
        maps = [rng.uniform(-1, 1, (side, side)).tolist() for side in (7, 4, 2, 1)] if variant.alignment else []
        runs = coco_mask.encode(np.asfortranarray(rng.random((SIZE, SIZE)) > 0.8, dtype=np.uint8))
        mask = runs["counts"].decode()
        content = {
            "dataset": dataset,
            "fusion": variant.fusion,
            "alignment": variant.alignment,
            "recipe": variant.recipe,
            "seed": seed,
            "lr": 0.001,
            "sweep": {"0.001": 40.0, "0.0005": 39.0},
            "commands": ["/opt/somebody/python train.py --refer_data_root=/home/somebody/data --lr 0.001"],
            "sample": sample,
            "img_size": SIZE,
            "batch_size": 4,
            "steps": STEPS,
            "parameters": 1_230_000,
            "flops": 4_560_000_000,
            "seconds": 90.0,
            "machine": {
                "cpu": "Abacus",
                "device": "beads",
                "cores": 2,
                "torch_threads": 1,
                "versions": {"torch": "2.15", "python": "3.12"},
                "git": {"revision": 40 * "a", "modified": True},
            },
            "curve": {
                "step": steps,
                "loss": rng.random(STEPS).tolist(),
                "mask_loss": (0.1 + rng.random(STEPS)).tolist(),
                "val": {"step": steps[9::10], "mean_iou": steps[9::10], "overall_iou": steps[9::10]},
            },
            "metrics": {"val, shuffled": {"overall_iou": 7.0}},
            "counts": {split: [[round(iou * UNION)] * n, [UNION] * n] for split, n in lengths[dataset].items()},
            "examples": [{"index": index, "mask": mask, "maps": maps} for index in (0, 3, 5)],
        }
        return Result(**(content | changes))

    return make_result


def put(folder: Path, *results: Result) -> Path:
    """Write results into the folder that the report reads."""
    for result in results:
        path = result_path(folder, result.dataset, result.variant, result.seed)
        write_result(path, result._asdict())
    return folder


# ---------------------------------------------------------------- statistics


def test_spread_is_the_deviation_of_a_sample() -> None:
    assert Spread.of([58.0, 60.0, 62.0]) == (60.0, 2.0)
    assert str(Spread.of([58.0, 60.0, 62.0])) == "60.00 ± 2.00"
    assert Spread.of([58.0]) == (58.0, None)
    assert str(Spread.of([58.0])) == "58.00"


def random_counts(n_seeds: int, n_sentences: int) -> np.ndarray:
    """Return intersections and unions, (2, seeds, sentences), some of the unions 0."""
    rng = np.random.default_rng(5)
    union = rng.integers(0, 4, (n_seeds, n_sentences)) * rng.integers(1, 200, (n_seeds, n_sentences))
    return np.stack([(union * rng.random(union.shape)).astype(np.int64), union])


def test_sums_by_image_score_as_the_metrics_do() -> None:
    """Also where images are drawn several times or never."""
    counts, images = random_counts(2, 40), np.repeat(np.arange(8), 5)
    assert (counts[1] == 0).any()
    times = np.array([[1.0] * 8, [3, 0, 1, 0, 0, 2, 1, 1]])
    sums = Sums.of(counts, images, 8)
    mean, overall = sums.mean_iou(times), sums.overall_iou(times)
    assert mean.shape == overall.shape == (2, 2)
    for row, drawn in enumerate(times.astype(int)):
        for seed in range(2):
            expected = score(np.repeat(counts[:, seed].T, drawn[images], axis=0).tolist())
            assert mean[row, seed] == pytest.approx(expected.mean_iou)
            assert overall[row, seed] == pytest.approx(expected.overall_iou)


def test_scores_of_empty_masks_are_zero() -> None:
    sums = Sums.of(np.zeros((2, 1, 3), np.int64), np.arange(3), 3)
    assert sums.mean_iou(np.ones((1, 3))).tolist() == sums.overall_iou(np.ones((1, 3))).tolist() == [[0.0]]


def sums_of(ious: np.ndarray, images: np.ndarray) -> Sums:
    """Return the sums of sentences with these IoU, (seeds, sentences)."""
    union = np.full(ious.shape, UNION)
    return Sums.of(np.stack([np.rint(ious * UNION).astype(np.int64), union]), images, int(images.max()) + 1)


@pytest.mark.parametrize("metric", METRICS)
def test_a_constant_difference_has_no_width(metric: str) -> None:
    """However much images and seeds differ: both networks are scored on the same ones."""
    images = np.repeat(np.arange(6), 4)
    ious = np.random.default_rng(2).integers(100, 900, (3, 24)) / UNION
    ours, theirs = (sums_of(ious + more, images) for more in (0.1, 0))
    found = difference(ours, theirs, METRICS[metric])
    assert found.mean == pytest.approx(10) and found.each == pytest.approx([10, 10, 10])
    assert (found.low, found.high) == (pytest.approx(10), pytest.approx(10))
    assert difference(theirs, ours, METRICS[metric]).mean == pytest.approx(-10)


def test_two_images_that_disagree_span_the_interval() -> None:
    """Each is drawn twice in a quarter of the resamples."""
    ours, theirs = (sums_of(np.array([ious]), np.arange(2)) for ious in ([0.6, 0.4], [0.5, 0.5]))
    found = difference(ours, theirs, METRICS["mean IoU"])
    assert found.mean == pytest.approx(0)
    assert (found.low, found.high) == (pytest.approx(-10), pytest.approx(10))


def test_three_seeds_that_disagree_span_the_interval() -> None:
    """Each is drawn three times in 1/27 of the resamples, more than what is cut off at an end."""
    ours = sums_of(np.repeat([[0.5], [0.53], [0.56]], 10, axis=1), np.arange(10))
    theirs = sums_of(np.full((3, 10), 0.5), np.arange(10))
    found = difference(ours, theirs, METRICS["mean IoU"])
    assert found.each == pytest.approx([0, 3, 6])
    assert (found.low, found.mean, found.high) == (pytest.approx(0), pytest.approx(3), pytest.approx(6))


def test_sentences_of_an_image_are_drawn_together() -> None:
    """Sixteen equal sentences an image tell no more than one: the interval is four times that of independent ones."""
    images = np.repeat(np.arange(50), 16)
    of_images = np.where(np.random.default_rng(1).random(50) < 0.5, 0.4, 0.6)[images][None]
    widths = []
    for numbers in (images, np.arange(800)):
        ours, theirs = sums_of(of_images, numbers), sums_of(np.full((1, 800), 0.5), numbers)
        found = difference(ours, theirs, METRICS["mean IoU"])
        widths.append(found.high - found.low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.1)


def test_resamples_without_a_sentence_do_not_count() -> None:
    """Two of three images hold no sentence of the kind."""
    ours, theirs = (sums_of(np.array([[value] * 2]), np.array([2, 2])) for value in (0.7, 0.5))
    assert ours.sentences.tolist() == [0, 0, 2]
    found = difference(ours, theirs, METRICS["mean IoU"])
    assert (found.low, found.high) == (pytest.approx(20), pytest.approx(20))


# ---------------------------------------------------------------- sentences


@pytest.fixture(scope="module", params=list(SPLITS))
def findings(request: pytest.FixtureRequest, sample_root: Path, make: Callable[..., Result]) -> Comparison:
    """Two networks on each data set."""
    results = [make(request.param, variant, 0) for variant in (PAPER, VISION)]
    return Comparison(sample_root, request.param, results)


def test_sentences_are_in_the_order_of_the_data_set(findings: Comparison, sample_root: Path) -> None:
    """As counts are; kinds are those that scenes.json gives to the sentence."""
    tokenizer = build_tokenizer(str(sample_root / "vocab.txt"))
    said = json.loads((sample_root / "scenes.json").read_text())["sentences"][findings.dataset]
    assert tuple(findings.sentences) == SPLITS[findings.dataset]
    for split, sentences in findings.sentences.items():
        expressions = ReferDataset(findings.refer, split, tokenizer, PairTransform(SIZE)).expressions
        assert len(sentences) == len(expressions) > 0
        for own, expression in zip(sentences, expressions, strict=True):
            entry = said[expression.sent_id]
            assert own.ref["ref_id"] == expression.ref_id
            assert (own.image_id, own.text) == (expression.image_id, expression.text)
            assert (entry["sent_id"], entry["ann_id"]) == (expression.sent_id, expression.ann_id)
            assert own.kinds == set(entry["kinds"])


def test_groups_hold_the_sentences_of_a_kind(findings: Comparison) -> None:
    kinds = [sentence.kinds for sentence in findings.all_sentences]
    groups = findings.groups()
    assert all(among.any() and len(among) == len(kinds) for among in groups.values())
    assert groups["size"].tolist() == ["size" in own for own in kinds]
    assert groups["colour alone"].tolist() == [own == {"colour"} for own in kinds]
    assert groups["without colour"].tolist() == [not own & {"colour"} for own in kinds]
    others = {"place", "relation", "ordinal"}
    assert groups["looks alone"].tolist() == [not own & others for own in kinds]
    # refcoco+ describes only looks.
    assert (findings.dataset == "refcoco+") == others.isdisjoint(groups)
    assert list(groups) == [name for name in GROUPS if name in groups]


def test_an_example_is_the_sentence_of_its_index(findings: Comparison) -> None:
    sentence = findings.sentences["val"][3]
    image, mask = findings.load(sentence)
    assert image.size == mask.shape[::-1]
    assert np.array_equal(mask, findings.refer.getMask(sentence.ref)["mask"])
    with Image.open(Path(findings.refer.IMAGE_DIR) / findings.refer.Imgs[sentence.image_id]["file_name"]) as photo:
        assert np.array_equal(np.asarray(photo.convert("RGB")), np.asarray(image))


def test_scores_are_of_the_sentences_asked_for(sample_root: Path, make: Callable[..., Result]) -> None:
    """Every sentence has an IoU of its own."""
    sizes = make("refcoco", PAPER, 0).counts
    own = {split: [list(range(len(unions))), [UNION] * len(unions)] for split, (_, unions) in sizes.items()}
    one = Comparison(sample_root, "refcoco", [make("refcoco", PAPER, 0, counts=own)])
    (val,) = one.scores(PAPER, "val")
    assert val == score([(number, UNION) for number in range(len(sizes["val"][0]))])
    (pooled,) = one.scores(PAPER)
    assert pooled == score([pair for split in SPLITS["refcoco"] for pair in zip(*own[split], strict=True)])
    places = one.groups()["place"]
    pairs = [pair for split in SPLITS["refcoco"] for pair in zip(*own[split], strict=True)]
    (of_place,) = one.scores(PAPER, among=places)
    assert of_place == score([pair for pair, chosen in zip(pairs, places, strict=True) if chosen])


# ---------------------------------------------------------------- tables


def cells(table: str, name: str) -> list[str]:
    """Return the cells of a table's row."""
    (row,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


@pytest.fixture(scope="module")
def three_seeds(sample_root: Path, make: Callable[..., Result]) -> Comparison:
    """The paper's network at 58, 60 and 62 %, late fusion at 50 %, one seed of that without alignment."""
    results = [make("refcoco", PAPER, seed, iou) for seed, iou in enumerate((0.58, 0.60, 0.62))]
    results += [make("refcoco", LATE, seed, lr=0.0005) for seed in range(3)]
    results += [make("refcoco", UNALIGNED, 1, 0.61, metrics={})]
    return Comparison(sample_root, "refcoco", results)


def test_scores_table_gives_means_and_deviations(three_seeds: Comparison) -> None:
    table = tables.scores_table(three_seeds)
    paper = ["1.23 M", "4.56", "0.001", "0, 1, 2", *["60.00 ± 2.00"] * 2, "100.00 ± 0.00", "7.00 ± 0.00"]
    assert cells(table, "CrossVLT") == paper
    assert cells(table, "late fusion")[2:5] == ["0.0005", "0, 1, 2", "50.00 ± 0.00"]
    alone = ["1.23 M", "4.56", "0.001", "1", "61.00", "61.00", "100.00", tables.MISSING]
    assert cells(table, "without alignment") == alone
    assert cells(tables.splits_table(three_seeds), "CrossVLT") == ["60.00 ± 2.00"] * 6


def test_differences_pair_the_seeds(three_seeds: Comparison) -> None:
    table = tables.differences_table(three_seeds)
    assert cells(table, "late fusion") == ["+10.00", "+8.00 to +12.00", "+8.00, +10.00, +12.00"] * 2
    assert cells(table, "without alignment") == ["−1.00", "−1.00 to −1.00", "−1.00"] * 2


def test_differences_draw_images_whole(sample_root: Path, make: Callable[..., Result]) -> None:
    """The paper's network is better on every other image, and worse on the rest."""
    result, other = make("refcoco", PAPER, 0), make("refcoco", LATE, 0)
    counts = {
        split: [[600 if sentence.image_id % 2 else 400 for sentence in own], [UNION] * len(own)]
        for split, own in Comparison(sample_root, "refcoco", [other]).sentences.items()
    }
    found = Comparison(sample_root, "refcoco", [result._replace(counts=counts), other])
    ids = [sentence.image_id for sentence in found.all_sentences]
    numbers = np.array([sorted(set(ids)).index(image_id) for image_id in ids])
    ious = np.array([[0.6 if image_id % 2 else 0.4 for image_id in ids]])
    expected = difference(sums_of(ious, numbers), sums_of(np.full_like(ious, 0.5), numbers), METRICS["mean IoU"])
    own = found.paper_minus(LATE, METRICS["mean IoU"])
    assert (own.mean, own.low, own.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert expected.high - expected.low > 5


def test_group_tables_have_a_cell_for_every_kind(three_seeds: Comparison) -> None:
    groups = three_seeds.groups()
    table = tables.groups_table(three_seeds)
    assert cells(table, "network") == [f"{name} ({among.sum()})" for name, among in groups.items()]
    assert cells(table, "CrossVLT") == ["60.00 ± 2.00"] * len(groups)
    table = tables.group_differences_table(three_seeds)
    assert cells(table, "sentences with") == ["images", "minus *late fusion*", "minus *without alignment*"]
    ids = np.array([sentence.image_id for sentence in three_seeds.all_sentences])
    n_images = {name: len(set(ids[among].tolist())) for name, among in groups.items()}
    assert min(n_images.values()) < tables.FEWEST_IMAGES < max(n_images.values())
    for name, n in n_images.items():
        few = n < tables.FEWEST_IMAGES
        assert cells(table, name)[0] == str(n)
        assert cells(table, name)[2] == ("−1.00" if few else "−1.00 (−1.00 to −1.00)")


def test_sweeps_that_data_sets_share_are_one_row(make: Callable[..., Result]) -> None:
    results = [make(dataset, PAPER, seed) for dataset in ("refcoco", "refcoco+") for seed in (0, 1)]
    results += [make("refcoco", LATE, 0, sweep={"0.002": 12.345}, lr=0.002), make("refcoco", VISION, 0, sweep={})]
    table = tables.sweep_table(results)
    assert cells(table, "network") == ["used on", "0.0005", "0.001", "0.002"]
    assert cells(table, "CrossVLT") == ["refcoco, refcoco+", "39.00", "**40.00**", tables.MISSING]
    assert cells(table, "late fusion") == ["refcoco", tables.MISSING, tables.MISSING, "**12.35**"]
    assert "vision" not in table
    assert tables.sweep_table(results[-1:]) == "There were none: the learning rate was given."


# ---------------------------------------------------------------- pictures


def test_curves_are_compared_where_all_were_measured() -> None:
    steps, values = figures.by_step([[1, 2, 3], [2, 3, 4]], [[10, 20, 30], [5, 6, 7]])
    assert steps.tolist() == [2, 3]
    assert values.tolist() == [[20, 30], [5, 6]]


def test_smoothing_takes_a_running_mean() -> None:
    n = 2 * figures.SMOOTHING
    assert figures.smooth(np.arange(n)).tolist() == [number + 0.5 for number in range(n - 1)]
    assert figures.smooth(np.array([[3.0, 5.0]])).tolist() == [[3.0, 5.0]]


def test_an_example_shows_what_was_predicted(sample_root: Path, make: Callable[..., Result]) -> None:
    """Everything keeps the image as it is, nothing makes it grey."""
    everything, nothing = (
        coco_mask.encode(np.full((SIZE, SIZE), value, np.uint8, order="F"))["counts"].decode() for value in (1, 0)
    )
    results = [
        make("refcoco", variant, 0, examples=[{"index": 3, "mask": mask, "maps": []}])
        for variant, mask in ((PAPER, everything), (LATE, nothing))
    ]
    found = Comparison(sample_root, "refcoco", results)
    first = figures.first_results(found)
    (example,) = figures.common_examples(found, first, 5)
    assert max(example.image.size) == figures.PANEL and example.truth.shape == example.image.size[::-1]
    assert example.sentence == found.sentences["val"][3]
    _, truth, *predicted = figures.example_tiles(example, first)
    box = (0, 0, *example.image.size)
    everywhere, nowhere = (np.asarray(tile.crop(box)) for tile in predicted)
    assert np.array_equal(everywhere, np.asarray(example.image))
    assert (np.ptp(nowhere, axis=-1) == 0).all()
    # The truth is outlined: the object and what is far from it keep their colours.
    changed = (np.asarray(truth.crop(box)) != np.asarray(example.image)).any(axis=-1)
    assert changed.any() and not (changed & (example.truth == 1)).any()


def test_no_empty_picture_is_drawn(tmp_path: Path, sample_root: Path, make: Callable[..., Result]) -> None:
    """No example is common to both networks, and none of them is the paper's."""
    example = make("refcoco", LATE, 0).examples[0]
    apart = [make("refcoco", variant, 0, examples=[example | {"index": n}]) for n, variant in enumerate((VISION, LATE))]
    found = Comparison(sample_root, "refcoco", apart)
    for name in ("examples", "alignment", "differences"):
        assert not figures.FIGURES[name].draw(found, tmp_path / "picture.png")
    assert not list(tmp_path.iterdir())


def test_maps_of_all_networks_share_their_colours() -> None:
    image = Image.new("RGB", (figures.PANEL, 100), "black")
    low, high = (np.asarray(figures.map_tile(image, np.full((2, 2), value), -1, 1))[50, 100] for value in (-1.0, 1.0))
    for pixel, share in ((low, 0.0), (high, 1.0)):
        expected = tiles.MAP_OPACITY * 255 * np.array(colormaps[tiles.COLOUR_MAP](share)[:3])
        assert np.abs(pixel - expected).max() <= 1


def test_long_sentences_are_wrapped() -> None:
    font = ImageFont.load_default(size=tiles.TEXT_SIZE)
    lines = tiles.wrapped("the small striped yellow circle to the left of the very large cross", font, figures.PANEL)
    assert " ".join(lines) == "the small striped yellow circle to the left of the very large cross"
    assert 3 <= len(lines) <= 6 and all(font.getlength(line) <= figures.PANEL for line in lines)
    assert tiles.paragraph("", figures.PANEL).height == tiles.LINE_HEIGHT
    assert tiles.paragraph(" ".join(lines), figures.PANEL).height == len(lines) * tiles.LINE_HEIGHT


# ---------------------------------------------------------------- the whole report


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, sample_root: Path, make: Callable[..., Result]) -> Path:
    """A report on two data sets: on refcoco two networks of two seeds and one of one, on refcoco+ one alone."""
    folder = tmp_path_factory.mktemp("whole")
    results = [make("refcoco", variant, seed, 0.5 + 0.1 * seed) for variant in (PAPER, VISION) for seed in (0, 1)]
    results += [make("refcoco", UNALIGNED, 0), make("refcoco+", UNALIGNED, 0)]
    put(folder / "results", *results)
    (folder / "results" / "sweep").mkdir()
    (folder / "results" / "sweep" / "shorter.json").write_text("is not read")
    (folder / "out").mkdir()
    (folder / "out" / "README.md").write_text("a person's words")
    for out in ("out", "again"):
        main(["--results", str(folder / "results"), "--data", str(sample_root), "--out", str(folder / out)])
    return folder


def links(folder: Path) -> Iterator[Path]:
    """Return the pictures that a report shows."""
    text = (folder / "report.md").read_text()
    return (folder / unquote(link) for link in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text))


@pytest.mark.slow  # draws reports
def test_report_shows_all_pictures(whole: Path) -> None:
    shown = list(links(whole / "out"))
    names = [f"refcoco-{name}" for name in figures.FIGURES] + ["refcoco+-kinds", "refcoco+-examples", "refcoco+-curves"]
    assert sorted(path.stem for path in shown) == sorted(names)
    assert sorted(shown) == sorted((whole / "out" / "pictures").iterdir())
    for path in shown:
        with Image.open(path) as picture:
            assert 500 < picture.width < 2000
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10


@pytest.mark.slow  # draws reports
def test_report_lists_existing_and_missing_results(whole: Path, sample_root: Path) -> None:
    text = (whole / "out" / "report.md").read_text()
    assert "There are no results yet on refcocog." in text
    assert "left out: without fusion, without both, late fusion." in text
    assert "From no seed were both CrossVLT and another network trained." in text
    first, second = text.split("## refcoco+\n")
    assert cells(first[: first.index("By split")], "CrossVLT")[3:5] == ["0, 1", "55.00 ± 7.07"]
    assert cells(second[: second.index("By split")], "without alignment")[3:5] == ["0", "50.00"]
    assert "    python train.py --refer_data_root=data --lr 0.001\n" in text
    assert f"- refcoco: 5 trainings of {STEPS} steps of 4 samples at {SIZE}×{SIZE} pixels, 0 h 08 min" in text
    assert "Abacus (beads), cores 2, torch threads 1, torch 2.15, Python 3.12, revision aaaaaaaaaa with changes" in text
    assert "images 16, seed 3" in text
    assert "    python -m experiments.compare\n    python -m experiments.report\n" in text
    for place in ("/opt", "/home", "somebody", str(sample_root), str(whole)):
        assert place not in text


@pytest.mark.slow  # draws pictures
def test_report_on_harder_data_misses_only_what_belongs_there(
    tmp_path: Path, sample_root: Path, make: Callable[..., Result]
) -> None:
    results = put(tmp_path / "results", make("refcoco", PAPER, 1), make("refcoco", VISION, 1))
    main(["--hard", "--results", str(results), "--data", str(sample_root), "--out", str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# The comparison on harder data, measured\n\n`python -m experiments.report --hard` wrote")
    assert "Not trained yet, and so left out: without alignment.\n" in text
    assert "There are no results yet" not in text
    assert "    python -m experiments.compare --hard\n    python -m experiments.report --hard\n" in text
    assert "on the harder refcoco" in text


@pytest.mark.slow  # draws reports
def test_report_is_the_same_every_time(whole: Path) -> None:
    files = [path.relative_to(whole / "again") for path in (whole / "again").rglob("*.*")]
    assert len(files) == len(list(links(whole / "again"))) + 1
    for file in files:
        assert (whole / "again" / file).read_bytes() == (whole / "out" / file).read_bytes(), file


@pytest.mark.slow  # draws reports
def test_report_keeps_texts_written_by_people(whole: Path) -> None:
    assert (whole / "out" / "README.md").read_text() == "a person's words"


@pytest.mark.slow  # draws reports
def test_tables_have_as_many_cells_in_every_row(whole: Path) -> None:
    blocks = (whole / "out" / "report.md").read_text().split("\n\n")
    widths = [{line.count("|") for line in block.splitlines()} for block in blocks if block.startswith("|")]
    assert len(widths) >= 7 and all(len(own) == 1 for own in widths)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python train.py --lr 0.1 --dataset refcoco+", "python train.py --lr 0.1 --dataset refcoco+"),
        ("/usr/bin/python -m x --root /a/b.c/d --out=/e/f/ './g/h'", "python -m x --root d --out= './g/h'"),
        ("run '/a/b c.pth' runs/a/b.pth", "run 'b c.pth' runs/a/b.pth"),
    ],
)
def test_commands_are_shown_without_folders_of_a_machine(command: str, expected: str) -> None:
    assert without_folders(command) == expected


# ---------------------------------------------------------------- what is refused


def test_results_that_do_not_fit_the_data_are_named(
    tmp_path: Path, sample_root: Path, make: Callable[..., Result]
) -> None:
    good = make("refcocog", PAPER, 4)
    short = {split: [row[:-1] for row in rows] for split, rows in good.counts.items()}
    for counts in (short, {"val": good.counts["val"]}, {**good.counts, "test": [good.counts["test"][0]]}):
        put(tmp_path, good._replace(counts=counts))
        with pytest.raises(UserError, match=r"refcocog-cross-seed4\.json .* (val|test)\b"):
            read_comparisons(tmp_path, sample_root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": {"version": 1, "images": 17, "seed": 3}}, "sample .*'images': 1[67].*'images': 1[67]"),
        ({"steps": 41}, "steps 4[01].* 4[01]"),
        ({"img_size": 56}, "img_size"),
    ],
)
def test_results_of_different_settings_are_refused(
    tmp_path: Path, make: Callable[..., Result], change: dict, message: str
) -> None:
    put(tmp_path, make("refcoco", PAPER, 0), make("refcoco", LATE, 0)._replace(**change))
    with pytest.raises(UserError, match=message):
        read_compared(tmp_path)


def test_data_sets_may_be_trained_differently(tmp_path: Path, make: Callable[..., Result]) -> None:
    put(tmp_path, make("refcoco", PAPER, 0), make("refcocog", PAPER, 0, steps=41))
    assert [result.steps for result in read_compared(tmp_path)] == [STEPS, 41]


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"dataset": "refcoco"}'])
def test_a_corrupt_file_is_named(tmp_path: Path, sample_root: Path, make: Callable[..., Result], content: str) -> None:
    put(tmp_path, make("refcoco", PAPER, 0))
    (tmp_path / "refcoco-late-seed0.json").write_text(content)
    with pytest.raises(UserError, match=r"refcoco-late-seed0\.json"):
        read_comparisons(tmp_path, sample_root)


def test_unknown_networks_and_empty_folders_are_refused(tmp_path: Path, make: Callable[..., Result]) -> None:
    with naming(tmp_path, "experiments.compare"):
        read_compared(tmp_path)
    put(tmp_path, make("refcoco", Variant("late", False), 0))
    with naming(tmp_path, "late"):
        read_compared(tmp_path)


def test_a_copied_result_is_refused(tmp_path: Path, sample_root: Path, make: Callable[..., Result]) -> None:
    path = result_path(put(tmp_path, make("refcoco", PAPER, 0)), "refcoco", PAPER, 0)
    (tmp_path / "copy.json").write_bytes(path.read_bytes())
    with naming("two", "refcoco-cross-seed0.json"):
        read_comparisons(tmp_path, sample_root)


def test_a_missing_sample_is_drawn(tmp_path: Path, sample_root: Path) -> None:
    options = {"version": 1, "images": 1, "seed": 2}
    find_sample(tmp_path / "new", options)
    assert json.loads((tmp_path / "new" / "sample.json").read_text()) == options
    with pytest.raises(UserError, match=r"'shadows': True.*'version': 1"):
        find_sample(tmp_path / "new", options | {"shadows": True})
    with naming("version 0"):
        find_sample(tmp_path / "new", options | {"version": 0})
    with naming(sample_root, "--root"):
        find_sample(sample_root, options)
    with naming("{'version': 1}"):
        find_sample(sample_root, {"version": 1})


def test_every_network_of_the_comparison_has_a_colour() -> None:
    for setting in SETTINGS.values():
        for variants in setting.compared.values():
            assert len({figures.COLOURS[variant] for variant in variants}) == len(variants)


def test_other_recipes_are_compared_at_equal_steps_and_at_equal_time(
    make: Callable[..., Result], sample_root: Path
) -> None:
    maps = [{"auc": 0.5 + stage / 10, "precision": 0.25, "low": -1.0, "high": 1.0} for stage in range(4)]
    half = Variant("cross", True, "maskris-half")
    results = [make("refcoco", PAPER, 0), make("refcoco", half, 0, steps=STEPS // 2, seconds=93.0, maps=maps)]
    found = Comparison(sample_root, "refcoco", results)
    assert report.length_parts(Comparison(sample_root, "refcoco", results[:1])) == []
    text = "\n".join([*report.length_parts(found), *report.map_parts(found)])
    assert f"| CrossVLT | {STEPS} | 1.5 |" in text
    assert f"| with MaskRIS, half of the steps | {STEPS // 2} | 1.6 |" in text
    assert "| with MaskRIS, half of the steps | 0.50 | 0.25 | 0.60 | 0.25 | 0.70 | 0.25 | 0.80 | 0.25 |" in text


def test_results_of_other_steps_are_compared_only_if_they_should_have_them(
    make: Callable[..., Result], tmp_path: Path
) -> None:
    half, whole = (Variant("cross", True, f"all{end}") for end in ("-half", ""))
    put(tmp_path, make("refcoco", PAPER, 0), make("refcoco", half, 0, steps=STEPS // 2))
    assert len(read_compared(tmp_path)) == 2
    put(tmp_path, make("refcoco", whole, 0, steps=STEPS // 2))
    with naming("steps", STEPS, STEPS // 2):
        read_compared(tmp_path)
