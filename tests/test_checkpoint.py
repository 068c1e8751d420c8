"""Files of every origin are read, hostile and damaged ones refused; what is written is whole or not there."""

from __future__ import annotations

import argparse
import errno
import io
import os
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from CrossVLT import SegModel
from errors import UserError
from lib.files import write_atomically
from lib.hub import RELEASED_FILES, RELEASED_URL
from lib.weights.checkpoint import load_weights, read_checkpoint, read_file, save_checkpoint, strip_wrappers
from tests.helpers import naming, small_disk
from tests.networks import fill

OPTIONS = argparse.Namespace(
    dataset="refcoco+", lr=3e-5, epochs=40, amsgrad=False, resume=None, window=[7, 12], nested={"pair": (1, 2)}
)


def small_network() -> nn.Module:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    network.temp = nn.Parameter(torch.ones(4), requires_grad=False)
    return network


def other_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return weights for the network that differ from its own in every tensor."""
    weights = fill({name: value.clone() for name, value in network.state_dict().items()}, seed=7)
    return {name: value if value.is_floating_point() else value + 1 for name, value in weights.items()}


def holds(network: nn.Module, weights: dict[str, Tensor]) -> bool:
    own = network.state_dict()
    return own.keys() == weights.keys() and all(torch.equal(own[name], weights[name]) for name in own)


# ---------------------------------------------------------------- files people have


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old-pickle"])
@pytest.mark.parametrize("with_temp", [True, False], ids=["temp", "no-temp"])
@pytest.mark.parametrize("prefix", ["", "module."], ids=["plain", "module"])
@pytest.mark.parametrize("training_file", [False, True], ids=["bare", "training"])
def test_released_files_are_read(
    tmp_path: Path, training_file: bool, prefix: str, with_temp: bool, zipped: bool
) -> None:
    network = small_network()
    weights = other_weights(network)
    names = [name for name in weights if with_temp or name != "temp"]
    prefixed = {prefix + name: weights[name] for name in names}
    content: dict[str, Any] = {**prefixed}
    if training_file:
        content = {"model": prefixed, "epoch": 31, "args": OPTIONS, "best_oIoU": 73.44}
    path = tmp_path / "best_refcoco+.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)

    checkpoint = read_checkpoint(path)
    load_weights(network, checkpoint.weights, path)

    assert holds(network, weights if with_temp else weights | {"temp": torch.ones(4)})
    assert checkpoint.path == path
    assert checkpoint.args == (vars(OPTIONS) if training_file else {})
    assert checkpoint.state == ({"epoch": 31, "best_oIoU": 73.44} if training_file else {})


def test_a_released_file_fills_the_whole_network(tmp_path: Path) -> None:
    network = SegModel("nano", "nano", vocab_size=50)
    weights = other_weights(network)
    released = {f"module.{name}": value for name, value in weights.items() if name != "temp"}
    path = tmp_path / "best_refcoco.pth"
    torch.save({"model": released, "epoch": 39, "args": OPTIONS, "best_oIoU": torch.tensor(73.44)}, path)
    load_weights(network, read_checkpoint(path).weights, path)
    assert holds(network, weights | {"temp": torch.ones(4)})


@pytest.mark.parametrize(
    ("saved", "expected"),
    [({"lr": 1.0}, {"lr": 1.0}), (argparse.Namespace(lr=1.0), {"lr": 1.0}), (None, {})],
)
def test_options_come_as_a_dictionary(tmp_path: Path, saved: Any, expected: dict[str, Any]) -> None:
    torch.save({"model": {"a": torch.ones(1)}, "args": saved}, tmp_path / "x.pth")
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert checkpoint.args == expected
    assert "args" not in checkpoint.state


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pth", ""])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "old-pickle"])
def test_the_content_tells_the_format_whatever_the_name(tmp_path: Path, kind: str, suffix: str) -> None:
    path, weights = tmp_path / f"model{suffix}", {"a": torch.arange(6.0).view(2, 3)}
    if kind == "safetensors":
        save_file(weights, path, metadata={"format": "pt"})
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "zip")
    assert torch.equal(read_checkpoint(path).weights["a"], weights["a"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    network = small_network()
    weights = other_weights(network)
    cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights.items()}
    torch.save(cast, tmp_path / "x.pth")
    load_weights(network, read_checkpoint(tmp_path / "x.pth").weights, "x.pth")
    assert network.get_parameter("0.weight").dtype == torch.float32
    assert torch.equal(network.get_parameter("0.weight"), cast["0.weight"].float())


@pytest.mark.parametrize(
    ("names", "stripped"),
    [
        (["module.a", "module.b"], ["a", "b"]),
        (["a", "b"], ["a", "b"]),
        (["module.a", "n_averaged"], ["a", "n_averaged"]),
        (["module.module.a"], ["module.a"]),
        (["a.module.b"], ["a.module.b"]),
        (["module.a", "a"], ["module.a", "a"]),
        (["_orig_mod.a", "_orig_mod.b"], ["a", "b"]),
        (["module._orig_mod.a", "_orig_mod.module.b"], ["a", "b"]),
        (["backbone._orig_mod.a"], ["backbone.a"]),
    ],
)
def test_prefix_is_dropped_where_no_name_is_lost(names: list[str], stripped: list[str]) -> None:
    weights = {name: torch.tensor(number) for number, name in enumerate(names)}
    assert {name: value.item() for name, value in strip_wrappers(weights).items()} == {
        name: number for number, name in enumerate(stripped)
    }


# ---------------------------------------------------------------- strictness


def test_every_misfit_is_listed_and_nothing_is_loaded() -> None:
    network = small_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    weights = other_weights(network)
    del weights["0.weight"], weights["1.running_mean"]
    weights |= {"0.bias": torch.ones(5), "head.weight": torch.ones(1), "n_averaged": torch.tensor(3)}
    with pytest.raises(UserError) as caught:
        load_weights(network, weights, "some/file.pth")
    message = str(caught.value)
    assert message.startswith("some/file.pth does not fit")
    assert "missing (2): 0.weight, 1.running_mean\n" in message
    assert "unexpected (2): head.weight, n_averaged\n" in message
    assert "of another shape (1): 0.bias is [5], expected [2]\n" in message
    assert holds(network, before)


def test_one_odd_name_among_prefixed_ones_is_all_that_is_listed(tmp_path: Path) -> None:
    network = small_network()
    weights = {f"module.{name}": value for name, value in other_weights(network).items()}
    torch.save(weights | {"n_averaged": torch.tensor(3)}, tmp_path / "averaged.pth")
    with pytest.raises(UserError) as caught:
        load_weights(network, read_checkpoint(tmp_path / "averaged.pth").weights, "averaged.pth")
    assert "unexpected (1): n_averaged\n" in str(caught.value)
    assert "missing" not in str(caught.value)


def test_only_temp_may_be_absent() -> None:
    network = small_network()
    weights = other_weights(network)
    for name in weights:
        rest = {other: value for other, value in weights.items() if other != name}
        if name == "temp":
            load_weights(network, rest, "file")
        else:
            with naming(name):
                load_weights(network, rest, "file")


def test_a_source_must_provide_what_is_expected_of_it_and_no_more() -> None:
    network = small_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    weights = other_weights(network)
    part = {name: weights[name] for name in ("0.weight", "0.bias")}
    load_weights(network, part, "file", expected=part)
    assert holds(network, before | part)
    with naming("1.weight"):
        load_weights(network, part, "file", expected=[*part, "1.weight"])
    with naming("temp"):
        load_weights(network, part | {"temp": torch.ones(4)}, "file", expected=part)


# ---------------------------------------------------------------- hostile files


class Calls:
    """Pickles as a call that leaves a trace."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


class NamespaceOfTheirs(argparse.Namespace):
    """Allowed by no one, though its parent is."""


HOSTILE_CALLS = {
    "os.system": lambda trace: Calls(os.system, f"mkdir {trace}"),
    "os.mkdir": lambda trace: Calls(os.mkdir, str(trace)),
    "exec": lambda trace: Calls(exec, f"import os; os.mkdir({str(trace)!r})"),
    "eval": lambda trace: Calls(eval, f"__import__('os').mkdir({str(trace)!r})"),
}
HOSTILE_PLACES = {
    "alone": lambda call: call,
    "beside weights": lambda call: {"model": {"a": torch.ones(1)}, "epoch": call},
    "among weights": lambda call: {"a": torch.ones(1), "b": call},
    "in the options": lambda call: {"model": {"a": torch.ones(1)}, "args": argparse.Namespace(lr=1.0, resume=call)},
}
WRITERS = {
    "zip": lambda content, path: torch.save(content, path),
    "old-pickle": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "pickle-2": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
    "pickle-4": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=4)),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("place", HOSTILE_PLACES)
@pytest.mark.parametrize("call", HOSTILE_CALLS)
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(
    tmp_path: Path, call: str, place: str, writer: str, suffix: str
) -> None:
    trace, path = tmp_path / "trace", tmp_path / f"weights{suffix}"
    WRITERS[writer](HOSTILE_PLACES[place](HOSTILE_CALLS[call](trace)), path)
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "was refused" in str(caught.value)
    assert "no code in it was run" in str(caught.value)
    if writer in ("zip", "old-pickle"):
        assert f"wants to use {call.replace('os.', os.name + '.')}. " in str(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize("call", HOSTILE_CALLS)
def test_those_files_are_dangerous_to_careless_readers(tmp_path: Path, call: str) -> None:
    trace, path = tmp_path / "trace", tmp_path / "weights.pth"
    torch.save(HOSTILE_CALLS[call](trace), path)
    torch.load(path, weights_only=False)
    assert trace.is_dir()


def test_no_other_class_is_admitted(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(1)}, "args": NamespaceOfTheirs(lr=1.0)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"\.NamespaceOfTheirs\b"):
        read_checkpoint(tmp_path / "x.pth")


def test_namespace_is_admitted_here_alone(tmp_path: Path) -> None:
    torch.save(OPTIONS, tmp_path / "x.pth")
    assert read_file(tmp_path / "x.pth") == OPTIONS
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "x.pth", weights_only=True)


# ---------------------------------------------------------------- damaged and foreign files


def saved(content: object, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def archive(kind: str) -> bytes:
    """Return a TorchScript-like zip or an old PyTorch tar."""
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as script:
            for name in ("constants.pkl", "data.pkl", "version"):
                script.writestr(f"script/{name}", b"3")
    else:
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


DAMAGED = {
    "empty": b"",
    "one byte": b"\x80",
    "half a zip": saved({"a": torch.ones(99)})[:700],
    "half an old pickle": saved({"a": torch.ones(99)}, zipped=False)[:300],
    "half a safetensors": b"\x40\x00\x00\x00\x00\x00\x00\x00" + b'{"a":{"dtype":"F32"',
    "web page": b"<!DOCTYPE html><html><body>Not found</body></html>",
    "text": b"hello, world, how are you?\n",
    "json": b'{"model": [1, 2, 3]}',
    "TorchScript": archive("zip"),
    "tar": archive("tar"),
}


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file")
@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_and_foreign_files_are_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(DAMAGED[kind])
    with pytest.raises(UserError, match=r"was refused|could not be read as weights") as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert "ownload" in message  # what to do
    assert "`weights_only` set to `False`" not in message  # PyTorch's own advice


def test_a_pointer_of_git_lfs_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 440473133\n")
    with naming("git lfs pull"):
        read_checkpoint(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old-pickle"])
def test_no_damage_ends_in_a_traceback(tmp_path: Path, zipped: bool) -> None:
    path, dice = tmp_path / "weights.pth", random.Random(0)
    whole = saved({"model": {"a": torch.ones(3)}, "args": OPTIONS}, zipped=zipped)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[dice.randrange(min(len(damaged), 700))] = dice.randrange(256)
        path.write_bytes(damaged[: dice.choice([len(damaged), dice.randrange(len(damaged))])])
        try:
            read_checkpoint(path)
        except UserError:
            refused += 1
    assert refused > 150


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"model": {}},
        [torch.ones(1)],
        torch.ones(1),
        3,
        {"model": [torch.ones(1)], "epoch": 3},
        {"a": torch.ones(1), "b": 3},
        {0: torch.ones(1)},
        {"model": {"a": torch.ones(1), 0: torch.ones(1)}},
        {"state": {0: {"exp_avg": torch.ones(1)}}, "param_groups": [{"lr": 1.0}]},
    ],
)
def test_files_without_weights_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth\b"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path, named in ((tmp_path / "nowhere.pth", "nowhere.pth"), (tmp_path, "model.safetensors")):
        with naming(tmp_path / named):
            read_checkpoint(path)


@pytest.mark.parametrize("name", RELEASED_FILES)
def test_a_missing_released_file_is_named_with_its_address(tmp_path: Path, name: str) -> None:
    with naming(tmp_path / name, RELEASED_URL):
        read_checkpoint(tmp_path / name)


def test_a_file_that_cannot_be_opened_is_named_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.pth"
    path.touch()

    def forbidden(*_: object, **__: object) -> BinaryIO:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(UserError, match=r"x\.pth\b.*\(Permission denied\)"):
        read_checkpoint(path)


# ---------------------------------------------------------------- writing


def test_saved_values_are_read_back(tmp_path: Path) -> None:
    network = small_network()
    network.load_state_dict(other_weights(network))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    network(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    path = tmp_path / "new" / "folder" / "last.pth"
    state = {"optimizer": optimizer.state_dict(), "epoch": 3, "history": [{"epoch": 3, "val": {"overall_iou": 61.5}}]}
    save_checkpoint(path, {"model": network.state_dict(), "args": vars(OPTIONS), **state})
    checkpoint = read_checkpoint(path)
    fresh = small_network()
    load_weights(fresh, checkpoint.weights, path)
    assert holds(fresh, network.state_dict())
    assert checkpoint.args == vars(OPTIONS)
    assert checkpoint.state.keys() == state.keys()
    assert checkpoint.state["history"] == state["history"]
    restored = torch.optim.AdamW(fresh.parameters(), lr=0.5)
    restored.load_state_dict(checkpoint.state["optimizer"])
    assert torch.equal(
        restored.state[fresh.get_parameter("0.weight")]["exp_avg"],
        optimizer.state[network.get_parameter("0.weight")]["exp_avg"],
    )
    assert [file.name for file in path.parent.iterdir()] == ["last.pth"]


@pytest.mark.parametrize("previous", [b"previous", None])
def test_the_file_is_renamed_after_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, previous: bytes | None
) -> None:
    path = tmp_path / "last.pth"
    if previous is not None:
        path.write_bytes(previous)
    synced: list[int] = []
    renamed: list[int] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(os.fstat(descriptor).st_size)

    def note_replace(source: Path, target: Path) -> Path:
        assert target == path
        assert (path.read_bytes() if path.exists() else None) == previous
        renamed.append(source.stat().st_size)
        return replace(source, target)

    def write(file: BinaryIO) -> None:
        for _ in range(3):
            file.write(b"content")
            assert (path.read_bytes() if path.exists() else None) == previous

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    write_atomically(path, write)
    assert path.read_bytes() == b"content" * 3
    assert synced[0] == len(b"content") * 3, "the content is on the disk before its name; the folder follows"
    assert renamed == [len(b"content") * 3]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))])
@pytest.mark.parametrize("previous", [b"previous", None])
def test_an_interrupted_write_leaves_what_was_there(
    tmp_path: Path, error: BaseException, previous: bytes | None
) -> None:
    path = tmp_path / "last.pth"
    if previous is not None:
        path.write_bytes(previous)

    def write(file: BinaryIO) -> None:
        file.write(b"half of it")
        raise error

    expected = UserError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        write_atomically(path, write)
    if isinstance(error, OSError):
        assert str(path) in str(caught.value)
        assert "No space left on device" in str(caught.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == ({path.name: previous} if previous else {})


@pytest.mark.parametrize("size", [1, 100, 2000, 30_000])
def test_a_disk_that_fills_up_costs_only_the_new_checkpoint(tmp_path: Path, size: int) -> None:
    path = tmp_path / "last.pth"
    save_checkpoint(path, {"model": {"a": torch.zeros(10_000)}, "epoch": 1})
    with small_disk(size), pytest.raises(UserError) as caught:
        save_checkpoint(path, {"model": {"a": torch.ones(10_000)}, "epoch": 2})
    assert "File too large" in str(caught.value)
    assert "unchanged" in str(caught.value)
    checkpoint = read_checkpoint(path)
    assert checkpoint.state["epoch"] == 1
    assert not checkpoint.weights["a"].any()
    assert [file.name for file in tmp_path.iterdir()] == ["last.pth"]


def test_a_folder_that_cannot_be_made_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "last.pth", tmp_path / "file" / "folder" / "last.pth"):
        with pytest.raises(UserError, match=r"last\.pth\b"):
            save_checkpoint(path, {"model": {}})
