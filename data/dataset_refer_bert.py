"""Referring segmentation samples: an image, a sentence as BERT token ids, and the mask of the object it refers to.

refer = REFER("./refer/data", "refcoco", "unc")
dataset = ReferDataset(refer, "val", build_tokenizer("bert-base-uncased"), PairTransform(480))
loader = DataLoader(dataset, batch_size=8, collate_fn=collate)  # data.loaders.collate; yields a Batch
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from data.objects import ObjectRecord, describe_object, open_image_of
from data.transforms import PairTransform
from errors import UserError
from lib.contracts import Expression, Sample, Tokenizer
from lib.inputs import padded_ids
from lib.photo import Pixels, content_of
from lib.variants import MAX_TOKENS
from refer.files import Record
from refer.masks import covers_nothing, decode_parts
from refer.refer import Index
from refer.splits import MANUAL

if TYPE_CHECKING:
    from data.cache import Cache  # imports HDF5

N_PRINTED = 32  # images of a split whose content digest a training state keeps


class ReferDataset(Dataset[Sample]):
    """Every expression of every object of a split, in the order of the files.

    refer: the index; it is read here and not kept. split: one of its splits. tokenizer: see `bert.tokenizer`.
    transform: resizes image and mask and turns them into tensors. max_tokens: length N of the token ids. cache: images
    and masks of this data set, already resized to the transform's size; without a cache the files are read.
    without_empty: leave out objects whose mask is empty, from which nothing can be learnt; expressions without a target
    stay. Objects without a sentence are always left out. Raises UserError for an empty split and for an object without
    a mask.

    Attributes. expressions: one per sample. objects: for each object, the indices of its expressions. object_of: for
    each expression, the index of its object. no_target: for each expression, whether its image has no such object.
    without_sentence, empty: the ref_ids of objects without a sentence, and of targets whose mask is empty.
    """

    def __init__(
        self,
        refer: Index,
        split: str,
        tokenizer: Tokenizer,
        transform: PairTransform,
        max_tokens: int = MAX_TOKENS,
        cache: Cache | None = None,
        *,
        without_empty: bool = False,
    ) -> None:
        if cache and cache.size != transform.size:
            raise ValueError(f"the cache holds images of {cache.size} pixels, the transform makes {transform.size}")
        all_refs = refer.loadRefs(refer.getRefIds(split=split))
        described = {ref["ref_id"]: describe_object(refer, ref) for ref in all_refs}
        with_target = {ref["ref_id"] for ref in all_refs if refer.has_target(ref)}
        self.without_sentence = [ref["ref_id"] for ref in all_refs if not ref["sentences"]]
        self.empty = [
            ref_id for ref_id, record in described.items() if ref_id in with_target and covers_nothing(record.parts)
        ]
        left_out = {*self.without_sentence, *(self.empty if without_empty else ())}
        refs = [ref for ref in all_refs if ref["ref_id"] not in left_out]
        if not refs:
            usable = f" that has sentences{' and pixels' if without_empty else ''}" if all_refs else ""
            raise UserError(f"{refer.refs_file} has no object in split '{split}'{usable}. {MANUAL}")
        self.image_dir = Path(refer.IMAGE_DIR)
        self.transform = transform
        self.expressions = [expression for ref in refs for expression in _expressions(refer, ref)]
        ends = list(accumulate(len(ref["sentences"]) for ref in refs))
        self.objects = [list(range(start, end)) for start, end in pairwise([0, *ends])]
        self.object_of = [number for number, indices in enumerate(self.objects) for _ in indices]
        self.no_target = [refs[number]["ref_id"] not in with_target for number in self.object_of]
        self._categories = [_category(refer, ref) for ref in refs]
        self._objects = [described[ref["ref_id"]] for ref in refs]
        self.cache = cache
        self._cache_rows = cache.rows(refer, refs) if cache else []
        texts = [expression.text for expression in self.expressions]
        self._token_ids, self._attention_mask = pad(tokenizer(texts), max_tokens)

    def __len__(self) -> int:
        return len(self.expressions)

    def __getitem__(self, index: int) -> Sample:
        """Return a sample; UserError if its image is missing, damaged, or differs in size from the mask."""
        image, target = self.transform.to_tensors(self.image(index), self.mask(index))
        return Sample(image, self._token_ids[index], self._attention_mask[index], target, index)

    def image(self, index: int) -> Pixels:
        """Return an expression's image (S, S, 3) uint8, as the transform resizes it. Raises as `__getitem__` does."""
        if self.cache:
            return self.cache.image(self._cache_rows[self.object_of[index]].image)
        return self.transform.resize_image(self._open_image(index))

    def mask(self, index: int) -> Pixels:
        """Return the mask of an expression's object, uint8 of 0 and 1, as the transform resizes it."""
        if self.cache and self.transform.resizes_mask:
            return self.cache.mask(self._cache_rows[self.object_of[index]].mask)
        return self.transform.resize_mask(self.truth(index))

    def tokens(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return token ids and attention masks of expressions, both (expressions, N) int64."""
        return self._token_ids[indices], self._attention_mask[indices]

    def short_objects(self, max_words: int) -> list[list[int]]:
        """Return `objects` with the expressions of at most so many words; UserError if there is none in the split."""
        short = [len(expression.text.split()) <= max_words for expression in self.expressions]
        objects = [[index for index in indices if short[index]] for indices in self.objects]
        if not any(short):
            raise UserError(f"no sentence to train on has at most {max_words} words: use a larger --max-words")
        return [indices for indices in objects if indices]

    def image_size(self, index: int) -> tuple[int, int]:
        """Return height and width of an expression's image, as the annotations tell them."""
        width, height = self._object(index).size
        return height, width

    def category(self, index: int) -> str:
        """Return the category of an expression's object; "" if it has none, or several names joined by commas."""
        return self._categories[self.object_of[index]]

    def image_path(self, index: int) -> Path:
        """Return the file of an expression's image."""
        return self.image_dir / self._object(index).file_name

    def load(self, index: int) -> tuple[Image.Image, Pixels]:
        """Return an expression's RGB image and its object's mask, (H, W) uint8 of 0 and 1, at the image's size."""
        return self._open_image(index), self.truth(index)

    def truth(self, index: int) -> Pixels:
        """Return the mask of an expression's object, (H, W) uint8 of 0 and 1, at the image's size."""
        return decode_parts(self._object(index).parts)

    def fingerprint(self) -> str:
        """Return 16 hex digits that change with any sentence, id, token, image name or mask of the split.

        They also change with `as_seen`, see `lib.photo`.
        """
        digest = hashlib.sha256()
        for described in [*self.expressions, *(described.identity() for described in self._objects)]:
            digest.update(json.dumps(described, default=str).encode())
        digest.update(self._token_ids.numpy().tobytes())
        return digest.hexdigest()[:16]

    def image_prints(self) -> dict[str, str]:
        """Return 16 hex digits of the content of a few image files, by name. The names alone decide which files.

        Files that are missing or cannot be read are left out: loading them raises the error.
        """
        names = {described.file_name for described in self._objects}
        chosen = sorted(names, key=lambda name: _digest(name.encode("utf-8", "surrogatepass")))[:N_PRINTED]
        contents = ((name, content_of(self.image_dir / name)) for name in chosen)
        return {name: _digest(content) for name, content in contents if content is not None}

    def with_shuffled_expressions(self, seed: int) -> ReferDataset:
        """Return a copy in which every sample keeps image and target but has a sentence about another object.

        A control: a model that uses the sentences scores far lower on it. The objects exchange their sentences by a
        random permutation without fixed points. Raises UserError if one object makes up more than half of the split.
        """
        firsts = [self.expressions[indices[0]] for indices in self.objects]
        # What means nothing is an object of its own: its sentences may go to another that means nothing.
        owners = [first.ann_id if first.ann_id != () else ("nothing", first.ref_id) for first in firsts]
        source_objects = derangement(owners, seed)
        sources = [
            self.objects[source][position % len(self.objects[source])]
            for source, target in zip(source_objects, self.objects, strict=True)
            for position in range(len(target))
        ]
        shuffled = copy.copy(self)
        shuffled.expressions = [
            expression._replace(sent_id=self.expressions[source].sent_id, text=self.expressions[source].text)
            for expression, source in zip(self.expressions, sources, strict=True)
        ]
        shuffled._token_ids = self._token_ids[sources]
        shuffled._attention_mask = self._attention_mask[sources]
        return shuffled

    def has_choice(self) -> bool:
        """Return whether any image has several objects, so that only the sentence tells which one is meant."""
        objects: dict[int, set[int | tuple[int, ...]]] = {}
        for expression in self.expressions:
            objects.setdefault(expression.image_id, set()).add(expression.ann_id)
        return any(len(ann_ids) > 1 for ann_ids in objects.values())

    def _open_image(self, index: int) -> Image.Image:
        return open_image_of(self._object(index), self.image_dir)

    def _object(self, index: int) -> ObjectRecord:
        return self._objects[self.object_of[index]]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _category(refer: Index, ref: Record) -> str:
    ids = ref["category_id"]
    names = (refer.Cats.get(number) for number in (ids if isinstance(ids, list) else [ids]))
    return ", ".join(dict.fromkeys(name for name in names if name))


def _expressions(refer: Index, ref: Record) -> list[Expression]:
    ids = ref["ref_id"], refer.meant(ref), ref["image_id"]
    return [Expression(*ids, sentence["sent_id"], sentence["raw"]) for sentence in ref["sentences"]]


def derangement(owners: Sequence[Hashable], seed: int) -> list[int]:
    """Return a random permutation of the positions that maps none to itself or to another one of the same owner.

    Raises UserError if there is none, because one owner has more than half of the positions.
    """
    counts = Counter(owners)
    largest = max(counts.values())
    if 2 * largest > len(owners):
        raise UserError(f"{len(owners)} objects cannot exchange their sentences: too few are different objects")
    order = list(counts)
    Random(seed).shuffle(order)
    rank = {owner: number for number, owner in enumerate(order)}
    # Sorted by owner, a shift by the size of the largest group moves every position to another group.
    by_owner = sorted(range(len(owners)), key=lambda position: rank[owners[position]])
    permutation = [0] * len(owners)
    for position, other in zip(by_owner, by_owner[largest:] + by_owner[:largest], strict=True):
        permutation[position] = other
    return permutation


def pad(sentences: Sequence[Sequence[int]], max_tokens: int) -> tuple[Tensor, Tensor]:
    """Return what `padded_ids` returns, as tensors."""
    token_ids, attention_mask = padded_ids(sentences, max_tokens)
    return torch.from_numpy(token_ids), torch.from_numpy(attention_mask)
