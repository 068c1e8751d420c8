"""Try a network in your browser.

    pip install -r requirements-web.txt
    python app.py
    python app.py --checkpoints checkpoints/sample --port 7861

Then open the printed address. Choose an image or an example, and describe objects. The page shows their outlines, the
expected IoUs, the alignment maps by stage, and earlier results; see docs/predict.md. The server listens on localhost
only and refuses requests from other sites in the same browser. It reads only uploaded files, sends nothing to the
internet, and deletes images and results when it ends.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from errors import UserError, answer_first
from lib.arguments import Parser
from lib.options import add_flags

ADDRESS = "127.0.0.1"


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the checked flags; arguments: None for `sys.argv`."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--port", type=port_number, default=7860, help="port of the page on localhost")
    add("--checkpoints", type=Path, default=Path("checkpoints"), metavar="DIR", help="folder of weights to choose from")
    add_flags(parser, "--device")
    return parser.parse_args(arguments)


def port_number(text: str) -> int:
    """Parse a port number that needs no special rights."""
    value = int(text)
    if not 1024 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"expected a number from 1024 to 65535, got {value}")
    return value


def check_port(port: int) -> None:
    """Raise UserError if nothing can be served on a port of localhost, as another program has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server: one that just ended is no matter
        try:
            probe.bind((ADDRESS, port))
        except OSError as error:
            raise cannot_serve(port, error) from error


def cannot_serve(port: int, error: OSError) -> UserError:
    """Return the error of a port that something else has."""
    return UserError(f"--port {port}: the page cannot be served there ({error}); try another port")


if __name__ == "__main__":
    # Answers --help, mistakes in the flags and a port that is taken before the imports below, which take seconds.
    answer_first(lambda: check_port(parse_args().port))

import utils
from data.sample.make import IMAGE_FOLDER, make_sample
from page.answers import (
    WELL_TRIED,
    Answer,
    Checkpoints,
    Found,
    Try,
    answer,
    coco_of,
    describe_error,
    find,
    show_again,
    write_files,
)
from page.html import READY, WELCOME, describe_problem, describe_words
from page.uploads import HINT, MAX_FILE_SIZE, MAX_SENTENCE, Upload, check_upload, digest, read_upload, uploaded
from refer.download import LOCAL_HOSTS

N_DRAWINGS = 6  # among the examples
EXAMPLE_SEED = 2024  # differs from the default of training data, so the examples are new to the network
# Photographs among the examples: public domain or CC0, installed with scikit-image.
PHOTOGRAPHS = {"astronaut.png": "the helmet", "chelsea.png": "the cat", "coffee.png": "the spoon"}
CACHE_SECONDS = 3600, 86_400  # interval of deleting old uploads and pictures, and their minimum age

TITLE = """<h1>CrossVLT</h1>
<p>Segments the objects that sentences describe: they are outlined, and the background fades.</p>"""
LABEL = "Sentence, or several: one a line (Shift+Enter)"
FOUND_TEXT = "The image with the predicted objects outlined"
TRIES = "Tries, newest first: choose one to see it again"
MAPS = "Alignment by stage: yellow is most similar"
STYLE = Path(__file__).parent / "page" / "style.css"
SCRIPT = Path(__file__).parent / "page" / "page.js"


# ---------------------------------------------------------------- examples


def make_examples(folder: Path) -> list[tuple[str, str]]:
    """Draw sample images into a folder; return some of the files, each with a sentence."""
    make_sample(folder, images=1, seed=EXAMPLE_SEED, version=1)  # few objects in a scene
    scenes = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))
    images = {image["image_id"]: image for image in scenes["images"] if image["split"] == "testA"}
    owners = {entry["ann_id"]: image["image_id"] for image in images.values() for entry in image["objects"]}
    richest: dict[int, dict[str, Any]] = {}  # by image, the sentence with the most kinds of information
    for entry in scenes["sentences"]["refcoco"]:
        image = owners.get(entry["ann_id"])
        if image and len(entry["kinds"]) > len(richest.get(image, {"kinds": ()})["kinds"]):
            richest[image] = entry
    chosen = list(richest.items())[:N_DRAWINGS]
    return [(str(folder / IMAGE_FOLDER / images[image]["file_name"]), entry["sent"]) for image, entry in chosen]


def copy_photographs(folder: Path) -> list[tuple[str, str]]:
    """Copy photographs that scikit-image brings along into a folder; return the files, each with a sentence.

    Those that an installed version lacks are left out.
    """
    package = find_spec("skimage")
    places = package.submodule_search_locations if package else None
    chosen = []
    for place, (name, text) in product(places or (), PHOTOGRAPHS.items()):
        file = Path(place) / "data" / name
        if file.is_file():
            chosen.append((str(shutil.copy(file, folder)), text))
    return chosen


# ---------------------------------------------------------------- the page


def import_gradio(folder: Path) -> Any:
    """Return Gradio, with `folder` for its files and without analytics; UserError if it is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    for name in ("no_proxy", "NO_PROXY"):  # requests to this machine itself must not go through a proxy
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), *LOCAL_HOSTS)))
    try:
        import gradio
    except ImportError as error:
        raise UserError(f"the page needs Gradio ({error}): pip install -r requirements-web.txt") from error
    return gradio


# Preprocessing would open images before they are checked. Without it Gradio does not check the paths in requests, so
# `uploaded` checks all of them.
HANDLING = {"api_visibility": "private", "preprocess": False}
BUTTONS = {"buttons": ["download", "fullscreen"]}  # none that shares online
FRAME = {"format": "png", "height": 340, **BUTTONS}
# Tiles are buttons: unlike the rows of Gradio's examples, they can be reached with the keyboard.
TILES = {"fit_columns": False, "object_fit": "contain", "interactive": False, "allow_preview": False, "buttons": []}


class Parts(NamedTuple):
    """The components of the page."""

    photo: Any
    sentence: Any
    find: Any
    another: Any
    weights: Any
    second: Any  # a checkpoint to compare with
    outlined: Any
    other: Any  # the same by the second checkpoint
    verdict: Any
    alignment: Any
    ask_words: Any
    ask_files: Any
    words: Any
    files: Any
    gallery: Any
    examples: Any
    tries: Any  # of this session
    current: Any  # what is shown, a `Found`


def build_page(gr: Any, checkpoints: Checkpoints, examples: list[tuple[str, str]], uploads: Path) -> Any:
    """Return the page, a `gradio.Blocks` that is not yet served.

    gr: the module. examples: image files, each with a sentence. uploads: the folder given to `import_gradio`.
    """
    drawings = {digest(path) for path, _ in examples if Path(path).name not in PHOTOGRAPHS}
    with gr.Blocks(title="CrossVLT", analytics_enabled=False, delete_cache=CACHE_SECONDS) as page:
        parts = lay_out(gr, examples)
        connect(gr, page, parts, Desk(gr, checkpoints, examples, drawings, uploads))
    return page


def lay_out(gr: Any, examples: list[tuple[str, str]]) -> Parts:
    """Return the components, in the order of the keyboard; style.css arranges them on wide and narrow screens."""
    gr.HTML(TITLE, elem_id="title")
    with gr.Row(equal_height=False, elem_id="layout"):
        with gr.Column(elem_id="ask", min_width=0):
            photo = gr.Image(label="Image", type="filepath", sources=["upload"], elem_id="photo", **FRAME)
            sentence = gr.Textbox(label=LABEL, placeholder=HINT, max_length=MAX_SENTENCE, max_lines=8, elem_id="text")
            with gr.Row():
                another = gr.Button("Add a sentence", elem_id="another", min_width=0)
                find_button = gr.Button("Find", variant="primary", elem_id="find", min_width=0)
            with gr.Row():
                weights = gr.Dropdown(label="Checkpoint", elem_id="weights", min_width=140)
                second = gr.Dropdown(label="Compare with", elem_id="second", min_width=140)
        with gr.Column(elem_id="answer", min_width=0):
            with gr.Row():
                options = {"interactive": False, "alt_text": FOUND_TEXT, "min_width": 150, **FRAME}
                outlined = gr.Image(label="Found", elem_id="found", **options)
                other = gr.Image(label="Found", elem_id="other", visible=False, **options)
            verdict = gr.HTML(WELCOME, elem_id="verdict")
            with gr.Row():
                ask_words = gr.Button("Which words matter?", size="sm", elem_id="ask-words", min_width=0)
                ask_files = gr.Button("Files to download", size="sm", elem_id="ask-files", min_width=0)
            words = gr.HTML(elem_id="words")
            files = gr.File(label="Files", file_count="multiple", interactive=False, visible=False, elem_id="files")
            gallery = gr.Gallery(label=TRIES, columns=4, elem_id="tries", **TILES)
            alignment = gr.Image(
                label=MAPS, elem_id="alignment", alt_text=MAPS, interactive=False, **FRAME | {"height": None}
            )
        with gr.Column(elem_id="more", min_width=0):
            shown = gr.Gallery(examples, label="Examples", columns=3, elem_id="examples", **TILES)
    return Parts(
        photo,
        sentence,
        find_button,
        another,
        weights,
        second,
        outlined,
        other,
        verdict,
        alignment,
        ask_words,
        ask_files,
        words,
        files,
        gallery,
        shown,
        gr.State([]),
        gr.State(None),
    )


def connect(gr: Any, page: Any, parts: Parts, desk: Desk) -> None:
    """Let the components answer."""
    given = [parts.photo, parts.sentence, parts.weights, parts.second]
    shown = [parts.outlined, parts.other, parts.verdict, parts.alignment, parts.words, parts.files]
    shown += [parts.current, parts.tries, parts.gallery]
    for asked in (
        gr.on([parts.find.click, parts.sentence.submit], desk.ask, [*given, parts.tries], shown, **HANDLING),
        parts.examples.select(desk.take_example, None, [parts.photo, parts.sentence, parts.examples], **HANDLING).then(
            desk.ask, [*given, parts.tries], shown, **HANDLING
        ),
        parts.gallery.select(desk.bring_back, parts.tries, [*given, *shown], **HANDLING),
    ):
        asked.then(None, js="() => crossvlt.showAnswer()")
    parts.photo.upload(desk.receive, parts.photo, [parts.photo, *shown[:-2], parts.gallery], **HANDLING)
    parts.ask_words.click(desk.weigh, parts.current, parts.words, **HANDLING)
    parts.ask_files.click(desk.make_files, parts.current, parts.files, **HANDLING)
    parts.another.click(None, parts.sentence, parts.sentence, js="text => crossvlt.anotherLine(text)")
    page.load(desk.offer, None, [parts.weights, parts.second], **HANDLING)
    page.load(None, js=SCRIPT.read_text(encoding="utf-8"))
    gr.api(desk.segment, api_name="segment")


class Desk:
    """Answers the events of the page; every method returns the values of the components that `connect` names."""

    def __init__(
        self, gr: Any, checkpoints: Checkpoints, examples: list[tuple[str, str]], drawings: set[str], uploads: Path
    ) -> None:
        self.gr = gr
        self.checkpoints = checkpoints
        self.examples = examples
        self.drawings = drawings
        self.uploads = uploads
        for method in (Desk.take_example, Desk.bring_back):
            method.__annotations__["event"] = gr.SelectData  # by which Gradio knows what to pass

    def ask(self, upload: Upload, text: Any, name: Any, second: Any, before: list[Try]) -> tuple[Any, ...]:
        """Answer sentences about an image."""
        names = [name, second] if second else [name]
        try:
            result = answer(self.checkpoints, self.path(upload), text, names, before, self.drawings)
        except UserError as error:
            result = Answer((), None, describe_problem(str(error)), None, before)
        return self.shown(result, has_new_try=result.found is not None)

    def path(self, upload: Upload) -> str | None:
        """Return the file of an upload. Raises UserError as `uploaded`."""
        return uploaded(upload, self.uploads)

    def shown(self, result: Answer, *, has_new_try: bool = False, chosen: int | None = None) -> tuple[Any, ...]:
        """Return the values of all that shows an answer.

        has_new_try: False if the gallery shows all tries already. chosen: the place of a try that is to be highlighted.
        """
        is_compared = len(result.outlined) > 1
        names = [one.checkpoint for one in result.found.results] if result.found and is_compared else []
        labels = [*(f"Found by {name}" for name in names), "Found", "Found"]
        first, second, *_ = *result.outlined, None, None
        sides = self.gr.Image(first, label=labels[0]), self.gr.Image(second, label=labels[1], visible=is_compared)
        tries = {"value": [(one.picture, one.caption) for one in result.tries]} if has_new_try else {}
        tiles = self.gr.Gallery(**tries, selected_index=chosen)
        no_files = self.gr.File(None, visible=False)
        return (*sides, result.verdict, result.alignment, "", no_files, result.found, result.tries, tiles)

    def receive(self, upload: Upload) -> tuple[Any, ...]:
        """Check an upload, and clear the last answer."""
        *empty, _, tiles = self.shown(Answer((), None, READY, None, []))
        try:
            check_upload(self.path(upload))
        except UserError as error:
            return None, *empty[:2], describe_problem(str(error)), *empty[3:], tiles
        return self.gr.skip(), *empty, tiles

    def take_example(self, event: Any) -> tuple[Any, ...]:
        """Return an example's image and sentence."""
        return *self.examples[event.index], self.gr.Gallery(selected_index=None)

    def bring_back(self, before: list[Try], event: Any) -> tuple[Any, ...]:
        """Show an earlier try again, with what was asked."""
        result = show_again(before, event.index)
        if result.found is None:
            return *[self.gr.skip()] * 4, *self.shown(result)
        names = [*(one.checkpoint for one in result.found.results), ""][:2]
        return result.found.path, "\n".join(result.found.texts), *names, *self.shown(result, chosen=event.index)

    def weigh(self, found: Found | None) -> str:
        """Return the words of the shown sentences with their shades, by each network that answered."""
        if found is None:
            return describe_problem("there is no answer yet: describe an object first")
        try:
            photo = read_upload(found.path)
            words = [self.checkpoints.weigh(one, photo, found.texts) for one in found.results]
            shown = zip(words, [one.checkpoint for one in found.results], strict=True)
            return "".join(describe_words(*one, with_name=len(words) > 1) for one in shown)
        except WELL_TRIED as error:
            return describe_error(error)

    def make_files(self, found: Found | None) -> Any:
        """Return the files of the shown answer."""
        if found is None:
            return self.gr.File(None, visible=False)
        folder = Path(tempfile.mkdtemp(dir=self.uploads))
        try:
            paths = [str(path) for path in write_files(found, folder)]
        except UserError as error:
            raise self.gr.Error(str(error)) from error
        return self.gr.File(paths, visible=True)

    def offer(self) -> tuple[Any, ...]:
        """Return the checkpoints to choose from."""
        names = self.checkpoints.names()
        first = self.gr.Dropdown(choices=names, value=names[0] if names else None)
        return first, self.gr.Dropdown(choices=[("nothing", ""), *names], value="")

    def segment(self, image: dict[str, Any], text: str, checkpoint: str = "") -> dict[str, Any]:
        """Return the masks of sentences (one a line) about an image, as run lengths in COCO's format.

        image: `gradio_client.handle_file(PATH)`. checkpoint: a name; "" for the first of the page.
        """
        try:
            found, _ = find(self.checkpoints, self.path(image), text, [checkpoint or None], self.drawings)
        except WELL_TRIED as error:
            raise self.gr.Error(str(error)) from error
        return coco_of(found, found.results[0])


class LocalOnly:
    """ASGI middleware that refuses requests from pages of other sites.

    Such a page may reach this machine by another name, which is then in `Host`, and its own address is in `Origin`.
    Requests of our page have the same host in both.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer or refuse a request."""
        if scope["type"] == "lifespan" or is_local(dict(scope["headers"])):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"This page can be used only on its own machine.\n"})


def is_local(headers: Mapping[bytes, bytes]) -> bool:
    """Return whether a request was sent to localhost and not by a page of another site; header names in lower case."""
    host, origin = headers.get(b"host", b"").decode("latin-1"), headers.get(b"origin")
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name in LOCAL_HOSTS and origin in (None, f"http://{host}".encode("latin-1"))


def serve(gr: Any, page: Any, port: int) -> None:
    """Serve the page on localhost until Ctrl-C or SIGTERM. Raises UserError if the port is in use."""
    from starlette.middleware import Middleware  # installed with Gradio

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    font, mono = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")  # installed fonts, so none is downloaded
    theme = gr.themes.Default(primary_hue="teal", secondary_hue="teal", neutral_hue="slate", font=font, font_mono=mono)
    try:
        page.launch(
            server_name=ADDRESS,
            server_port=port,
            share=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            max_file_size=MAX_FILE_SIZE,
            theme=theme,
            css_paths=STYLE,
            quiet=True,
            prevent_thread_lock=True,
            app_kwargs={"middleware": [Middleware(LocalOnly)]},
        )
    except OSError as error:
        raise cannot_serve(port, error) from error
    with suppress(KeyboardInterrupt):
        print(f"open http://{ADDRESS}:{port}; Ctrl-C ends the page", flush=True)
        Event().wait()
    page.close(verbose=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the page until it is stopped."""
    args = parse_args(arguments)
    device = utils.find_device(args.device)
    with tempfile.TemporaryDirectory(prefix="crossvlt-") as folder:
        gr = import_gradio(Path(folder) / "gradio")
        examples = make_examples(Path(folder) / "sample")
        examples += copy_photographs(Path(folder) / "sample")
        page = build_page(gr, Checkpoints(args.checkpoints, device), examples, Path(folder) / "gradio")
        serve(gr, page, args.port)


if __name__ == "__main__":
    utils.run(main)
