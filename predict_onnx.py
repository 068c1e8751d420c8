"""Segment the objects that sentences refer to in your own photos, without PyTorch.

    python -m lib.weights export checkpoints/best_refcoco.pth best.onnx
    python predict_onnx.py --image photo.jpg --text "man in the red hat" --resume best.onnx --out out/

The second command needs onnxruntime, tokenizers, NumPy and Pillow alone. For every sentence OUT receives the pictures
of `predict.py`: masks/NAME.png, overlays/NAME.png and, if the network was exported with `--alignment`,
alignment/NAME.png (needs matplotlib). `--jsonl`, `--json` (needs pycocotools) and `--skip-existing` are those of
`predict.py`, too.
From Python:

    from predict_onnx import load, segment
    model = load("best.onnx")
    prediction = segment(model, "photo.jpg", "man in the red hat")
    prediction.mask, prediction.score
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from errors import UserError, answer_first, first_line, plain, run
from lib.arguments import Parser, positive_int
from lib.asked import add_requests, check_requests, is_lines
from lib.texts import IS_POINTER, LFS_POINTER

PACKAGES = ("onnxruntime", "tokenizers", "numpy", "PIL")
INSTALL = "pip install onnxruntime tokenizers numpy pillow"
ALIGNMENT = "alignment"  # how the names of maps begin among the outputs of a graph
ENTRY = "crossvlt"  # of the metadata
EXPORT = "make one with `python -m lib.weights export WEIGHTS best.onnx`"


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the checked flags; arguments: None for `sys.argv`."""
    parser = Parser(description=__doc__)
    add_requests(parser)
    add = parser.add_argument
    add("--resume", type=Path, required=True, metavar="FILE", help="a network exported to ONNX")
    add("-b", "--batch-size", type=positive_int, default=8, help="sentences per batch")
    args = parser.parse_args(arguments)
    check_requests(args, [args.resume])
    if args.json is not None and find_spec("pycocotools") is None:
        raise UserError("--json needs pycocotools: pip install pycocotools")
    if lacking := [name for name in PACKAGES if find_spec(name) is None]:
        raise UserError(f"{', '.join(lacking)} cannot be imported: {INSTALL}")
    return args


if __name__ == "__main__":
    answer_first(parse_args)  # answers --help and mistakes in the flags before the imports below

import numpy as np
from PIL import Image

from bert.tokenizer import Sentence, WordPiece, make_tokenizer, tokenize
from lib.contents import ONNX_ABOUT
from lib.inputs import Planes, normalized_planes, padded_ids, resize_image
from lib.photo import Pixels, as_seen, open_photo
from lib.pictures.results import LineFile, Writer, missing, work_through, write_results
from lib.requests import Request, batches, print_unread, requests_of, skipping
from lib.schema import parse_json

if TYPE_CHECKING:
    import onnxruntime

# ---------------------------------------------------------------- as a library


class Model(NamedTuple):
    """An exported network, with what its file says of its inputs."""

    session: onnxruntime.InferenceSession
    tokenizer: WordPiece
    img_size: int  # side of its images in pixels
    mean: Sequence[float]  # of the channels, after scaling to 0 to 1
    std: Sequence[float]
    max_tokens: int  # of a sentence


class Prediction(NamedTuple):
    """The predicted object of a sentence in a photo; the fields are those of `predict.Prediction`."""

    mask: Pixels  # (H, W) uint8, 1 on the object, at the size of the upright photo
    score: float  # the IoU that the network expects, 0 to 1; 0 if the mask is empty
    alignment: tuple[Planes, ...]  # cosine of pixels and sentence at each stage, (H_i, W_i); () if not exported
    unread: str  # the end of the text that the network does not read
    no_target: bool | None = None  # whether the sentence has no target; None for a network without a no-target head


def load(path: str | Path, *, threads: int = 0) -> Model:
    """Return an exported network for `segment`; threads: 0 for as many as there are cores.

    Raises UserError if the file is missing, damaged, or no export of this project.
    """
    import onnxruntime

    path = Path(path)
    try:
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(f"{path} {IS_POINTER}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors alone; they are raised as well
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        text = session.get_modelmeta().custom_metadata_map.get(ENTRY)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): {EXPORT}") from error
    except UserError:
        raise
    except Exception as error:  # for damaged files onnxruntime raises many kinds
        raise UserError(f"{path} is damaged, or no ONNX file ({first_line(error):.200}): {EXPORT}") from error
    if text is None:
        raise UserError(f"{path} is not an export of this project: {EXPORT}")
    about = parse_json(text, ONNX_ABOUT, path, "not an export of this project")
    check_graph(session, about["img_size"], path)
    tokenizer = make_tokenizer(about["vocabulary"], path)
    return Model(session, tokenizer, about["img_size"], about["mean"], about["std"], about["max_tokens"])


def check_graph(session: onnxruntime.InferenceSession, img_size: int, path: Path) -> None:
    """Raise UserError if a graph has other inputs than those of an export, or no logits."""
    inputs = {one.name: (one.type, len(one.shape)) for one in session.get_inputs()}
    wanted = {"image": ("tensor(float)", 4)} | dict.fromkeys(("token_ids", "attention_mask"), ("tensor(int64)", 2))
    if inputs != wanted:
        raise UserError(f"{path} is not an export of this project: it has the inputs {', '.join(inputs)}")
    shapes = {one.name: list(one.shape[1:]) for one in (*session.get_inputs(), *session.get_outputs())}
    for name, shape in (("image", [3, img_size, img_size]), ("logits", [2, img_size, img_size])):
        if shapes.get(name) != shape:
            raise UserError(f"{path} is not an export of this project: its {name} is {shapes.get(name)}, not {shape}")


def segment(model: Model, image: str | Path | BinaryIO | Image.Image, text: str) -> Prediction:
    """Return the prediction for a sentence about an image: a path, an open file, or a Pillow image.

    Raises UserError if the sentence is empty or the image cannot be read.
    """
    photo = as_seen(image) if isinstance(image, Image.Image) else open_photo(image)
    return segment_tokenized(model, [photo], [tokenize(model.tokenizer, text, model.max_tokens)])[0]


def segment_tokenized(model: Model, photos: Sequence[Image.Image], sentences: Sequence[Sentence]) -> list[Prediction]:
    """Return one prediction for each pair of RGB photo and tokenized sentence; the lists have the same length."""
    output = _forward(model, photos, sentences)
    return [_predict(output, number, *one) for number, one in enumerate(zip(photos, sentences, strict=True))]


def _forward(model: Model, photos: Sequence[Image.Image], sentences: Sequence[Sentence]) -> dict[str, Planes]:
    """Return the outputs of the graph by name for pairs of photo and sentence."""
    token_ids, attention_mask = padded_ids([sentence.token_ids for sentence in sentences], model.max_tokens)
    planes: dict[int, Planes] = {}  # a photo with several sentences is resized once
    for photo in photos:
        if id(photo) not in planes:
            planes[id(photo)] = normalized_planes(resize_image(photo, model.img_size), model.mean, model.std)
    image = np.stack([planes[id(photo)] for photo in photos])
    inputs = {"image": image, "token_ids": token_ids, "attention_mask": attention_mask}
    names = [output.name for output in model.session.get_outputs()]
    try:
        outputs = dict(zip(names, model.session.run(names, inputs), strict=True))
    except Exception as error:  # of a graph that somebody else made, or of too little memory
        raise UserError(f"the network cannot be run ({first_line(error):.200}): a smaller --batch-size?") from error
    if not all(np.isfinite(output).all() for output in outputs.values()):
        raise UserError("the network's output is infinite or NaN: export its weights again")
    return outputs


def _predict(outputs: Mapping[str, Planes], number: int, photo: Image.Image, sentence: Sentence) -> Prediction:
    """Return the prediction for one pair of a batch; if the no-target head finds no target, the mask is empty."""
    logits = outputs["logits"][number]
    margin = logits[1] - logits[0]
    mask = (upsampled(margin, photo.height, photo.width) > 0).astype(np.uint8)
    alignment = tuple(maps[number, 0] for name, maps in outputs.items() if name.startswith(ALIGNMENT))
    prediction = Prediction(mask, expected_iou(margin) if mask.any() else 0.0, alignment, sentence.unread)
    if "no_target" not in outputs:
        return prediction
    background, no_target = outputs["no_target"][number]
    if no_target > background:
        return prediction._replace(mask=np.zeros_like(mask), score=0.0, no_target=True)
    return prediction._replace(no_target=False)


def upsampled(values: Planes, height: int, width: int) -> Planes:
    """Resize a map (H, W): bilinear with aligned corners, as `lib.network.resize.upsample`."""
    for axis, size in ((0, height), (1, width)):
        last = values.shape[axis] - 1
        places = np.arange(size, dtype=np.float32) * np.float32(last / (size - 1) if size > 1 else 0)
        low = np.minimum(places.astype(np.int64), last)
        fraction = (places - low).reshape((-1, 1) if axis == 0 else (1, -1))
        lower, upper = values.take(low, axis), values.take(np.minimum(low + 1, last), axis)
        values = lower * (1 - fraction) + upper * fraction
    return values


def expected_iou(margin: Planes) -> float:
    """Return the IoU to expect of the mask `margin > 0`, as `lib.evaluation.expected.expected_iou`.

    margin: (H, W), the logits of the object less those of the background.
    """
    probability = 0.5 + 0.5 * np.tanh(0.5 * margin.astype(np.float64))  # the sigmoid, which never overflows so
    mask = margin > 0
    return float(probability[mask].sum() / (mask.sum() + probability[~mask].sum()))


# ---------------------------------------------------------------- as a command


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the pictures, and print the expected IoU of every mask; exit with 1 if a photo had to be skipped."""
    args = parse_args(arguments)
    requests = requests_of(args)
    writer = Writer(args.out, requests, with_records=args.json is not None)
    lines = LineFile(args.json) if args.json and is_lines(args.json) else None
    if args.skip_existing:
        requests = missing(requests, writer, lines)
        if not requests:
            write_results(writer, lines, None)
            return
    model = load(args.resume)
    texts = dict.fromkeys(request.text for request in requests)
    sentences = {text: tokenize(model.tokenizer, text, model.max_tokens) for text in texts}
    print_unread({text: sentence.unread for text, sentence in sentences.items()})
    if any(one.name.startswith(ALIGNMENT) for one in model.session.get_outputs()) and not find_spec("matplotlib"):
        print("note: no alignment maps, which need matplotlib: pip install matplotlib", file=sys.stderr)

    def process() -> None:
        found = batches(requests, args.batch_size, writer.failures)
        wrong = work_through(found, lambda batch: process_batch(model, batch, sentences, writer), writer)
        if wrong:
            raise UserError("\n".join(wrong))

    write_results(writer, lines, args.json, process)


def process_batch(
    model: Model,
    batch: Sequence[tuple[Request, Image.Image]],
    sentences: Mapping[str, Sentence],
    writer: Writer,
) -> None:
    """Write the predictions of a batch, and print a line for each; photos too large for the memory are skipped.

    Raises UserError if a file cannot be written.
    """
    tokens = [sentences[request.text] for request, _ in batch]
    output = _forward(model, [photo for _, photo in batch], tokens)
    for number, ((request, photo), sentence) in enumerate(zip(batch, tokens, strict=True)):
        with skipping(request.image, writer.failures):
            prediction = _predict(output, number, photo, sentence)
            writer.write(request, photo, prediction)
            state = f"expected IoU {prediction.score:.2f}" if prediction.mask.any() else "nothing here"
            print(plain(f"{writer.folder / 'masks' / writer.name_of(request)}: {state}"))


if __name__ == "__main__":
    run(main)
