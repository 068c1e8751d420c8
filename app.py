"""Try a network in your browser.

    pip install -r requirements-web.txt
    python app.py
    python app.py --checkpoints checkpoints/sample --port 7861

Then open the printed address. Choose an image or an example, and describe an object. The page shows its outline, the
expected IoU, the alignment maps by stage, and earlier results. The server listens on localhost only and refuses
requests from other sites in the same browser. It reads only uploaded files, sends nothing to the internet, and deletes
images and results when it ends.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import stat
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from threading import Event, Lock
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from errors import UserError, answer_first
from lib.arguments import Parser
from lib.options import add_flags


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


if __name__ == "__main__":
    answer_first(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds

import torch
from PIL import Image

import utils
from data.sample.make import IMAGE_FOLDER, make_sample
from lib.photo import ImageError, MissingImageError, TooLargeError, open_photo, opened, resize_mask
from lib.pictures.overlay import PREDICTION_COLOUR, outline_growth, overlay
from lib.pictures.panels import alignment_strip
from lib.texts import showable
from lib.variants import MAX_TOKENS
from lib.weights.checkpoint import HUB_WEIGHTS
from predict import SAMPLE_WEIGHTS, Model, Prediction, load, segment
from refer.download import LOCAL_HOSTS

ADDRESS = "127.0.0.1"
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MEGA = 1_000_000
MAX_FILE_SIZE = 20 * MEGA  # bytes
MAX_PIXELS = 50 * MEGA
MAX_SENTENCE = 1000  # characters
SHOWN_SIDE = 1280  # longer side of the shown pictures in pixels
TRY_SIDE = 320  # longer side of the earlier results in pixels
MAX_TRIES = 24
CAPTION_LENGTH = 60  # characters of the sentence
N_EXAMPLES = 6
EXAMPLE_SEED = 2024  # differs from the default of training data, so the examples are new to the network
CACHE_SECONDS = 3600, 86_400  # interval of deleting old uploads and pictures, and their minimum age

HINT = "the red heart on the left"
TITLE = """<h1>CrossVLT</h1>
<p>Segments the object that a sentence describes: the object is outlined, and the background fades.</p>"""
WELCOME = '<p class="note">Choose an image and describe an object, or take an example.</p>'
FOUND_TEXT = "The image with the predicted object outlined"
MAPS = "Alignment of image and sentence by stage: yellow is the highest similarity"
READY = '<p class="note">Now describe an object in this image.</p>'
STYLE = """
.gradio-container {max-width: 1240px !important; margin: 0 auto !important}
#title h1 {font-size: 1.7rem; font-weight: 700; margin: 0}
#title p {margin: .15rem 0 0; opacity: .75}
#photo .image-frame, #found .image-frame, #photo img, #found img {width: 100%; height: 100%; object-fit: contain}
#examples td {padding: .2rem .5rem; text-align: left}
#examples td .container {width: 44px; height: 44px}
#alignment .image-container, #tries .grid-wrap {padding-top: 2.2rem}
#tries .grid-wrap {min-height: 0; max-height: none}
#tries .thumbnail-lg {display: flex; flex-direction: column; height: auto; aspect-ratio: auto}
#tries .thumbnail-lg img {height: 130px}
#tries .caption-label {position: static; max-width: none; border: 0; white-space: normal; text-align: left}
#verdict {min-height: 4.6rem}
#verdict p {margin: 0 0 .3rem; overflow-wrap: anywhere}
#verdict .answer {font-size: 1.25rem; font-weight: 600}
#verdict .bar {display: inline-block; width: 9rem; height: .6rem; margin-left: .7rem; background: #94a3b855}
#verdict .bar span {display: block; height: 100%; background: #0d9488}
#verdict .note {opacity: .75}
#verdict del {color: #b3261e; background: #fde7e5}
#verdict .problem {border-left: 4px solid #b3261e; background: #fde7e5; color: #5f1410; padding: .5rem .8rem}
"""


# ---------------------------------------------------------------- functions of the page


Upload: TypeAlias = object  # Gradio's record of a file, a dict with "path", or None; a request may contain anything


class Try(NamedTuple):
    """An earlier result in the gallery."""

    picture: Image.Image  # outlined, at most TRY_SIDE pixels
    caption: str


class Answer(NamedTuple):
    """What the page shows for a sentence."""

    outlined: Image.Image | None  # None after an error
    alignment: Image.Image | None  # the maps of all stages side by side; None after an error and without alignment
    verdict: str  # HTML: expected IoU and the sentence, or the error
    tries: list[Try]  # of this session, newest first


class Checkpoints:
    """The weights in a folder. They are loaded on demand, and the last ones stay loaded."""

    def __init__(self, folder: Path, device: str | torch.device) -> None:
        self.folder = folder
        self.device = device
        self._lock = Lock()  # the server has several threads
        self._held: tuple[tuple[str, int], Model] | None = None

    def names(self) -> list[str]:
        """Return the names of weight files and folders, those of the sample data first, then sorted.

        The list is empty if there are none, or if the folder does not exist.
        """
        if not self.folder.is_dir():
            return []
        names = (path.name for path in self.folder.iterdir() if is_checkpoint(path))
        return sorted(names, key=lambda name: (name != Path(SAMPLE_WEIGHTS).name, name))

    def choose(self, name: str | None) -> str:
        """Return a name of `names`; None, if the page has not loaded its list yet, means the first.

        Raises UserError if there are no such weights.
        """
        names = self.names()
        chosen = names[0] if name is None and names else name
        if chosen is None or chosen not in names:
            missing = "are no such weights any more" if name is not None else "are no weights (.pth, .safetensors)"
            raise UserError(f"in {self.folder} there {missing}: train a network or put one there, then reload the page")
        return chosen

    def segment(self, name: str, photo: Image.Image, text: str) -> Prediction:
        """Return the prediction for a sentence about an RGB image, by the network of one of `names`.

        Raises UserError if the weights cannot be read, or the sentence is empty.
        """
        with self._lock:
            return segment(self._load(name), photo, text)

    def max_tokens(self, name: str) -> int:
        """Return how many tokens of a sentence the network of one of `names` reads."""
        with self._lock:
            return self._load(name).max_tokens

    def _load(self, name: str) -> Model:
        path = self.folder / name
        key = name, path.stat().st_mtime_ns  # a training may replace the file
        if self._held is None or self._held[0] != key:
            self._held = None  # frees the network, so that there are never two in memory
            self._held = key, load(path, device=self.device)
        return self._held[1]


def is_checkpoint(path: Path) -> bool:
    """Return whether a path looks like weights by its name, or is a folder as for the Hugging Face hub."""
    if path.name.startswith("."):
        return False  # a temporary file, see `write_atomically`
    return (path.is_file() and path.suffix in (".pth", ".safetensors")) or (path / HUB_WEIGHTS).is_file()


def answer(checkpoints: Checkpoints, path: str | None, text: Any, name: str | None, tries: list[Try]) -> Answer:
    """Return the answer for an uploaded file, a sentence and the name of weights.

    tries: earlier results; a new one is put in front of them.
    """
    try:
        check_sentence(text)
        photo = read_upload(path)
        chosen = checkpoints.choose(name)
        prediction = checkpoints.segment(chosen, photo, text.strip())
        max_tokens = checkpoints.max_tokens(chosen)
    except UserError as error:
        return Answer(None, None, describe_problem(str(error)), tries)
    except torch.OutOfMemoryError:
        problem = "the GPU's memory is full: choose smaller weights, or start the page with --device cpu"
        return Answer(None, None, describe_problem(problem), tries)
    shown, outlined = draw_outline(photo, prediction)
    latest = Try(thumbnail(outlined, TRY_SIDE), caption(text, prediction.score, Path(chosen).stem))
    alignment = alignment_strip(shown, text, prediction.alignment) if prediction.alignment else None
    verdict = describe_prediction(text.strip(), prediction, max_tokens)
    return Answer(outlined, alignment, verdict, [latest, *tries][:MAX_TRIES])


def uploaded(upload: Upload, folder: Path) -> str | None:
    """Return the path of an upload, None if there is none; folder: Gradio's folder of uploads.

    Raises UserError for any path outside of it, without revealing whether that path exists.
    """
    if upload is None:
        return None
    path: Any = upload.get("path") if isinstance(upload, dict) else None
    try:
        real = Path(os.path.realpath(path))
        is_inside = real.is_relative_to(os.path.realpath(folder)) and stat.S_ISREG(real.stat().st_mode)
    except (TypeError, ValueError, OSError):  # not a path, or it does not exist
        is_inside = False
    if not is_inside:
        raise UserError("the image is not, or no longer, among the uploads: choose it again")
    return str(real)


def check_sentence(text: Any) -> None:
    """Raise UserError if this is not a text, or an empty one, or one of more than MAX_SENTENCE characters."""
    if not isinstance(text, str):
        raise UserError("the sentence is not a text: describe an object in words")
    if not text.strip():
        raise UserError(f"the sentence is empty: describe an object, such as “{HINT}”")
    if len(text) > MAX_SENTENCE:
        raise UserError(f"the sentence has {len(text)} characters; at most {MAX_SENTENCE} are allowed: shorten it")


def read_upload(path: str | None) -> Image.Image:
    """Return an uploaded photo, upright and RGB. Raises UserError as `check_upload` does, and if it is damaged."""
    path = check_upload(path)
    try:
        return open_photo(path)
    except UserError as error:
        raise UserError(str(error).replace(path, Path(path).name)) from error  # do not show the server's folders


def check_upload(path: str | None) -> str:
    """Return the path; UserError if there is no file, or if it is not an image or too large. Decodes no pixels."""
    if not path:
        raise UserError("there is no image: choose one, or take an example")
    name = Path(path).name
    too_large = f"has more than the allowed {MAX_PIXELS // MEGA} megapixels: make it smaller"
    try:
        size = os.stat(path).st_size
        with opened(path, FORMATS, MAX_PIXELS):
            pass
    except (FileNotFoundError, MissingImageError):
        raise UserError(f"{name} is no longer here: choose it again") from None
    except TooLargeError:
        raise UserError(f"{name} {too_large}") from None
    except (ImageError, OSError):
        raise UserError(f"{name} is not a supported image: expected {', '.join(FORMATS)}") from None
    if size > MAX_FILE_SIZE:
        raise UserError(
            f"{name} has {size / MEGA:.1f} MB; at most {MAX_FILE_SIZE // MEGA} MB are allowed: make it smaller"
        )
    return path


def draw_outline(photo: Image.Image, prediction: Prediction) -> tuple[Image.Image, Image.Image]:
    """Return the photo without and with the outlined object, both RGB and at most SHOWN_SIDE pixels."""
    shown = thumbnail(photo, SHOWN_SIDE)
    mask = resize_mask(prediction.mask, (shown.height, shown.width))
    outlined = overlay(shown, mask, PREDICTION_COLOUR, wider=outline_growth(shown.size))
    return shown, outlined


def thumbnail(picture: Image.Image, side: int) -> Image.Image:
    """Return a copy whose longer side has at most `side` pixels."""
    copy = picture.copy()
    copy.thumbnail((side, side), Image.Resampling.BILINEAR)
    return copy


def percent(score: float) -> str:
    """Return a score from 0 to 1 as text."""
    return f"{100 * score:.0f}\N{NO-BREAK SPACE}%"


def caption(text: str, score: float, weights: str) -> str:
    """Return the caption of an earlier result: truncated sentence, expected IoU and name of the weights."""
    text = showable(" ".join(text.split()))
    if len(text) > CAPTION_LENGTH:
        text = f"{text[:CAPTION_LENGTH].rpartition(' ')[0] or text[:CAPTION_LENGTH]} …"
    return f"{text}: {percent(score)} ({weights})"


def describe_prediction(text: str, prediction: Prediction, max_tokens: int = MAX_TOKENS) -> str:
    """Return the expected IoU and the sentence as HTML, with its unread end struck through.

    max_tokens: number of tokens that the network reads.
    """
    if prediction.area:
        area = (
            percent(prediction.area / prediction.mask.size)
            if prediction.area > prediction.mask.size / 100
            else f"less than {percent(0.01)}"
        )
        left, top, width, height = prediction.box
        bar = f'<span class="bar"><span style="width: {100 * prediction.score:.1f}%"></span></span>'
        verdict = f"Expected IoU {percent(prediction.score)}{bar}"
        note = f"{area} of the image, in a box of {width} × {height} pixels at ({left}, {top})."
    elif prediction.no_target:
        verdict = "Nothing here"
        note = "The network says that the sentence means nothing in this image."
    else:
        verdict = "Nothing found"
        note = "Every pixel is more likely background than object."
    read = text[: len(text) - len(prediction.unread)]
    sentence = f"“{plain(read)}<del>{plain(prediction.unread)}</del>”" if prediction.unread else f"“{plain(text)}”"
    lines = [f'<p class="answer">{verdict}</p>', f'<p class="sentence">{sentence}</p>']
    if prediction.unread:
        limit = f"The network reads {max_tokens - 1} words or word pieces; the struck-through end was ignored."
        lines.append(f'<p class="cut">{limit}</p>')
    return "".join([*lines, f'<p class="note">{note}</p>'])


def describe_problem(message: str) -> str:
    """Return an error message as HTML."""
    return f'<p class="problem" role="alert"><b>That did not work:</b> {plain(message)}.</p>'


def plain(text: str) -> str:
    """Return a text escaped for HTML, including braces and dollars, which the page's templates would interpret.

    U+FFFD replaces lone surrogates.
    """
    return escape(showable(text)).translate({ord(sign): f"&#{ord(sign)};" for sign in "{}$`\\"})


def make_examples(folder: Path) -> list[tuple[str, str]]:
    """Draw sample images into a folder; return some of the files, each with a sentence."""
    make_sample(folder, images=1, seed=EXAMPLE_SEED, version=1)  # that of the shipped network
    scenes = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))
    images = {image["image_id"]: image for image in scenes["images"] if image["split"] == "testA"}
    owners = {entry["ann_id"]: image["image_id"] for image in images.values() for entry in image["objects"]}
    richest: dict[int, dict[str, Any]] = {}  # by image, the sentence with the most kinds of information
    for entry in scenes["sentences"]["refcoco"]:
        image = owners.get(entry["ann_id"])
        if image and len(entry["kinds"]) > len(richest.get(image, {"kinds": ()})["kinds"]):
            richest[image] = entry
    chosen = list(richest.items())[:N_EXAMPLES]
    return [(str(folder / IMAGE_FOLDER / images[image]["file_name"]), entry["sent"]) for image, entry in chosen]


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
TILES = {"columns": 4, "fit_columns": False, "object_fit": "contain", **BUTTONS}


def build_page(gr: Any, checkpoints: Checkpoints, examples: list[tuple[str, str]], uploads: Path) -> Any:
    """Return the page, a `gradio.Blocks` that is not yet served.

    gr: the module. examples: image files, each with a sentence. uploads: the folder given to `import_gradio`.
    """
    with gr.Blocks(title="CrossVLT", analytics_enabled=False, delete_cache=CACHE_SECONDS) as page:
        tries = gr.State([])
        gr.HTML(TITLE, elem_id="title")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=360):
                photo = gr.Image(label="Image", type="filepath", sources=["upload"], elem_id="photo", **FRAME)
                sentence = gr.Textbox(label="Sentence", placeholder=HINT, max_length=MAX_SENTENCE, elem_id="text")
                find = gr.Button("Find", variant="primary", elem_id="find")
                weights = gr.Dropdown(label="Checkpoint", elem_id="weights")
                shown_examples = gr.Examples(list(map(list, examples)), [photo, sentence], elem_id="examples")
            with gr.Column(scale=3, min_width=480):
                outlined = gr.Image(label="Found", interactive=False, elem_id="found", alt_text=FOUND_TEXT, **FRAME)
                verdict = gr.HTML(WELCOME, elem_id="verdict")
                alignment = gr.Image(
                    label=MAPS, elem_id="alignment", alt_text=MAPS, interactive=False, **FRAME | {"height": 200}
                )
                gallery = gr.Gallery(label="Tries, newest first", interactive=False, elem_id="tries", **TILES)

        def ask(upload: Upload, text: str, name: str | None, before: list[Try]) -> tuple[Any, ...]:
            try:
                result = answer(checkpoints, uploaded(upload, uploads), text, name, before)
            except UserError as error:
                result = Answer(None, None, describe_problem(str(error)), before)
            return *result, result.tries

        def receive(upload: Upload) -> tuple[Any, ...]:
            try:
                check_upload(uploaded(upload, uploads))
            except UserError as error:
                return None, None, None, describe_problem(str(error))
            return gr.skip(), None, None, READY

        def offer() -> Any:
            names = checkpoints.names()
            return gr.Dropdown(choices=names, value=names[0] if names else None)

        given, shown = [photo, sentence, weights, tries], [outlined, alignment, verdict, tries, gallery]
        gr.on([find.click, sentence.submit], ask, given, shown, **HANDLING)
        shown_examples.load_input_event.then(ask, given, shown, **HANDLING)
        photo.upload(receive, photo, [photo, outlined, alignment, verdict], **HANDLING)
        page.load(offer, None, weights, **HANDLING)
    return page


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
            css=STYLE,
            quiet=True,
            prevent_thread_lock=True,
            app_kwargs={"middleware": [Middleware(LocalOnly)]},
        )
    except OSError as error:
        raise UserError(f"--port {port}: the page cannot be served there ({error}); try another port") from error
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
        page = build_page(gr, Checkpoints(args.checkpoints, device), examples, Path(folder) / "gradio")
        serve(gr, page, args.port)


if __name__ == "__main__":
    utils.run(main)
