"""Commands on the pages about weights, predicting, testing, training and data run as they stand, but on small data.

Networks are small, too: the shipped one, or nano for an epoch.
"""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest

from lib.files import ROOT
from tests.commands import is_ours
from tests.commands import lines as lines_of

DATA, WEIGHTS = "demo/data-1400", "checkpoints/sample_nano.safetensors"
# By page, what the commands that run have in them; the others need other data, or weights that nobody made.
RUN = {
    "weights": ("lib.weights",),
    "predict": ("photo.jpg", "photos/", "requests.jsonl", DATA, "val.csv"),
    "evaluation": (DATA, "val.json", "sheet predictions"),
    "training": ("--refer_data_root ./refer/data/sample-1", "curves", "evaluation compare", "train.jsonl"),
    "data": ("--dataset jsonl",),
}
# The commands on each page that run; a new one is run, too, and counted here.
COUNTS = {"weights": 3, "predict": 6, "evaluation": 8, "training": 5, "data": 3}
ELSEWHERE = ("grefcoco", "--dataset refcoco")  # sets that are not drawn here
NANO = f"--swin_type nano --bert_type nano --bert_tokenizer {DATA}/vocab.txt --img_size 32 -b 16 --epochs 1"
# What is added to the flags of a script.
MORE = {"test": "-j 0 --device cpu", "train": f"-j 0 --device cpu --limit-val 8 {NANO}"}


def commands(page: str) -> list[list[str]]:
    """Return the words of the commands on a page that run."""
    shown = [words for words in lines_of((ROOT / f"docs/{page}.md").read_text()) if is_ours(words)]
    texts = [(words, " ".join(words)) for words in shown]
    return [
        words
        for words, text in texts
        if any(part in text for part in RUN[page]) and not any(part in text for part in ELSEWHERE)
    ]


@pytest.fixture
def folder(few_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what the pages name: data, weights, photos, requests and own data."""
    for place in (DATA, "refer/data/sample-1"):
        shutil.copytree(few_root, tmp_path / place)
    photos = sorted((tmp_path / DATA).rglob("*.jpg"))
    shutil.copy(photos[0], photos[0].with_name("COCO_train2014_000000001542.jpg"))
    (tmp_path / "photos").mkdir()
    for target in ("photo.jpg", "photos/a.jpg"):
        shutil.copy(photos[1], tmp_path / target)
    (tmp_path / "requests.jsonl").write_text(json.dumps({"image": "photo.jpg", "text": "the dog"}) + "\n")
    for split, photo in zip(("train", "val", "test"), photos, strict=False):
        one = {"image": str(photo), "sentences": ["the dog"], "polygons": [[9, 9, 60, 9, 60, 60]]}
        (tmp_path / f"{split}.jsonl").write_text(16 * (json.dumps(one) + "\n"))
    (tmp_path / "checkpoints").mkdir()
    for name in (WEIGHTS, "checkpoints/best_refcoco.pth"):
        shutil.copy(ROOT / WEIGHTS, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepare(page: str) -> None:
    """Make the results that a page names, in the working folder."""
    tested = f"test.py --refer_data_root {DATA} --resume {WEIGHTS}"
    if page in ("weights", "predict", "evaluation"):
        run(f"{tested} --split testA --json testA.json".split())
        run(f"{tested} --json val.json --save-masks predictions".split())
        run(f"{tested} --predictions theirs.jsonl".split())
    if page == "training":
        run(f"train.py --refer_data_root {DATA} --limit-train 16 --output-dir run_a".split())
        shutil.copytree("run_a", "run_b")
        shutil.copy("run_a/log_refcoco.jsonl", "checkpoints")


def run(words: list[str]) -> None:
    """Run a command of this project in this process; words: without `python`."""
    name, flags = (words[1], words[2:]) if words[0] == "-m" else (words[0].removesuffix(".py"), words[1:])
    module = importlib.import_module(f"{name}.__main__" if (ROOT / name.replace(".", "/")).is_dir() else name)
    module.main([*flags, *MORE.get(name, "").split()])


@pytest.mark.slow  # trains, tests, predicts and exports
@pytest.mark.parametrize("page", RUN)
def test_commands_of_a_page_run_in_their_order(folder: Path, page: str) -> None:
    shown = commands(page)
    assert len(shown) == COUNTS[page]
    prepare(page)
    for words in shown:
        run(words[1:])
    for words in shown:
        for flag in {"--json", "--out", "--report", "--csv", "--predictions"} & set(words):
            assert (folder / words[words.index(flag) + 1]).exists()
