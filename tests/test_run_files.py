"""The files of a run: the state that it resumes from, kept files, files that are never replaced."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from errors import UserError
from lib.options import FIXED_NAMES, FORMER
from lib.training.run_files import STATE, RunFiles, read_state, refuse_other_images, refuse_other_run
from lib.weights.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from tests.helpers import ended_within, flip_bit, naming

OPTIONS = dict.fromkeys(FIXED_NAMES, 1) | {"dataset": "refcoco"}


def state(number: int) -> dict:
    """The smallest training state: its number is its only weight."""
    return dict.fromkeys(STATE, 0) | {"model": {"weight": torch.full((1000,), float(number))}, "args": OPTIONS}


def number_in(path: Path) -> int:
    return int(read_checkpoint(path).weights["weight"][0])


def saved(folder: Path, count: int, keep: int = 2, best: int = 1) -> RunFiles:
    """A run that saved states 1 to `count`."""
    files = RunFiles(folder, "refcoco", keep)
    assert files.open() is None
    for number in range(1, count + 1):
        files.save(state(number), best=number == best)
    return files


def kept(folder: Path) -> dict[str, int]:
    return {path.name: number_in(path) for path in sorted(folder.glob("*.pth"))}


def kept_names(folder: Path) -> list[str]:
    """Return the names of a folder's files but for the lock, which holds nothing."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".lock_"))


def test_the_newest_states_and_the_best_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, count=5, keep=3)
    names = {"best_refcoco.pth": 1, "last_refcoco.pth": 5, "last_refcoco.1.pth": 4, "last_refcoco.2.pth": 3}
    assert kept(tmp_path) == names
    again = RunFiles(tmp_path, "refcoco", keep=1)
    again.open("auto")
    again.save(state(6))
    assert kept(tmp_path) == {"best_refcoco.pth": 1, "last_refcoco.pth": 6}


def test_the_last_state_is_whole_if_the_best_goes_nowhere(tmp_path: Path) -> None:
    """It is copied from the best one only if that is a file."""
    (tmp_path / "best_refcoco.pth").symlink_to(os.devnull)
    files = RunFiles(tmp_path, "refcoco")
    files.open(overwrite=True)
    files.save(state(1), best=True)
    assert number_in(tmp_path / "last_refcoco.pth") == 1


def test_keeping_all_states_takes_no_longer(tmp_path: Path) -> None:
    """Only those that exist are renamed, not each number up to --keep."""
    with ended_within(20):
        saved(tmp_path, count=3, keep=10**9)
    names = {"best_refcoco.pth": 1, "last_refcoco.pth": 3, "last_refcoco.1.pth": 2, "last_refcoco.2.pth": 1}
    assert kept(tmp_path) == names


def test_keeping_one_state_replaces_it(tmp_path: Path) -> None:
    saved(tmp_path, count=3, keep=1)
    assert kept(tmp_path) == {"best_refcoco.pth": 1, "last_refcoco.pth": 3}


def test_auto_begins_anew_in_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert RunFiles(tmp_path / "new", "refcoco").open("auto") is None
    assert "starts from the beginning" in capsys.readouterr().out


def test_auto_begins_anew_after_a_start_that_saved_nothing(tmp_path: Path) -> None:
    (tmp_path / "log_refcoco.jsonl").write_text("its log")
    assert RunFiles(tmp_path, "refcoco").open("auto") is None
    assert (tmp_path / "log_refcoco.jsonl.old").read_text() == "its log"
    (tmp_path / "log_refcoco.jsonl").write_text("of a start that saved nothing")
    assert RunFiles(tmp_path, "refcoco").open("auto") is None
    assert (tmp_path / "log_refcoco.jsonl.old").read_text() == "its log", "the first one may be worth something"


@pytest.mark.parametrize("modern", [True, False])
def test_auto_leaves_released_weights_alone(tmp_path: Path, modern: bool) -> None:
    released = tmp_path / "best_refcoco.pth"
    torch.save({"weight": torch.zeros(3)}, released, _use_new_zipfile_serialization=modern)
    with naming("best_refcoco.pth", tmp_path, "--output-dir"):
        RunFiles(tmp_path, "refcoco").open("auto")
    assert kept_names(tmp_path) == ["best_refcoco.pth"]


def test_a_state_that_cannot_be_loaded_now_is_not_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes are sound: memory is short, perhaps, or PyTorch too old."""
    saved(tmp_path, count=2)
    before = sorted(path.name for path in tmp_path.iterdir())

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(UserError, match="allocate memory"):
        RunFiles(tmp_path, "refcoco").open("auto")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_auto_takes_the_newest_state(tmp_path: Path) -> None:
    saved(tmp_path, count=3)
    files = RunFiles(tmp_path, "refcoco")
    assert files.open("auto").path == files.last
    assert "last_refcoco.pth" in files.last_good()


@pytest.mark.parametrize("place", [0.1, 0.5, 0.8])  # in records: nothing is lost in the padding between them
def test_auto_reports_and_skips_a_flipped_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str], place: float) -> None:
    saved(tmp_path, count=3)
    flip_bit(tmp_path / "last_refcoco.pth", place)
    files = RunFiles(tmp_path, "refcoco")
    assert files.open("auto").path == tmp_path / "last_refcoco.1.pth"
    assert "last_refcoco.pth is damaged" in capsys.readouterr().out
    assert (tmp_path / "last_refcoco.pth.damaged").exists(), "damaged bytes are put aside, not lost"
    files.save(state(4))
    assert kept(tmp_path) == {"best_refcoco.pth": 1, "last_refcoco.pth": 4, "last_refcoco.1.pth": 2}


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_auto_skips_truncated_states_down_to_the_best(tmp_path: Path, share: float) -> None:
    saved(tmp_path, count=3)
    for name in ("last_refcoco.pth", "last_refcoco.1.pth"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    files = RunFiles(tmp_path, "refcoco")
    assert files.open("auto").path == files.best
    files.save(state(9))
    assert kept(tmp_path) == {"best_refcoco.pth": 1, "last_refcoco.pth": 9}


def test_auto_finds_the_predecessor_of_a_state_that_was_being_replaced(tmp_path: Path) -> None:
    """As after a kill between the two renames."""
    saved(tmp_path, count=3)
    (tmp_path / "last_refcoco.pth").rename(tmp_path / "last_refcoco.1.pth")
    leftover = tmp_path / ".last_refcoco.pth.123.tmp"
    leftover.touch()
    files = RunFiles(tmp_path, "refcoco")
    assert number_in(files.open("auto").path) == 3
    assert not leftover.exists()
    files.save(state(4))
    assert kept(tmp_path) == {"best_refcoco.pth": 1, "last_refcoco.pth": 4, "last_refcoco.1.pth": 3}


def test_a_damaged_file_given_by_name_is_refused(tmp_path: Path) -> None:
    files = saved(tmp_path, count=2)
    flip_bit(files.last)
    with pytest.raises(UserError, match=r"last_refcoco\.pth\b.*--resume auto"):
        RunFiles(tmp_path, "refcoco").open(str(files.last))
    assert files.last.exists()


@pytest.mark.parametrize("name", ["last_refcoco.pth", "last_refcoco.1.pth", "best_refcoco.pth", "log_refcoco.jsonl"])
def test_nothing_of_another_run_is_replaced(tmp_path: Path, name: str) -> None:
    """Neither by a fresh run nor by one resumed from another folder, until there is a new state."""
    saved(tmp_path / "elsewhere", count=1)
    (tmp_path / name).write_bytes(b"precious")
    for resume in ("", str(tmp_path / "elsewhere" / "last_refcoco.pth")):
        with naming(name, "--overwrite"):
            RunFiles(tmp_path, "refcoco").open(resume)
    RunFiles(tmp_path, "refcoco").open(overwrite=True)
    assert (tmp_path / name).read_bytes() == b"precious"


def test_a_run_that_replaces_another_keeps_none_of_its_states(tmp_path: Path) -> None:
    saved(tmp_path, count=4, keep=3)
    files = RunFiles(tmp_path, "refcoco", keep=3)
    files.open(overwrite=True)
    assert kept(tmp_path)["last_refcoco.pth"] == 4, "not before there is something to put in its place"
    files.save(state(11))
    files.save(state(12))
    assert kept(tmp_path) == {"last_refcoco.pth": 12, "last_refcoco.1.pth": 11}


def test_a_replaced_run_keeps_its_best_until_a_new_one_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, count=2)
    files = RunFiles(tmp_path, "refcoco")
    files.open(overwrite=True)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(UserError, match="No space left"):
            files.save(state(9))
    assert kept(tmp_path) == {"best_refcoco.pth": 1, "last_refcoco.pth": 2, "last_refcoco.1.pth": 1}


def logged(number: int, n_epochs: int, best: float) -> dict:
    """The state of a run that validated some epochs; its seed tells it from others."""
    log = [{"kind": "epoch", "epoch": epoch, "loss": number / 7} for epoch in range(n_epochs)]
    return state(number) | {"log": log, "best_oIoU": best}


def test_the_best_of_a_replaced_run_is_put_aside(tmp_path: Path) -> None:
    saved(tmp_path, count=2)
    files = RunFiles(tmp_path, "refcoco")
    files.open(overwrite=True)
    files.save(state(9))
    assert kept(tmp_path) == {"last_refcoco.pth": 9}
    assert number_in(tmp_path / "best_refcoco.pth.old") == 1
    save_checkpoint(files.best, state(3))  # of a third run
    again = RunFiles(tmp_path, "refcoco")
    again.open(overwrite=True)
    again.save(state(4), best=True)
    assert kept(tmp_path) == {"best_refcoco.pth": 4, "last_refcoco.pth": 4}
    assert number_in(tmp_path / "best_refcoco.pth.old.2") == 3


def test_weights_that_took_the_place_of_the_best_are_put_aside(tmp_path: Path) -> None:
    """As the released ones, which have its name and belong into the default folder."""
    files = saved(tmp_path, count=2)
    torch.save({"weight": torch.full((1000,), 7.0)}, files.best)
    again = RunFiles(tmp_path, "refcoco")
    again.open("auto")
    again.save(state(3), best=True)
    assert kept(tmp_path) == {"best_refcoco.pth": 3, "last_refcoco.pth": 3, "last_refcoco.1.pth": 2}
    assert number_in(tmp_path / "best_refcoco.pth.old") == 7


@pytest.mark.parametrize(("of_this_run", "expected"), [(True, 5), (False, None)])
def test_a_run_resumed_elsewhere_copies_its_best(tmp_path: Path, of_this_run: bool, expected: int | None) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    save_checkpoint(old / "best_refcoco.pth", logged(5 if of_this_run else 6, n_epochs=1, best=40.0))
    save_checkpoint(old / "last_refcoco.pth", logged(5, n_epochs=2, best=40.0))
    files = RunFiles(new, "refcoco")
    files.open(str(old / "last_refcoco.pth"))
    files.save(logged(5, n_epochs=3, best=40.0))
    assert kept(new).get("best_refcoco.pth") == expected
    assert kept(old) == {"best_refcoco.pth": 5 if of_this_run else 6, "last_refcoco.pth": 5}


@pytest.mark.parametrize("name", ["tensorboard_refcoco", "strips_refcoco"])
def test_points_and_pictures_of_another_run_are_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").write_text("precious")
    with naming(name):
        RunFiles(tmp_path, "refcoco").open()
    assert RunFiles(tmp_path, "refcoco").open("auto") is None  # of a run whose states were moved
    assert (tmp_path / f"{name}.old" / "notes.txt").read_text() == "precious"


def test_resuming_from_best_never_deletes_it(tmp_path: Path) -> None:
    files = saved(tmp_path, count=3, best=2)
    again = RunFiles(tmp_path, "refcoco")
    again.open(str(files.best), overwrite=True)
    again.save(state(7))
    assert kept(tmp_path) == {"best_refcoco.pth": 2, "last_refcoco.pth": 7}


def test_resuming_from_best_would_lose_the_last_state(tmp_path: Path) -> None:
    files = saved(tmp_path, count=2)
    with pytest.raises(UserError, match=r"--resume \S*last_refcoco\.pth"):
        RunFiles(tmp_path, "refcoco").open(str(files.best))


def test_resuming_from_an_older_state_keeps_the_newer_one(tmp_path: Path) -> None:
    saved(tmp_path, count=3)
    files = RunFiles(tmp_path, "refcoco")
    files.open(str(tmp_path / "last_refcoco.1.pth"))
    files.save(state(7))
    assert kept(tmp_path) == {"best_refcoco.pth": 1, "last_refcoco.pth": 7, "last_refcoco.1.pth": 3}


def test_weights_alone_cannot_be_continued(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "w.pth", {"model": {"weight": torch.zeros(1)}, "epoch": 3, "best_oIoU": 1.0})
    with pytest.raises(UserError, match=r"w\.pth\b.*optimizer, lr_scheduler, scaler, step"):
        read_state(tmp_path / "w.pth")


@pytest.mark.parametrize("name", FIXED_NAMES)
def test_another_run_is_not_continued(name: str) -> None:
    checkpoint = Checkpoint(Path("last.pth"), {}, dict(OPTIONS))
    refuse_other_run(checkpoint, OPTIONS)
    with pytest.raises(UserError, match=rf"\b{name}\b.*\b{OPTIONS[name]}\b.*\bother\b"):
        refuse_other_run(checkpoint, OPTIONS | {name: "other"})


def test_a_state_older_than_an_option_is_resumed() -> None:
    """As long as what was then the only way is still chosen."""
    options = OPTIONS | FORMER
    before = {name: value for name, value in options.items() if name not in FORMER}
    refuse_other_run(Checkpoint(Path("last.pth"), {}, before), options)
    for name, value in FORMER.items():
        with pytest.raises(UserError, match=rf"\b{name}\b.*\b{value}\b.*\bother\b"):
            refuse_other_run(Checkpoint(Path("last.pth"), {}, before), options | {name: "other"})


def test_the_last_good_checkpoint_exists(tmp_path: Path) -> None:
    files = RunFiles(tmp_path, "refcoco")
    files.open()
    assert "no checkpoint" in files.last_good()
    files.save(state(1))
    assert str(files.last) in files.last_good()


def test_a_run_is_described_next_to_its_states(tmp_path: Path) -> None:
    RunFiles(tmp_path, "refcoco").write_description({"options": {"lr": 1.0}, "place": tmp_path})
    described = {"options": {"lr": 1.0}, "place": str(tmp_path), "earlier": []}
    assert json.loads((tmp_path / "run_refcoco.json").read_text()) == described


def test_a_resumed_run_records_the_settings_of_earlier_starts(tmp_path: Path) -> None:
    saved(tmp_path, count=1).write_description({"versions": {"torch": "1"}, "command": ["a"]})
    for version in ("1", "2", "2"):
        files = RunFiles(tmp_path, "refcoco")
        files.open("auto")
        files.write_description({"versions": {"torch": version}, "command": ["b"]})
    described = json.loads((tmp_path / "run_refcoco.json").read_text())
    assert described == {
        "versions": {"torch": "2"},
        "command": ["b"],
        "earlier": [{"versions": {"torch": "1"}}],
    }


def test_an_unwritable_output_folder_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--output-dir .*file/run\b"):
        RunFiles(tmp_path / "file" / "run", "refcoco").open()


def remembering(images: dict[str, str]) -> Checkpoint:
    return Checkpoint(Path("last.pth"), {}, {}, state={"images": images})


def test_other_images_are_refused_by_name() -> None:
    before = {"a.jpg": "1", "b.jpg": "2", "c.jpg": "3"}
    with pytest.raises(UserError, match=r"last\.pth .*of 3 .*2 have another content now \(a\.jpg, c\.jpg\)"):
        refuse_other_images(remembering(before), {"a.jpg": "x", "b.jpg": "2", "c.jpg": "y"})


def test_a_single_image_downloaded_again_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    refuse_other_images(remembering({"a.jpg": "1", "b.jpg": "2"}), {"a.jpg": "x", "b.jpg": "2"})
    assert "content of image a.jpg has changed" in capsys.readouterr().out


@pytest.mark.parametrize("state", [{}, {"images": {"a.jpg": "1"}}])
def test_images_not_recorded_in_a_state_are_not_compared(
    capsys: pytest.CaptureFixture[str], state: dict[str, dict[str, str]]
) -> None:
    refuse_other_images(Checkpoint(Path("last.pth"), {}, {}, state=state), {"a.jpg": "1", "b.jpg": "2", "c.jpg": "3"})
    assert capsys.readouterr().out == ""
