"""Loading a trained network, with its tokenizer and image size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bert.tokenizer import WordPiece, build_tokenizer, local_words, make_tokenizer
from CrossVLT import SegModel
from errors import UserError
from lib.arguments import is_data_name
from lib.hub import RELEASED_URL, find_file
from lib.variants import BERT_VARIANTS, MAX_TOKENS
from lib.weights.checkpoint import HUB_WEIGHTS, Checkpoint, load_weights, read_checkpoint
from lib.weights.identify import identify

ADVICE = f"Train a network with train.py, or download the released weights ({RELEASED_URL})."


class Trained(NamedTuple):
    """A trained network, and the tokenizer and image size to use it with."""

    network: SegModel  # in evaluation mode, on the CPU
    tokenizer: WordPiece
    img_size: int  # side of its images in pixels
    path: Path  # of its weights
    max_tokens: int = MAX_TOKENS  # of a sentence that it reads
    data_name: str | None = None  # of the user's own data that it was trained on


def open_trained(
    name: str | Path,
    *,
    bert_tokenizer: str | None = None,
    img_size: int | None = None,
    max_tokens: int | None = None,
    usual_tokens: int = MAX_TOKENS,
) -> Trained:
    """Return the trained network of a file, a folder or a name on the Hugging Face hub, in any layout.

    bert_tokenizer, img_size, max_tokens: None for those of the training, if the file has them. usual_tokens: the number
    of tokens for bare weights, which do not tell it. Raises UserError if something is missing, if the
    vocabulary is not that of the network, and for more tokens than the network has positions.
    """
    checkpoint = find_weights(name, flag="--resume")
    network = from_checkpoint(checkpoint)
    if bert_tokenizer is None and checkpoint.vocabulary:
        tokenizer = make_tokenizer(checkpoint.vocabulary, checkpoint.path)
    else:
        tokenizer = build_tokenizer(bert_tokenizer or checkpoint.remembered("bert_tokenizer"))
    n_words = network.options["vocab_size"]
    if len(tokenizer) != n_words:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} words, but the network in {checkpoint.path} {n_words}: name the "
            "vocabulary that it was trained with (--bert_tokenizer)"
        )
    check_words(tokenizer.words, checkpoint)
    side = img_size or checkpoint.remembered("img_size")
    tokens = max_tokens or (checkpoint.remembered("max_tokens") if checkpoint.args else usual_tokens)
    most = BERT_VARIANTS[network.options["bert_type"]].max_positions
    if tokens > most:
        raise UserError(f"--max-tokens {tokens}: the network in {checkpoint.path} reads {most} tokens at most")
    name_of_data = checkpoint.args.get("name")
    own_name = name_of_data if is_data_name(name_of_data) else None
    return Trained(network, tokenizer, side, checkpoint.path, tokens, own_name)


def find_weights(name: str | Path, *, flag: str) -> Checkpoint:
    """Return the weights in a file, a folder or under a name on the Hugging Face hub, in any layout.

    flag: names them in messages. Raises UserError if they are missing or cannot be read.
    """
    return read_found(find_weight_file(name, flag=flag))


def read_found(path: Path) -> Checkpoint:
    """Return the weights in a file that was found; the folder of hub weights may contain the vocabulary."""
    return read_checkpoint(path.parent if path.name == HUB_WEIGHTS else path)


def find_weight_file(name: str | Path, *, flag: str, offline: bool = False) -> Path:
    """Return the file of weights by its name, as `find_weights` does; offline: do not ask the hub."""
    return find_file(str(name), [HUB_WEIGHTS], flag=flag, advice=ADVICE, offline=offline)


def words_of(checkpoint: Checkpoint) -> list[str] | None:
    """Return the vocabulary of weights in the order of its ids: that of the file, else the local one it names."""
    return checkpoint.vocabulary or local_words(checkpoint.args.get("bert_tokenizer") or "")


def check_words(words: Sequence[str], checkpoint: Checkpoint) -> None:
    """Raise UserError for another vocabulary than the one that weights know: every word would mean another."""
    for number, (word, own) in enumerate(zip(words, words_of(checkpoint) or words, strict=False)):
        if word != own:
            raise UserError(
                f"the vocabulary is not that of {checkpoint.path}: word {number} is {word!r} instead of {own!r}. "
                "Leave out --bert_tokenizer: these weights know their vocabulary"
            )


def from_checkpoint(checkpoint: Checkpoint) -> SegModel:
    """Return the network of these weights, in evaluation mode.

    Raises UserError if they belong to no variant of this network, or are incomplete.
    """
    try:
        options = identify(checkpoint.weights)
    except ValueError as error:
        raise UserError(f"{checkpoint.path}: {error}") from error
    network = SegModel.unfilled(**options)
    load_weights(network, checkpoint.weights, checkpoint.path)
    return network.eval()
