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
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from errors import UserError, answer_first, cut, few_lines, first_line, plain
from lib.arguments import Parser
from lib.asked import ON_REQUEST, add_requests, check_requests, is_lines
from lib.options import add_flags
from lib.variants import MAX_TOKENS

SAMPLE_WEIGHTS = "checkpoints/sample_nano.safetensors"
AT_ONCE = 8  # shortened sentences that the network reads together


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the checked flags; arguments: None for `sys.argv`."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add_requests(parser)
    add("--cutout", action="store_true", help="also write cutouts/NAME.png: the object alone, transparent around it")
    colours_help = "also write colours/NAME.png: all objects of a photo in different colours, with their sentences"
    add("--colours", action="store_true", help=colours_help)
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
    check_requests(args, [args.resume, args.bert_tokenizer or ""])
    return args


if __name__ == "__main__":
    answer_first(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

import utils
from bert.tokenizer import Sentence, Tokens, WordPiece, tokenize
from data.dataset_refer_bert import pad
from data.sample.drawings import ONLY_DRAWINGS, is_drawing, knows_only_drawings
from data.transforms import PairTransform, normalize
from lib.contracts import Output, Similarity
from lib.evaluation.expected import expected_iou
from lib.network.inference import optimize_for_inference
from lib.network.precision import Precision
from lib.network.resize import predicted_mask
from lib.photo import Pixels, as_seen, open_photo
from lib.pictures.overlay import outline_growth, overlay_several
from lib.pictures.panels import with_legend
from lib.pictures.results import LineFile, Writer, box_of, missing, work_through, write_results
from lib.requests import (
    N_NAMED,
    Request,
    batches,
    print_unread,
    requests_of,
    skipping,
)
from lib.run_lengths import encode_mask
from trained import open_trained

# ---------------------------------------------------------------- as a library


class Model(NamedTuple):
    """A network with its tokenizer, transform and precision."""

    network: nn.Module
    tokenizer: WordPiece
    transform: PairTransform
    precision: Precision
    max_tokens: int = MAX_TOKENS  # of a sentence
    alignment_scale: tuple[tuple[float, float], ...] = ()  # see `SegModel.alignment_scale`


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
    output = _forward(model, photos, sentences)
    return [_predict(output, *one) for one in zip(range(len(photos)), photos, sentences, strict=True)]


def _forward(model: Model, photos: Sequence[Image.Image], sentences: Sequence[Sentence]) -> Output:
    """Return the network's output for pairs of photo and sentence, the alignment maps as cosines on the CPU."""
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
    cosines = (
        (stage.cpu() - bias) * temperature
        for stage, (temperature, bias) in zip(output.alignment, model.alignment_scale, strict=True)
    )
    return output._replace(alignment=tuple(cosines))


def _predict(output: Output, number: int, photo: Image.Image, sentence: Sentence) -> Prediction:
    """Return the prediction for one pair of a batch; if the no-target head finds no target, the mask is empty."""
    logits = output.logits[number]
    mask = predicted_mask(logits, (photo.height, photo.width))
    alignment = tuple(stage[number, 0].numpy() for stage in output.alignment)
    score = expected_iou(logits[None]).item() if mask.any() else 0.0
    prediction = Prediction(mask, score, alignment, sentence.unread)
    if output.no_target is None:
        return prediction
    no_target = bool(output.no_target[number, 1] > output.no_target[number, 0])
    if no_target:
        prediction = prediction._replace(mask=np.zeros_like(mask), score=0.0)
    return prediction._replace(no_target=no_target)


def weigh_words(model: Model, photo: Image.Image, text: str) -> list[tuple[str, float]]:
    """Return every word of a sentence about an RGB photo, and how much of the score goes without it: -1 to 1.

    Each word that the network reads is left out in turn. The loss is the expected IoU of the whole sentence's mask,
    less that of the same mask according to the shortened sentence; so it is large also if another object is found.
    Negative: the mask is more certain without the word. All 0 if the sentence has no target. Raises UserError if the
    sentence is empty.
    """
    whole, words = tokenize(model.tokenizer, text, model.max_tokens), text.split()
    read = text[: len(text) - len(whole.unread)].split()  # its last word may be cut off
    output = _forward(model, [photo], [whole])
    if _predict(output, 0, photo, whole).no_target:
        return [(word, 0.0) for word in words]
    mask, score = output.logits[:, 1] > output.logits[:, 0], expected_iou(output.logits).item()
    shortened = [model.tokenizer.split(" ".join(read[:number] + read[number + 1 :])) for number in range(len(read))]
    losses = [score - rest for rest in _support(model, photo, shortened, mask)]
    return list(zip(words, losses + [0.0] * (len(words) - len(read)), strict=True))


def _support(model: Model, photo: Image.Image, sentences: Sequence[Tokens], mask: Tensor) -> list[float]:
    """Return the expected IoU of a mask (1, H, W) according to each sentence; 0 for a sentence without a word."""
    found = [0.0] * len(sentences)
    told = [number for number, sentence in enumerate(sentences) if sentence.starts]
    for start in range(0, len(told), AT_ONCE):
        piece = told[start : start + AT_ONCE]
        batch = [Sentence(sentences[number].ids, "") for number in piece]
        scores = expected_iou(_forward(model, [photo] * len(piece), batch).logits, mask)
        for number, score in zip(piece, scores.tolist(), strict=True):
            found[number] = score
    return found


# ---------------------------------------------------------------- as a command


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the predictions; exit with code 1 at the end if a photo had to be skipped."""
    args = parse_args(arguments)
    requests = requests_of(args)
    flags = {"cutouts": args.cutout, "colours": args.colours}
    more = [folder for folder in ON_REQUEST if flags[folder]]
    writer = Writer(args.out, requests, more, with_records=args.json is not None)
    asked = requests
    lines = LineFile(args.json) if args.json and is_lines(args.json) else None
    if args.skip_existing:
        requests = missing(requests, writer, lines)
        if not requests:
            write_results(writer, lines, None, lambda: draw_colours(asked, [], writer))
            return
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
    if knows_only_drawings(model.tokenizer.words) and not all(map(is_drawing, {one.image for one in requests})):
        print(f"note: {ONLY_DRAWINGS}; --resume names others", file=sys.stderr)
    write_results(
        writer,
        lines,
        args.json,
        lambda: process_requests(model, requests, sentences, args.batch_size, writer),
        lambda: draw_colours(asked, requests, writer),
    )


def tokenize_requests(model: Model, requests: Sequence[Request]) -> dict[str, Sentence]:
    """Return the tokenized sentences by text, and print the unread ends of long ones.

    Raises UserError for an empty sentence.
    """
    texts = dict.fromkeys(request.text for request in requests)
    sentences = {text: tokenize(model.tokenizer, text, model.max_tokens) for text in texts}
    print_unread({text: sentence.unread for text, sentence in sentences.items()})
    return sentences


def process_requests(
    model: Model, requests: Sequence[Request], sentences: Mapping[str, Sentence], batch_size: int, writer: Writer
) -> None:
    """Write the predictions of all requests; at the end raise UserError with the photos that had to be skipped.

    sentences: of the requests, by text.
    """
    with tqdm(total=len(requests), unit="sentence", disable=not sys.stderr.isatty()) as bar:

        def work(batch: Sequence[tuple[Request, Image.Image]]) -> None:
            process_batch(model, batch, sentences, writer)
            bar.update(len(batch))

        wrong = work_through(batches(requests, batch_size, writer.failures), work, writer)
    print(f"{writer.n_masks} masks in {writer.folder}{f', of them {writer.n_empty} empty' if writer.n_empty else ''}")
    if wrong:
        raise UserError("\n".join(wrong))


def process_batch(
    model: Model,
    batch: Sequence[tuple[Request, Image.Image]],
    sentences: Mapping[str, Sentence],
    writer: Writer,
) -> None:
    """Write the predictions of a batch; photos whose pictures cannot be made are skipped.

    Raises UserError if a file cannot be written.
    """
    tokens = [sentences[request.text] for request, _ in batch]
    output = _forward(model, [photo for _, photo in batch], tokens)
    for number, ((request, photo), sentence) in enumerate(zip(batch, tokens, strict=True)):
        with skipping(request.image, writer.failures):
            prediction = _predict(output, number, photo, sentence)
            writer.write(request, photo, prediction)
            if prediction.no_target:
                print(plain(f"{request.image}: {cut(request.text)}: nothing here"))


def draw_colours(requests: Sequence[Request], made: Collection[Request], writer: Writer) -> None:
    """Write a picture of each photo with the objects of all its sentences, from their masks, if this is wanted.

    made: the requests whose masks this run made; pictures of other photos stay. Photos that were skipped get none. At
    the end raises UserError with the photos whose picture cannot be made, and at once if one cannot be written.
    """
    if "colours" not in writer.more:
        return
    by_photo: dict[Path, list[Request]] = {}
    for request in requests:
        by_photo.setdefault(request.image, []).append(request)
    failures: list[str] = []
    for image, own in by_photo.items():
        name = own[0]._replace(text=f"{len(own)} sentences")
        if image in writer.failures or (writer.has("colours", name) and not set(own) & set(made)):
            continue
        try:
            picture = all_objects(open_photo(image), own, writer)
        except Exception as error:  # such as a photo too large for the memory; others may be smaller
            failures.append(f"  {image} ({first_line(error)})")
        else:
            writer.save(picture, "colours", name)
    if failures:
        raise UserError(
            "\n".join([f"{len(failures)} photos have no picture in colours:", *few_lines(failures, N_NAMED)])
        )


def all_objects(photo: Image.Image, requests: Sequence[Request], writer: Writer) -> Image.Image:
    """Return a photo with the objects of all requests about it, whose masks are written, above their sentences."""
    masks = [writer.mask_of(request) for request in requests]
    shown = overlay_several(photo, masks, wider=outline_growth(photo.size))
    return with_legend(shown, [request.text for request in requests])


if __name__ == "__main__":
    utils.run(main)
