"""From weights in a file to a network that is ready, with the tokenizer and the image size it must be used with."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from bert.tokenizer import WordPiece, build_tokenizer, make_tokenizer
from CrossVLT import SegModel
from errors import UserError
from lib.hub import RELEASED_URL, find_file
from lib.variants import BERT_VARIANTS, MAX_TOKENS
from lib.weights.checkpoint import HUB_WEIGHTS, Checkpoint, load_weights, read_checkpoint
from lib.weights.identify import identify

ADVICE = f"Train a network with train.py, or download the released weights ({RELEASED_URL})."


class Trained(NamedTuple):
    """A trained network and what it must be used with."""

    network: SegModel  # in evaluation mode, on the CPU
    tokenizer: WordPiece
    img_size: int  # side of its images in pixels
    path: Path  # of its weights
    max_tokens: int = MAX_TOKENS  # of a sentence that it reads


def open_trained(
    name: str | Path,
    *,
    bert_tokenizer: str | None = None,
    img_size: int | None = None,
    max_tokens: int | None = None,
    usual_tokens: int = MAX_TOKENS,
) -> Trained:
    """Return the trained network of a file, a folder or a name on the Hugging Face hub, in any layout.

    bert_tokenizer, img_size, max_tokens: those of the training if the file says so, unless given. usual_tokens: the
    tokens that bare weights read, whose training nobody knows. Raises UserError if something is missing, if the
    tokenizer is of another vocabulary than the network, and for more tokens than it has positions.
    """
    path = find_file(str(name), [HUB_WEIGHTS], flag="--resume", advice=ADVICE)
    checkpoint = read_checkpoint(path.parent if path.name == HUB_WEIGHTS else path)  # its folder may hold the words
    network = from_checkpoint(checkpoint)
    if bert_tokenizer is None and checkpoint.vocabulary:
        tokenizer = make_tokenizer(checkpoint.vocabulary, checkpoint.path)
    else:
        tokenizer = build_tokenizer(bert_tokenizer or checkpoint.remembered("bert_tokenizer"))
    n_words = network.options["vocab_size"]
    if len(tokenizer) != n_words:
        raise UserError(
            f"the tokenizer knows {len(tokenizer)} words, the network in {checkpoint.path} {n_words}: name the "
            "vocabulary that it was trained with (--bert_tokenizer)"
        )
    side = img_size or checkpoint.remembered("img_size")
    tokens = max_tokens or (checkpoint.remembered("max_tokens") if checkpoint.args else usual_tokens)
    most = BERT_VARIANTS[network.options["bert_type"]].max_positions
    if tokens > most:
        raise UserError(f"--max-tokens {tokens}: the network in {checkpoint.path} reads {most} tokens at most")
    return Trained(network, tokenizer, side, checkpoint.path, tokens)


def from_checkpoint(checkpoint: Checkpoint) -> SegModel:
    """Return the network that weights were made for, filled with them, in evaluation mode.

    Raises UserError where they belong to no variant of this network, or not all are there.
    """
    try:
        found = identify(checkpoint.weights)
    except ValueError as error:
        raise UserError(f"{checkpoint.path}: {error}") from error
    network = SegModel(**found)
    load_weights(network, checkpoint.weights, checkpoint.path)
    return network.eval()
