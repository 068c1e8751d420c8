"""Commands on the pages about weights, predicting and testing run as they stand, on small data and shipped weights."""

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
}
# The commands on each page that run; a new one is run, too, and counted here.
COUNTS = {"weights": 3, "predict": 6, "evaluation": 8}
ELSEWHERE = ("grefcoco", "--dataset refcoco")  # sets that are not drawn here


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
    """A working folder with what the pages name: data, weights, photos, requests, results and masks."""
    (tmp_path / "demo").mkdir()
    shutil.copytree(few_root, tmp_path / DATA)
    photos = sorted((tmp_path / DATA).rglob("*.jpg"))
    shutil.copy(photos[0], photos[0].with_name("COCO_train2014_000000001542.jpg"))
    (tmp_path / "photos").mkdir()
    for target in ("photo.jpg", "photos/a.jpg"):
        shutil.copy(photos[1], tmp_path / target)
    (tmp_path / "requests.jsonl").write_text(json.dumps({"image": "photo.jpg", "text": "the dog"}) + "\n")
    (tmp_path / "checkpoints").mkdir()
    for name in (WEIGHTS, "checkpoints/best_refcoco.pth"):
        shutil.copy(ROOT / WEIGHTS, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    run(f"test.py --refer_data_root {DATA} --resume {WEIGHTS} --split testA --json testA.json".split())
    run(f"test.py --refer_data_root {DATA} --resume {WEIGHTS} --json val.json --save-masks predictions".split())
    run(f"test.py --refer_data_root {DATA} --resume {WEIGHTS} --predictions theirs.jsonl".split())
    return tmp_path


def run(words: list[str]) -> None:
    """Run a command of this project in this process; words: without `python`."""
    name, flags = (words[1], words[2:]) if words[0] == "-m" else (words[0].removesuffix(".py"), words[1:])
    module = importlib.import_module(f"{name}.__main__" if (ROOT / name.replace(".", "/")).is_dir() else name)
    module.main([*flags, *(["-j", "0", "--device", "cpu"] if name == "test" else [])])


@pytest.mark.slow  # tests, predicts and exports
@pytest.mark.parametrize("page", RUN)
def test_commands_of_a_page_run_in_their_order(folder: Path, page: str) -> None:
    shown = commands(page)
    assert len(shown) == COUNTS[page]
    for words in shown:
        run(words[1:])
    for words in shown:
        for flag in {"--json", "--out", "--report", "--csv", "--predictions"} & set(words):
            assert (folder / words[words.index(flag) + 1]).exists()
