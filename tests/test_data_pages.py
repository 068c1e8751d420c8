"""The commands that the pages about data sets show, run on small data sets in their owners' layouts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import test as test_script
import train as train_script
from errors import UserError
from refer import prepare
from refer.datasets import DATA_SETS
from refer.refcocom import convert
from tests import test_evaluation_sets as evaluation
from tests import test_lines as lines
from tests import test_rrsisd as rrsisd
from tests.commands import blocks, is_ours
from tests.commands import lines as lines_of
from tests.refer_fixture import IMAGES, python2_pickle, tiny_instances, tiny_refs, write_images, write_refer

ROOT = Path(__file__).parent.parent
PAGES = ("data-remote-sensing", "data-several-objects", "data-evaluation")


def shown(page: str) -> list[list[str]]:
    """Return the words of the commands on a page."""
    return [words for words in lines_of((ROOT / f"docs/{page}.md").read_text()) if is_ours(words)]


def write_sets(root: Path) -> None:
    """Write objects of RefCOCO's fixture as gRefCOCO and Ref-ZOM, some of them nothing."""
    splits = {
        "grefcoco": ("train", "train", "val", "testA", "testB", "testB"),
        "refzom": ("train",) * 4 + ("test",) * 2,
    }
    for (dataset, own), folder in zip(splits.items(), ("grefcoco", "ref-zom"), strict=True):
        refs: list[dict[str, Any]] = []
        for ref, split in zip(tiny_refs(), own, strict=True):
            none = ref["ref_id"] % 2 == 0
            ids = {"ann_id": [-1] if none else [ref["ann_id"]], "category_id": [-1] if none else [ref["category_id"]]}
            refs.append(ref | ids | {"split": split})
        (root / folder).mkdir()
        (root / folder / "instances.json").write_text(json.dumps(tiny_instances()))
        if dataset == "grefcoco":
            (root / folder / "grefs(unc).json").write_text(json.dumps(refs))
        else:
            for ref in refs:
                ref["ann_id"] = [] if ref["ann_id"] == [-1] else ref["ann_id"]
            (root / folder / "refs(final).p").write_bytes(python2_pickle(refs))
    shutil.copytree(root / IMAGES, root / "images/trainval2014")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every data set of these pages, and RefCOCO and G-Ref, which two of them need."""
    folder = tmp_path_factory.mktemp("sets")
    write_images(write_refer(write_refer(folder), dataset="refcocog", split_by="umd"))
    rrsisd.write_rrsisd(folder)
    for dataset in ("refsegrs", "risbench"):
        lines.write_set(folder, dataset)
    write_sets(folder)
    evaluation.write_parquet(folder, evaluation.rows()[:1])
    convert(folder)
    evaluation.write_arefcoco(folder, {"annotations": evaluation.records()[1:2]})
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_commands_for_getting_and_checking_work(root: Path, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    """Nothing is downloaded, because the files exist. Checking reports only the small counts."""
    monkeypatch.setattr(prepare, "fetch_images", lambda *_: None)
    commands = [words[words.index("refer.prepare") + 1 :] for words in shown(page) if "refer.prepare" in words]
    assert len(commands) == 2
    for flags in commands:
        if "--check" not in flags:
            prepare.main([*flags, "--root", str(root)])
            continue
        with pytest.raises(UserError) as caught:
            prepare.main([*flags, "--root", str(root), "--workers", "1"])
        assert all("published are" in line for line in str(caught.value).splitlines()[1:-1])


@pytest.mark.slow  # trains and tests
@pytest.mark.parametrize("page", PAGES)
def test_commands_for_training_and_testing_work(
    root: Path, tmp_path: Path, sample_root: Path, capsys: pytest.CaptureFixture[str], page: str
) -> None:
    """In their order, as nano: what trains writes the weights that the next ones test."""
    small = f"--refer_data_root {root} --bert_tokenizer {sample_root}/vocab.txt --img_size 32 -j 0 -b 1 --device cpu"
    nano = f"--swin_type nano --bert_type nano --epochs 1 --limit-train 1 --output-dir {tmp_path}"
    line = f"{small} {nano} --dataset refcoco".split()
    train_script.main(line)
    for words in shown(page):
        flags = words[2:]
        if words[1] == "test.py":
            place = flags.index("--resume") + 1
            flags[place] = str(tmp_path / Path(flags[place]).name)
            test_script.main([*flags, *small.split()])
            assert "expressions" in capsys.readouterr().out
        elif words[1] == "train.py" and "arefcoco" not in words[3]:
            train_script.main([*flags, *small.split(), *nano.split(), "--overwrite"])  # a page may train twice
            assert (tmp_path / f"best_{words[3]}.pth").is_file()


def test_every_data_set_has_a_page() -> None:
    text = "".join((ROOT / f"docs/{page}.md").read_text() for page in (*PAGES, "data"))
    for dataset in DATA_SETS:
        assert f"--dataset {dataset}" in text, dataset
        assert f"| `{dataset}` |" in text, dataset
    assert all(blocks((ROOT / f"docs/{page}.md").read_text(), "text") for page in PAGES[:2])
