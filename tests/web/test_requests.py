"""Requests that no visitor of the page makes: by hand, from pages of other sites, about files that nobody uploaded."""

from __future__ import annotations

import http.client
import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from PIL import Image

SECONDS = 30  # within which the page answers, or somebody was held up
REFUSED = "is not, or no longer, among the uploads"


def ask(address: str, path: str, data: Any = None, headers: Sequence[tuple[str, str]] = ()) -> tuple[int, str]:
    """Return status and body of an answer; data: posted as JSON."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=SECONDS)
    body = None if data is None else json.dumps(data)
    connection.request(
        "GET" if data is None else "POST", path, body, {"Content-Type": "application/json"} | dict(headers)
    )
    with connection.getresponse() as answer:
        return answer.status, answer.read().decode()


def call(address: str, trigger: str, *values: object) -> str:
    """Return what the page's function behind an event answers to these inputs."""
    functions = json.loads(ask(address, "/config")[1])["dependencies"]
    number = next(one["id"] for one in functions if trigger in (event for _, event in one["targets"]))
    session = uuid.uuid4().hex
    request = {"data": values, "fn_index": number, "session_hash": session}
    assert ask(address, "/gradio_api/queue/join", request)[0] == 200
    lines = ask(address, f"/gradio_api/queue/data?session_hash={session}")[1].splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    return json.dumps(next(one["output"] for one in events if one["msg"] == "process_completed"))


def find(address: str, image: object, text: object) -> str:
    return call(address, "submit", image, text, "sample_nano.safetensors", "", [])


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/queue/join", "/gradio_api/file=/x.png"])
@pytest.mark.parametrize(
    "header",
    [
        ("Host", "evil.example:{port}"),  # a name of another site that leads to this machine
        ("Host", "127.0.0.1.evil.example"),
        ("Origin", "http://evil.example"),
        ("Origin", "http://127.0.0.1:1"),
        ("Origin", "null"),
    ],
)
def test_requests_of_other_sites_are_refused(address: str, path: str, header: tuple[str, str]) -> None:
    name, value = header[0], header[1].format(port=urlsplit(address).port)
    status, body = ask(address, path, headers=[(name, value)])
    assert status == 403
    assert body == "This page can be used only on its own machine.\n"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_its_own_machine_is_answered(address: str, host: str) -> None:
    own = f"{host}:{urlsplit(address).port}"
    assert ask(address, "/config", headers=[("Host", own), ("Origin", f"http://{own}")])[0] == 200


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A picture of this machine that nobody uploaded, nothing, a pipe and a folder."""
    Image.new("RGB", (30, 30)).save(tmp_path / "secret.png")
    os.mkfifo(tmp_path / "pipe.png")
    return [tmp_path / "secret.png", tmp_path / "missing.png", tmp_path / "pipe.png", tmp_path]


def test_unmarked_files_are_neither_read_nor_reported(address: str, files: list[Path]) -> None:
    """Gradio itself looks at the paths of records alone that are marked as files."""
    for trigger in ("submit", "upload"):
        rest = ["red", "sample_nano.safetensors", "", []] if trigger == "submit" else []
        answers = {
            json.loads(call(address, trigger, {"path": str(path)}, *rest))["data"][2 if rest else 3] for path in files
        }
        (answer,) = answers  # the same of all
        assert REFUSED in answer
        assert str(files[-1]) not in answer


def test_marked_files_outside_the_uploads_are_neither_read_nor_reported(address: str, files: list[Path]) -> None:
    records = [{"path": str(path), "meta": {"_type": "gradio.FileData"}} for path in files]
    assert len({find(address, record, "red") for record in records}) == 1
    assert '"data"' not in find(address, records[0], "red")


def test_files_are_not_handed_out(address: str, files: list[Path]) -> None:
    answers = [ask(address, f"/gradio_api/file={quote(str(path))}") for path in files]
    assert {(status, body.replace(str(path), "")) for path, (status, body) in zip(files, answers, strict=True)} == {
        (403, answers[0][1].replace(str(files[0]), ""))
    }


@pytest.mark.parametrize("text", [None, 7, ["red"], {"path": "x"}])
def test_a_sentence_must_be_a_text(address: str, text: object) -> None:
    assert "the sentence is not a text" in find(address, None, text)
