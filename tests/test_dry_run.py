"""`--dry-run` lists all that is missing at once, says where to get it, and writes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from torch import nn

import dry_run
import test as test_script
import train
from data.cache import Contents
from dry_run import check_space, state_bytes
from errors import UserError
from lib.weights.pretrained import SWIN_FILES, SWIN_URL
from refer.missing import NO_SPLIT, Present, check_present
from refer.refer import REFER
from tests.helpers import naming
from tests.training_runs import ROOT, training_flags

SHIPPED = str(ROOT / "checkpoints" / "sample_nano.safetensors")


def everything(folder: Path) -> list[tuple[str, int]]:
    """Return the files and folders below a folder, and when they were changed."""
    return [(str(path), path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))]


def missing(root: Path, *flags: object) -> str:
    """Return what a dry run of a training of the published network says is missing."""
    with pytest.raises(UserError) as caught:
        train.main([*map(str, ["--dry-run", "--refer_data_root", root, "--output-dir", root / "out", *flags])])
    return str(caught.value)


def test_all_that_a_training_misses_is_listed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In an empty folder: vocabulary, annotations, images and both kinds of weights, with addresses and places."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    text = missing(tmp_path / "data", "--bert_tokenizer", "gone.txt", "--ck_bert", "gone.bin")
    for name in ("gone.txt", "gone.bin", "refs(unc).p", "instances.json", "train2014", SWIN_URL, SWIN_FILES["base"]):
        assert name in text
    assert "python -m refer.prepare --dataset refcoco --splitBy unc" in text
    assert "GB free" in capsys.readouterr().out
    assert everything(tmp_path) == []


def test_a_training_that_misses_nothing_writes_nothing(
    few_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(few_root)
    train.main(training_flags(few_root, tmp_path / "out", "--dry-run", "--init", SHIPPED))
    printed = capsys.readouterr().out
    assert printed.endswith("nothing is missing\n")
    assert SHIPPED in printed
    assert (everything(tmp_path), everything(few_root)) == ([], before)


def test_images_that_are_missing_are_counted(few_root: Path, tmp_path: Path) -> None:
    """Of the splits that are used; annotations that are there are read."""
    shutil.copytree(few_root, tmp_path / "data")
    images = sorted((tmp_path / "data").rglob("*.jpg"))
    for image in images:
        image.unlink()
    flags = ["--dry-run", "--refer_data_root", str(tmp_path / "data"), "--resume", SHIPPED]
    with naming("images are not in", images[0].parent):
        test_script.main([*flags, "--split", "val", "testA"])


def test_a_cache_needs_the_images_of_all_splits(few_root: Path, tmp_path: Path) -> None:
    shutil.copytree(few_root, tmp_path / "data")
    (ref, *_) = [ref for ref in REFER(few_root).data["refs"] if ref["split"] == "testB"]
    name = REFER(few_root).Imgs[ref["image_id"]]["file_name"]
    next((tmp_path / "data").rglob(name)).unlink()
    args = train.parse_args(training_flags(tmp_path / "data", tmp_path / "out", "--cache", tmp_path / "cache.h5"))
    (check,) = dry_run.data_checks(args, ("train", "val"), []).values()
    with naming("images are not in", name):
        check()
    args.cache = None
    assert "val 8 objects" in check()


def test_a_test_names_missing_weights_and_reads_its_vocabulary_from_them(
    few_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--dry-run", "--refer_data_root", str(few_root)]
    test_script.main([*flags, "--resume", SHIPPED])
    assert f"1,000 words in {SHIPPED}" in capsys.readouterr().out
    with naming("--resume", "gone.pth"):
        test_script.main([*flags, "--resume", "gone.pth"])


def test_a_resumed_training_needs_its_state_and_no_pretrained_file(
    few_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = training_flags(few_root, tmp_path, "--dry-run", "--swin_type", "tiny", "--resume")
    with naming("--resume", "gone.pth"):
        train.main([*flags, "gone.pth"])
    # As after a kill between two renames, after which only the predecessor is there.
    for name in ("best_refcoco.pth", "last_refcoco.1.pth", "last_refcoco.pth"):
        (tmp_path / name).touch()
        train.main([*flags, "auto"])
        assert f"state: {tmp_path / name}" in capsys.readouterr().out


def test_of_several_data_sets_each_needs_the_splits_that_it_has(
    few_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aRefCOCO, which is for evaluation only, has no train and no val."""
    asked: dict[str, list[str]] = {}

    def check(root: Path, dataset: str, _: str, splits: list[str], overlap: str, **options: bool) -> Present:
        asked[dataset] = splits
        return check_present(root, "refcoco", "unc", splits, overlap, **options)

    monkeypatch.setattr(dry_run, "check_present", check)
    args = train.parse_args(["--dataset", "refcoco,arefcoco", "--refer_data_root", str(few_root)])
    texts = [check() for check in dry_run.data_checks(args, ("train", "val"), []).values()]
    assert asked == {"refcoco": ["train", "val"], "arefcoco": []}
    assert "val 8 objects" in texts[0] and texts[1] == NO_SPLIT


def test_photos_masks_and_splits_of_own_data_are_looked_for(tmp_path: Path) -> None:
    record = {"image": "gone.jpg", "sentences": ["the dog"], "mask": "gone.png"}
    (tmp_path / "train.jsonl").write_text(json.dumps(record) + "\n")
    check = dry_run.check_own_data
    with naming(tmp_path / "gone.jpg", tmp_path / "gone.png", tmp_path / "val.jsonl"):
        check([str(tmp_path / "train.jsonl"), str(tmp_path / "val.jsonl")], ["train"])
    for name in ("gone.jpg", "gone.png"):
        (tmp_path / name).touch()
    with naming("split val"):
        check([str(tmp_path / "train.jsonl")], ["train", "val"])
    assert check([str(tmp_path / "train.jsonl")], ["train"])[1:] == (1, 1)


def test_folders_of_one_disk_share_its_space(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    names = tmp_path / "a" / "b", tmp_path / "c"
    assert "free" in check_space(dict.fromkeys(names, free * 0.4))
    with naming(*names, "GB free"):
        check_space(dict.fromkeys(names, free * 0.6))


def test_the_space_of_a_new_cache_counts(
    few_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What building it reserves, for training and testing; one that exists needs nothing."""
    reserved = Contents(REFER(few_root), 32).layout().n_reserved
    cache, needs = tmp_path / "cache.h5", []
    check = dry_run.check_space

    def note(needed: dict[Path, float]) -> str:
        needs.append(needed.get(cache))
        return check(needed)

    monkeypatch.setattr(train, "check_space", note)
    monkeypatch.setattr(test_script, "check_space", note)
    training = training_flags(few_root, tmp_path / "out", "--dry-run", "--init", SHIPPED, "--cache", cache)
    testing = ["--dry-run", "--refer_data_root", str(few_root), "--resume", SHIPPED, "--cache", str(cache)]
    train.main(training)
    test_script.main([*testing, "--img_size", "32"])
    assert needs == [reserved] * 2
    test_script.main(testing)  # at the size of the training
    assert needs.pop() == Contents(REFER(few_root), 112).layout().n_reserved
    assert str(cache) in capsys.readouterr().out and not cache.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with naming(cache, "make room"):
        test_script.main(testing)
    cache.touch()
    n_before = len(needs)
    test_script.main(testing)
    assert len(needs) == n_before


def test_no_more_states_need_space_than_there_are_epochs(
    few_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless states are also saved within epochs."""
    needs: list[float] = []

    def note(needed: dict[Path, float]) -> str:
        needs.extend(needed.values())
        return ""

    monkeypatch.setattr(train, "check_space", note)
    flags = training_flags(few_root, tmp_path / "out", "--dry-run", "--init", SHIPPED, "--epochs", 2, "--keep")
    for more in (["2"], ["1000"], ["1000", "--save-every", "5"]):
        train.main([*flags, *more])
    assert needs[0] == needs[1] == pytest.approx(needs[2] * 4 / 1002)


def test_a_state_holds_the_weights_and_two_moments_of_what_is_trained() -> None:
    network = nn.Linear(10, 10, bias=False)
    assert state_bytes(network, amsgrad=False) == 4 * 300
    assert state_bytes(network, amsgrad=True) == 4 * 400
    network.requires_grad_(False)
    assert state_bytes(network, amsgrad=False) == 4 * 100
