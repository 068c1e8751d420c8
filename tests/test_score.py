"""Masks of any model: what `test.py --predictions` writes, what `score.py` reads, refuses and makes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

import score
import test as test_script
from data.dataset_refer_bert import ReferDataset
from data.sample.make import make_sample
from errors import UserError
from lib import engine
from lib.contracts import Batch, Expression, Output
from lib.evaluation import statistics
from lib.evaluation.predictions import PredictionFile
from lib.evaluation.sentences import kinds_of
from lib.pictures.results import LineFile, Writer
from lib.requests import Request
from predict import Prediction
from refer.predictions import match, read_predictions
from tests.helpers import mostly_slow
from tests.networks import reference_nano
from tests.training_runs import ROOT, launch

SIZE = 32


class Outcome(NamedTuple):
    """What `test.py` left of a seeded network on a few samples."""

    folder: Path
    scores: dict[str, Any]
    lines: list[dict[str, Any]]


def run(script: Any, *flags: object) -> None:
    script.main(list(map(str, flags)))


def result(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(reference_nano().state_dict(), path)
    return path


@pytest.fixture(scope="module", params=mostly_slow(["", "--eval_ori_size"], always=[""]), ids=["img_size", "own size"])
def tested(request: pytest.FixtureRequest, few_root: Path, weights: Path, tmp_path_factory: Any) -> Outcome:
    folder = tmp_path_factory.mktemp("tested")
    flags = ["--refer_data_root", few_root, "--bert_tokenizer", few_root / "vocab.txt", "--img_size", SIZE]
    flags += ["--resume", weights, "--workers", 0, "--device", "cpu", "--json", folder / "test.json", "-b", 5]
    run(test_script, *flags, "--predictions", folder / "masks.jsonl", *request.param.split())
    lines = [json.loads(line) for line in (folder / "masks.jsonl").read_text().splitlines()]
    return Outcome(folder, result(folder / "test.json"), lines)


@pytest.fixture
def one(tested: Outcome) -> Outcome:
    """A single kind of test: its masks are SIZE pixels on a side."""
    if "measured_at" in tested.scores:
        pytest.skip("the other kind is enough")
    return tested


def scored(few_root: Path, predictions: Path, out: Path, *flags: object) -> dict[str, Any]:
    run(score, predictions, "--refer_data_root", few_root, "--json", out, *flags)
    return result(out)


def rewrite(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_scoring_what_a_test_wrote_gives_its_numbers(few_root: Path, tested: Outcome, tmp_path: Path) -> None:
    """To the last digit, with the counts of every sentence."""
    flags = [] if "measured_at" in tested.scores else ["--img_size", SIZE]
    own = scored(few_root, tested.folder / "masks.jsonl", tmp_path / "score.json", *flags)
    assert own.pop("predictions") == str(tested.folder / "masks.jsonl")
    assert own == {key: value for key, value in tested.scores.items() if key != "checkpoint"}
    assert sum(own["counts"]["predicted"]) > 0
    assert len({line["sent_id"] for line in tested.lines}) == own["n_expressions"]


def test_every_form_gives_the_same(few_root: Path, one: Outcome, tmp_path: Path, monkeypatch: Any) -> None:
    """A folder of PNGs, a list of records, COCO's data set about images by name and sentence."""
    size = ["--img_size", SIZE]
    dataset = score.open_split(score.parse_args([str(few_root), "--refer_data_root", str(few_root)]))
    folder = tmp_path / "masks"
    folder.mkdir()
    files: dict[Path, list[int]] = {}
    for index, expression in enumerate(dataset.expressions):
        files.setdefault(dataset.image_path(index), []).append(expression.image_id)
    images = [{"id": own[0], "file_name": f"/somewhere/{path.name}"} for path, own in files.items()]
    annotations = []
    for line in one.lines:
        mask = coco_mask.decode(line["segmentation"])
        Image.fromarray(mask * 255).save(folder / f"{line['sent_id']}.png")
        annotations.append(
            {"image_id": line["image_id"], "text": line["sentence"], "segmentation": line["segmentation"]}
        )
    for name, content in (("list", one.lines), ("coco", {"images": images, "annotations": annotations})):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    for given in (folder, tmp_path / "list.json", tmp_path / "coco.json"):
        own = scored(few_root, given, tmp_path / "score.json", *size)
        assert own["counts"] == one.scores["counts"], given


def test_faults_are_listed_and_decided_by_flags(few_root: Path, one: Outcome, tmp_path: Path, capsys: Any) -> None:
    lines, size = one.lines, ["--img_size", SIZE]
    small = coco_mask.encode(np.asfortranarray(np.ones((8, 9), np.uint8)))
    other = lines[0] | {"segmentation": {"size": [8, 9], "counts": small["counts"].decode()}}
    faults = {
        "missing": (lines[:-7], "7 sentences without a mask", "empty"),
        "extra": ([*lines, lines[0] | {"sent_id": 999_999}], "sent_id 999999", "ignore"),
        "duplicate": ([*lines, lines[0] | {"segmentation": lines[-1]["segmentation"]}], "several masks", "first"),
        "wrong-size": ([other, *lines[1:]], "9×8 pixels, expected", "resize"),
    }
    for flag, (content, words, decision) in faults.items():
        file = rewrite(tmp_path / "masks.jsonl", content)
        with pytest.raises(UserError, match=words):
            scored(few_root, file, tmp_path / "score.json", *size)
        own = scored(few_root, file, tmp_path / "score.json", *size, f"--{flag}", decision)
        assert own["n_expressions"] == len(lines)
        assert (own["counts"] == one.scores["counts"]) == (flag in ("extra", "duplicate"))
    out = capsys.readouterr().out
    assert "7 sentences without a mask (empty)" in out
    assert out.count("\n  sent_id") >= 7  # each is listed
    rewrite(tmp_path / "masks.jsonl", [*lines, lines[3]])
    assert scored(few_root, tmp_path / "masks.jsonl", tmp_path / "score.json", *size)["counts"] == one.scores["counts"]
    assert "1 sentences have the same mask several times" in capsys.readouterr().out


RUNS: dict[str, Any] = {"sent_id": 1, "segmentation": {"size": [2, 3], "counts": [2, 4]}}
HOSTILE = {
    "no JSON": ("{", "neither JSON nor JSON lines"),
    "a broken line": (json.dumps(RUNS) + "\n{", "line 2 is no JSON"),
    "runs that do not fill it": ([RUNS | {"segmentation": {"size": [2, 3], "counts": [2, 3]}}], "record 1: .*cover 5"),
    "runs that overflow": ([RUNS | {"segmentation": {"size": [2, 3], "counts": "`0"}}], "record 1: .*run lengths"),
    "a bomb": ([RUNS | {"segmentation": {"size": [10**6, 10**6], "counts": "0"}}], "record 1: .*limit"),
    "NaN": ('[{"sent_id": 1, "segmentation": {"size": [NaN, 3], "counts": "0"}}]', "record 1: the size"),
    "no id": ([{"segmentation": RUNS["segmentation"]}], "record 1 has no .sent_id"),
    "an id that is no number": ([RUNS | {"sent_id": "1"}], "record 1: sent_id"),
    "polygons": ([RUNS | {"segmentation": [[0, 0, 1, 1, 0, 1]]}], "record 1: its segmentation"),
    "a word of no kind": ([RUNS | {"no_target": "yes"}], "record 1: no_target"),
    "no list": ({"annotations": {}}, "neither a list"),
    "a number": ([1], "record 1 is a int"),
}


def test_a_full_disk_is_reported_by_the_batch_that_meets_it(tmp_path: Path) -> None:
    """Not at the end, where the other processes would wait for this one; without a file for the masks."""
    sentences = SimpleNamespace(expressions=[Expression(1, 1, 1, 1, "left")])
    file = PredictionFile(tmp_path / "masks.jsonl", sentences)
    file.lines.close()
    file.lines = Path("/dev/full").open("w+b")  # noqa: SIM115 (the file closes it)
    unread = torch.zeros(1, 0)
    batch = Batch(unread, unread, unread, target=torch.zeros(1, 4, 4), numbers=torch.tensor([0]))
    with pytest.raises(UserError, match=r"--predictions .*masks\.jsonl could not be written \(No space left"):
        file(batch, Output(torch.zeros(1, 2, 4, 4), ()), [])
    with suppress(OSError):
        file.lines.close()
    assert not list(tmp_path.iterdir())


def test_lines_of_predict_are_found_by_file_name_and_text(tmp_path: Path) -> None:
    """predict.py --json FILE.jsonl writes one line for each photo and sentence, without ids."""
    writer = Writer(tmp_path / "out", with_records=True)
    writer.lines = LineFile(tmp_path / "found.jsonl")
    writer.lines.start()
    photo, mask = Image.new("RGB", (4, 3)), np.eye(3, 4, dtype=np.uint8)
    for number, text in enumerate(("left", "right")):
        writer.write(Request(Path("photos/1.jpg"), text, number), photo, Prediction(mask * number, 0.5, (), ""))
    found, extra = match(read_predictions(tmp_path / "found.jsonl"), [7, 8], [("1.jpg", "right"), ("1.jpg", "left")])
    assert not extra
    assert {index: answer.load().sum() for index, (answer,) in found.items()} == {0: 3, 1: 0}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    content, words = HOSTILE[name]
    file = tmp_path / "masks.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=words) as caught:
        read_predictions(file)
    assert str(file) in str(caught.value)


def test_hostile_pictures_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no mask"):
        read_predictions(tmp_path)
    (tmp_path / "1.png").symlink_to("/etc/passwd")
    (tmp_path / "2.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("")
    found = read_predictions(tmp_path)
    assert [Path(one).name for one in found.others] == ["notes.txt"]
    for number, words in ((1, "is a link"), (2, "cannot be read")):
        with pytest.raises(UserError, match=words):
            found.by_id[number][0].load()


def test_a_report_is_that_of_a_test_without_its_network(few_root: Path, one: Outcome, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    scored(few_root, one.folder / "masks.jsonl", tmp_path / "a.json", "--img_size", SIZE, "--report", folder)
    text = (folder / "index.html").read_text()
    assert "masks.jsonl" in text
    assert "Swin" not in text
    assert f"{SIZE}×{SIZE} pixels" in text
    assert "drawn samples" in text
    assert "published</th>" not in text


def test_published_rows_are_shown_for_published_data_only(
    few_root: Path, one: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sample set has the note of a drawn one, and other numbers without it."""
    shutil.copytree(few_root, tmp_path / "data")
    (tmp_path / "data" / "sample.json").unlink()
    flags = ["--img_size", SIZE, "--report", tmp_path / "report"]
    scored(tmp_path / "data", one.folder / "masks.jsonl", tmp_path / "a.json", *flags)
    text = (tmp_path / "report" / "index.html").read_text()
    assert ">published</th>" not in text and "and the published split has" in text

    monkeypatch.setattr(score, "why_unpublished", lambda *_, **__: "")
    scored(tmp_path / "data", one.folder / "masks.jsonl", tmp_path / "a.json", *flags)
    assert ">published</th>" in (tmp_path / "report" / "index.html").read_text()


def test_answers_of_a_head_must_be_complete(few_root: Path, one: Outcome, tmp_path: Path) -> None:
    lines = [one.lines[0] | {"no_target": True}, *one.lines[1:]]
    with pytest.raises(UserError, match="has no no_target"):
        scored(few_root, rewrite(tmp_path / "masks.jsonl", lines), tmp_path / "a.json", "--img_size", SIZE)


def test_shuffled_sentences_have_no_predictions() -> None:
    flags = ["--resume", "x.pth", "--predictions", "a.jsonl", "--shuffle_expressions"]
    with pytest.raises(UserError, match=r"--predictions.*--shuffle_expressions"):
        test_script.parse_args(flags)


@pytest.mark.slow  # whole tests
@pytest.mark.parametrize("with_head", [False, True])
def test_sentences_without_a_target_count_as_in_a_test(
    weights: Path, tmp_path: Path, with_head: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row of the table is the same, and so is the one for which a made-up head answers."""
    root = tmp_path / "data"
    make_sample(root, images=1, seed=3, like="grefcoco")
    if with_head:
        monkeypatch.setattr(engine, "run_model", answering_no_target(engine.run_model))
    flags = ["--dataset", "grefcoco", "--refer_data_root", root, "--no-target-pixels", 50, "--img_size", SIZE]
    words = ["--resume", weights, "--bert_tokenizer", root / "vocab.txt", "--workers", 0, "--device", "cpu"]
    run(test_script, *flags, *words, "--json", tmp_path / "a.json", "--predictions", tmp_path / "masks.jsonl")
    run(score, tmp_path / "masks.jsonl", *flags, "--json", tmp_path / "b.json", "--report", tmp_path / "report")
    tested, own = result(tmp_path / "a.json"), result(tmp_path / "b.json")
    assert (own.pop("predictions"), tested.pop("checkpoint")) == (str(tmp_path / "masks.jsonl"), str(weights))
    assert own == tested
    assert own["no_target_pixels"] == (None if with_head else 50)
    assert 0 < own["n_no_target"] < own["n_expressions"]
    nothing = own["beside"]['always "no target"']
    assert nothing["giou"] == round(100 * own["n_no_target"] / own["n_expressions"], 2)
    text = (tmp_path / "report" / "index.html").read_text()
    assert "By number of objects" in text
    assert "gIoU" in text
    assert "percent of all with a target" in text
    run(score, tmp_path / "masks.jsonl", tmp_path / "a.json", *flags, "--json", tmp_path / "c.json")
    beside = ["empty below 1 pixel", *(["empty below 50 pixels"] if with_head else [])]
    each = [[name, *(f"{name}, {rule}" for rule in beside)] for name in ("masks", "a")]
    assert list(result(tmp_path / "c.json")["models"]) == [*each[0], *each[1], 'always "no target"']


def answering_no_target(run_model: Callable[..., Output]) -> Callable[..., Output]:
    """Return `engine.run_model` with a head that says of every other sample that it has no target."""

    def answer(*arguments: Any) -> Output:
        output = run_model(*arguments)
        says = torch.arange(len(output.logits)) % 2
        return output._replace(no_target=torch.stack([1 - says, says], dim=1).float())

    return answer


@pytest.mark.slow  # starts two processes
def test_two_processes_write_what_one_writes(few_root: Path, one: Outcome, weights: Path, tmp_path: Path) -> None:
    flags = ["--refer_data_root", few_root, "--bert_tokenizer", few_root / "vocab.txt", "--img_size", SIZE, "-b", 5]
    flags += ["--resume", weights, "--workers", 0, "--device", "cpu", "--predictions", tmp_path / "masks.jsonl"]
    outcome = launch(2, ROOT / "test.py", *flags)
    assert outcome.returncode == 0, outcome.stderr
    assert (tmp_path / "masks.jsonl").read_bytes() == (one.folder / "masks.jsonl").read_bytes()


# ---------------------------------------------------------------- comparing


@pytest.fixture(scope="module")
def dataset(few_root: Path) -> ReferDataset:
    return score.open_split(score.parse_args([str(few_root), "--refer_data_root", str(few_root)]))


@pytest.fixture
def better(one: Outcome, dataset: ReferDataset, tmp_path: Path) -> Path:
    """Predictions that are right about every sentence but the first five, of which they find nothing."""
    lines = []
    for index, expression in enumerate(dataset.expressions):
        mask = score.resized(dataset.mask(index), (SIZE, SIZE)) * (index >= 5)
        code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        runs = {"size": [SIZE, SIZE], "counts": code["counts"].decode()}
        lines.append({"sent_id": expression.sent_id, "segmentation": runs})
    return rewrite(tmp_path / "better.jsonl", lines)


def test_models_are_compared_sentence_by_sentence(
    few_root: Path, one: Outcome, better: Path, dataset: ReferDataset, tmp_path: Path
) -> None:
    """Counts of a test and masks from a file; differences and their intervals are those of the statistics."""
    flags = ["--refer_data_root", few_root, "--img_size", SIZE, "--json", tmp_path / "c.json"]
    run(score, one.folder / "test.json", better, *flags)
    found = result(tmp_path / "c.json")
    assert list(found["models"]) == ["test", "better"]
    assert found["models"]["test"]["overall_iou"] == one.scores["overall_iou"]
    rows = {(row["group"], row["metric"]): row for row in found["differences"]}
    whole = rows["all sentences", "oIoU"]
    assert whole["difference"] == pytest.approx(
        found["models"]["better"]["overall_iou"] - one.scores["overall_iou"], abs=0.01
    )
    n_images = len({expression.image_id for expression in dataset.expressions})
    assert (whole["sentences"], whole["images"]) == (len(dataset), n_images)
    assert (whole["low"] is None) == (n_images < 10)
    by_size = [row for (group, metric), row in rows.items() if "of the image" in group and metric == "mIoU"]
    assert sum(row["sentences"] for row in by_size) == len(dataset)


def test_the_page_shows_where_models_differ(
    few_root: Path, one: Outcome, better: Path, dataset: ReferDataset, tmp_path: Path
) -> None:
    """Two galleries for the two directions, self-contained and escaped; the pictures of an earlier report go."""
    earlier = tmp_path / "page" / "pictures" / "report-1" / "000000.jpg"
    earlier.parent.mkdir(parents=True)
    earlier.touch()
    flags = ["--refer_data_root", few_root, "--img_size", SIZE, "--report", tmp_path / "page"]
    hostile = tmp_path / "<script>alert(1)<script>.jsonl"
    shutil.copy(one.folder / "masks.jsonl", hostile)
    run(score, hostile, better, *flags)
    text = (tmp_path / "page" / "index.html").read_text()
    assert "better better than" in text
    assert "better worse than" in text
    assert "<script" not in text
    assert "://" not in text
    assert text.count("<img") >= 2
    assert text.index("mIoU:") < text.index("Where they differ most")
    assert not earlier.parent.exists()


def moved(counts: dict[str, list[int]], **by: int) -> dict[str, list[int]]:
    """Return counts whose first sentence has more of some columns."""
    return counts | {name: [counts[name][0] + more, *counts[name][1:]] for name, more in by.items()}


def test_incomparable_results_are_refused(few_root: Path, one: Outcome, better: Path, tmp_path: Path) -> None:
    flags = ["--refer_data_root", few_root, "--img_size", SIZE]
    content = json.loads((one.folder / "test.json").read_text())
    changes: dict[str, dict[str, Any]] = {
        "was measured at 480": {"img_size": 480},
        "shuffled": {"expressions": "shuffled"},
        "other sentences": {"counts": {key: own[1:] for key, own in content["counts"].items()}},
        "union is .many.": {"counts": content["counts"] | {"union": "many"}},
        "--split testA": {"split": "testA"},
        "--splitBy google": {"splitBy": "google"},
        "--dataset refcocog": {"dataset": "refcocog"},
        "--overlap object": {"overlap": "object"},
        "other masks": {"counts": moved(content["counts"], truth=1, union=1)},
        rf"other.json: no masks of sent_id {content['counts']['sent_id'][0]} ": {
            "counts": moved(content["counts"], intersection=10**6)
        },
        "no masks of sent_id": {"counts": moved(content["counts"], union=1)},
        "have its counts": {"counts": moved(content["counts"], image_id=1)},
    }
    for words, change in changes.items():
        (tmp_path / "other.json").write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=words):
            run(score, tmp_path / "other.json", better, *flags)
    with pytest.raises(UserError, match="more than once"):
        run(score, better, better, *flags)


def test_many_images_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    statistics.draw_resamples.cache_clear()
    counts = np.random.default_rng(0).integers(1, 50, (2, 2, 1, 300))
    counts[:, 1] += counts[:, 0]
    one, other = (statistics.Sums.of(own, np.arange(300) // 3, 100) for own in counts)
    whole = statistics.difference(one, other, statistics.Sums.mean_iou)
    monkeypatch.setattr(statistics, "MOST_DRAWN", 7 * 100)
    assert sum(len(part.images) for part in statistics.iterate_resamples(100, 1)) == 500
    parts = statistics.difference(one, other, statistics.Sums.mean_iou)
    statistics.draw_resamples.cache_clear()
    assert parts[:2] == whole[:2]
    assert parts[2:] == pytest.approx(whole[2:], abs=1)


def test_resamples_are_drawn_once_for_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the numbers of each row alone; of no row, nothing is drawn."""
    monkeypatch.setattr(statistics, "RESAMPLES", 50)
    monkeypatch.setattr(statistics, "MOST_DRAWN", 7 * 100)
    counts = np.random.default_rng(0).integers(1, 50, (2, 2, 1, 300))
    counts[:, 1] += counts[:, 0]
    one, other = (statistics.Sums.of(own, np.arange(300) // 3, 100) for own in counts)
    pairs = [(one, other, statistics.Sums.mean_iou), (other, one, statistics.Sums.overall_iou)]
    alone = [statistics.difference(*pair) for pair in pairs]
    drawn, iterate = [], statistics.iterate_resamples

    def draw(*shape: int) -> Iterator[statistics.Resamples]:
        drawn.append(shape)
        return iterate(*shape)

    monkeypatch.setattr(statistics, "iterate_resamples", draw)
    assert statistics.differences(pairs) == alone
    assert statistics.differences([]) == []
    assert drawn == [(100, 1)]


def test_sentences_have_kinds_by_their_words() -> None:
    assert kinds_of("second man on the left, not in Red") == ["place", "colour", "order", "relation", "negation"]
    assert kinds_of("redder leftover") == []
