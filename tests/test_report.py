"""The page of `test.py --report`: its numbers, how failures are sorted, and that nothing leaves or enters it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import test as test_script
import utils
from data.sample.make import make_sample
from errors import UserError
from lib.contracts import Expression, Output
from lib.evaluation.metrics import Metrics
from lib.evaluation.protocols import Counting, Result
from lib.evaluation.published import OTHERS, PUBLISHED, Measurement, departures
from lib.evaluation.report import (
    FAILURE_TYPES,
    IOUS,
    PackedMask,
    Report,
    best_median_worst,
    failure_type,
    find_failures,
    grouped,
)
from lib.scores import leading_text
from refer.splits import why_unpublished
from tests.helpers import mostly_slow
from tests.networks import reference_nano

ROOT = Path(__file__).parent.parent
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror="alert(2)">',
    "</figcaption></main><a href='http://example.org'>man</a>",
    "{{ scores }} {% for x in y %} &lt;b&gt;",
    "\u202egnorw\x00 end",
]
MEASURED = Measurement("refcoco", "unc", "val", "weights.pth", "base", "base", 480, n_published=10_834)


class Page(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.bdi: list[str] = []
        self._rows: list[list[str]] = []
        self._inside: str = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self._rows = self.tables.setdefault(dict(attrs).get("id") or f"table {len(self.tables)}", [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        elif tag == "bdi":
            self.bdi.append("")
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in ("td", "th"):
            self._rows[-1][-1] += data
        elif self._inside == "bdi":
            self.bdi[-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


class Dataset:
    """As much of a `ReferDataset` as a report reads: two expressions of every object, images of noise."""

    def __init__(self, masks: torch.Tensor, texts: list[str] | None = None, file_name: str = "image.jpg") -> None:
        self.masks, self.file_name = masks, file_name
        texts = texts or [f"object {number}" for number in range(len(masks))]
        self.expressions = [Expression(n // 2, n // 2, n, 100 + n, text) for n, text in enumerate(texts)]
        self.object_of = [number // 2 for number in range(len(masks))]
        self.no_target = [False] * len(masks)

    def __len__(self) -> int:
        return len(self.expressions)

    def load(self, index: int) -> tuple[Image.Image, np.ndarray]:
        first = index // 2 * 2  # sentence of the object
        mask = self.masks[first].numpy().astype(np.uint8)
        noise = np.random.default_rng(first).integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
        return Image.fromarray(noise), mask

    def truth(self, index: int) -> np.ndarray:
        return self.load(index)[1]

    def image_size(self, index: int) -> tuple[int, int]:
        height, width = self.masks[index].shape
        return height, width

    def category(self, index: int) -> str:
        return f"kind {index % 2}"

    def image_path(self, index: int) -> Path:
        return Path("folder") / self.file_name


@pytest.fixture
def masks() -> tuple[torch.Tensor, torch.Tensor]:
    """Nine targets and predictions (9, 12, 10) int64 that overlap more or less; the last ones are empty."""
    draw = torch.Generator().manual_seed(0)
    targets = torch.rand(9, 12, 10, generator=draw) < torch.linspace(0.2, 0.9, 9)[:, None, None]
    predicted = targets ^ (torch.rand(9, 12, 10, generator=draw) < torch.linspace(0, 0.9, 9)[:, None, None])
    targets[7:] = False
    predicted[8] = False
    return targets.long(), predicted.long()


def batches(targets: torch.Tensor, predicted: torch.Tensor, order: list[int], size: int = 2) -> list[tuple]:
    """Return batches as the loader gives them, and logits."""
    found = []
    for start in range(0, len(order), size):
        own = torch.tensor(order[start : start + size])
        logits = torch.stack([1 - predicted[own], predicted[own]], dim=1).float()
        found.append((SimpleNamespace(numbers=own, target=targets[own]), logits))
    return found


def collect(folder: Path, dataset: Dataset, pairs: list[tuple]) -> tuple[Report, Metrics]:
    report, metrics = Report(folder, dataset), Metrics()
    for batch, logits in pairs:
        report(batch, Output(logits, ()), metrics.update(logits, batch.target, batch.numbers))
    return report, metrics


def pictures_in(folder: Path) -> dict[str, bytes]:
    """Return the pictures of a report: their content, by name relative to the page."""
    files = (folder / "pictures").rglob("*.jpg")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def write(collected: tuple[Report, Metrics], measurement: Measurement = MEASURED) -> Page:
    report, metrics = collected
    report.write(metrics.compute(), measurement)
    return Page((report.folder / "index.html").read_text(encoding="utf-8"))


# ---------------------------------------------------------------- from end to end


@pytest.fixture(
    scope="module", params=mostly_slow([[], ["--eval_ori_size"]], always=[[]]), ids=["published size", "own size"]
)
def tested(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A seeded network on a few sample images: the page, what --json says, and the folder of both."""
    folder = tmp_path_factory.mktemp("report")
    sample_root = folder / "data"
    make_sample(sample_root, images=2, seed=3)
    torch.save(reference_nano().state_dict(), folder / "weights.pth")
    line = ["--refer_data_root", sample_root, "--bert_tokenizer", sample_root / "vocab.txt", "--img_size", 32]
    line += ["--resume", folder / "weights.pth", "--workers", 0, "--device", "cpu", "--json", folder / "scores.json"]
    line += ["--report", folder / "page", "--save-masks", folder / "masks", *request.param]
    with pytest.MonkeyPatch.context() as patch:  # so that the page treats them as the published data
        patch.setattr(test_script, "why_unpublished", lambda *_, **__: "")
        test_script.main(list(map(str, line)))
    text = (folder / "page" / "index.html").read_text(encoding="utf-8")
    return Page(text), json.loads((folder / "scores.json").read_text()), folder, text


def test_the_page_has_the_numbers_of_json(tested: tuple) -> None:
    page, scores, _, _ = tested
    own = [*scores["precision"].values(), scores["mean_iou"], scores["overall_iou"]]
    rows = {cells[0]: cells[1:] for cells in page.tables["scores"]}
    assert rows["this test"] == [str(scores["n_expressions"]), *(f"{value:.2f}" for value in own)]
    assert rows["published"][0] == "10,834"
    assert rows["published"][-1] == "73.44"
    assert float(rows["difference"][-1]) == pytest.approx(scores["overall_iou"] - 73.44, abs=1e-9)


def test_groups_add_up_to_all_expressions(tested: tuple) -> None:
    page, scores, _, _ = tested
    failures = sum(int(cells[1]) for cells in page.tables.pop("failures")[1:])
    assert failures == round(scores["n_expressions"] * (1 - scores["precision"]["0.5"] / 100))
    del page.tables["scores"], page.tables["sentences"]
    sums = [sum(int(cells[1]) for cells in rows[1:]) for rows in page.tables.values()]
    assert sums == [scores["n_expressions"]] * 3  # by IoU, by words, by size


def test_the_page_needs_its_folder_alone(tested: tuple) -> None:
    page, scores, folder, text = tested
    assert sorted(path.name for path in (folder / "page").iterdir()) == ["index.html", "pictures"]
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert not re.search(r"\bhref|url\(|@import|\bon\w+=|https?:", text)
    pictures = page.all("img")
    assert len(pictures) > 10
    assert len({picture["src"] for picture in pictures}) == len(pictures), "each sentence once"
    for picture in pictures:
        with Image.open(folder / "page" / picture["src"]) as content:
            assert content.size == (int(picture["width"]), int(picture["height"]))
        assert picture["alt"].startswith("Image, object outlined")
        assert picture["loading"] == "lazy"
    assert len(pictures_in(folder / "page")) == scores["n_expressions"]


def test_the_page_lists_every_sentence(tested: tuple) -> None:
    """With its IoU and size, and the picture that belongs to it."""
    page, scores, folder, text = tested
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    content = json.loads(data)
    rows = content["rows"]
    assert len(rows) == scores["n_expressions"]
    assert sum(iou for _, iou, *_ in rows) / len(rows) == pytest.approx(scores["mean_iou"], abs=0.01)
    assert all(0 < size <= 100 and category for _, _, size, category, _ in rows)
    assert sorted(picture for *_, picture in rows) == sorted(pictures_in(folder / "page"))
    # The overlays of --save-masks end with the same panels, but for a smoother prediction, in the order of sentences.
    overlays = sorted((folder / "masks" / "overlays").iterdir())
    for (*_, picture), overlay in zip(rows, overlays, strict=True):
        with Image.open(folder / "page" / picture) as shown, Image.open(overlay) as whole:
            place = (0, whole.height - shown.height, 2 * shown.width // 3, whole.height)  # image and object
            expected, found = whole.convert("RGB").crop(place), shown.crop((0, 0, 2 * shown.width // 3, shown.height))
        assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).mean() < 3, picture
    assert {attrs["alt"].removeprefix(content["alt"]) for attrs in page.all("img")} <= {text for text, *_ in rows}


def test_only_the_script_of_the_page_may_run(tested: tuple) -> None:
    _, _, _, text = tested
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(", script)


def test_the_page_is_accessible_and_supports_dark_mode(tested: tuple) -> None:
    page, _, _, text = tested
    assert {attrs["scope"] for attrs in page.all("th")} == {"col", "row"}
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in page.all("svg"))
    assert len(page.all("svg")) == 3
    assert "prefers-color-scheme: dark" in text
    assert any(attrs.get("name") == "viewport" for attrs in page.all("meta"))


def test_the_page_lists_departures_from_the_published_test(tested: tuple) -> None:
    _, scores, _, text = tested
    assert ("masks were compared at the size of each image" in text) == ("measured_at" in scores)
    assert "--img_size 32: published at 480" in text
    assert f"{scores['n_expressions']} expressions were tested, the published split has 10,834" in text
    assert "another network: Swin nano and BERT nano" in text
    assert "--shuffle_expressions" not in text


def test_masks_are_saved_with_a_report(tested: tuple) -> None:
    _, scores, folder, _ = tested
    assert len(list((folder / "masks" / "overlays").iterdir())) == scores["n_expressions"]


# ---------------------------------------------------------------- counting


@pytest.mark.parametrize("own_size", [False, True])
def test_results_have_the_scored_counts(masks: tuple, tmp_path: Path, own_size: bool) -> None:
    """Also if every target has another size."""
    targets, predicted = masks
    pairs = batches(targets, predicted, list(range(9)), size=4)
    if own_size:
        for batch, _ in pairs:
            batch.target = [target[:, : 3 + index] for index, target in zip(batch.numbers, batch.target, strict=True)]
    metrics = Metrics()
    seen = [mask for batch, logits in pairs for mask in metrics.update(logits, batch.target, batch.numbers)]
    truths = [target.bool() for batch, _ in pairs for target in batch.target]
    results = metrics.compute().results
    assert [result.number for result in results] == list(range(9))
    for result, mask, truth in zip(results, seen, truths, strict=True):
        assert (result.intersection, result.union) == ((mask & truth).sum(), (mask | truth).sum())
        assert (result.predicted, result.truth) == (mask.sum(), truth.sum())
    assert [result.image for result in results] == ([12 * min(3 + n, 10) for n in range(9)] if own_size else [120] * 9)


def test_processes_make_the_page_of_one(masks: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uneven shares, out of order; one process has nothing at all."""
    targets, predicted = masks
    dataset = Dataset(targets)
    everything = collect(tmp_path / "one", dataset, batches(targets, predicted, list(range(9))))
    write(everything)
    orders = [[6, 7, 8, 0, 2], [5, 1, 3, 4], []]
    monkeypatch.setattr(utils, "from_main", lambda value: "pictures/report-1")
    shares = [collect(tmp_path / "many", dataset, batches(targets, predicted, order)) for order in orders]

    for report, _ in reversed(shares):
        monkeypatch.setattr(utils, "is_main", lambda report=report: report is shares[0][0])
        report.write(everything[1].compute(), MEASURED)
    assert len(pictures_in(tmp_path / "one")) == 9
    assert pictures_in(tmp_path / "many") == pictures_in(tmp_path / "one")
    assert (tmp_path / "many" / "index.html").read_bytes() == (tmp_path / "one" / "index.html").read_bytes()


def test_a_packed_mask_comes_back() -> None:
    mask = np.random.default_rng(0).random((13, 7)) < 0.5
    packed = PackedMask.of(mask)
    assert (packed.unpack(mask.shape) == mask).all()
    assert (packed.unpack((26, 14)) == mask.repeat(2, 0).repeat(2, 1)).all()
    assert len(PackedMask.of(np.zeros((480, 480), bool)).bits) < 100


# ---------------------------------------------------------------- sorting


def area(rows: slice, columns: slice) -> torch.Tensor:
    mask = torch.zeros(1, 20, 20, dtype=torch.int64)
    mask[0, rows, columns] = 1
    return mask


EVERYTHING, LEFT = slice(0, 20), slice(0, 10)
FAILED = [
    ("no truth", area(slice(0, 0), LEFT), area(EVERYTHING, LEFT)),
    ("no truth", area(slice(0, 0), LEFT), area(slice(0, 0), LEFT)),
    ("empty prediction", area(EVERYTHING, LEFT), area(slice(0, 0), LEFT)),
    ("empty prediction", area(EVERYTHING, LEFT), area(slice(0, 1), slice(0, 9))),  # 9 of 200 pixels
    ("under-segmented", area(EVERYTHING, LEFT), area(slice(0, 1), LEFT)),  # 10 of 200
    ("under-segmented", area(EVERYTHING, LEFT), area(slice(0, 10), slice(1, 10))),
    ("wrong object", area(EVERYTHING, LEFT), area(EVERYTHING, slice(10, 20))),
    ("wrong object", area(EVERYTHING, LEFT), area(slice(0, 1), slice(9, 20))),  # 1 of 11 on the object
    ("partial overlap", area(EVERYTHING, LEFT), area(slice(0, 1), slice(9, 19))),  # 1 of 10
    ("partial overlap", area(EVERYTHING, LEFT), area(EVERYTHING, slice(6, 16))),
    ("under-segmented", area(EVERYTHING, LEFT), area(EVERYTHING, slice(5, 15))),  # half of each
    (
        "over-segmented",
        area(slice(0, 2), slice(0, 2)),
        area(EVERYTHING, EVERYTHING),
    ),  # though 1 % of it is on the object
    ("over-segmented", area(slice(0, 4), LEFT), area(slice(0, 10), LEFT)),
]


@pytest.mark.parametrize(("kind", "truth", "predicted"), FAILED)
def test_failures_are_sorted_by_hand_made_masks(
    kind: str, truth: torch.Tensor, predicted: torch.Tensor, tmp_path: Path
) -> None:
    (result,) = collect(tmp_path, Dataset(truth), batches(truth, predicted, [0]))[1].compute().results
    assert failure_type(result) == kind
    assert {name: len(found) for name, found in find_failures([result]).items()} == dict.fromkeys(FAILURE_TYPES, 0) | {
        kind: 1
    }


def test_an_iou_of_one_half_is_no_failure() -> None:
    assert not any(find_failures([Result(0, 5, 10, 10, 5, 100)]).values())
    assert find_failures([Result(0, 49, 100, 100, 49, 100)])["under-segmented"] == []
    assert len(find_failures([Result(0, 49, 100, 100, 49, 100)])["over-segmented"]) == 1


def test_a_group_includes_where_it_begins() -> None:
    """Also fractions that floats cannot represent: 29 of 100 and 3 of 10."""
    results = [Result(n, *pair, 0, 0, 1) for n, pair in enumerate([(0, 0), (29, 100), (3, 10), (7, 10), (10, 10)])]
    found = grouped(results, [result.percent for result in results], IOUS)
    assert {label: [result.number for result in members] for label, members in found.items() if members} == {
        "0–10": [0],
        "20–30": [1],
        "30–40": [2],
        "70–80": [3],
        "90–100": [4],
    }


def test_extremes_show_an_object_once_and_the_larger_first() -> None:
    counts = [(0, 10), (0, 30), (0, 20), (4, 10), (5, 10), (6, 10), (10, 10), (9, 10)]
    results = [Result(n, *pair, 0, 0, 0) for n, pair in enumerate(counts)]
    object_of = [0, 1, 1, 2, 3, 4, 5, 5]
    found = best_median_worst(results, object_of, count=3)
    assert [[result.number for result in chosen] for chosen in found.values()] == [[6, 5, 4], [2, 7], [1, 0, 3]]


# ---------------------------------------------------------------- what others wrote


def test_html_in_sentences_is_escaped(masks: tuple, tmp_path: Path) -> None:
    """Sentences, a file's name and the weights' path."""
    targets, predicted = (part[:5] for part in masks)
    name = "<img src=x onerror=alert(3)>.jpg"
    dataset = Dataset(targets, HOSTILE, name)
    measurement = MEASURED._replace(checkpoint="</style><script>alert(4)</script>.pth")
    page = write(collect(tmp_path, dataset, batches(targets, predicted, list(range(5)))), measurement)
    assert not {"a", "b"} & {tag for tag, _ in page.tags} and len(page.all("script")) == 2, "the data and the script"
    assert all(attrs["src"].startswith("pictures/") and "onerror" not in attrs for attrs in page.all("img"))
    shown = {text.replace("\x00", "\ufffd") for text in page.bdi}
    assert shown <= {text.replace("\x00", "\ufffd") for text in HOSTILE} | {name, measurement.checkpoint}
    assert {name, measurement.checkpoint} < shown
    assert sum(text.replace("\x00", "\ufffd") in shown for text in HOSTILE) >= 3  # one of each object at least


def test_lone_surrogates_spoil_no_page(masks: tuple, tmp_path: Path) -> None:
    targets, predicted = (part[:1] for part in masks)
    page = write(collect(tmp_path, Dataset(targets, ["man \ud800 left"]), batches(targets, predicted, [0])))
    assert "man \ufffd left" in page.bdi


def test_a_failed_page_keeps_the_previous_one(masks: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its pictures, though the later test had written some of its own before it failed."""
    pairs = batches(masks[0], masks[1], list(range(9)))
    write(collect(tmp_path, Dataset(masks[0]), pairs))
    page, pictures = (tmp_path / "index.html").read_bytes(), pictures_in(tmp_path)
    dataset = Dataset(1 - masks[0])
    load = dataset.load

    def fail_late(index: int) -> tuple[Image.Image, np.ndarray]:
        if index >= 4:
            raise UserError(f"there is no image {index}")
        return load(index)

    monkeypatch.setattr(dataset, "load", fail_late)
    with pytest.raises(UserError, match="image 4"):
        write(collect(tmp_path, dataset, pairs))
    assert len(pictures) == 9
    assert len(pictures_in(tmp_path)) > len(pictures), "the later test had begun"
    assert pictures.items() <= pictures_in(tmp_path).items()
    assert (tmp_path / "index.html").read_bytes() == page


def test_a_new_page_removes_the_pictures_of_older_runs(masks: tuple, tmp_path: Path) -> None:
    """Also of one that was interrupted; what others put there stays."""
    dataset = Dataset(masks[0])
    write(collect(tmp_path, dataset, batches(masks[0], masks[1], list(range(9)))))
    interrupted, _ = collect(tmp_path, dataset, batches(masks[0], masks[1], [0, 1, 2]))
    interrupted._finish_pictures()
    kept = tmp_path / "pictures" / "report-1" / "notes.txt"
    kept.write_text("of the user")
    page = write(collect(tmp_path, dataset, batches(masks[0], masks[1], list(range(5)))))
    assert len(pictures_in(tmp_path)) == 5
    assert {attrs["src"] for attrs in page.all("img")} <= pictures_in(tmp_path).keys()
    assert kept.read_text() == "of the user"
    assert len(list((tmp_path / "pictures").iterdir())) == 2, "the folder of the user's file, and that of the page"


def test_the_image_of_an_object_is_loaded_once(masks: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though its sentences are in two batches; and every picture is as if it were drawn alone."""
    dataset = Dataset(masks[0])
    load, loaded = dataset.load, []

    def load_and_note(index: int) -> tuple[Image.Image, np.ndarray]:
        loaded.append(dataset.object_of[index])
        return load(index)

    monkeypatch.setattr(dataset, "load", load_and_note)
    write(collect(tmp_path / "page", dataset, batches(masks[0], masks[1], list(range(9)), size=3)))
    assert sorted(loaded) == [0, 1, 2, 3, 4]
    pictures = pictures_in(tmp_path / "page")
    assert len(set(pictures.values())) == 9
    for number in range(9):
        report, _ = collect(tmp_path / "alone", dataset, batches(masks[0], masks[1], [number]))
        report._finish_pictures()
        picture = report._picture(number)
        assert pictures_in(tmp_path / "alone")[picture] == pictures[f"pictures/report-1/{Path(picture).name}"]


def test_an_impossible_folder_is_reported_before_the_test(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--report .*file cannot be written to"):
        Report(tmp_path / "file", Dataset(torch.zeros(1, 2, 2)))


# ---------------------------------------------------------------- published scores


def test_published_scores_are_those_of_the_readme() -> None:
    names = {"RefCOCO": ("refcoco", "unc"), "RefCOCO+": ("refcoco+", "unc"), "G-Ref": ("refcocog", "umd")}
    rows = re.findall(r"^\| (RefCOCO\+?|G-Ref) (\w+) \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    found = {(*names[name], split): [float(cell) for cell in cells.split("|")] for name, split, cells in rows}
    assert found == {key: [*row.precision, row.mean_iou, row.overall_iou] for key, row in PUBLISHED.items()}


def test_columns_repeated_from_lavt_are_not_compared(masks: tuple, tmp_path: Path) -> None:
    report = collect(tmp_path, Dataset(masks[0]), batches(masks[0], masks[1], list(range(9))))
    page = write(report, MEASURED._replace(dataset="refcocog", split_by="umd", split="test", n_published=9_602))
    rows = {cells[0]: cells[1:] for cells in page.tables["scores"]}
    assert rows["published"] == ["9,602", "71.54*", "66.38*", "59.00*", "48.21*", "23.10*", "62.09*", "63.75"]
    assert rows["difference"][:-1] == [""] * 7
    (lavt,) = (cells for name, cells in rows.items() if name.startswith("LAVT ("))
    assert lavt == ["", "", "", "", "", "", "", "62.09"], "its overall IoU, apart from the mean IoU of others"
    assert "VLT (ICCV 2021, as listed by LAVT; 416×416 pixels)" in rows
    assert float(rows["difference"][-1]) == pytest.approx(float(rows["this test"][-1]) - 63.75, abs=1e-9)


def test_other_data_have_no_published_rows(masks: tuple, tmp_path: Path) -> None:
    """But the reason."""
    report = collect(tmp_path, Dataset(masks[0]), batches(masks[0], masks[1], list(range(9))))
    page = write(report, MEASURED._replace(unpublished="they have 9 expressions"))
    assert [cells[0] for cells in page.tables["scores"]] == ["", "this test"]
    assert "no published rows for these data: they have 9 expressions." in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize(
    ("split", "counts", "reason"),
    [
        (("refcoco", "unc", "val"), (3_811, 10_834), ""),
        (
            ("refcoco", "unc", "val"),
            (3_811, 10_833),
            "they have 10,833 expressions, and the published split has 10,834",
        ),
        (("refcoco", "unc", "testA"), (3_811, 10_834), "they have 3,811 objects, and the published split has 1,975"),
        (("grefcoco", "unc", "val"), (1, 14_229), ""),
        (("risbench", "phrases", "test"), (1, 2), ""),
        (("jsonl", "file", "val"), (1, 2), ""),
    ],
)
def test_published_data_are_known_by_their_numbers(
    split: tuple[str, str, str], counts: tuple[int, int], reason: str, tmp_path: Path
) -> None:
    found = why_unpublished(*split, tmp_path, counts)
    assert found.startswith(reason) and bool(found) == bool(reason)
    (tmp_path / "sample.json").write_text("{}")
    found = why_unpublished(*split, tmp_path, counts)
    assert found == "they are drawn samples"


def test_others_numbers_are_those_of_the_docs() -> None:
    """Overall and mean IoU in tables of their own."""
    text = (ROOT / "docs" / "evaluation.md").read_text()
    names = {"RefCOCO": ("refcoco", "unc"), "RefCOCO+": ("refcoco+", "unc"), "G-Ref": ("refcocog", "umd")}
    heads = re.findall(r"^\| (?:oIoU|mIoU) \| source \| year \| (.*) \|$", text, re.MULTILINE)
    (heads,) = set(heads)
    splits = [(*names[name], split) for name, split in map(str.split, heads.split(" | "))]
    for metric in ("oIoU", "mIoU"):
        (table,) = re.findall(rf"^\| {metric} \| source .*?\n\n", text, re.MULTILINE | re.DOTALL)
        rows = [line.split(" | ") for line in table.strip().splitlines()[2:]]
        found = {
            (row[0].strip("| "), split): float(cell.strip("| *"))
            for row in rows
            for split, cell in zip(splits, row[3:], strict=True)
        }
        expected = {
            (other.network, split): other.scores[metric]
            for split in splits
            for other in OTHERS[split]
            if metric in other.scores
        }
        own = {split: row.overall_iou if metric == "oIoU" else row.mean_iou for split, row in PUBLISHED.items()}
        assert found == expected | {("CrossVLT", split): own[split] for split in splits}


def test_a_test_without_any_target_has_no_leading_number(tmp_path: Path) -> None:
    """As of the first sentences of Ref-ZOM; the number by which trainings compare is then -1."""
    nothing = torch.zeros(3, 12, 10, dtype=torch.long)
    dataset = Dataset(nothing)
    dataset.no_target = [True] * 3
    report, metrics = Report(tmp_path, dataset), Metrics(Counting("ref-zom", dataset.no_target))
    for batch, logits in batches(nothing, nothing, list(range(3))):
        report(batch, Output(logits, ()), metrics.update(logits, batch.target, batch.numbers))
    write((report, metrics), MEASURED._replace(dataset="refzom", split_by="final", split="test"))
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "oIoU –</title>" in text
    assert leading_text({"protocol": "gres", "giou": 62.5}) == "gIoU 62.50"


def test_a_split_without_published_scores(masks: tuple, tmp_path: Path) -> None:
    report = collect(tmp_path, Dataset(masks[0]), batches(masks[0], masks[1], list(range(9))))
    page = write(report, MEASURED._replace(dataset="refcocog", split_by="google", split="val"))
    assert [cells[0] for cells in page.tables["scores"]] == ["", "this test"]


@pytest.mark.parametrize(
    ("change", "n_expressions", "phrases"),
    [
        ({}, 10834, []),
        ({}, 10833, ["10,833 expressions were tested, the published split has 10,834"]),
        ({"own_size": True}, 10834, ["masks were compared at the size of each image"]),
        ({"own_size": True, "img_size": 0, "swin_type": ""}, 10834, ["masks were compared at the size of each image"]),
        ({"overlap": "object"}, 10834, ["--overlap object"]),
        ({"shuffled": True, "img_size": 384}, 10834, ["--shuffle_expressions", "--img_size 384"]),
        ({"max_tokens": 30}, 10834, ["--max-tokens 30: published with 21"]),
        ({"max_tokens": 22, "usual_tokens": 22}, 10834, []),
        ({"swin_type": "large"}, 10834, ["another network: Swin large and BERT base"]),
        ({"fusion": "late"}, 10834, ["another network: fusion late, with alignment"]),
        ({"alignment": False}, 10834, ["another network: fusion cross, without alignment"]),
        ({"dataset": "refcocog", "split_by": "google", "n_published": None}, 5, []),
    ],
)
def test_departures_from_the_published_test_are_named(change: dict, n_expressions: int, phrases: list[str]) -> None:
    found = departures(MEASURED._replace(**change), n_expressions)
    assert len(found) == len(phrases)
    assert all(text.startswith(phrase) for text, phrase in zip(found, phrases, strict=True))
