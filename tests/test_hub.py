"""A name leads to a file: a path, a folder, `pretrained/`, the hub's cache, the hub; or to a message that helps."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from errors import UserError
from lib.hub import download_data, find_file, is_hub_name
from tests.helpers import free_port

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORIES = {
    "bert-base-uncased": {"pytorch_model.bin": b"bert, pickled", "vocab.txt": b"[PAD]\n[UNK]\n"},
    "timm/swin_tiny_patch4_window7_224.ms_in1k": {"model.safetensors": b"swin", "pytorch_model.bin": b"swin, pickled"},
    "someone/notes": {"README.md": b"no weights here"},
}
ADVICE = "Download this file to that folder."


class Hub(ThreadingHTTPServer):
    """As much of the Hugging Face hub as its client asks for."""

    daemon_threads = True
    requests: list[str]
    failures = 0  # requests still to be answered with 503

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        if self.path.startswith("/api/"):  # of the client itself, not of files: newer versions do so once a day
            self.answer(404)
            return
        self.server.requests.append(f"{self.command} {self.path}")
        repository, _, filename = self.path.strip("/").partition("/resolve/main/")
        if self.server.failures > 0:
            self.server.failures -= 1
            self.answer(503)
        elif repository not in REPOSITORIES:
            self.answer(401, {"X-Error-Code": "RepoNotFound"})
        elif filename not in REPOSITORIES[repository]:
            self.answer(404, {"X-Error-Code": "EntryNotFound"})
        else:
            content = REPOSITORIES[repository][filename]
            self.answer(200, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'}, content)

    do_HEAD = do_GET

    def answer(self, status: int, headers: dict[str, str] | None = None, content: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"X-Repo-Commit": COMMIT, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), Answer)
    server.requests = []
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run in an empty folder, with an empty cache and nobody at the hub's address."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    direct(monkeypatch, f"http://127.0.0.1:{free_port()}")
    close_session()
    yield
    close_session()


def direct(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Do what HF_ENDPOINT would have done before huggingface_hub was imported."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def find(name: str, filenames: tuple[str, ...] = WEIGHTS) -> Path:
    return find_file(name, filenames, flag="--ck_bert", advice=ADVICE)


def refusal(name: str, filenames: tuple[str, ...] = WEIGHTS, *, within: float = 2.0) -> str:
    """Return the message that `name` ends in; it comes within some seconds and ends with the advice."""
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        find(name, filenames)
    assert time.monotonic() - start < within
    message = str(caught.value)
    assert message.startswith("--ck_bert: ")
    assert message.endswith(f". {ADVICE}")
    assert name in message
    assert "\n" not in message
    return message


def write(path: str, content: bytes = b"local") -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content)
    return Path(path)


# ---------------------------------------------------------------- this machine


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("some/where/weights.pth", "some/where/weights.pth"),
        ("some/where/weights.pth", "./some/where/../where/weights.pth"),
        ("weights without suffix", "weights without suffix"),
        ("folder/model.safetensors", "folder"),
        ("folder/sub/pytorch_model.bin", "./folder/sub/"),
        ("pretrained/weights.pth", "weights.pth"),
        ("pretrained/bert-base-uncased/model.safetensors", "bert-base-uncased"),
        ("pretrained/bert-base-uncased/pytorch_model.bin", "bert-base-uncased"),
        ("pretrained/timm/swin/model.safetensors", "timm/swin"),
    ],
)
def test_local_files_are_found(hub: Hub, monkeypatch: pytest.MonkeyPatch, place: str, name: str) -> None:
    direct(monkeypatch, hub.endpoint)
    path = write(place)
    assert find(name).samefile(path)
    assert find(str(Path(name).absolute()) if "pretrained" not in place else name).samefile(path)
    assert hub.requests == []


def test_nearer_places_and_earlier_names_come_first(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    direct(monkeypatch, hub.endpoint)
    name = "bert-base-uncased"
    assert find(name).read_bytes() == b"bert, pickled"
    for place in ("pretrained/{}/pytorch_model.bin", "pretrained/{}/model.safetensors", "{}/pytorch_model.bin"):
        path = write(place.format(name))
        assert find(name).samefile(path)


def test_home_folder_of_the_vocabulary_does_not_hide_the_weights(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    direct(monkeypatch, hub.endpoint)
    vocabulary = write("pretrained/bert-base-uncased/vocab.txt")
    assert find("bert-base-uncased", ("vocab.txt",)).samefile(vocabulary)
    assert find("bert-base-uncased").read_bytes() == b"bert, pickled"


@pytest.mark.parametrize("name", ["nowhere/x.pth", "./nowhere", "/nowhere/model", "x.bin", "a/b/c", "a b", "../x"])
def test_paths_are_not_looked_up_on_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    direct(monkeypatch, hub.endpoint)
    assert not is_hub_name(name)
    assert f"there is no file {name}. " in refusal(name)
    assert hub.requests == []


def test_a_folder_without_the_file_names_what_it_lacks(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    direct(monkeypatch, hub.endpoint)
    write("bert-base-uncased/config.json")
    message = refusal("bert-base-uncased")
    assert "folder bert-base-uncased" in message and "model.safetensors, pytorch_model.bin" in message
    assert hub.requests == []


# ---------------------------------------------------------------- the hub


@pytest.mark.parametrize(
    ("name", "filenames", "content"),
    [
        ("bert-base-uncased", WEIGHTS, b"bert, pickled"),
        ("bert-base-uncased", ("vocab.txt",), b"[PAD]\n[UNK]\n"),
        ("timm/swin_tiny_patch4_window7_224.ms_in1k", WEIGHTS, b"swin"),
        ("timm/swin_tiny_patch4_window7_224.ms_in1k", WEIGHTS[::-1], b"swin, pickled"),
    ],
)
def test_hub_names_are_downloaded_once(
    tmp_path: Path,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    filenames: tuple[str, ...],
    content: bytes,
) -> None:
    direct(monkeypatch, hub.endpoint)
    path = find(name, filenames)
    assert path.read_bytes() == content
    assert path.is_relative_to(tmp_path / "cache")
    assert [request for request in hub.requests if request.startswith("GET")] == [
        f"GET /{name}/resolve/main/{path.name}"
    ]

    hub.requests.clear()
    assert find(name, filenames) == path
    direct(monkeypatch, f"http://127.0.0.1:{free_port()}")
    assert find(name, filenames) == path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find(name, filenames) == path
    assert hub.requests == []


def test_a_name_the_hub_does_not_know(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    direct(monkeypatch, hub.endpoint)
    message = refusal("bert-base-uncasd")
    assert "hub" in message and "model.safetensors" not in message
    assert hub.requests


def test_a_repository_without_weights(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    direct(monkeypatch, hub.endpoint)
    message = refusal("someone/notes")
    assert "hub" in message and "model.safetensors, pytorch_model.bin" in message


def test_a_name_against_the_rules_of_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    direct(monkeypatch, hub.endpoint)
    assert "hub" in refusal("some--one/we..ights")
    assert hub.requests == []


def test_a_failing_hub_is_asked_again(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    direct(monkeypatch, hub.endpoint)
    hub.failures = 3
    assert find("bert-base-uncased", ("vocab.txt",)).read_bytes() == b"[PAD]\n[UNK]\n"
    assert hub.failures == 0


# ---------------------------------------------------------------- no network


def test_without_internet_the_error_comes_at_once() -> None:
    for name in ("bert-base-uncased", "timm/swin_tiny_patch4_window7_224.ms_in1k"):
        message = refusal(name)
        assert "[Errno " in message and "Connection refused" in message


def test_an_address_that_never_answers_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        direct(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        message = refusal("bert-base-uncased", within=8.0)
    assert "(timed out)" in message


def test_offline_mode_asks_nobody(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    direct(monkeypatch, hub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "offline mode is enabled" in refusal("bert-base-uncased")
    assert hub.requests == []


def test_environment_decides_about_hub_cache_and_offline_mode(tmp_path: Path, hub: Hub) -> None:
    code = (
        "from lib.hub import find_file\n"
        "from errors import UserError\n"
        "for name, filename in (('bert-base-uncased', 'pytorch_model.bin'), ('someone/notes', 'README.md')):\n"
        "    try:\n"
        "        print(find_file(name, [filename], flag='--ck_bert', advice='Do it.'))\n"
        "    except UserError as error:\n"
        "        print(error)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])

    def run(**more: str) -> list[str]:
        result = subprocess.run(
            [sys.executable, "-c", code], env=environment | more, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()

    bert, notes = run()
    assert Path(bert).read_bytes() == b"bert, pickled"
    assert Path(notes).is_relative_to(tmp_path / "home")
    Path(notes).unlink()
    hub.requests.clear()
    again, message = run(HF_HUB_OFFLINE="1")
    assert again == bert
    assert message.startswith("--ck_bert: someone/notes ")
    assert "offline mode" in message
    assert hub.requests == []


@pytest.mark.parametrize("kind", ["http", "socks5", "nonsense"])
def test_a_proxy_that_leads_nowhere_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, f"{kind}://user:secret@127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match=r"the hub .*HTTPS_PROXY\b.*Get it there\.") as caught:
        find_file("bert-base-uncased", ["vocab.txt"], flag="--bert_tokenizer", advice="Get it there.")
    assert "secret" not in str(caught.value)
    with pytest.raises(UserError, match=r"(?s)the hub .*HTTPS_PROXY\b.*Get it there\.") as caught:
        download_data("someone/data", ".zip", tmp_path, "Get it there.")
    assert "secret" not in str(caught.value)
