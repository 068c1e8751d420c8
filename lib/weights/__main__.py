"""Show what is in a file of weights, and turn one layout into another.

    python -m lib.weights inspect checkpoints/best_refcoco.pth
    python -m lib.weights export checkpoints/best_refcoco.pth best.safetensors
    python -m lib.weights export checkpoints/best_refcoco.pth FOLDER --scores val.json testA.json

Four layouts are read and written; a target's name chooses one where --layout does not:

    own            .pth with weights, options, words, epoch and best score; without what only a training needs
    released       .pth with the bare weights, as the released ones are (what a name ending in .pth gives)
    safetensors    .safetensors that also holds the options and, where they are at hand, the tokenizer's words
    hub            folder for the Hugging Face hub: config.json, model.safetensors, vocab.txt and a model card

A network is the same in all of them. --dtype fp16 and bf16 halve a safetensors file, int8 quarters it; they round.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from errors import UserError, few, run
from lib.arguments import Parser
from lib.variants import STORED_TYPES

LAYOUTS = ("own", "released", "safetensors", "hub")


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the checked flags; arguments: None for those of the command line."""
    parser = Parser("python -m lib.weights", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("inspect", help="show what is in a file")
    show.add_argument("file", type=Path, help="weights in any layout")
    show.add_argument("--keys", action="store_true", help="list every tensor, too")
    show.add_argument("--json", action="store_true", help="print JSON")
    turn = commands.add_parser("export", help="turn one layout into another")
    turn.add_argument("file", type=Path, help="weights in any layout")
    turn.add_argument("target", type=Path, help="a file, or for the hub a folder")
    turn.add_argument("--layout", choices=LAYOUTS, help="default: what the target's name says")
    turn.add_argument("--dtype", choices=STORED_TYPES, default="fp32", help="of the weights in a safetensors file")
    turn.add_argument("--vocabulary", type=Path, metavar="FILE", help="vocab.txt to put in; default: the training's")
    turn.add_argument("--scores", type=Path, nargs="+", default=[], metavar="JSON", help="results for the model card")
    args = parser.parse_args(arguments)
    if args.command == "export":
        args.layout = args.layout or default_layout(args.target)
        if not args.layout:
            raise UserError(f"{args.target}: end the name in .pth or .safetensors, or choose a --layout")
    return args


def default_layout(target: Path) -> str:
    """Return the layout that a target's name stands for."""
    return {".pth": "released", ".safetensors": "safetensors", "": "hub"}.get(target.suffix, "")


if __name__ == "__main__":
    run(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds


import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import torch
from safetensors.torch import save
from torch import Tensor

from bert.tokenizer import read_vocabulary
from errors import run
from lib.contents import SHOWN
from lib.evaluation.tables import read_result
from lib.files import write_atomically
from lib.hub import is_hub_name
from lib.options import KEPT_NAMES
from lib.outputs import check_folder, check_output
from lib.schema import check, plain
from lib.scores import scores_in_markdown
from lib.variants import Options
from lib.weights.card import describe_recipe
from lib.weights.checkpoint import HUB_VOCABULARY, HUB_WEIGHTS, Checkpoint, holds_state, read_checkpoint
from lib.weights.identify import identify
from lib.weights.layouts import store, write_about
from lib.weights.tensors import is_plain
from trained import from_checkpoint

HUB_CONFIG, HUB_CARD = "config.json", "README.md"


# ---------------------------------------------------------------- inspect


def inspect(path: Path) -> dict[str, Any]:
    """Return what is in a file of weights, as plain values."""
    checkpoint = read_checkpoint(path)
    file = path / HUB_WEIGHTS if path.is_dir() else path
    content = file.read_bytes()
    return {
        "file": str(path),
        "layout": layout_of(path, checkpoint),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        **network_of(checkpoint),
        "parameters": sum(value.numel() for name, value in checkpoint.weights.items() if is_parameter(name, value)),
        "weights": hash_weights(checkpoint.weights),
        "not_finite": not_finite(checkpoint.weights),
        "vocabulary": len(checkpoint.vocabulary) if checkpoint.vocabulary else None,
        **told(checkpoint),
        "keys": {name: [list(value.shape), str(value.dtype)] for name, value in sorted(checkpoint.weights.items())},
    }


def layout_of(path: Path, checkpoint: Checkpoint) -> str:
    """Return the name of a file's layout."""
    if path.is_dir():
        return "hub"
    with path.open("rb") as file:
        if file.read(9)[8:] == b"{":
            return "safetensors"
    if "optimizer" in checkpoint.state:
        return "own, with what a training goes on from"
    return "own" if checkpoint.args or checkpoint.state else "released"


def network_of(checkpoint: Checkpoint) -> Options:
    """Return the types of the network that weights belong to; raises UserError where they belong to none."""
    try:
        return identify(checkpoint.weights)
    except ValueError as error:
        raise UserError(f"{checkpoint.path}: {error}") from error


def is_parameter(name: str, value: Tensor) -> bool:
    """Return whether an entry is trained, unlike batch norm's running averages and tables of indices."""
    return value.is_floating_point() and not name.endswith(("running_mean", "running_var"))


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits that are the same for the same weights in any layout that does not round them."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {list(value.shape)}".encode())
        digest.update(value.detach().double().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the names of weights among which a number is infinite or none at all."""
    return sorted(name for name, value in weights.items() if not value.isfinite().all())


def told(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return epoch, scores and options, as far as the file has them."""
    best = checkpoint.state.get("best_oIoU")
    if isinstance(best, Tensor) and is_plain(best) and best.numel() == 1:
        best = best.item()
    state = dict(checkpoint.state) | {"best_oIoU": best}
    check(state, SHOWN, checkpoint.path, "Export its weights alone, with --layout released")
    return {
        "epoch": state.get("epoch"),
        "best_oIoU": best,
        "scores": best_scores(state),
        "args": {name: value for name in KEPT_NAMES if plain(value := checkpoint.args.get(name))},
    }


def best_scores(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the scores of a training's best epoch, as its log has them."""
    if state.get("scores"):
        scores: dict[str, Any] = state["scores"]
        return scores
    validated = [line["val"] for line in state.get("log") or () if line.get("val")]
    return max(validated, key=lambda scores: scores["overall_iou"], default=None)


def describe(found: Mapping[str, Any], *, keys: bool) -> str:
    """Return what `inspect` found, for a reader."""
    lines = {
        "file": f"{found['file']}  ({found['bytes'] / 1e6:.1f} MB, {found['layout']})",
        "sha256": found["sha256"],
        "network": f"Swin {found['swin_type']}, BERT {found['bert_type']}, {found['vocab_size']} words",
        "wiring": f"fusion {found['fusion']}, {'with' if found['alignment'] else 'without'} alignment",
        "parameters": f"{found['parameters']:,}",
        "weights": f"{found['weights']}  (the same in every layout that does not round)",
        "not finite": few(found["not_finite"]) or None,
        "tokenizer": tokenizer_line(found),
        "epoch": found["epoch"],
        "best overall IoU": found["best_oIoU"],
    }
    text = "\n".join(f"{name:18}{value}" for name, value in lines.items() if value is not None)
    if found["scores"]:
        text += f"\n\n{scores_in_markdown([(found['args'].get('split', 'validation'), found['scores'])])}"
    if recipe := describe_recipe(found["args"]):
        text += f"\n\n{recipe}"
    if keys:
        rows = (f"{name}  {shape}  {dtype}" for name, (shape, dtype) in found["keys"].items())
        text += "\n\n" + "\n".join(rows)
    return text


def tokenizer_line(found: Mapping[str, Any]) -> str | None:
    """Return where the words come from."""
    if found["vocabulary"]:
        return f"{found['vocabulary']} words in the file"
    name: str | None = found["args"].get("bert_tokenizer")
    return name


# ---------------------------------------------------------------- export


def export(
    source: Path,
    target: Path,
    layout: str,
    *,
    dtype: str = "fp32",
    vocabulary: Path | None = None,
    results: Iterable[Path] = (),
) -> None:
    """Write the network of one file in another layout; see the module's text.

    results: what `test.py --json` wrote, for the model card. Raises UserError where the source cannot be read or the
    target not be written or holds more than would be written, and for a vocabulary of another size than the network's.
    """
    check_target(source, target, layout)
    checkpoint = read_checkpoint(source)
    network_of(checkpoint)
    if broken := not_finite(checkpoint.weights):
        raise UserError(f"{source} holds weights that are infinite or not a number, of no use: {few(broken)}")
    if dtype != "fp32" and (layout in ("own", "released") or (layout, dtype) == ("hub", "int8")):
        raise UserError(f"--dtype {dtype}: the layout {layout} keeps float32{' or halves' if layout == 'hub' else ''}")
    if layout == "released":
        write_atomically(target, lambda file: torch.save(checkpoint.weights, file))
        return
    args, state = portable(checkpoint)
    words = words_of(checkpoint, vocabulary)
    if words:
        args.pop("bert_tokenizer", None)
    if layout == "own":
        about = {"args": argparse.Namespace(**args), "vocabulary": words}
        write_atomically(target, lambda file: torch.save({"model": checkpoint.weights, **about, **state}, file))
        return
    stored = store(checkpoint.weights, dtype)
    if broken := not_finite(stored):
        raise UserError(f"--dtype {dtype} cannot hold the numbers of {few(broken)}: take fp32 or bf16")
    content = save(stored, write_about(args, state, words))
    if layout == "safetensors":
        write_atomically(target, lambda file: file.write(content))
    else:
        write_hub_folder(target, checkpoint, content, words, results)


def check_target(source: Path, target: Path, layout: str) -> None:
    """Raise UserError where the target cannot be written, is the source, or is a training's state."""
    if layout == "hub":
        check_folder(target, "the target")
        target /= HUB_WEIGHTS
    check_output(target, "the target", "weights", [source, source / HUB_WEIGHTS])
    if holds_state(target):
        raise UserError(
            f"the target {target} holds the state of a training, which is more than its weights: name another"
        )


def portable(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options and the state that mean something on another machine."""
    found = told(checkpoint)
    state = {name: found[name] for name in ("epoch", "best_oIoU", "scores") if found[name] is not None}
    return dict(found["args"]), state


def words_of(checkpoint: Checkpoint, vocabulary: Path | None) -> list[str] | None:
    """Return the tokenizer's words: those named, those in the file, or those of the training if they are still there.

    None where the training used a vocabulary of the hub, whose name is kept instead, or where there is none.
    """
    name = checkpoint.args.get("bert_tokenizer") or ""
    if vocabulary is None and not checkpoint.vocabulary and Path(name).is_file():
        vocabulary = Path(name)
    words = list(read_vocabulary(vocabulary)) if vocabulary else checkpoint.vocabulary
    n_words = network_of(checkpoint)["vocab_size"]
    if words and len(words) != n_words:
        raise UserError(f"{vocabulary or checkpoint.path} has {len(words)} words, the network {n_words}")
    if not words and name and not is_hub_name(name):
        raise UserError(f"the training's vocabulary {name} is no longer there: name it with --vocabulary")
    return words


def write_hub_folder(
    folder: Path, checkpoint: Checkpoint, weights: bytes, words: list[str] | None, results: Iterable[Path]
) -> None:
    """Write config.json, model.safetensors, vocab.txt and the model card README.md; a README that is there stays."""
    options, state = portable(checkpoint)
    tables = [read_result(path) for path in results]
    scores = [(f"{result['dataset']} {result['split']}", result) for result in tables]
    if not scores and state.get("scores"):
        scores = [(f"{options.get('dataset', '')} {options.get('split', '')}".strip(), state["scores"])]
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
    """Return the hub library's own files, config.json and the model card, by their names."""
    try:
        with TemporaryDirectory() as folder:
            from_checkpoint(checkpoint).save_pretrained(folder, model_card_kwargs=dict(about))
            return {name: Path(folder, name).read_bytes() for name in (HUB_CONFIG, HUB_CARD)}
    except OSError as error:
        raise UserError(f"no temporary files can be written ({error})") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Inspect or export, as the command line says."""
    args = parse_args(arguments)
    if args.command == "inspect":
        found = inspect(args.file)
        print(json.dumps(found, indent=2) if args.json else describe(found, keys=args.keys))
        return
    options = {"dtype": args.dtype, "vocabulary": args.vocabulary, "results": args.scores}
    export(args.file, args.target, args.layout, **options)
    print(f"{args.file} → {args.target} ({args.layout})")


if __name__ == "__main__":
    run(main)
