"""Outputs: what `write_atomically` may replace, what is refused before the work begins, and what survives a failure."""

from __future__ import annotations

import json
import os
import re
import stat
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image

import predict
import score
import test as test_script
from benchmarks import __main__ as benchmark
from benchmarks import memory
from data.sample.make import make_sample
from errors import UserError
from experiments import report as experiments_report
from lib.evaluation import __main__ as evaluation
from lib.evaluation.protocols import Evaluation
from lib.files import cut_name, longest_name, put_aside, write_atomically
from lib.logs import read_logs
from lib.outputs import check_folder, check_output, complete
from lib.pictures import __main__ as pictures
from lib.pictures import results
from lib.requests import picture_name
from lib.weights import __main__ as checkpoint_command
from lib.weights.checkpoint import holds_state, save_checkpoint
from refer import prepare
from refer.jsonl import read_jsonl
from tests.helpers import naming

WEIGHTS = Path(__file__).parent.parent / "checkpoints" / "sample_nano.safetensors"
CONTENT = b"content"
LONGEST = 255


def put(path: Path, content: bytes = CONTENT) -> None:
    write_atomically(path, lambda file: file.write(content))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- what is there


@pytest.mark.parametrize("there", [True, False])
def test_symbolic_links_are_kept(tmp_path: Path, there: bool) -> None:
    """Over several links, into other folders; what it leads to need not be there yet."""
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "target"
    if there:
        target.write_bytes(b"before")
    (tmp_path / "near").symlink_to("far/target")
    (tmp_path / "link").symlink_to("near")
    put(tmp_path / "link")
    assert (tmp_path / "link").readlink() == Path("near")
    assert (tmp_path / "near").readlink() == Path("far/target")
    assert target.read_bytes() == CONTENT
    assert names(tmp_path) == ["far", "link", "near"] and names(tmp_path / "far") == ["target"]


def test_putting_aside_may_move_a_link(tmp_path: Path) -> None:
    """As the states of a training are: the older name then leads to the older content."""
    (tmp_path / "target").write_bytes(b"before")
    last, before = tmp_path / "last", tmp_path / "last.1"
    last.symlink_to("target")
    write_atomically(last, lambda file: file.write(CONTENT), lambda: last.rename(before))
    assert (last.read_bytes(), before.read_bytes()) == (CONTENT, b"before")


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    """Also more than it holds at a time, and by what moves around in its file, as torch does."""
    pipe, got, size = tmp_path / "pipe", bytearray(), 200_000

    def read() -> None:
        while len(got) < size and (part := os.read(reader, size)):
            got.extend(part)

    def write(file: BinaryIO) -> None:
        file.write(b"." * size)
        file.seek(0)
        file.write(b"!")

    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR)  # so that it does not end before the first byte
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    write_atomically(pipe, write)
    thread.join(10)
    os.close(reader)
    assert bytes(got) == b"!" + b"." * (size - 1)
    assert stat.S_ISFIFO(pipe.stat().st_mode) and names(tmp_path) == ["pipe"]


def test_a_pipe_that_nobody_reads_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with naming(tmp_path / "pipe"):
        put(tmp_path / "pipe")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_device_is_written_to(tmp_path: Path) -> None:
    """On a substitute for /dev/null: as root, a rename would replace that of the machine."""
    device = tmp_path / "null"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        device.open("wb").close()
    except PermissionError:
        pytest.skip("this user may not make devices")
    check_output(device, "--json")
    put(device)
    (tmp_path / "link").symlink_to("null")
    put(tmp_path / "link")
    assert stat.S_ISCHR(device.stat().st_mode) and (tmp_path / "link").is_symlink()
    assert names(tmp_path) == ["link", "null"]


def test_stdout_is_written_to(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """`--json /dev/stdout` leads to the very file that the table is printed into."""
    print("table")
    put(Path("/dev/stdout"))
    print("end")
    assert capfd.readouterr().out == f"table\n{CONTENT.decode()}end\n"


def test_a_disk_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "disk")
    monkeypatch.setattr(Path, "is_block_device", lambda self: True)
    with naming(tmp_path / "disk"):
        put(tmp_path / "disk")


@pytest.mark.parametrize("path", ["/", ".", "..", "folder", "folder/"])
def test_folders_are_refused_as_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with naming(Path(path)):
        put(Path(path))
    with naming("--json", Path(path)):
        check_output(path, "--json")
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("letter", ["a", "é", "照", "𝄞"])
def test_names_as_long_as_the_file_system_takes(tmp_path: Path, letter: str) -> None:
    """Counted in bytes; the temporary name is no longer than that either."""
    limit = longest_name(tmp_path)
    long = cut_name(letter * limit, limit)
    check_output(tmp_path / long, "--json")
    put(tmp_path / long)
    assert names(tmp_path) == [long]
    for path in (tmp_path / (long + letter), tmp_path / ("x" * 5000)):
        with naming("File name too long"):
            put(path)
        with naming("--json", path, "File name too long"):
            check_output(path, "--json")
    assert names(tmp_path) == [long]


def test_names_are_cut_between_characters() -> None:
    assert [cut_name("aé照", limit) for limit in (9, 6, 5, 3, 2, 1, 0, -1)] == [
        "aé照",
        "aé照",
        "aé",
        "aé",
        "a",
        "a",
        "",
        "",
    ]
    assert longest_name(Path("/none/at/all")) == LONGEST


# ---------------------------------------------------------------- before the work begins


def test_trying_an_output_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"before")
    check_output(tmp_path / "file", "--json")
    check_output(tmp_path / "new", "--json")
    check_output(tmp_path / "no" / "such" / "folder", "--json")
    check_folder(tmp_path / "no" / "such", "--report")
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"before"


@pytest.mark.parametrize("kind", ["text", "JSON", "a page of test.py", "a PNG picture"])
@pytest.mark.parametrize("content", ["state", "weights", "photo"])
def test_files_of_another_kind_are_not_replaced(tmp_path: Path, kind: str, content: str) -> None:
    file = tmp_path / "file"
    if content == "state":
        save_checkpoint(file, {"model": {"a": torch.zeros(3)}, "lr_scheduler": {}})
    elif content == "weights":
        file.write_bytes(WEIGHTS.read_bytes()[:2000])
    else:
        Image.new("RGB", (9, 9)).save(file, format="JPEG")
    with naming("--out", file, kind):
        check_output(file, "--out", kind)


@pytest.mark.parametrize(
    ("kind", "content"),
    [("JSON", "print(1)"), ("a page of test.py", "<!DOCTYPE html><p>Mine"), ("a table of test.py", "name,age")],
)
def test_texts_of_another_kind_are_not_replaced(tmp_path: Path, kind: str, content: str) -> None:
    (tmp_path / "mine").write_text(content)
    with naming("--out", tmp_path / "mine"):
        check_output(tmp_path / "mine", "--out", kind)
    (tmp_path / "mine").write_text("")
    check_output(tmp_path / "mine", "--out", kind)


@pytest.mark.parametrize("place", ["masks", "", "../out", "alignment"])
def test_colliding_outputs_are_refused(tmp_path: Path, place: str) -> None:
    out = tmp_path / "out"
    line = ["--image", "a.jpg", "--text", "left", "--out", out, "--json", f"{out}/{place}"]
    with naming("--json"):
        predict.main([*map(str, line)])
    for flags in (["--save-masks", out / "masks" / ".."], ["--report", out]):
        blocked = out / ("index.html" if "--report" in flags else "masks")
        with naming("--json", blocked):
            test_script.parse_args([*map(str, [*TEST_FLAGS, *flags, "--json", blocked])])
    test_script.parse_args([*map(str, [*TEST_FLAGS, "--report", out, "--json", out / "scores.json"])])
    assert not out.exists()


def test_an_input_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "input").write_text("{}")
    (tmp_path / "link").symlink_to("input")
    for name in ("input", "link"):
        with naming("--json", tmp_path / name):
            check_output(tmp_path / name, "--json", inputs=["org/none", "x" * 5000, tmp_path / "input"])


def test_unwritable_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "folder", tmp_path / ("x" * 300)):
        with naming("--report", folder):
            check_folder(folder, "--report")
    (tmp_path / "link").symlink_to("nowhere")
    with naming("--report", tmp_path / "link" / "report"):
        check_folder(tmp_path / "link" / "report", "--report")
    with naming("--report /"):
        check_folder("/", "--report")
    with naming("--json", tmp_path / "file" / "scores.json"):
        check_output(tmp_path / "file" / "scores.json", "--json")


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A path that no file can have."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "out"


TEST_FLAGS = ["--split", "val", "--resume", WEIGHTS, "-j", 0, "--device", "cpu"]


def result(path: Path) -> Path:
    scores = {"dataset": "refcoco", "split": "val", "n_expressions": 1, "mean_iou": 1.0, "overall_iou": 1.0}
    path.write_text(json.dumps(scores | {"precision": {str(share): 1.0 for share in (0.5, 0.6, 0.7, 0.8, 0.9)}}))
    return path


def fail(*_: object, **__: object) -> None:
    raise AssertionError("the work has begun")


@pytest.mark.parametrize("flag", ["--json", "--report", "--save-masks"])
def test_testing_tries_its_outputs_first(monkeypatch: pytest.MonkeyPatch, bad: Path, flag: str) -> None:
    monkeypatch.setattr(test_script, "open_trained", fail)
    with naming(flag, bad):
        test_script.main([*map(str, [*TEST_FLAGS, flag, bad])])


@pytest.mark.parametrize("flags", [["--json"], ["--out"]])
def test_prediction_tries_its_outputs_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bad: Path, flags: list[str]
) -> None:
    monkeypatch.setattr(predict, "load", fail)
    outputs = {"--out": tmp_path / "out"} | {flags[0]: bad}
    line = ["--image", tmp_path / "a.jpg", "--text", "left", *(part for pair in outputs.items() for part in pair)]
    with naming(flags[0], bad):
        predict.main([*map(str, line)])


def command(module: ModuleType, *line: object) -> Callable[[], None]:
    return lambda: module.main([*map(str, line)])


def test_other_commands_try_their_outputs_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bad: Path) -> None:
    (tmp_path / "overlays").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "overlays" / "a.png")
    for name in (
        "benchmarks.memory.record",
        "benchmarks.__main__.measure",
        "lib.pictures.__main__.read_logs",
        "lib.pictures.__main__.sheet",
        "lib.evaluation.__main__.read_result",
        "lib.weights.__main__.read_checkpoint",
        "experiments.report.read_comparisons",
        "data.sample.make.make_scene",
    ):
        monkeypatch.setattr(name, fail)
    commands = [
        command(pictures, "curves", tmp_path, "--out", bad),
        command(pictures, "sheet", tmp_path, "--out", bad),
        command(evaluation, "table", result(tmp_path / "val.json"), "--out", bad),
        command(memory, "--json", bad),
        command(benchmark, "--quick", "--out", bad),
        command(experiments_report, "--out", bad),
        command(checkpoint_command, "export", WEIGHTS, bad, "--layout", "released"),
        command(checkpoint_command, "export", WEIGHTS, bad, "--layout", "hub"),
        lambda: make_sample(bad, 1),
    ]
    for one in commands:
        with pytest.raises(UserError, match=rf"{re.escape(str(bad))}.*\((Not a directory|File exists)\)"):
            one()


def test_no_command_replaces_what_it_reads(tmp_path: Path, sample_root: Path) -> None:
    (tmp_path / "overlays").mkdir()
    overlay = tmp_path / "overlays" / "a.png"
    Image.new("RGB", (9, 9)).save(overlay)
    instances = sample_root / "refcoco" / "instances.json"
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(WEIGHTS.read_bytes())
    val, requests = result(tmp_path / "val.json"), tmp_path / "requests.jsonl"
    requests.write_text('{"image": "a.jpg", "text": "left"}\n')
    data = ["--refer_data_root", sample_root]
    commands = {
        overlay: command(pictures, "sheet", tmp_path, "--out", overlay),
        val: command(evaluation, "table", val, "--out", val),
        weights: command(checkpoint_command, "export", weights, weights),
        instances: command(test_script, *TEST_FLAGS, *data, "--json", instances),
        requests: command(predict, "--jsonl", requests, "--out", tmp_path / "out", "--json", requests),
    }
    for path, one in commands.items():
        before = path.read_bytes()
        with naming(path):
            one()
        assert path.read_bytes() == before


@pytest.mark.parametrize(
    "name",
    [
        "refcoco/instances.json",
        "ref-zom/instances.json",
        "grefcoco/grefs(unc).json",
        "rrsisd_test.jsonl",
        "images/rrsisd/rrsisd_test.jsonl",
        "RISBench_dataset/masks.json",
        "arefcoco/arefcoco.json",
    ],
)
@pytest.mark.parametrize("script", ["test", "score"])
def test_no_command_replaces_a_data_set(tmp_path: Path, script: str, name: str) -> None:
    """Not even one that it does not read."""
    file, predictions = tmp_path / name, tmp_path / "predictions.jsonl"
    for path in (file, predictions):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    data = ["--dataset", "arefcoco", "--split", "test", "--refer_data_root", tmp_path, "--json", file]
    with naming("--json", file):
        if script == "test":
            test_script.parse_args([*map(str, ["--resume", WEIGHTS, *data])])
        else:
            score.parse_args([*map(str, [predictions, *data])])


def test_scores_do_not_replace_the_users_data(tmp_path: Path) -> None:
    for name in ("val.jsonl", "predictions.jsonl"):
        (tmp_path / name).write_text("{}")
    own = tmp_path / "val.jsonl"
    with naming("--json", own):
        score.parse_args(
            [*map(str, [tmp_path / "predictions.jsonl", "--dataset", "jsonl", "--data", own, "--json", own])]
        )


@pytest.mark.parametrize(("flag", "name"), [("--report", ""), ("--report", "../link"), ("--json", "scores.json")])
def test_scores_are_never_written_among_the_masks(tmp_path: Path, flag: str, name: str) -> None:
    """Every file there counts as a mask, so the next call would refuse them."""
    (tmp_path / "masks").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "masks")
    with naming(flag, "among the masks"):
        score.parse_args([*map(str, [tmp_path / "masks", flag, tmp_path / "masks" / name])])
    assert not list((tmp_path / "masks").iterdir())


def test_prediction_never_writes_among_its_photos(tmp_path: Path) -> None:
    (tmp_path / "out" / "masks").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "out" / "masks" / "a.png")
    with naming("--out", tmp_path / "out/masks"):
        predict.main([*map(str, ["--image", tmp_path / "out/masks", "--text", "left", "--out", tmp_path / "out"])])


@pytest.mark.parametrize("layout", ["released", "own", "safetensors"])
def test_a_state_is_not_replaced_by_its_weights(tmp_path: Path, layout: str) -> None:
    state = tmp_path / "last_refcoco.pth"
    save_checkpoint(state, {"model": {"a": torch.zeros(3)}, "lr_scheduler": {}, "optimizer": {}})
    before = state.read_bytes()
    with naming("target", state):
        checkpoint_command.main(["export", str(WEIGHTS), str(state), "--layout", layout])
    assert state.read_bytes() == before


@pytest.mark.slow  # writes weights several times
def test_weights_are_exported_over_weights(tmp_path: Path) -> None:
    """And into a folder that is there: its own README stays."""
    for layout in ("own", "safetensors", "hub", "released"):
        target = tmp_path / layout
        if layout == "hub":
            target.mkdir()
            (target / "README.md").write_text("mine")
        for _ in range(2):
            checkpoint_command.main(["export", str(WEIGHTS), str(target), "--layout", layout])
        assert not holds_state(target)
    assert names(tmp_path / "hub") == ["README.md", "config.json", "model.safetensors", "vocab.txt"]
    assert (tmp_path / "hub" / "README.md").read_text() == "mine"
    with naming("target", tmp_path / "hub" / "model.safetensors"):
        checkpoint_command.main(["export", str(tmp_path / "hub"), str(tmp_path / "hub"), "--layout", "hub"])


# ---------------------------------------------------------------- at the end


def test_all_steps_run_and_all_failures_are_reported() -> None:
    taken = []

    def broken(name: str) -> None:
        taken.append(name)
        raise UserError(f"{name} failed")

    with pytest.raises(UserError, match="one failed\nthree failed"):
        complete(partial(broken, "one"), lambda: taken.append("two"), partial(broken, "three"))
    assert taken == ["one", "two", "three"]


@pytest.mark.slow  # a page of a whole test
def test_a_table_that_cannot_be_written_leaves_the_page(
    sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of --json was removed while the network was at work."""
    (tmp_path / "gone").mkdir()
    evaluate = test_script.evaluate

    def evaluate_and_remove(*arguments: Any, **options: Any) -> Evaluation:
        (tmp_path / "gone").rmdir()
        (tmp_path / "gone").touch()
        return evaluate(*arguments, **options)

    monkeypatch.setattr(test_script, "evaluate", evaluate_and_remove)
    outputs = ["--json", tmp_path / "gone" / "scores.json", "--report", tmp_path / "report"]
    with naming(tmp_path / "gone" / "scores.json"):
        test_script.main([*map(str, [*TEST_FLAGS, "--refer_data_root", sample_root, *outputs])])
    assert names(tmp_path / "report") == ["index.html", "pictures"]


def test_pictures_that_cannot_be_written_leave_the_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 48), (200, 30, 30)).save(tmp_path / name)
    write = results.write_atomically

    def full(path: Path, content: Callable) -> None:
        if path.name.startswith("000001"):
            raise UserError(f"{path} could not be written (No space left on device)")
        write(path, content)

    monkeypatch.setattr(results, "write_atomically", full)
    flags = ["--image", tmp_path, "--text", "left", "--out", tmp_path / "out", "--json", tmp_path / "found.json"]
    with pytest.raises(UserError, match="No space left"):
        predict.main([*map(str, [*flags, "--resume", WEIGHTS])])
    found = json.loads((tmp_path / "found.json").read_text())
    assert [image["file_name"] for image in found["images"]] == [str(tmp_path / "a.png")]


# ---------------------------------------------------------------- whole folders, and data that is fetched


def test_a_sample_data_set_goes_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far")
    make_sample(tmp_path / "link", 1)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "far" / "sample.json").is_file()
    assert names(tmp_path) == ["far", "link"]


def test_links_that_lead_to_each_other_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for read in (make_sample, lambda folder: read_logs([folder]), lambda file: read_jsonl([file, file / "x"])):
        with naming(tmp_path / "a"):
            read(tmp_path / "a")


def test_a_sample_data_set_of_a_long_name(tmp_path: Path) -> None:
    make_sample(tmp_path / ("x" * LONGEST), 1)
    with naming("File name too long"):
        make_sample(tmp_path / ("x" * (LONGEST + 1)), 1)
    assert names(tmp_path) == ["x" * LONGEST]


@pytest.mark.parametrize("problem", ["mount", "full"])
def test_a_sample_data_set_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if problem == "mount":
        monkeypatch.setattr(Path, "is_mount", lambda self: True)
    else:
        monkeypatch.setattr("data.sample.refcoco.write_dataset", full)
    with pytest.raises(
        UserError, match="root of a disk" if problem == "mount" else r"root .* \(No space left on device\)"
    ):
        make_sample(tmp_path / "data", 1)
    assert not names(tmp_path)


def test_fetched_files_go_where_links_lead(tmp_path: Path) -> None:
    (tmp_path / "far.json").write_text("damaged")
    (tmp_path / "instances.json").symlink_to("far.json")
    (tmp_path / "new").write_bytes(CONTENT)
    prepare._place(tmp_path / "new", tmp_path / "instances.json")
    assert (tmp_path / "instances.json").is_symlink()
    assert (tmp_path / "far.json").read_bytes() == CONTENT
    assert (tmp_path / "far.json.damaged").read_text() == "damaged"


def test_putting_aside_replaces_nothing(tmp_path: Path) -> None:
    for content in ("first", "second"):
        (tmp_path / "last.pth").write_text(content)
        put_aside(tmp_path / "last.pth", "damaged")
    assert names(tmp_path) == ["last.pth.damaged", "last.pth.damaged.2"]
    assert (tmp_path / "last.pth.damaged").read_text() == "first"


def test_a_mask_is_complete_or_missing(tmp_path: Path) -> None:
    """Everything that a prediction writes goes through the one writer."""
    writer = results.Writer(tmp_path)
    found = predict.Prediction(np.ones((4, 5), np.uint8), 0.5, (), "")
    (tmp_path / "target").touch()
    name = picture_name(predict.Request(Path("a.jpg"), "left"), LONGEST)
    (tmp_path / "masks" / name).symlink_to(tmp_path / "target")
    writer.write(predict.Request(Path("a.jpg"), "left"), Image.new("RGB", (5, 4)), found)
    assert (tmp_path / "masks" / name).is_symlink()
    assert np.asarray(Image.open(tmp_path / "target")).min() == 255
