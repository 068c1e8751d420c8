"""Starting a training from weights of another network: what fits is loaded, and the rest is listed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from errors import UserError, few_lines
from lib.weights.tensors import all_finite

WORDS = "lang_stage1.embeddings.word_embeddings.weight"  # a row for each word of the vocabulary
N_LISTED = 20  # entries that the text lists


class Start(NamedTuple):
    """What a training took over from a file of weights."""

    source: str
    loaded: int  # entries, of which some only in part
    in_part: dict[str, str]  # what was loaded of an entry, by its name
    not_fitting: dict[str, str]  # why an entry of the file was not loaded, by its name
    not_in_file: list[str]  # entries of the network

    def __str__(self) -> str:
        """Return all as lines."""
        total = self.loaded + len(self.not_in_file) + sum(why != UNKNOWN for why in self.not_fitting.values())
        lines = [f"start from {self.source}: {self.loaded} of {total} entries of the network loaded"]
        partly = [f"  in part: {name}: {what}" for name, what in self.in_part.items()]
        left = [f"  not loaded: {name}: {why}" for name, why in self.not_fitting.items()]
        new = [f"  not in the file: {name}" for name in self.not_in_file]
        for part in (partly, left, new):
            lines += few_lines(part, N_LISTED)
        return "\n".join(lines)


UNKNOWN = "this network has no such entry"


def start_from(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    source: object,
    *,
    words: Sequence[str] | None = None,
    own_words: Sequence[str] | None = None,
) -> Start:
    """Copy those of `weights` into the model that fit it; all others of the model's weights stay as they are.

    words, own_words: vocabularies of the weights and of the model, in the order of their ids; if both are known and
    differ, the word embeddings are loaded word by word. Raises UserError if no weight fits.
    """
    ours = model.state_dict()
    weights, in_part = dict(weights), {}
    if words and own_words and list(words) != list(own_words) and _holds_rows(weights, ours, len(words)):
        weights[WORDS], n_known = match_words(weights[WORDS], words, ours[WORDS], own_words)
        in_part[WORDS] = f"{n_known} of {len(own_words)} words are in the vocabulary of the file"
    reasons = {name: why_not(value, ours.get(name)) for name, value in weights.items()}
    fitting = {name: value for name, value in weights.items() if not reasons[name]}
    if not any(value.is_floating_point() for value in fitting.values()):
        raise UserError(
            f"--init {source}: none of its {len(weights)} entries fits this network. Choose its --swin_type and "
            "--bert_type; files of Swin and BERT alone belong to --pretrained_swin_weights and --ck_bert"
        )
    model.load_state_dict(fitting, strict=False)
    return Start(
        source=str(source),
        loaded=len(fitting),
        in_part={name: what for name, what in in_part.items() if name in fitting},
        not_fitting={name: why for name, why in sorted(reasons.items()) if why},
        not_in_file=sorted(ours.keys() - weights.keys()),
    )


def why_not(value: Tensor, target: Tensor | None) -> str:
    """Return why a weight cannot become that of a network, with shapes and dtypes; "" if it can."""
    if target is None:
        return UNKNOWN
    if value.shape != target.shape:
        return f"its shape is {list(value.shape)}, here {list(target.shape)}"
    if value.dtype != target.dtype and not (value.is_floating_point() and target.is_floating_point()):
        return f"its type is {value.dtype}, here {target.dtype}"
    return "" if all_finite([value]) else "it has numbers that are infinite or not a number"


def _holds_rows(weights: Mapping[str, Tensor], ours: Mapping[str, Tensor], n_words: int) -> bool:
    """Return whether the weights have a word embedding of `n_words` rows, each as long as the network's."""
    value = weights.get(WORDS)
    return value is not None and WORDS in ours and value.shape == (n_words, ours[WORDS].shape[1])


def match_words(rows: Tensor, words: Sequence[str], own_rows: Tensor, own_words: Sequence[str]) -> tuple[Tensor, int]:
    """Return word embeddings (own words, D) with the rows of all words that both know, and the number of these.

    rows: (words, D). own_rows: (own words, D), the rows of all other words.
    """
    places = {word: number for number, word in enumerate(words)}
    known = [(number, places[word]) for number, word in enumerate(own_words) if word in places]
    to, source = (torch.tensor([pair[side] for pair in known], dtype=torch.long) for side in (0, 1))
    matched = own_rows.clone()
    matched[to] = rows[source].to(matched.dtype)
    return matched, len(known)
