"""Lines and characters of files of others: line ends, invalid text, lone surrogates."""

from __future__ import annotations

import codecs
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import predict
import test as test_script
from bert.tokenizer import build_tokenizer, read_vocabulary
from data.dataset_refer_bert import pad
from errors import UserError, let_output_never_fail, plain
from lib.evaluation.tables import read_result
from lib.logs import read_log
from lib.photo import open_photo
from lib.pictures.panels import side_by_side
from lib.requests import read_requests
from lib.texts import for_tokenizer, markdown_row, read_json_lines, read_lines
from lib.weights.checkpoint import HUB_VOCABULARY, HUB_WEIGHTS, read_checkpoint
from refer.files import read_instances, read_refs
from refer.jsonl import read_jsonl
from tests.helpers import naming
from tests.refer_fixture import WORDS, write_vocabulary

HALF = "\ud83d"  # in JSON as "\ud83d", after a caption was cut by UTF-16 units
ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "checkpoints/sample_nano.safetensors"
OTHER_ENDS = "\u2028\u2029\x85\x0b\x0c\x1c"  # ends of lines to `str.splitlines`, to JSON Lines characters as any


def test_a_line_ends_at_a_line_feed_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(f"one{OTHER_ENDS}two\r\nthree\n\nfour".encode())
    assert read_lines(tmp_path / "a") == [f"one{OTHER_ENDS}two", "three", "", "four"]


def test_a_byte_order_mark_is_no_character(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(codecs.BOM_UTF8 + b'{"a": 1}\n')
    assert list(read_json_lines(tmp_path / "a")) == [(1, {"a": 1})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one\ntw\xe4\n", "a, line 2 is no UTF-8 text \\(byte 3"),
        ("one\n".encode("utf-16"), "a is not UTF-8 but UTF-16"),
        (b'{"a": 1}\n\n{"a": ', "a, line 3 is no JSON"),
        (b'{"a": 1, "b": 2, "a": 3}', "a, line 1 is no JSON .*'a' occurs twice"),
        (b"[" * 100_000, "a, line 1 is no JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_json_lines(tmp_path / "a"))


# ---------------------------------------------------------------- everywhere lines are read


def data_of(path: Path) -> list[str]:
    return [sentence["raw"] for sentence in read_jsonl([path]).Sents.values()]


def requests_of(path: Path) -> list[str]:
    return [request.text for request in read_requests(path)]


@pytest.mark.parametrize("read", [data_of, requests_of])
def test_a_sentence_keeps_its_odd_characters(tmp_path: Path, read: Callable[[Path], list[str]]) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    lines = []
    for text in (f"the{OTHER_ENDS}cup", f"half {HALF}"):
        record = {"image": "a.png", "text": text, "sentences": [text], "polygons": [[0, 0, 4, 0, 4, 4]]}
        lines.append(json.dumps(record, ensure_ascii=HALF in text))
    path = tmp_path / "train.jsonl"
    path.write_bytes(codecs.BOM_UTF8 + "\r\n".join(lines).encode())
    assert read(path) == [f"the{OTHER_ENDS}cup", f"half {HALF}"]


@pytest.mark.parametrize("read", [data_of, requests_of, read_log, read_vocabulary])
def test_every_reader_names_an_undecodable_line(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\n\xff\n")
    with pytest.raises(UserError, match=r"train\.jsonl, line 2 is no UTF-8 text"):
        read(path)


def test_a_vocabulary_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "vocab.txt")
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes().replace(b"\n", b"\r\n"))
    assert list(read_vocabulary(path)) == WORDS


def test_vocabularies_next_to_weights_are_read_alike(tmp_path: Path) -> None:
    (tmp_path / HUB_WEIGHTS).write_bytes(WEIGHTS.read_bytes())
    (tmp_path / HUB_VOCABULARY).write_bytes(codecs.BOM_UTF8 + b"[PAD]\r\na\xe2\x80\xa8b\n")
    assert read_checkpoint(tmp_path).vocabulary == ["[PAD]", "a\u2028b"]


# ---------------------------------------------------------------- half a character


@pytest.mark.parametrize("text", [f"the {HALF} car", f"the{HALF}car"])
def test_words_with_lone_surrogates_are_unknown(tmp_path: Path, text: str) -> None:
    tokenizer = build_tokenizer(str(write_vocabulary(tmp_path / "vocab.txt")))
    ids, _ = pad(tokenizer([text]), 6)
    assert [WORDS[number] for number in ids[0]] == ["[CLS]", "the", "[UNK]", "car", "[SEP]", "[PAD]"]


def test_only_lone_surrogates_are_replaced() -> None:
    assert for_tokenizer("a\ud800b\udfffc\U0001f600\ufffd") == "a⸮b⸮c\U0001f600\ufffd"


@pytest.mark.slow  # a whole test
def test_a_test_scores_a_sentence_with_a_lone_surrogate(tmp_path: Path) -> None:
    """As one with an unknown word in its place; and every output is written."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    scores = []
    for name, sign in (("half", HALF), ("other", "⸮")):
        record = {"image": "a.png", "sentences": [f"big {sign} circle"], "polygons": [[5, 5, 30, 5, 30, 30, 5, 30]]}
        (tmp_path / "val.jsonl").write_text(json.dumps(record))
        flags = ["--dataset", "jsonl", "--data", str(tmp_path / "val.jsonl"), "--resume", str(WEIGHTS), "-j", "0"]
        outputs = ["--report", str(tmp_path / name), "--save-masks", str(tmp_path / name)]
        test_script.main([*flags, *outputs, "--json", str(tmp_path / f"{name}.json"), "--device", "cpu"])
        scores.append(json.loads((tmp_path / f"{name}.json").read_text()))
        assert len(list((tmp_path / name).glob("*/*.png"))) == 2
    assert scores[0] == scores[1]
    assert "big \ufffd circle" in (tmp_path / "half/index.html").read_text()


@pytest.mark.parametrize("objects", [1, 2])
def test_a_meaningless_shuffling_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture, objects: int) -> None:
    lines = []
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 40)).save(tmp_path / name)
        for number in range(objects):
            record = {"image": name, "sentences": ["big circle"], "polygons": [[number, 5, 30, 5, 30, 30, 5, 30]]}
            lines.append(json.dumps(record))
    (tmp_path / "val.jsonl").write_text("\n".join(lines))
    flags = ["--dataset", "jsonl", "--data", str(tmp_path / "val.jsonl"), "--resume", str(WEIGHTS), "-j", "0"]
    test_script.main([*flags, "--shuffle_expressions", "--device", "cpu"])
    assert ("--shuffle_expressions shows nothing" in capsys.readouterr().out) == (objects == 1)


def test_predictions_with_lone_surrogates_are_written(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")
    (tmp_path / "requests.jsonl").write_text(json.dumps({"image": "a.png", "text": f"circle {HALF}"}))
    flags = ["--jsonl", str(tmp_path / "requests.jsonl"), "--json", str(tmp_path / "found.json"), "--device", "cpu"]
    predict.main([*flags, "--out", str(tmp_path / "out")])
    (found,) = json.loads((tmp_path / "found.json").read_text())["annotations"]
    assert found["text"] == f"circle {HALF}"
    assert len(list((tmp_path / "out").glob("*/*.png"))) == 3


def test_a_caption_replaces_it() -> None:
    image, mask = Image.new("RGB", (8, 8)), np.zeros((8, 8), np.uint8)
    strips = [side_by_side(image, f"a {sign} b", mask, mask) for sign in (HALF, "\ufffd")]
    assert strips[0].tobytes() == strips[1].tobytes()


def test_no_character_ends_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    let_output_never_fail()
    print(f"480×480 … {HALF}", flush=True)
    assert written.getvalue() == b"480\\xd7480 \\u2026 \\ud83d\n"


def test_a_reader_that_ended_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `| head` and a lost connection do; and nothing is left for Python to fail at in the end."""
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "__stdout__", stream)
    let_output_never_fail()
    os.close(reader)
    for _ in range(3):
        print("x" * 100_000, flush=True)
    sys.stdout.flush()


def test_control_characters_of_files_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w", encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "__stdout__", stream)
    let_output_never_fail()
    print("a\x1b[31m\r\x9b\u202eb\tc é×…")
    assert os.read(reader, 1000).decode() == "a\\x1b[31m\\r\\x9b\\u202eb\tc é×…\n"


def test_the_error_is_the_last_line_of_a_log() -> None:
    """Whatever was printed before it, into the same pipe or file."""
    program = "import errors\ndef main():\n print('before')\n raise errors.UserError('last')\nerrors.run(main)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT, check=False)
    assert done.stdout == b"before\nerror: last\n"


def test_control_characters_of_others_are_not_printed() -> None:
    assert plain("a\x1b[31m\r\x9b\u202eb\n\tc é×…") == "a\\x1b[31m\\r\\x9b\\u202eb\n\tc é×…"


def test_a_pointer_of_git_lfs_is_recognised(tmp_path: Path) -> None:
    """In all large files of a repository: photos, masks, refs, instances, results."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 440473133\n"
    readers: dict[str, Callable[[Path], object]] = {
        "a.jpg": open_photo,
        "refs(unc).p": read_refs,
        "instances.json": read_instances,
        "val.json": read_result,
        "x.jsonl": lambda path: read_jsonl([path]),
    }
    for name, read in readers.items():
        (tmp_path / name).write_bytes(pointer)
        with naming(tmp_path / name, "Git LFS pointer", "git lfs pull"):
            read(tmp_path / name)


def test_a_bar_does_not_end_a_cell_of_a_table() -> None:
    assert markdown_row(["left|right", "2"]) == r"| left\|right | 2 |"
