"""BERT's uncased WordPiece tokenizer: from a sentence to token ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer as Rules
from tokenizers import models, normalizers, pre_tokenizers, processors

from errors import UserError, cut, few
from lib.hub import PRETRAINED_DIR, find_file
from lib.texts import for_tokenizer, read_lines
from lib.variants import MAX_TOKENS

VOCABULARIES = ("vocab.txt", "tokenizer.json")
PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
AT_ONCE = 10_000  # texts; the library keeps some KB of each until its call has ended


class Tokens(NamedTuple):
    """The tokens of a text."""

    ids: list[int]  # CLS first and SEP last
    starts: list[int]  # index of each token's first character in the text, without CLS and SEP


class Sentence(NamedTuple):
    """A tokenized sentence."""

    token_ids: list[int]  # [CLS] first, [SEP] last; the network reads the first of them
    unread: str  # the end of the text that the network does not read; "" if it reads all


class WordPiece:
    """BERT's uncased tokenizer, on top of the library `tokenizers`, which transformers also uses.

    Lone surrogates, which the library refuses, become unknown words here.
    """

    def __init__(self, vocabulary: dict[str, int]) -> None:
        """vocabulary: ids of all words, from 0, including PAD, UNK, CLS and SEP."""
        self._rules = Rules(models.WordPiece(vocabulary, unk_token=UNK))
        self._rules.normalizer = normalizers.BertNormalizer(lowercase=True)
        self._rules.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._rules.add_special_tokens([UNK, SEP, PAD, CLS, MASK])
        # [MASK] gets an id even if the vocabulary lacks it.
        self.special_ids = {name: self._rules.get_vocab()[name] for name in (PAD, UNK, CLS, SEP, MASK)}
        ends = [(name, self._rules.token_to_id(name)) for name in (CLS, SEP)]
        self._rules.post_processor = processors.TemplateProcessing(f"{CLS} $A {SEP}", special_tokens=ends)

    def __len__(self) -> int:
        """Return the size of the vocabulary."""
        return self._rules.get_vocab_size()

    @property
    def words(self) -> list[str]:
        """All words, in the order of their ids."""
        ids = self._rules.get_vocab()
        return sorted(ids, key=ids.__getitem__)

    def __call__(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of every text, CLS first and SEP last; equal texts share a list."""
        distinct = list(dict.fromkeys(texts))  # many sentences of a data set are alike, such as "left man"
        pieces = (distinct[start : start + AT_ONCE] for start in range(0, len(distinct), AT_ONCE))
        encodings = (self._rules.encode_batch_fast([for_tokenizer(text) for text in piece]) for piece in pieces)
        ids = {text: encoding.ids for text, encoding in zip(distinct, chain.from_iterable(encodings), strict=True)}
        return [ids[text] for text in texts]

    def split(self, text: str) -> Tokens:
        """Return the tokens of a text and their positions."""
        encoding = self._rules.encode(for_tokenizer(text))
        return Tokens(encoding.ids, [start for start, _ in encoding.offsets[1:-1]])


def build_tokenizer(name: str) -> WordPiece:
    """Return BERT's uncased WordPiece tokenizer.

    name: a vocab.txt or tokenizer.json, a folder with one of them (also by its name inside `pretrained/`), or a name on
    the Hugging Face hub. Raises UserError if nothing of this name exists, or if the file is no vocabulary of BERT.
    """
    path = find_vocabulary(name)
    return make_tokenizer(list(read_vocabulary(path)), path)


def find_vocabulary(name: str, *, offline: bool = False) -> Path:
    """Return the file of a vocabulary by its name, see `build_tokenizer`; offline: do not ask the hub."""
    folder = PRETRAINED_DIR / "bert-base-uncased"
    advice = (
        f"Download https://huggingface.co/bert-base-uncased/resolve/main/vocab.txt to {folder / 'vocab.txt'}, "
        "or pass the path of a vocab.txt."
    )
    return find_file(name, VOCABULARIES, flag="--bert_tokenizer", advice=advice, offline=offline)


def read_vocabulary(path: str | Path) -> dict[str, int]:
    """Return the word ids of a vocab.txt (one word per line, ids are line numbers from 0), or of a tokenizer.json.

    Raises UserError if the file lacks BERT's special words or does not begin with [PAD], and for a tokenizer.json whose
    rules differ from bert-base-uncased.
    """
    lines = read_lines(path)
    return number_words(_words_of_json("\n".join(lines), path) if Path(path).suffix == ".json" else lines, path)


def read_words(path: str | Path) -> list[str]:
    """Return the words that a vocab.txt or tokenizer.json gives the tokenizer, in the order of their ids.

    MASK is the last one if the file lacks it. Raises as `read_vocabulary` does.
    """
    return make_tokenizer(list(read_vocabulary(path)), path).words


def local_words(name: str) -> list[str] | None:
    """Return the words of a vocabulary by its path, or by that of its folder; None for other names.

    Raises as `read_vocabulary` does.
    """
    paths = (Path(name), *(Path(name, file) for file in VOCABULARIES)) if name else ()
    return next((read_words(path) for path in paths if path.is_file()), None)


# The allowed settings of a tokenizer.json, those of bert-base-uncased. None: old files omit the setting.
UNCASED: dict[tuple[str, str], tuple[object, ...]] = {
    ("model", "type"): ("WordPiece", None),
    ("model", "unk_token"): (UNK,),
    ("model", "continuing_subword_prefix"): ("##",),
    ("model", "max_input_chars_per_word"): (100,),
    ("normalizer", "type"): ("BertNormalizer",),
    ("normalizer", "clean_text"): (True,),
    ("normalizer", "handle_chinese_chars"): (True,),
    ("normalizer", "strip_accents"): (True, None),
    ("normalizer", "lowercase"): (True,),
    ("pre_tokenizer", "type"): ("BertPreTokenizer",),
}


def _words_of_json(text: str, source: object) -> list[str]:
    """Return the words of a tokenizer.json in the order of their ids. Raises as `read_vocabulary` does."""
    try:
        content = json.loads(text)
        rules = {(part, name): (content[part] or {}).get(name) for part, name in UNCASED}
        words, added = content["model"]["vocab"], [token["content"] for token in content.get("added_tokens", [])]
        ordered = sorted(words, key=words.get)
        is_numbered = [words[word] for word in ordered] == list(range(len(ordered)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{source} is no tokenizer.json of BERT ({error!r:.100})") from error
    for (part, name), allowed in UNCASED.items():
        if (value := rules[part, name]) not in allowed:
            problem = f"{name} is {value!r:.40}, not {allowed[0]!r}"
            raise UserError(f"{source} has other rules than bert-base-uncased: its {problem}")
    if not is_numbered or (unknown := [word for word in added if word not in (*words, MASK)]):
        problem = f"adds {few(unknown)} to its words" if is_numbered else "does not number its words from 0"
        raise UserError(f"{source} is no vocabulary of BERT: it {problem}")
    return ordered


def number_words(words: Sequence[str], source: object) -> dict[str, int]:
    """Return the id of every word, its position from 0. Raises as `read_vocabulary` does."""
    vocabulary = {word: number for number, word in enumerate(words)}
    invalid = next((number for number, word in enumerate(words) if not word or vocabulary[word] != number), None)
    if invalid is not None:
        raise UserError(f"{source} is no vocabulary of BERT: line {invalid + 1} is empty, or repeated further down")
    missing = [word for word in (PAD, UNK, CLS, SEP) if word not in vocabulary]
    if missing or vocabulary[PAD] != 0:
        problem = (
            f"lacks {', '.join(missing)}" if missing else f"has {PAD} in line {vocabulary[PAD] + 1}, not the first"
        )
        raise UserError(f"{source} is no vocabulary of BERT: it {problem}. Use the vocab.txt of bert-base-uncased")
    return vocabulary


def make_tokenizer(words: Sequence[str], source: object) -> WordPiece:
    """Return BERT's uncased WordPiece tokenizer of these words, in the order of their ids.

    source: the origin of the words, for messages. Raises UserError if they are no vocabulary of BERT.
    """
    return WordPiece(number_words(words, source))


def tokenize(tokenizer: WordPiece, text: str, max_tokens: int = MAX_TOKENS) -> Sentence:
    """Return the tokens of a sentence, and its unread end. Raises UserError if it has no word."""
    token_ids, starts = tokenizer.split(text)
    if not starts:
        raise UserError(f"the sentence {cut(text)} is empty: describe an object")
    unread = text[starts[max_tokens - 1] :] if len(starts) >= max_tokens else ""  # [CLS] is the first token
    return Sentence(token_ids, unread)
