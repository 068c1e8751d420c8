"""Show the content of a file of weights, and convert between layouts.

    python -m lib.weights inspect checkpoints/best_refcoco.pth
    python -m lib.weights export checkpoints/best_refcoco.pth best.safetensors
    python -m lib.weights export checkpoints/best_refcoco.pth FOLDER --scores val.json testA.json
    python -m lib.weights export checkpoints/best_refcoco.pth best.onnx

There are five layouts. Without --layout, the name of the target decides:

    own            .pth with weights, options, vocabulary, epoch and best score, but no optimizer state
    released       .pth with the bare weights, like the released files (default for names ending in .pth)
    safetensors    .safetensors with the options and, if available, the vocabulary of the tokenizer
    hub            folder for the Hugging Face hub: config.json, model.safetensors, vocab.txt and a model card
    onnx           .onnx, a graph that runs without PyTorch, see predict_onnx.py; it needs requirements-onnx.txt

All of them contain the same network. --dtype fp16 and bf16 halve a safetensors file, int8 quarters it, by rounding.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from errors import UserError, answer_first, few, run
from lib.arguments import Parser, image_side
from lib.variants import STORED_TYPES

LAYOUTS = ("own", "released", "safetensors", "hub", "onnx")
# By flag, the layouts that use it.
USERS: dict[str, tuple[str, ...]] = {
    "img_size": ("onnx",),
    "alignment": ("onnx",),
    "scores": ("hub",),
    "vocabulary": ("own", "safetensors", "hub", "onnx"),
}


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the checked flags; arguments: None for `sys.argv`."""
    parser = Parser("python -m lib.weights", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("inspect", help="show the content of a file")
    show.add_argument("file", type=Path, help="weights in any layout")
    show.add_argument("--keys", action="store_true", help="also list every tensor")
    show.add_argument("--json", action="store_true", help="print JSON")
    convert = commands.add_parser("export", help="convert to another layout")
    convert.add_argument("file", type=Path, help="weights in any layout")
    convert.add_argument("target", type=Path, help="a file, or for the hub a folder")
    convert.add_argument("--layout", choices=LAYOUTS, help="default: by the name of the target")
    convert.add_argument("--dtype", choices=STORED_TYPES, default="fp32", help="of the weights in a safetensors file")
    convert.add_argument("--vocabulary", type=Path, metavar="FILE", help="vocab.txt; default: that of the training")
    convert.add_argument(
        "--scores", type=Path, nargs="+", default=[], metavar="JSON", help="results for the model card of a hub folder"
    )
    size_help = "side of the images of an onnx graph in pixels; default: that of the training"
    convert.add_argument("--img_size", type=image_side, help=size_help)
    convert.add_argument("--alignment", action="store_true", help="let an onnx graph return alignment maps as well")
    args = parser.parse_args(arguments)
    if args.command == "export":
        args.layout = args.layout or default_layout(args.target)
        if not args.layout:
            raise UserError(f"{args.target}: end the name in .pth, .safetensors or .onnx, or choose a --layout")
        if args.layout == "onnx" and args.dtype != "fp32":
            raise UserError(f"--dtype {args.dtype}: the layout onnx allows only fp32")
        refuse_unused(args)
    return args


def refuse_unused(args: argparse.Namespace) -> None:
    """Raise UserError for a flag of an export that its layout does not use."""
    for name, layouts in USERS.items():
        if getattr(args, name) and args.layout not in layouts:
            raise UserError(f"--{name} is for the layout {' or '.join(layouts)}, not for {args.layout}: leave it out")


def default_layout(target: Path) -> str:
    """Return the layout for the name of a target; "" if it does not tell one."""
    return {".pth": "released", ".safetensors": "safetensors", "": "hub", ".onnx": "onnx"}.get(target.suffix, "")


if __name__ == "__main__":
    answer_first(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds


import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import torch
from safetensors.torch import save
from torch import Tensor

from bert.tokenizer import read_words
from lib.contents import SHOWN
from lib.evaluation.tables import read_result
from lib.files import write_atomically
from lib.hub import is_hub_name
from lib.inputs import IMAGENET_MEAN, IMAGENET_STD
from lib.options import KEPT_NAMES
from lib.outputs import check_folder, check_output
from lib.schema import check, plain
from lib.scores import leading, leading_name, protocol_of, scores_in_markdown
from lib.variants import BERT_VARIANTS, Options
from lib.weights.card import describe_recipe
from lib.weights.checkpoint import HUB_VOCABULARY, HUB_WEIGHTS, Checkpoint, holds_state, read_checkpoint
from lib.weights.identify import identify
from lib.weights.layouts import store, write_about
from lib.weights.onnx_file import OPSET, check_packages, write_onnx
from lib.weights.tensors import all_finite, is_plain
from trained import from_checkpoint, open_trained, words_of

HUB_CONFIG, HUB_CARD = "config.json", "README.md"


# ---------------------------------------------------------------- inspect


def inspect(path: Path) -> dict[str, Any]:
    """Return a description of a file of weights, as plain values.

    Of a training state, only the weights are read into memory; the hash of the file is computed while it streams.
    """
    checkpoint = read_checkpoint(path, mapped=True)
    file = checkpoint.path
    with ThreadPoolExecutor(1) as beside:
        sha256 = beside.submit(hash_file, file)
        description = describe(checkpoint)
    about_file = {"bytes": file.stat().st_size, "sha256": sha256.result()}
    return {"file": str(path), "layout": layout_of(path, checkpoint)} | about_file | description


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what `inspect` says of the content of a file of weights."""
    return {
        **identify_or_fail(checkpoint),
        "parameters": sum(value.numel() for name, value in checkpoint.weights.items() if is_parameter(name, value)),
        "weights": hash_weights(checkpoint.weights),
        "not_finite": not_finite(checkpoint.weights),
        "vocabulary": len(checkpoint.vocabulary) if checkpoint.vocabulary else None,
        **metadata(checkpoint),
        "keys": {name: [list(value.shape), str(value.dtype)] for name, value in sorted(checkpoint.weights.items())},
    }


def layout_of(path: Path, checkpoint: Checkpoint) -> str:
    """Return the name of the file's layout."""
    if path.is_dir():
        return "hub"
    with path.open("rb") as file:
        if file.read(9)[8:] == b"{":
            return "safetensors"
    if "optimizer" in checkpoint.state:
        return "own, with the state to resume a training"
    return "own" if checkpoint.args or checkpoint.state else "released"


def identify_or_fail(checkpoint: Checkpoint) -> Options:
    """Return the type of the network that the weights belong to; UserError if they belong to none."""
    try:
        return identify(checkpoint.weights)
    except ValueError as error:
        raise UserError(f"{checkpoint.path}: {error}") from error


def is_parameter(name: str, value: Tensor) -> bool:
    """Return whether an entry is a parameter, unlike the running statistics of batch norm and index tables."""
    return value.is_floating_point() and not name.endswith(("running_mean", "running_var"))


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits of the weights' values, which are the same in all layouts that do not round."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {list(value.shape)}".encode())
        digest.update(value.detach().double().contiguous().view(-1).numpy().data)
    return digest.hexdigest()[:16]


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the names of weights with infinite numbers or NaN."""
    return sorted(name for name, value in weights.items() if not all_finite([value]))


def metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return epoch, scores and options, if the file has them."""
    best = checkpoint.state.get("best_oIoU")
    if isinstance(best, Tensor) and is_plain(best) and best.numel() == 1:
        best = best.item()
    state = dict(checkpoint.state) | {"best_oIoU": best}
    check(state, SHOWN, checkpoint.path, "Export only its weights, with --layout released")
    if best is not None and best < 0:  # of a state from before the first validation
        best = None
    return {
        "epoch": state.get("epoch"),
        "best_oIoU": best,
        "scores": best_scores(state),
        "args": {name: without_folder(value) for name in KEPT_NAMES if plain(value := checkpoint.args.get(name))},
    }


def without_folder(value: object) -> object:
    """Return an option's value for others: of an absolute path, which is of one machine, the name alone."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def best_scores(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the scores of the best epoch, from the state's `scores` or its log."""
    if state.get("scores"):
        scores: dict[str, Any] = state["scores"]
        return scores
    best = best_line(state)
    return best and best["val"]


def best_line(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the line of the best validated epoch in a state's log."""
    validated = (line for line in state.get("log") or () if line.get("val"))
    return max(validated, key=lambda line: leading(line["val"]), default=None)


def other_epoch(state: Mapping[str, Any]) -> str:
    """Return a note on the epoch of the best scores if they are not those of the weights beside this state."""
    best = best_line(state)
    number = best and best.get("epoch")
    if type(number) is not int or (number + 1, 0) == (state.get("epoch"), state.get("step", 0)):
        return ""
    return f" after epoch {number + 1}, of which these are not the weights"


def description_as_text(description: Mapping[str, Any], *, keys: bool) -> str:
    """Return the result of `inspect` as text; keys: also list every tensor."""
    has = description
    lines = {
        "file": f"{has['file']}  ({has['bytes'] / 1e6:.1f} MB, {has['layout']})",
        "sha256": has["sha256"],
        "network": f"Swin {has['swin_type']}, BERT {has['bert_type']}, {has['vocab_size']} words",
        "fusion": f"{has['fusion']}, {'with' if has['alignment'] else 'without'} alignment"
        + (", with a bias of alignment" if has["align_bias"] else "")
        + (", with a no-target head" if has["no_target_head"] else ""),
        "parameters": f"{has['parameters']:,}",
        "weights": f"{has['weights']}  (the same in every layout that does not round)",
        "not finite": few(has["not_finite"]) or None,
        "tokenizer": describe_tokenizer(has),
        "epoch": has["epoch"],
        f"best {leading_name(protocol_of(has['scores'] or {}))}": has["best_oIoU"],
    }
    text = "\n".join(f"{name:18}{value}" for name, value in lines.items() if value is not None)
    if has["scores"]:
        text += f"\n\n{scores_in_markdown([(has['args'].get('split', 'validation'), has['scores'])])}"
    if recipe := describe_recipe(has["args"]):
        text += f"\n\n{recipe}"
    if keys:
        rows = (f"{name}  {shape}  {dtype}" for name, (shape, dtype) in has["keys"].items())
        text += "\n\n" + "\n".join(rows)
    return text


def describe_tokenizer(description: Mapping[str, Any]) -> str | None:
    """Return the origin of the vocabulary; None if it is unknown."""
    if description["vocabulary"]:
        return f"{description['vocabulary']} words in the file"
    name: str | None = description["args"].get("bert_tokenizer")
    return name


# ---------------------------------------------------------------- export


def export(
    source: Path,
    target: Path,
    layout: str,
    *,
    dtype: str = "fp32",
    vocabulary: Path | None = None,
    results: Sequence[Path] = (),
) -> None:
    """Write the network of a file in another layout, see the text at the top of this module.

    results: files of `test.py --json`, for the model card. Raises UserError if the source cannot be read, if the target
    cannot be written or is a training state, if it has a model card, which is kept, and there are results for it, or if
    the vocabulary has another size than the network's.
    """
    check_target(source, target, layout)
    if results and (target / HUB_CARD).exists():
        raise UserError(f"--scores: {target / HUB_CARD} exists and is kept: remove it, or write them into it yourself")
    checkpoint = read_checkpoint(source)
    identify_or_fail(checkpoint)
    if names := not_finite(checkpoint.weights):
        raise UserError(f"{source} has weights that are infinite or NaN, so it is useless: {few(names)}")
    if dtype != "fp32" and (layout in ("own", "released") or (layout, dtype) == ("hub", "int8")):
        allowed = "fp32, fp16 or bf16" if layout == "hub" else "fp32"
        raise UserError(f"--dtype {dtype}: the layout {layout} allows only {allowed}")
    if layout == "released":
        write_atomically(target, lambda file: torch.save(checkpoint.weights, file))
        return
    args, state = exported_metadata(checkpoint)
    words = vocabulary_of(checkpoint, vocabulary)
    if words:
        args.pop("bert_tokenizer", None)
    if layout == "own":
        about = {"args": argparse.Namespace(**args), "vocabulary": words}
        write_atomically(target, lambda file: torch.save({"model": checkpoint.weights, **about, **state}, file))
        return
    stored = store(checkpoint.weights, dtype)
    if names := not_finite(stored):
        raise UserError(f"--dtype {dtype} cannot represent the numbers in {few(names)}: use fp32 or bf16")
    content = save(stored, write_about(args, state, words))
    if layout == "safetensors":
        write_atomically(target, lambda file: file.write(content))
    else:
        write_hub_folder(target, checkpoint, content, words, results)


def export_onnx(
    source: Path, target: Path, *, vocabulary: Path | None = None, img_size: int | None = None, alignment: bool = False
) -> float:
    """Write the network of a file as an ONNX graph; return the maximal difference of the outputs of both.

    img_size: side of its images; None: that of the training. alignment: the graph returns alignment maps as well.
    Raises UserError as `export` does, if a package is missing, and if the outputs differ; nothing is written then.
    """
    check_packages()
    check_target(source, target, "onnx")
    words = None if vocabulary is None else str(vocabulary)
    network, tokenizer, size, path, max_tokens, _ = open_trained(source, bert_tokenizer=words, img_size=img_size)
    if names := not_finite(network.state_dict()):  # numbers of float64 that float32 lacks
        raise UserError(f"{source} has weights that are infinite in float32, so it is useless: {few(names)}")
    scale = network.alignment_scale() if alignment else ()
    if alignment and not scale:
        raise UserError(f"--alignment: the network in {source} was trained without alignment")
    about = {
        "img_size": size,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "max_tokens": max_tokens,
        "vocabulary": tokenizer.words,
        "network": network.options,
        "weights": hash_weights(network.state_dict()),
        "sha256": hash_file(path),
        "opset": OPSET,
    }
    most = BERT_VARIANTS[network.options["bert_type"]].max_positions
    content, difference = write_onnx(network, about, vocab_size=len(tokenizer), most_tokens=most, scale=scale)
    write_atomically(target, partial(_put, content=content))
    return difference


def check_target(source: Path, target: Path, layout: str) -> None:
    """Raise UserError if the target cannot be written, is the source, or is a training state."""
    if layout == "hub":
        check_folder(target, "the target")
        target /= HUB_WEIGHTS
    check_output(
        target, "the target", "an ONNX graph" if layout == "onnx" else "weights", [source, source / HUB_WEIGHTS]
    )
    if holds_state(target):
        raise UserError(f"the target {target} is a training state, which would be lost: choose another target")


def exported_metadata(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options and the state that are meaningful on another machine."""
    known = metadata(checkpoint)
    state = {name: known[name] for name in ("epoch", "best_oIoU", "scores") if known[name] is not None}
    return dict(known["args"]), state


def vocabulary_of(checkpoint: Checkpoint, vocabulary: Path | None) -> list[str] | None:
    """Return the words of the tokenizer: of `vocabulary`, else of the file, else of the training if it is local.

    None if the training used a vocabulary of the hub, whose name is kept instead, or if there is none.
    """
    name = checkpoint.args.get("bert_tokenizer") or ""
    words = read_words(vocabulary) if vocabulary else words_of(checkpoint)
    n_words = identify_or_fail(checkpoint)["vocab_size"]
    if words and len(words) != n_words:
        source = vocabulary or checkpoint.path
        raise UserError(f"{source} gives the tokenizer {len(words)} words, but the network has {n_words}")
    if not words and name and not is_hub_name(name):
        raise UserError(f"the training's vocabulary {name} does not exist any more: name it with --vocabulary")
    return words


def write_hub_folder(
    folder: Path, checkpoint: Checkpoint, weights: bytes, words: list[str] | None, results: Sequence[Path]
) -> None:
    """Write config.json, model.safetensors, vocab.txt and the model card README.md; an existing README is kept."""
    options, state = exported_metadata(checkpoint)
    tables = [read_result(path) for path in results]
    scores = [(f"{result['dataset']} {result['split']}", result) for result in tables]
    if not scores and state.get("scores"):
        name = f"{options.get('dataset', '')} {options.get('split', '')}".strip()
        scores = [(f"{name}{other_epoch(checkpoint.state)}", state["scores"])]
    about = {"scores": scores_in_markdown(scores) if scores else "", "recipe": describe_recipe(options)}
    contents = {HUB_WEIGHTS: weights} | describe_for_hub(checkpoint, about)
    if (folder / HUB_CARD).exists():
        del contents[HUB_CARD]
    if words:
        contents[HUB_VOCABULARY] = "".join(f"{word}\n" for word in words).encode()
    for name, content in contents.items():
        write_atomically(folder / name, partial(_put, content=content))


def _put(file: BinaryIO, content: bytes) -> None:
    file.write(content)


def describe_for_hub(checkpoint: Checkpoint, about: Mapping[str, str]) -> dict[str, bytes]:
    """Return the files that the hub library writes, config.json and the model card, by name."""
    try:
        with TemporaryDirectory() as folder:
            from_checkpoint(checkpoint).save_pretrained(folder, model_card_kwargs=dict(about))
            return {name: Path(folder, name).read_bytes() for name in (HUB_CONFIG, HUB_CARD)}
    except OSError as error:
        raise UserError(f"temporary files cannot be written ({error})") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Inspect or export, as the flags say."""
    args = parse_args(arguments)
    if args.command == "inspect":
        description = inspect(args.file)
        print(json.dumps(description, indent=2) if args.json else description_as_text(description, keys=args.keys))
        return
    if args.layout == "onnx":
        difference = export_onnx(
            args.file, args.target, vocabulary=args.vocabulary, img_size=args.img_size, alignment=args.alignment
        )
        print(f"maximal difference of the outputs to PyTorch's: {difference:.1e}")
        print(f"{args.file} → {args.target} (onnx, opset {OPSET})")
        return
    options = {"dtype": args.dtype, "vocabulary": args.vocabulary, "results": args.scores}
    has_card = args.layout == "hub" and (args.target / HUB_CARD).exists()
    export(args.file, args.target, args.layout, **options)
    kept = f"; {HUB_CARD} was there before and is kept" if has_card else ""
    print(f"{args.file} → {args.target} ({args.layout}{kept})")


if __name__ == "__main__":
    run(main)
