"""Segment the objects that sentences refer to in your own photos.

    python predict.py --image photo.jpg --text "man in the red hat" --out out/
    python predict.py --image photos/ --text "the dog" "the red ball" --resume checkpoints/best_refcoco.pth --out out/
    python predict.py --jsonl requests.jsonl --out out/ --json out/found.json

A line of requests.jsonl is {"image": "photo.jpg", "text": "the dog"}; the path is relative to the file. For every
sentence OUT receives masks/NAME.png (255 on the object, at the photo's size), overlays/NAME.png and alignment/NAME.png
(the similarity of every pixel to the sentence at each stage, if the network was trained with alignment). From Python:

    from predict import load, segment
    model = load("checkpoints/best_refcoco.pth")
    prediction = segment(model, "photo.jpg", "man in the red hat")
    prediction.mask, prediction.box, prediction.score
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

from errors import UserError, cut, few, few_lines, plain, run
from lib.arguments import Parser
from lib.files import cut_name, longest_name, write_atomically, write_text
from lib.options import add_flags
from lib.outputs import check_apart, check_folder, check_output, complete, is_same, make_folder
from lib.variants import MAX_TOKENS

SAMPLE_WEIGHTS = "checkpoints/sample_nano.safetensors"
FOLDERS = ("masks", "overlays", "alignment")  # of pictures


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the checked flags; arguments: None for `sys.argv`."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--image", type=Path, help="a photo, or a folder of photos")
    add("--recursive", action="store_true", help="also take the photos in folders of that folder, except in --out")
    add("--text", nargs="+", help="one or more sentences about every photo")
    add("--jsonl", type=Path, metavar="FILE", help='instead: a file with {"image": …, "text": …} in every line')
    add("--out", type=Path, required=True, help="folder of the pictures; those of the same name are replaced")
    add("--json", type=Path, metavar="FILE", help="write boxes, areas, expected IoUs and masks in COCO's format")
    add(
        "--resume",
        default=SAMPLE_WEIGHTS,
        help="weights: a file, a folder or a hub name; the default is a small model trained on synthetic drawings",
    )
    tokenizer_help = "vocab.txt, tokenizer.json, folder or hub name; default: that of the training"
    add_flags(parser, "--bert_tokenizer", default=None, help=tokenizer_help)
    size_help = "side of the resized photos in pixels; default: that of the training"
    add_flags(parser, "--img_size", default=None, help=size_help)
    add_flags(parser, "--max-tokens", help="tokens of a sentence; default: those of the training")
    add_flags(parser, "--device", "--precision")
    add_flags(parser, "--compile", help="use torch.compile: minutes to start, worthwhile for many photos")
    add_flags(parser, "--batch-size", default=8, help="sentences per batch")
    args = parser.parse_args(arguments)
    if bool(args.jsonl) == bool(args.image or args.text) or bool(args.image) != bool(args.text):
        raise UserError("name photos and sentences with --image and --text, or in a file with --jsonl")
    check_folder(args.out, "--out")
    if args.json is not None:
        check_apart(args.json, "--json", [args.out / kind for kind in FOLDERS])
        read = [args.jsonl or args.image, args.resume, args.bert_tokenizer or ""]
        check_output(args.json, "--json", "JSON", read)
    return args


if __name__ == "__main__":
    run(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from tqdm import tqdm

import utils
from bert.tokenizer import WordPiece
from data.dataset_refer_bert import pad
from data.transforms import PairTransform, normalize
from lib.contracts import Output, Similarity
from lib.evaluation.expected import expected_iou
from lib.network.inference import optimize_for_inference
from lib.network.precision import Precision
from lib.photo import READ, SUFFIXES, Pixels, as_seen, open_photo
from lib.pictures.overlay import PREDICTION_COLOUR, outline_growth, overlay, predicted_mask
from lib.pictures.panels import alignment_strip
from lib.run_lengths import RunLengths, encode_mask
from lib.texts import read_json_lines
from trained import open_trained

SLUG_LENGTH, SLUG_BYTES = 40, 80  # maximum length of a sentence in a file name, in characters and in bytes
N_NAMED = 20  # files and sentences that a message lists


# ---------------------------------------------------------------- as a library


class Model(NamedTuple):
    """A network with its tokenizer, transform and precision."""

    network: nn.Module
    tokenizer: WordPiece
    transform: PairTransform
    precision: Precision
    max_tokens: int = MAX_TOKENS  # of a sentence
    alignment_scale: tuple[tuple[float, float], ...] = ()  # see `SegModel.alignment_scale`


class Sentence(NamedTuple):
    """A tokenized sentence."""

    token_ids: list[int]  # [CLS] first, [SEP] last; the network reads the first `Model.max_tokens`
    unread: str  # the end of the text that the network does not read; "" if it reads all


class Prediction(NamedTuple):
    """The predicted object of a sentence in a photo."""

    mask: Pixels  # (H, W) uint8, 1 on the object, at the size of the upright photo
    score: float  # the IoU that the network expects, see `expected_iou`: 0 to 1, and 0 if the mask is empty
    # Cosine of pixels and sentence at each stage, (H_i, W_i) float32, -1 to 1; () for a network without alignment.
    alignment: tuple[Similarity, ...]
    unread: str  # as in `Sentence`
    # Answer of the no-target head: True if the sentence has no target in the photo, so the mask is empty. None for a
    # network without a head.
    no_target: bool | None = None

    @property
    def area(self) -> int:
        """Number of pixels of the object."""
        return int(self.mask.sum())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height in pixels; all 0 if the mask is empty."""
        return box_of(encode_mask(self.mask))


def load(
    name: str | Path = SAMPLE_WEIGHTS,
    *,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    compiled: bool = False,
    bert_tokenizer: str | None = None,
    img_size: int | None = None,
    max_tokens: int | None = None,
) -> Model:
    """Return a trained network for `segment`.

    name, bert_tokenizer, img_size, max_tokens, and the errors raised: see `open_trained`. device: "cpu", "cuda" or
    "cuda:NUMBER". precision: fp32, tf32, bf16 or fp16. compiled: see `optimize_for_inference`.
    """
    trained = open_trained(name, bert_tokenizer=bert_tokenizer, img_size=img_size, max_tokens=max_tokens)
    arithmetic = Precision(precision, torch.device(device))
    prepared = optimize_for_inference(trained.network.to(arithmetic.device), arithmetic, compiled=compiled)
    transform, scale = PairTransform(trained.img_size), trained.network.alignment_scale()
    return Model(prepared, trained.tokenizer, transform, arithmetic, trained.max_tokens, scale)


def segment(model: Model, image: str | Path | BinaryIO | Image.Image, text: str) -> Prediction:
    """Return the prediction for a sentence about an image.

    image: a path, an open file, or a Pillow image. Raises UserError if the sentence is empty or the image cannot be
    read.
    """
    photo = as_seen(image) if isinstance(image, Image.Image) else open_photo(image)
    return segment_batch(model, [photo], [text])[0]


def segment_batch(model: Model, photos: Sequence[Image.Image], texts: Sequence[str]) -> list[Prediction]:
    """Return one prediction for each pair of RGB photo and sentence; the lists have the same length."""
    return segment_tokenized(model, photos, [tokenize(model.tokenizer, text, model.max_tokens) for text in texts])


def segment_tokenized(model: Model, photos: Sequence[Image.Image], sentences: Sequence[Sentence]) -> list[Prediction]:
    """Do the same as `segment_batch` for tokenized sentences."""
    token_ids, attention_mask = pad([sentence.token_ids for sentence in sentences], model.max_tokens)
    pixels: dict[int, Tensor] = {}  # a photo with several sentences is resized once
    for photo in photos:
        if id(photo) not in pixels:
            pixels[id(photo)] = normalize(model.transform.resize_image(photo))
    batch = torch.stack([pixels[id(photo)] for photo in photos]), token_ids, attention_mask
    device = model.precision.device
    with torch.inference_mode(), model.precision.autocast():
        output: Output = model.network(*(part.to(device) for part in batch), with_alignment=True)
    if not all(part.isfinite().all() for part in (output.logits, output.no_target) if part is not None):
        raise UserError("the network's output is infinite or NaN: with --precision fp16, try bf16 or fp32")
    maps = [
        (stage.cpu().numpy()[:, 0] - bias) * temperature
        for stage, (temperature, bias) in zip(output.alignment, model.alignment_scale, strict=True)
    ]
    predictions = [
        _predict(output.logits[number], photo, tuple(stage[number] for stage in maps), sentence.unread)
        for number, (photo, sentence) in enumerate(zip(photos, sentences, strict=True))
    ]
    if output.no_target is None:
        return predictions
    nothing = (output.no_target[:, 1] > output.no_target[:, 0]).tolist()
    return [_with_head(one, no_target) for one, no_target in zip(predictions, nothing, strict=True)]


def _with_head(prediction: Prediction, no_target: bool) -> Prediction:
    """Return a prediction with the answer of the no-target head; no target empties the mask."""
    if no_target:
        prediction = prediction._replace(mask=np.zeros_like(prediction.mask), score=0.0)
    return prediction._replace(no_target=no_target)


def _predict(logits: Tensor, photo: Image.Image, alignment: tuple[Similarity, ...], unread: str) -> Prediction:
    mask = predicted_mask(logits, (photo.height, photo.width))
    return Prediction(mask, expected_iou(logits[None]).item() if mask.any() else 0.0, alignment, unread)


def tokenize(tokenizer: WordPiece, text: str, max_tokens: int = MAX_TOKENS) -> Sentence:
    """Return the tokens of a sentence, and its unread end. Raises UserError if it has no word."""
    token_ids, starts = tokenizer.split(text)
    if not starts:
        raise UserError(f"the sentence {cut(text)} is empty: describe an object")
    unread = text[starts[max_tokens - 1] :] if len(starts) >= max_tokens else ""  # [CLS] is the first token
    return Sentence(token_ids, unread)


def box_of(code: RunLengths) -> tuple[int, int, int, int]:
    """Return left, top, width and height of an encoded mask in pixels; all 0 if it is empty."""
    left, top, width, height = (int(number) for number in coco_mask.toBbox(code))
    return left, top, width, height


# ---------------------------------------------------------------- as a command


class Request(NamedTuple):
    """A sentence about a photo."""

    image: Path
    text: str


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the predictions; exit with code 1 at the end if a photo could not be read."""
    args = parse_args(arguments)
    requests = read_requests(args.jsonl) if args.jsonl else pair(found_photos(args), args.text)
    writer = Writer(args.out, requests)
    model = load(
        args.resume,
        device=utils.find_device(args.device),
        precision=args.precision,
        compiled=args.compile,
        bert_tokenizer=args.bert_tokenizer,
        img_size=args.img_size,
        max_tokens=args.max_tokens,
    )
    sentences = tokenize_requests(model, requests)
    steps = [lambda: process_requests(model, requests, sentences, args.batch_size, writer)]
    if args.json is not None:
        steps.append(lambda: writer.write_json(args.json))  # even if a picture could not be written
    complete(*steps)


def tokenize_requests(model: Model, requests: Sequence[Request]) -> dict[str, Sentence]:
    """Return the tokenized sentences by text, and print the unread ends of long ones.

    Raises UserError for an empty sentence.
    """
    texts = dict.fromkeys(request.text for request in requests)
    sentences = {text: tokenize(model.tokenizer, text, model.max_tokens) for text in texts}
    unread = {text: sentence.unread for text, sentence in sentences.items() if sentence.unread}
    lines = [f"{cut(text)} is too long for the network, which ignores {cut(end)}" for text, end in unread.items()]
    for line in few_lines(lines, N_NAMED):
        print(plain(line), file=sys.stderr)
    return sentences


def process_requests(
    model: Model, requests: Sequence[Request], sentences: Mapping[str, Sentence], batch_size: int, writer: Writer
) -> None:
    """Write the predictions of all requests; at the end raise UserError with the photos that could not be read.

    sentences: of the requests, by text.
    """
    failures: dict[Path, UserError] = {}
    with tqdm(total=len(requests), unit="sentence", disable=not sys.stderr.isatty()) as bar:
        for batch in batches(requests, batch_size, failures):
            photos, tokens = [photo for _, photo in batch], [sentences[request.text] for request, _ in batch]
            for (request, photo), prediction in zip(batch, segment_tokenized(model, photos, tokens), strict=True):
                writer.write(request, photo, prediction)
                if prediction.no_target:
                    print(plain(f"{request.image}: {cut(request.text)}: nothing here"))
            bar.update(len(batch))
    n_empty = sum(not annotation["area"] for annotation in writer.annotations)
    print(f"{len(writer.annotations)} masks in {writer.folder}{f', of them {n_empty} empty' if n_empty else ''}")
    if failures:
        reasons = few_lines([f"  {reason}" for reason in failures.values()], N_NAMED)
        raise UserError("\n".join([f"{len(failures)} photos were skipped:", *reasons]))


def pair(photos: Sequence[Path], texts: Sequence[str]) -> list[Request]:
    """Return a request for every pair of photo and sentence."""
    return [Request(photo, text) for photo in photos for text in texts]


def found_photos(args: argparse.Namespace) -> list[Path]:
    """Return the photos that the flags name: one, or those in a folder. Raises UserError if there are none."""
    folder: Path = args.image
    try:
        if not folder.is_dir():
            return [folder]
        return photos_in(folder, files_below(folder, args.out) if args.recursive else list(folder.iterdir()))
    except OSError as error:
        raise UserError(f"--image {folder} cannot be read ({error.strerror})") from error


def files_below(folder: Path, left_out: Path) -> list[Path]:
    """Return the files in a folder and the folders in it, except in `left_out`; links to folders are not followed."""
    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not is_same(Path(parent, name), left_out)]
        found += [Path(parent, name) for name in names]
    return found


def _raise(error: OSError) -> None:
    raise error


def photos_in(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Return the photos among the files of a folder, sorted by name, and print the names of the others.

    Raises UserError if there is no photo.
    """
    photos: list[Path] = []
    others: list[Path] = []
    for path in sorted(files):
        # A dangling link counts as a photo, which will be reported as unreadable.
        is_photo = path.suffix.lower() in SUFFIXES and (path.is_file() or not path.exists())
        (photos if is_photo else others).append(path)
    if others:
        names = few([path.name for path in others], N_NAMED)
        print(plain(f"skipped, because their names are not those of photos: {names}"), file=sys.stderr)
    if not photos:
        raise UserError(f"the folder {folder} has no photo ({', '.join(sorted(READ))})")
    return photos


def read_requests(path: Path) -> list[Request]:
    """Return the requests of a JSONL file; image paths are relative to it. Raises UserError for an invalid line."""
    requests = []
    for number, record in read_json_lines(path):
        try:
            image, text = record["image"], record["text"]
        except (KeyError, TypeError) as error:
            raise UserError(f'{path}, line {number} is not {{"image": …, "text": …}} ({error!r})') from error
        if not (isinstance(image, str) and isinstance(text, str)):
            raise UserError(f"{path}, line {number}: image and text must be strings")
        if not text.strip():
            raise UserError(f"{path}, line {number}: the text is empty: describe an object")
        requests.append(Request(path.parent / image, text))
    if not requests:
        raise UserError(f"{path} has no request")
    return requests


def batches(
    requests: Sequence[Request], size: int, failures: dict[Path, UserError]
) -> Iterator[list[tuple[Request, Image.Image]]]:
    """Yield batches of requests with their photos, which are read in the background, once for adjacent requests.

    failures: receives the photos that cannot be read; their requests are skipped.
    """
    groups = [requests[start : start + size] for start in range(0, len(requests), size)]
    with ThreadPoolExecutor(2) as pool:
        held: dict[Path, Future[Image.Image]] = {}
        for group, next_group in zip(groups, [*groups[1:], []], strict=True):
            wanted = dict.fromkeys(request.image for request in chain(group, next_group))
            held = {path: held.get(path) or pool.submit(open_photo, path) for path in wanted}
            batch = []
            for request in group:
                try:
                    batch.append((request, held[request.image].result()))
                except UserError as error:
                    failures[request.image] = error
            if batch:
                yield batch


def picture_name(number: int, request: Request, limit: int) -> str:
    """Return a file name of at most `limit` bytes: number, photo and sentence, truncated if necessary."""
    slug = re.sub(r"\W+", "-", request.text.lower()).strip("-")[:SLUG_LENGTH]
    encoding = sys.getfilesystemencoding()
    end = f"_{cut_name(slug.encode(encoding, 'ignore').decode(encoding), SLUG_BYTES)}.png"
    return cut_name(f"{number:06d}_{request.image.stem}", limit - len(os.fsencode(end))) + end


class Writer:
    """Writes the pictures of predictions into a folder, and collects the content of the JSON file."""

    def __init__(self, folder: Path, requests: Sequence[Request] = ()) -> None:
        """Raises UserError if the folder cannot be written to, or if pictures would be mixed with requested photos."""
        self.folder = folder
        self.images: dict[Path, dict[str, object]] = {}
        self.annotations: list[dict[str, object]] = []
        for name in FOLDERS:
            make_folder(folder / name, "--out")
        for parent in {request.image.parent for request in requests}:
            if any(is_same(folder / name, parent) for name in FOLDERS):
                raise UserError(f"--out {folder} would be mixed with the photos in {parent}: choose another folder")

    def write(self, request: Request, photo: Image.Image, prediction: Prediction) -> None:
        """Write mask, overlay and alignment maps; names are number, photo and sentence."""
        name = picture_name(len(self.annotations), request, longest_name(self.folder / FOLDERS[0]))
        pictures = {
            "masks": Image.fromarray(prediction.mask * 255),
            "overlays": overlay(photo, prediction.mask, PREDICTION_COLOUR, wider=outline_growth(photo.size)),
        }
        if prediction.alignment:
            pictures["alignment"] = alignment_strip(photo, request.text, prediction.alignment)
        for folder, picture in pictures.items():
            path = self.folder / folder / name
            write_atomically(path, partial(picture.save, format="PNG"))
        self._collect(request, photo, prediction)

    def _collect(self, request: Request, photo: Image.Image, prediction: Prediction) -> None:
        record = {"id": len(self.images) + 1, "file_name": str(request.image), "width": photo.width}
        image = self.images.setdefault(request.image, record | {"height": photo.height})
        code = encode_mask(prediction.mask)
        self.annotations.append(
            {
                "id": len(self.annotations) + 1,
                "image_id": image["id"],
                "category_id": 1,
                "segmentation": code,
                "bbox": list(box_of(code)),
                "area": prediction.area,
                "iscrowd": 0,
                "score": round(prediction.score, 4),
                "text": request.text,
            }
            | ({} if prediction.no_target is None else {"no_target": prediction.no_target})
        )

    def write_json(self, path: Path) -> None:
        """Write images, annotations and one category in COCO's format."""
        content = {
            "images": list(self.images.values()),
            "annotations": self.annotations,
            "categories": [{"id": 1, "name": "object"}],
        }
        write_text(path, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    utils.run(main)
