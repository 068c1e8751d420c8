"""Weights from anybody: whatever an entry is, a command uses the file as it is or refuses it by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from CrossVLT import SegModel
from errors import UserError
from lib.weights.__main__ import export, inspect
from lib.weights.checkpoint import read_checkpoint
from tests.fuzz import EVERYTHING, KINDS, cases, names_entry
from tests.helpers import mostly_slow
from tests.test_saved_state import SCORES
from trained import from_checkpoint

# PyTorch warns of what the files with odd tensors hold.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

BESIDE = {
    "args": {"img_size": 56, "bert_tokenizer": "no-such-name", "dataset": "refcoco", "epochs": 2},
    "epoch": 1,
    "best_oIoU": 40.0,
    "scores": SCORES,
    "log": [{"kind": "epoch", "val": SCORES}],
}
TENSORS = ("classifier.conv1_1.weight", "lang_stage1.embeddings.word_embeddings.weight", "classifier.bn1_4.running_var")
LONGEST_ANSWER = 200_000  # characters of what `inspect` says; most are names of weights

Case = tuple[tuple[Any, ...], str, dict[str, Any]]


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    """A complete file of weights of the smallest variant, with all optional entries."""
    weights = SegModel("nano", "nano", vocab_size=20, fusion="none", alignment=False).state_dict()
    return {"model": weights, "vocabulary": [f"word{number}" for number in range(20)]} | BESIDE


def of_tensors(content: dict[str, Any], count: int | None) -> Iterator[Case]:
    """Yield an entry's path, a kind's name and the content that has this kind there.

    count: how many, drawn at random; None: all.
    """
    tensors = {name: content["model"][name] for name in TENSORS}
    for path, kind, part in cases(tensors, seed=2, count=count):
        others = {name: value for name, value in content["model"].items() if name not in TENSORS}
        yield ("model", *path), kind, content | {"model": others | part}


def of_others(content: dict[str, Any], count: int | None) -> Iterator[Case]:
    """The same for the entries next to the weights."""
    for path, kind, part in cases(BESIDE, seed=1, count=count):
        yield path, kind, {"model": content["model"], "vocabulary": content["vocabulary"]} | part
    for kind in list(KINDS)[1 :: 9 if count else 1]:
        yield ("vocabulary",), kind, content | {"vocabulary": KINDS[kind]}


def load(path: Path) -> None:
    network = from_checkpoint(read_checkpoint(path))
    assert all(value.isfinite().all() for value in network.state_dict().values())


def remembered(path: Path) -> None:
    checkpoint = read_checkpoint(path)
    assert 1 <= checkpoint.remembered("img_size") <= 4096
    assert isinstance(checkpoint.remembered("bert_tokenizer"), str)


def show(path: Path) -> None:
    assert len(json.dumps(inspect(path))) < LONGEST_ANSWER


def rewrite(path: Path) -> None:
    export(path, path.with_name("own.pth"), "own")
    read_checkpoint(path.with_name("own.pth"))


def try_all(path: Path, found: Iterator[Case], command: Callable[[Path], None]) -> None:
    for entry, kind, whole in found:
        torch.save(whole, path)
        try:
            command(path)
        except UserError as error:
            message = str(error)
            assert str(path) in message, (entry, kind, message)
            # The sizes of some weights tell what network it is.
            assert names_entry(message, entry) or "no variant has" in message, (entry, kind, message)
            assert len(message) < 1000, (entry, kind)


@pytest.mark.parametrize("command", mostly_slow([show, rewrite], always=[show]))
def test_an_entry_of_another_kind_is_refused_or_not_needed(
    tmp_path: Path, content: dict[str, Any], command: Callable[[Path], None]
) -> None:
    try_all(tmp_path / "weights.pth", of_others(content, count=5), command)


def test_a_tensor_of_another_kind_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    try_all(tmp_path / "weights.pth", of_tensors(content, count=8), load)


def test_a_size_or_a_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    tiny = {"model": {"weight": torch.ones(1)}}
    args = {"args": {"img_size": 56, "bert_tokenizer": "no-such-name"}}
    found = ((path, kind, tiny | part) for path, kind, part in cases(args, seed=1))
    try_all(tmp_path / "weights.pth", found, remembered)


@pytest.mark.slow
@pytest.mark.parametrize("command", [load, show, rewrite])
def test_a_tensor_of_every_other_kind(tmp_path: Path, content: dict[str, Any], command: Callable[[Path], None]) -> None:
    try_all(tmp_path / "weights.pth", of_tensors(content, count=None if EVERYTHING else 60), command)


@pytest.mark.slow
@pytest.mark.parametrize("command", [show, rewrite])
def test_many_entries_of_other_kinds(tmp_path: Path, content: dict[str, Any], command: Callable[[Path], None]) -> None:
    try_all(tmp_path / "weights.pth", of_others(content, count=200 if EVERYTHING else 40), command)


def test_nan_weights_are_named(tmp_path: Path, content: dict[str, Any]) -> None:
    name = TENSORS[0]
    broken = torch.full_like(content["model"][name], torch.nan)
    torch.save({"model": content["model"] | {name: broken}}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=rf"infinite or not a number \(1\): {name}"):
        from_checkpoint(read_checkpoint(tmp_path / "weights.pth"))


def test_a_large_file_is_inspected_where_it_lies(tmp_path: Path, content: dict[str, Any]) -> None:
    """Its tensors are mapped, not read, whatever its format allows; the description is the same."""
    paths = [tmp_path / name for name in ("new.pth", "old.pth")]
    for path in paths:
        torch.save(content, path, _use_new_zipfile_serialization=path.stem == "new")
    described = [inspect(path) for path in paths]
    assert [one["sha256"] for one in described] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert [one["bytes"] for one in described] == [path.stat().st_size for path in paths]
    assert described[0]["weights"] == described[1]["weights"]
    maps = Path("/proc/self/maps")
    for path in paths if maps.exists() else []:
        checkpoint = read_checkpoint(path, mapped=True)
        assert (str(path) in maps.read_text()) == (path.stem == "new")
        assert checkpoint.weights.keys() == content["model"].keys()
