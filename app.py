"""Try a network on a page in your own browser.

    pip install -r requirements-web.txt
    python app.py
    python app.py --checkpoints checkpoints/sample --port 7861

Then open the address that is printed. Choose or drop an image, or take an example; say what to look for; and see it
outlined, with the confidence, the alignment maps by stage and the tries before. The page answers this machine alone,
and no page of another site that is open in the same browser; it reads no files but those that were uploaded to it, asks
nothing of the internet, and forgets images and tries when it ends.
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

from errors import UserError, run
from lib.arguments import Parser, add_device


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the checked flags; arguments: None for those of the command line."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--port", type=port_number, default=7860, help="where this machine's browsers find the page")
    add("--checkpoints", type=Path, default=Path("checkpoints"), metavar="DIR", help="folder of weights to choose from")
    add_device(parser)
    return parser.parse_args(arguments)


def port_number(text: str) -> int:
    """Parse a port that needs no special rights."""
    value = int(text)
    if not 1024 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"expected a number from 1024 to 65535, got {value}")
    return value


if __name__ == "__main__":
    run(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds

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
LARGEST_FILE = 20 * MEGA  # bytes
MOST_PIXELS = 50 * MEGA
LONGEST_SENTENCE = 1000  # characters
SHOWN_SIDE = 1280  # pixels of the longer side of what the page shows
TRY_SIDE = 320  # … of a picture among the earlier tries
MOST_TRIES = 24
CAPTION_LENGTH = 60  # characters of the sentence
N_EXAMPLES = 6
EXAMPLE_SEED = 2024  # not the default, from which networks learn: the examples are new to them
CACHE_SECONDS = 3600, 86_400  # how often old uploads and pictures are deleted, and how old they must be

HINT = "the red heart on the left"
TITLE = """<h1>CrossVLT</h1>
<p>Finds what a sentence means in an image: what is meant keeps its colours, outlined; the rest fades.</p>"""
WELCOME = '<p class="note">Choose an image and say what to look for, or take an example.</p>'
FOUND_TEXT = "The image with what was found outlined"
MAPS = "Alignment of image and sentence, by stage: yellow where they agree most"
READY = '<p class="note">Now say what to look for in this image.</p>'
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
#verdict .confidence {font-size: 1.25rem; font-weight: 600}
#verdict .bar {display: inline-block; width: 9rem; height: .6rem; margin-left: .7rem; background: #94a3b855}
#verdict .bar span {display: block; height: 100%; background: #0d9488}
#verdict .note {opacity: .75}
#verdict del {color: #b3261e; background: #fde7e5}
#verdict .problem {border-left: 4px solid #b3261e; background: #fde7e5; color: #5f1410; padding: .5rem .8rem}
"""


# ---------------------------------------------------------------- what the page does, without the page


Upload: TypeAlias = object  # Gradio's record of a file, a dict with its "path", or None; a request may hold anything


class Try(NamedTuple):
    """What the gallery shows of a sentence that was looked for."""

    picture: Image.Image  # outlined, TRY_SIDE pixels at most
    caption: str


class Answer(NamedTuple):
    """What the page shows after a sentence."""

    outlined: Image.Image | None  # None where something was wrong, as is the next
    alignment: Image.Image | None  # the maps of all stages side by side; None without alignment, too
    verdict: str  # HTML: confidence and the sentence as it was read, or what was wrong
    tries: list[Try]  # of this session, newest first


class Checkpoints:
    """The weights in a folder, loaded when they are asked for; those used last stay loaded."""

    def __init__(self, folder: Path, device: str | torch.device) -> None:
        self.folder = folder
        self.device = device
        self._lock = Lock()  # the server answers in several threads
        self._held: tuple[tuple[str, int], Model] | None = None

    def names(self) -> list[str]:
        """Return the names of weight files, and of folders that hold one: those of the sample data first, then by name.

        An empty list where there are none, or no such folder.
        """
        if not self.folder.is_dir():
            return []
        names = (path.name for path in self.folder.iterdir() if is_checkpoint(path))
        return sorted(names, key=lambda name: (name != Path(SAMPLE_WEIGHTS).name, name))

    def choose(self, name: str | None) -> str:
        """Return a name of `names`: None, from a visitor who was faster than the list, stands for the first.

        Raises UserError where there are no such weights.
        """
        names = self.names()
        chosen = names[0] if name is None and names else name
        if chosen is None or chosen not in names:
            missing = "are no such weights any more" if name is not None else "are no weights (.pth, .safetensors)"
            raise UserError(f"in {self.folder} there {missing}: train a network or put one there, then reload the page")
        return chosen

    def segment(self, name: str, photo: Image.Image, text: str) -> Prediction:
        """Return what a sentence means in an RGB image to the network of one of `names`.

        Raises UserError where the weights cannot be read, or the sentence is empty.
        """
        with self._lock:
            return segment(self._load(name), photo, text)

    def max_tokens(self, name: str) -> int:
        """Return how many tokens of a sentence the network of one of `names` reads."""
        with self._lock:
            return self._load(name).max_tokens

    def _load(self, name: str) -> Model:
        path = self.folder / name
        key = name, path.stat().st_mtime_ns  # a training may have replaced the file
        if self._held is None or self._held[0] != key:
            self._held = None  # never two networks in memory
            self._held = key, load(path, device=self.device)
        return self._held[1]


def is_checkpoint(path: Path) -> bool:
    """Return whether a path looks like weights by its name, or is a folder as for the Hugging Face hub."""
    if path.name.startswith("."):
        return False  # on its way to its name, see `write_atomically`
    return (path.is_file() and path.suffix in (".pth", ".safetensors")) or (path / HUB_WEIGHTS).is_file()


def answer(checkpoints: Checkpoints, path: str | None, text: Any, name: str | None, tries: list[Try]) -> Answer:
    """Return what the page shows for an uploaded file, a sentence and the name of weights.

    tries: those before, which are kept; a sentence that was found is put in front of them.
    """
    try:
        check_sentence(text)
        photo = read_upload(path)
        chosen = checkpoints.choose(name)
        found = checkpoints.segment(chosen, photo, text.strip())
        max_tokens = checkpoints.max_tokens(chosen)
    except UserError as error:
        return Answer(None, None, describe_problem(str(error)), tries)
    except torch.OutOfMemoryError:
        problem = "the GPU's memory is full: choose smaller weights, or start the page with --device cpu"
        return Answer(None, None, describe_problem(problem), tries)
    shown, outlined = draw(photo, found)
    latest = Try(fitted(outlined, TRY_SIDE), caption(text, found.score, Path(chosen).stem))
    alignment = alignment_strip(shown, text, found.alignment) if found.alignment else None
    return Answer(outlined, alignment, describe(text.strip(), found, max_tokens), [latest, *tries][:MOST_TRIES])


def uploaded(upload: Upload, folder: Path) -> str | None:
    """Return the path of an upload, None if there is none; folder: where Gradio keeps uploads.

    Raises UserError for any other path, of which nothing is told, not even whether something is there.
    """
    if upload is None:
        return None
    path: Any = upload.get("path") if isinstance(upload, dict) else None
    try:
        real = Path(os.path.realpath(path))
        is_inside = real.is_relative_to(os.path.realpath(folder)) and stat.S_ISREG(real.stat().st_mode)
    except (TypeError, ValueError, OSError):  # it is no path, or nothing is there
        is_inside = False
    if not is_inside:
        raise UserError("the image is not, or no longer, among those chosen here: choose it again")
    return str(real)


def check_sentence(text: Any) -> None:
    """Raise UserError for what is no text, an empty sentence, or one of more than LONGEST_SENTENCE characters."""
    if not isinstance(text, str):
        raise UserError("the sentence is no text: say what to look for in words")
    if not text.strip():
        raise UserError(f"the sentence is empty: say what to look for, such as “{HINT}”")
    if len(text) > LONGEST_SENTENCE:
        raise UserError(f"the sentence has {len(text)} characters; at most {LONGEST_SENTENCE} are taken: shorten it")


def read_upload(path: str | None) -> Image.Image:
    """Return an uploaded photo, upright and RGB. Raises UserError as `check_upload` does, or where it is damaged."""
    path = check_upload(path)
    try:
        return open_photo(path)
    except UserError as error:
        raise UserError(str(error).replace(path, Path(path).name)) from error  # the server's folders say nothing


def check_upload(path: str | None) -> str:
    """Return the path again; UserError for no file, what is no image or too large, without decoding its pixels."""
    if not path:
        raise UserError("there is no image: choose or drop one, or take an example")
    name = Path(path).name
    too_large = f"has more than {MOST_PIXELS // MEGA} megapixels, the most that are taken: make it smaller"
    try:
        size = os.stat(path).st_size
        with opened(path, FORMATS, MOST_PIXELS):
            pass
    except (FileNotFoundError, MissingImageError):
        raise UserError(f"{name} is no longer here: choose it again") from None
    except TooLargeError:
        raise UserError(f"{name} {too_large}") from None
    except (ImageError, OSError):
        raise UserError(f"{name} is no image that is read here: expected {', '.join(FORMATS)}") from None
    if size > LARGEST_FILE:
        raise UserError(
            f"{name} has {size / MEGA:.1f} MB; at most {LARGEST_FILE // MEGA} MB are taken: make it smaller"
        )
    return path


def draw(photo: Image.Image, found: Prediction) -> tuple[Image.Image, Image.Image]:
    """Return the photo and the same outlined, both RGB and SHOWN_SIDE pixels at most."""
    shown = fitted(photo, SHOWN_SIDE)
    mask = resize_mask(found.mask, (shown.height, shown.width))
    outlined = overlay(shown, mask, PREDICTION_COLOUR, wider=outline_growth(shown.size))
    return shown, outlined


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """Return a copy whose longer side has `side` pixels at most."""
    copy = picture.copy()
    copy.thumbnail((side, side), Image.Resampling.BILINEAR)
    return copy


def percent(score: float) -> str:
    """Return a score from 0 to 1 for a reader."""
    return f"{100 * score:.0f}\N{NO-BREAK SPACE}%"


def caption(text: str, score: float, weights: str) -> str:
    """Return what stands under an earlier try: the sentence's beginning, the confidence and the weights' name."""
    text = showable(" ".join(text.split()))
    if len(text) > CAPTION_LENGTH:
        text = f"{text[:CAPTION_LENGTH].rpartition(' ')[0] or text[:CAPTION_LENGTH]} …"
    return f"{text}: {percent(score)} ({weights})"


def describe(text: str, found: Prediction, max_tokens: int = MAX_TOKENS) -> str:
    """Return the confidence and the sentence as HTML, with what of it was not read struck through.

    max_tokens: of the network that read it.
    """
    if found.area:
        share = (
            percent(found.area / found.mask.size)
            if found.area > found.mask.size / 100
            else f"less than {percent(0.01)}"
        )
        left, top, width, height = found.box
        bar = f'<span class="bar"><span style="width: {100 * found.score:.1f}%"></span></span>'
        verdict = f"Confidence {percent(found.score)}{bar}"
        note = f"{share} of the image, in a box of {width} × {height} pixels at ({left}, {top})."
    elif found.no_target:
        verdict = "Nothing here"
        note = "The network says that the sentence means nothing in this image."
    else:
        verdict = "Nothing found"
        note = "Every pixel is likelier background than what is meant."
    read = text[: len(text) - len(found.unread)]
    sentence = f"“{plain(read)}<del>{plain(found.unread)}</del>”" if found.unread else f"“{plain(text)}”"
    lines = [f'<p class="confidence">{verdict}</p>', f'<p class="sentence">{sentence}</p>']
    if found.unread:
        limit = f"The network reads {max_tokens - 1} words or pieces of words; the struck-through end was not read."
        lines.append(f'<p class="cut">{limit}</p>')
    return "".join([*lines, f'<p class="note">{note}</p>'])


def describe_problem(message: str) -> str:
    """Return what was wrong as HTML."""
    return f'<p class="problem" role="alert"><b>That did not work:</b> {plain(message)}.</p>'


def plain(text: str) -> str:
    """Return HTML that shows a text as it is, braces and dollars too, which the page's templates would fill in.

    A sign stands for half a character.
    """
    return escape(showable(text)).translate({ord(sign): f"&#{ord(sign)};" for sign in "{}$`\\"})


def make_examples(folder: Path) -> list[tuple[str, str]]:
    """Draw sample images into a folder; return some files, each with a sentence about it."""
    make_sample(folder, images=1, seed=EXAMPLE_SEED)
    scenes = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))
    images = {image["image_id"]: image for image in scenes["images"] if image["split"] == "testA"}
    owners = {one["ann_id"]: image["image_id"] for image in images.values() for one in image["objects"]}
    richest: dict[int, dict[str, Any]] = {}  # by image, the sentence with the most kinds of information
    for entry in scenes["sentences"]["refcoco"]:
        image = owners.get(entry["ann_id"])
        if image and len(entry["kinds"]) > len(richest.get(image, {"kinds": ()})["kinds"]):
            richest[image] = entry
    chosen = list(richest.items())[:N_EXAMPLES]
    return [(str(folder / IMAGE_FOLDER / images[image]["file_name"]), entry["sent"]) for image, entry in chosen]


# ---------------------------------------------------------------- the page


def import_gradio(folder: Path) -> Any:
    """Return Gradio, told to keep its files in `folder` and to send nothing anywhere; UserError where it is missing."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    for name in ("no_proxy", "NO_PROXY"):  # no proxy may stand between this machine and itself
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), *LOCAL_HOSTS)))
    try:
        import gradio
    except ImportError as error:
        raise UserError(f"the page needs Gradio ({error}): pip install -r requirements-web.txt") from error
    return gradio


def build_page(gr: Any, checkpoints: Checkpoints, examples: list[tuple[str, str]], uploads: Path) -> Any:
    """Return the page, a `gradio.Blocks` that is not yet served.

    gr: the module. examples: image files, each with a sentence. uploads: the folder told to `import_gradio`.
    """
    # Preprocessing would open images before they are checked. Without it Gradio looks at no path that a request names
    # in a way of its own; `uploaded` looks at all.
    handling = {"api_visibility": "private", "preprocess": False}
    frame = {"format": "png", "height": 340, "buttons": ["download", "fullscreen"]}  # none that shares on the internet
    tiles = {"columns": 4, "fit_columns": False, "object_fit": "contain", "buttons": ["download", "fullscreen"]}
    with gr.Blocks(title="CrossVLT", analytics_enabled=False, delete_cache=CACHE_SECONDS) as page:
        tries = gr.State([])
        gr.HTML(TITLE, elem_id="title")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=360):
                photo = gr.Image(label="Image", type="filepath", sources=["upload"], elem_id="photo", **frame)
                sentence = gr.Textbox(label="Sentence", placeholder=HINT, max_length=LONGEST_SENTENCE, elem_id="text")
                find = gr.Button("Find", variant="primary", elem_id="find")
                weights = gr.Dropdown(label="Checkpoint", elem_id="weights")
                shown_examples = gr.Examples([list(one) for one in examples], [photo, sentence], elem_id="examples")
            with gr.Column(scale=3, min_width=480):
                outlined = gr.Image(label="Found", interactive=False, elem_id="found", alt_text=FOUND_TEXT, **frame)
                verdict = gr.HTML(WELCOME, elem_id="verdict")
                alignment = gr.Image(
                    label=MAPS, elem_id="alignment", alt_text=MAPS, interactive=False, **frame | {"height": 200}
                )
                gallery = gr.Gallery(label="Tries, newest first", interactive=False, elem_id="tries", **tiles)

        def ask(upload: Upload, text: str, name: str | None, before: list[Try]) -> tuple[Any, ...]:
            try:
                found = answer(checkpoints, uploaded(upload, uploads), text, name, before)
            except UserError as error:
                found = Answer(None, None, describe_problem(str(error)), before)
            return *found, found.tries

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
        gr.on([find.click, sentence.submit], ask, given, shown, **handling)
        shown_examples.load_input_event.then(ask, given, shown, **handling)
        photo.upload(receive, photo, [photo, outlined, alignment, verdict], **handling)
        page.load(offer, None, weights, **handling)
    return page


class LocalOnly:
    """ASGI middleware that refuses what a page of another site asks for.

    Such a page may reach this machine by a name of its own, which stands in `Host`, and says in `Origin` where it is
    from: this page's own requests have one host in both.
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
            await send({"type": "http.response.body", "body": b"This page answers its own machine alone.\n"})


def is_local(headers: Mapping[bytes, bytes]) -> bool:
    """Tell whether a request was sent to this machine's own name, by no page of another site; names in lower case."""
    host, origin = headers.get(b"host", b"").decode("latin-1"), headers.get(b"origin")
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name in LOCAL_HOSTS and origin in (None, f"http://{host}".encode("latin-1"))


def serve(gr: Any, page: Any, port: int) -> None:
    """Answer this machine's browsers until Ctrl-C or SIGTERM. Raises UserError for a port that is taken."""
    from starlette.middleware import Middleware  # which comes with Gradio

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    font, mono = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")  # what the machine has; nothing is fetched
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
            max_file_size=LARGEST_FILE,
            theme=theme,
            css=STYLE,
            quiet=True,
            prevent_thread_lock=True,
            app_kwargs={"middleware": [Middleware(LocalOnly)]},
        )
    except OSError as error:
        raise UserError(f"--port {port}: the page cannot be served there ({error}); try another port") from error
    with suppress(KeyboardInterrupt):
        print(f"http://{ADDRESS}:{port} shows the page; Ctrl-C ends it", flush=True)
        Event().wait()
    page.close(verbose=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the page until it is ended."""
    args = parse_args(arguments)
    device = utils.find_device(args.device)
    with tempfile.TemporaryDirectory(prefix="crossvlt-") as folder:
        gr = import_gradio(Path(folder) / "gradio")
        examples = make_examples(Path(folder) / "sample")
        page = build_page(gr, Checkpoints(args.checkpoints, device), examples, Path(folder) / "gradio")
        serve(gr, page, args.port)


if __name__ == "__main__":
    utils.run(main)
