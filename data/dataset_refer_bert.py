"""Referring segmentation samples: an image, a sentence as BERT token ids, and the mask of the object it means.

refer = REFER("./refer/data", "refcoco", "unc")
dataset = ReferDataset(refer, "val", build_tokenizer("bert-base-uncased"), PairTransform(480))
loader = DataLoader(dataset, batch_size=8, collate_fn=collate)  # of data.loaders; brings Batches
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
from lib.photo import Pixels, content_of
from lib.variants import MAX_TOKENS
from refer.files import Record
from refer.masks import covers_nothing, decode_parts
from refer.refer import Index
from refer.splits import MANUAL

if TYPE_CHECKING:
    from data.cache import Cache  # which imports HDF5

N_PRINTED = 32  # images of a split whose content a training remembers


class ReferDataset(Dataset[Sample]):
    """Every expression of every object of a split, in the order of the files.

    refer: the index; it is read here and not kept. split: one of its splits. tokenizer: see `bert.tokenizer`.
    transform: resizes image and mask and makes tensors of them. max_tokens: length N of the token ids. cache: holds
    images and masks of this data set, already resized to the transform's size; without one the files are read.
    without_empty: leave out objects whose mask has no pixel, of which nothing can be learnt; what means nothing in its
    image stays. Objects without a sentence are left out in any case. Raises UserError for an empty split and for an
    object without a mask.

    expressions: one per sample. objects: for each object, the numbers of its expressions. object_of: for each
    expression, the number of its object. no_target: for each expression, whether it means nothing in its image.
    speechless, empty: the ref_ids of objects that have no sentence and of those whose mask has no pixel, though they
    are there.
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
        found = refer.loadRefs(refer.getRefIds(split=split))
        described = {ref["ref_id"]: describe_object(refer, ref) for ref in found}
        self.speechless = [ref["ref_id"] for ref in found if not ref["sentences"]]
        meaning = {ref["ref_id"] for ref in found if refer.has_target(ref)}
        self.empty = [ref_id for ref_id, one in described.items() if ref_id in meaning and covers_nothing(one.parts)]
        left_out = {*self.speechless, *(self.empty if without_empty else ())}
        refs = [ref for ref in found if ref["ref_id"] not in left_out]
        if not refs:
            some = f" that has sentences{' and pixels' if without_empty else ''}" if found else ""
            raise UserError(f"{refer.refs_file} has no object in split '{split}'{some}. {MANUAL}")
        self.image_dir = Path(refer.IMAGE_DIR)
        self.transform = transform
        self.expressions = [expression for ref in refs for expression in _expressions(ref)]
        ends = list(accumulate(len(ref["sentences"]) for ref in refs))
        self.objects = [list(range(start, end)) for start, end in pairwise([0, *ends])]
        self.object_of = [number for number, own in enumerate(self.objects) for _ in own]
        self.no_target = [refs[number]["ref_id"] not in meaning for number in self.object_of]
        self._objects = [described[ref["ref_id"]] for ref in refs]
        self.cache = cache
        self._cache_rows = cache.rows(refer, refs) if cache else []
        texts = [expression.text for expression in self.expressions]
        self._token_ids, self._attention_mask = pad(tokenizer(texts), max_tokens)

    def __len__(self) -> int:
        return len(self.expressions)

    def __getitem__(self, index: int) -> Sample:
        """Return a sample; UserError names an image that is missing, damaged or of another size than its mask."""
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
        return self.transform.resize_mask(decode_parts(self._object(index).parts))

    def words(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return token ids and attention masks of expressions, (expressions, N) int64 both."""
        return self._token_ids[indices], self._attention_mask[indices]

    def image_path(self, index: int) -> Path:
        """Return the file of an expression's image."""
        return self.image_dir / self._object(index).file_name

    def load(self, index: int) -> tuple[Image.Image, Pixels]:
        """Return an expression's RGB image and its object's mask, (H, W) uint8 of 0 and 1, at their own size."""
        return self._open_image(index), decode_parts(self._object(index).parts)

    def fingerprint(self) -> str:
        """Return 16 hex digits that change with any sentence, id, token, image name or mask of the split.

        And with the way of reading images, as seen or as stored.
        """
        digest = hashlib.sha256()
        for described in [*self.expressions, *(described.identity() for described in self._objects)]:
            digest.update(json.dumps(described, default=str).encode())
        digest.update(self._token_ids.numpy().tobytes())
        return digest.hexdigest()[:16]

    def image_prints(self) -> dict[str, str]:
        """Return 16 hex digits of the content of a few images' files, by name; which ones follows from all names.

        Files that are missing or cannot be read are left out: loading them says so.
        """
        names = {described.file_name for described in self._objects}
        chosen = sorted(names, key=lambda name: _digest(name.encode("utf-8", "surrogatepass")))[:N_PRINTED]
        contents = ((name, content_of(self.image_dir / name)) for name in chosen)
        return {name: _digest(content) for name, content in contents if content is not None}

    def with_shuffled_expressions(self, seed: int) -> ReferDataset:
        """Return a copy in which every sample keeps image and target but reads a sentence about another object.

        A control: a model that reads scores far lower on it. Each object is given the sentences of one other object,
        and each object's sentences go to one other. Raises UserError where one object has more than half the split.
        """
        givers = derange([self.expressions[numbers[0]].ann_id for numbers in self.objects], seed)
        sources = [
            self.objects[giver][position % len(self.objects[giver])]
            for giver, taker in zip(givers, self.objects, strict=True)
            for position in range(len(taker))
        ]
        shuffled = copy.copy(self)
        shuffled.expressions = [
            own._replace(sent_id=self.expressions[source].sent_id, text=self.expressions[source].text)
            for own, source in zip(self.expressions, sources, strict=True)
        ]
        shuffled._token_ids = self._token_ids[sources]
        shuffled._attention_mask = self._attention_mask[sources]
        return shuffled

    def has_choice(self) -> bool:
        """Tell whether any image has several objects, among which only reading can choose."""
        objects: dict[int, set[int | tuple[int, ...]]] = {}
        for expression in self.expressions:
            objects.setdefault(expression.image_id, set()).add(expression.ann_id)
        return any(len(own) > 1 for own in objects.values())

    def _open_image(self, index: int) -> Image.Image:
        return open_image_of(self._object(index), self.image_dir)

    def _object(self, index: int) -> ObjectRecord:
        return self._objects[self.object_of[index]]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _expressions(ref: Record) -> list[Expression]:
    ids = ref["ref_id"], ref["ann_id"], ref["image_id"]
    return [Expression(*ids, sentence["sent_id"], sentence["raw"]) for sentence in ref["sentences"]]


def derange(owners: Sequence[Hashable], seed: int) -> list[int]:
    """Return a permutation in which no place gets itself, nor another place of the same owner.

    Raises UserError where that is impossible: one owner has more than half of the places.
    """
    shares = Counter(owners)
    largest = max(shares.values())
    if 2 * largest > len(owners):
        raise UserError(f"{len(owners)} objects cannot exchange their sentences: too few are different objects")
    order = list(shares)
    Random(seed).shuffle(order)
    rank = {owner: place for place, owner in enumerate(order)}
    # Places of one owner lie side by side; a step as long as the longest such row leaves every row.
    row = sorted(range(len(owners)), key=lambda place: rank[owners[place]])
    permutation = [0] * len(owners)
    for place, other in zip(row, row[largest:] + row[:largest], strict=True):
        permutation[place] = other
    return permutation


def pad(sentences: Sequence[Sequence[int]], max_tokens: int) -> tuple[Tensor, Tensor]:
    """Return the ids of sentences' tokens as (sentences, max_tokens) and an attention mask of that shape, both int64.

    Longer sentences are cut plainly, which may take [SEP]: the released weights learned from ids cut this way.
    Shorter ones are padded with 0, where the mask is 0.
    """
    cut = [[*ids[:max_tokens]] for ids in sentences]
    token_ids = torch.tensor([ids + [0] * (max_tokens - len(ids)) for ids in cut])
    lengths = torch.tensor([[len(ids)] for ids in cut])
    return token_ids, (torch.arange(max_tokens) < lengths).long()
