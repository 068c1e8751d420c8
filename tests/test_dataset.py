"""Samples: expressions of objects, token ids, paired transforms, the shuffled control, and broken images."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from bert.tokenizer import WordPiece, build_tokenizer
from data import dataset_refer_bert
from data.dataset_refer_bert import ReferDataset, derangement, pad
from data.loaders import build_datasets, collate
from data.objects import open_image
from data.transforms import PairTransform, normalize
from errors import UserError, user_message
from lib.contracts import Batch, Sample
from lib.inputs import IMAGENET_MEAN, IMAGENET_STD
from lib.options import build_parser
from lib.photo import open_photo
from refer.refer import REFER
from tests.helpers import naming
from tests.refer_fixture import (
    HEIGHT,
    IMAGES,
    SIZE,
    WIDTH,
    WORDS,
    box_mask,
    tiny_instances,
    tiny_refs,
    write_images,
    write_refer,
    write_vocabulary,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> WordPiece:
    return build_tokenizer(str(write_vocabulary(tmp_path_factory.mktemp("bert") / "vocab.txt")))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_images(tmp_path)
    return write_refer(tmp_path)


@pytest.fixture
def dataset(root: Path, tokenizer: WordPiece) -> ReferDataset:
    return ReferDataset(REFER(root), "train", tokenizer, PairTransform(20))


# ---------------------------------------------------------------- samples


def test_every_expression_is_one_sample(dataset: ReferDataset) -> None:
    assert len(dataset) == 4
    assert dataset.objects == [[0, 1, 2], [3]]
    assert dataset.no_target == [False] * 4
    first, last = dataset.expressions[0], dataset.expressions[3]
    assert first == (1, 101, 1, 0, "the red car")
    assert (last.ref_id, last.ann_id, last.image_id, last.sent_id, last.text) == (2, 102, 1, 3, "green thing")


def test_sample_has_the_promised_shapes_and_types(dataset: ReferDataset) -> None:
    sample = dataset[1]
    assert isinstance(sample, Sample)
    assert (sample.image.shape, sample.image.dtype) == ((3, 20, 20), torch.float32)
    assert (sample.token_ids.shape, sample.token_ids.dtype) == ((21,), torch.int64)
    assert (sample.attention_mask.shape, sample.attention_mask.dtype) == ((21,), torch.int64)
    assert (sample.target.shape, sample.target.dtype) == ((20, 20), torch.int64)
    assert sample.number == 1
    assert set(sample.target.unique().tolist()) == {0, 1}


def test_samples_make_a_batch(dataset: ReferDataset) -> None:
    batch = next(iter(DataLoader(dataset, batch_size=3, collate_fn=collate)))
    assert isinstance(batch, Batch)
    assert [tuple(field.shape) for field in batch] == [(3, 3, 20, 20), (3, 21), (3, 21), (3, 20, 20), (3,)]
    assert batch.numbers.tolist() == [0, 1, 2]
    assert torch.equal(batch.image[2], dataset[2].image)


def test_image_and_mask_of_an_expression(dataset: ReferDataset, root: Path) -> None:
    image, mask = dataset.load(2)
    assert (image.mode, image.size) == ("RGB", (WIDTH, HEIGHT))
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, box_mask(5, 5, 10, 8))
    assert dataset.image_path(2) == root / IMAGES / "1.png"
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(dataset.image_path(2))))


def test_images_of_a_data_set_are_read_as_they_are_stored(dataset: ReferDataset) -> None:
    """The published numbers were measured on stored pixels, whatever EXIF data say."""
    exif = Image.Exif()
    exif[0x0112] = 3
    pixels = np.asarray(dataset.load(0)[0])
    Image.fromarray(pixels).save(dataset.image_path(0), exif=exif)
    assert np.array_equal(np.asarray(dataset.load(0)[0]), pixels)
    assert not np.array_equal(np.asarray(open_photo(dataset.image_path(0))), pixels)


def test_an_object_with_overlapping_parts_has_the_published_target(dataset: ReferDataset) -> None:
    expected = box_mask(0, 0, 10, 10) + box_mask(20, 0, 10, 10)
    assert np.array_equal(dataset.load(3)[1], expected)


def test_workers_are_sent_only_what_the_split_needs(tmp_path: Path, tokenizer: WordPiece) -> None:
    """The index of the real data is large; a data set must not carry it into every worker."""
    sizes = []
    for extra in (0, 1000):
        instances = tiny_instances()
        instances["annotations"] += [{**instances["annotations"][0], "id": 1000 + n} for n in range(extra)]
        refer = REFER(write_refer(tmp_path, instances=instances))
        sizes.append(len(pickle.dumps(ReferDataset(refer, "train", tokenizer, PairTransform(20)))))
    assert abs(sizes[0] - sizes[1]) < 50  # bytes


def test_an_empty_split_is_named(tmp_path: Path, tokenizer: WordPiece) -> None:
    refer = REFER(write_refer(tmp_path, tiny_refs()[:2]))
    with naming("refs(unc).p", "'val'"):
        ReferDataset(refer, "val", tokenizer, PairTransform(20))


def test_training_ignores_empty_objects_and_testing_scores_them(root: Path, tokenizer: WordPiece) -> None:
    instances = tiny_instances()
    instances["annotations"][0]["segmentation"] = [[5, 5, 5, 5, 5, 5]]
    refer = REFER(write_refer(root, instances=instances))
    tested = ReferDataset(refer, "train", tokenizer, PairTransform(20))
    trained = ReferDataset(refer, "train", tokenizer, PairTransform(20), without_empty=True)
    assert tested.empty == trained.empty == [1]
    assert [expression.ref_id for expression in tested.expressions] == [1, 1, 1, 2]
    assert [expression.ref_id for expression in trained.expressions] == [2]
    assert not tested.mask(0).any() and trained.mask(0).any()


def test_an_object_without_a_sentence_is_left_out(root: Path, tokenizer: WordPiece) -> None:
    refs = tiny_refs()
    refs[0]["sentences"] = []
    dataset = ReferDataset(REFER(write_refer(root, refs)), "train", tokenizer, PairTransform(20))
    assert dataset.without_sentence == [1]
    assert [expression.ref_id for expression in dataset.expressions] == [2]
    assert (dataset.objects, dataset.object_of) == ([[0]], [0])
    assert np.array_equal(dataset.load(0)[1], box_mask(0, 0, 10, 10) + box_mask(20, 0, 10, 10))


def test_objects_keep_their_short_sentences_alone(root: Path, tokenizer: WordPiece) -> None:
    refs = tiny_refs()
    for ref, texts in ((refs[0], ["red", "the  red one", "red one there"]), (refs[1], ["the one not red"])):
        ref["sentences"] = [sentence | {"raw": text} for sentence, text in zip(ref["sentences"], texts, strict=True)]
    dataset = ReferDataset(REFER(write_refer(root, refs)), "train", tokenizer, PairTransform(20))
    assert [dataset.short_objects(words) for words in (1, 3, 4)] == [[[0]], [[0, 1, 2]], [[0, 1, 2], [3]]]
    assert dataset.objects == [[0, 1, 2], [3]]
    refs[0]["sentences"] = refs[0]["sentences"][1:]
    dataset = ReferDataset(REFER(write_refer(root, refs)), "train", tokenizer, PairTransform(20))
    with naming("--max-words", "2"):
        dataset.short_objects(2)


def test_ignored_and_unscorable_expressions_are_counted(
    root: Path, tokenizer: WordPiece, capsys: pytest.CaptureFixture
) -> None:
    """By kind and split; of a training's splits the first is the one that is learnt from."""
    refs, instances = tiny_refs(), tiny_instances()
    for ann in (0, 2):
        instances["annotations"][ann]["segmentation"] = [[5, 5, 5, 5, 5, 5]]
    for ref in refs[:2]:
        ref["split"] = "val"
    refs[3] |= {"split": "train", "sentences": []}
    refs[4]["split"] = "train"
    write_refer(root, refs, instances)
    args = build_parser("", training=False).parse_args(
        ["--splitBy", "unc", "--max-tokens", "21", "--refer_data_root", str(root), "--img_size", "20"]
    )
    for training in (True, False):
        build_datasets(args, ["val", "train"], tokenizer, training=training)
        fate = "left out" if training else "scored, but no prediction can score above 0"
        assert capsys.readouterr().out.splitlines() == [
            "reading refcoco (unc)",
            f"refcoco (unc) val: 2 objects with no pixel in the mask: {fate} (ref_id 1, 3)",
            "refcoco (unc) train: 1 object with no sentence: left out (ref_id 4)",
        ]


def test_a_split_without_any_use_is_named(root: Path, tokenizer: WordPiece) -> None:
    refs = tiny_refs()
    refs[2]["sentences"] = []
    with naming("refs(unc).p", "'val'", "sentences"):
        ReferDataset(REFER(write_refer(root, refs)), "val", tokenizer, PairTransform(20))


def test_an_object_without_mask_is_found_before_training(tmp_path: Path, tokenizer: WordPiece) -> None:
    instances = tiny_instances()
    instances["annotations"][1]["segmentation"] = []
    refer = REFER(write_refer(tmp_path, instances=instances))
    with pytest.raises(UserError, match=r"ref_id 2 \(ann_id 102"):
        ReferDataset(refer, "train", tokenizer, PairTransform(20))


# ---------------------------------------------------------------- words


def word_ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def test_token_ids_by_hand(dataset: ReferDataset) -> None:
    ids = word_ids("[CLS] car , left of the green thing [SEP]")
    sample = dataset[2]
    assert sample.token_ids.tolist() == ids + [0] * 12
    assert sample.attention_mask.tolist() == [1] * 9 + [0] * 12


def test_equal_sentences_are_tokenized_once(tokenizer: WordPiece) -> None:
    texts = ["the red car", "red", "the red car"]
    ids = tokenizer(texts)
    assert ids == [tokenizer([text])[0] for text in texts]
    assert ids[0] is ids[2]


def test_words_become_lower_case_and_are_split_or_unknown(tokenizer: WordPiece) -> None:
    ids, mask = pad(tokenizer(["The CARS zebra"]), 8)
    expected = word_ids("[CLS] the car ##s [UNK] [SEP]")
    assert ids.tolist() == [[*expected, 0, 0]]
    assert mask.tolist() == [[1] * 6 + [0] * 2]


@pytest.mark.parametrize(("n_words", "last"), [(18, "[PAD]"), (19, "[SEP]"), (20, "car"), (40, "car")])
def test_long_sentences_are_truncated(tokenizer: WordPiece, n_words: int, last: str) -> None:
    """The cut takes [SEP] as well, as in the input the released weights learned from."""
    ids, mask = pad(tokenizer(["car " * n_words, "car"]), 21)
    assert ids.shape == (2, 21)
    assert ids[0, 0] == WORDS.index("[CLS]")
    assert ids[0, -1] == WORDS.index(last)
    assert mask[0].sum() == min(n_words + 2, 21)
    assert mask[1].tolist() == [1] * 3 + [0] * 18


def test_a_tokenizer_comes_from_a_file_or_a_folder(tmp_path: Path, tokenizer: WordPiece) -> None:
    write_vocabulary(tmp_path / "vocab.txt")
    assert build_tokenizer(str(tmp_path))(["a red car"]) == tokenizer(["a red car"])
    assert len(tokenizer) >= len(WORDS)


def test_vocabularies_of_windows_are_read(tmp_path: Path, tokenizer: WordPiece) -> None:
    (tmp_path / "vocab.txt").write_bytes("".join(f"{word}\r\n" for word in WORDS).encode())
    assert build_tokenizer(str(tmp_path))(["red car"]) == tokenizer(["red car"])


@pytest.fixture
def tokenizer_json(tmp_path: Path) -> dict[str, Any]:
    """What the transformers of today write: no vocab.txt."""
    from transformers import BertTokenizer

    BertTokenizer(vocab=str(write_vocabulary(tmp_path / "words.txt"))).save_pretrained(tmp_path / "bert")
    assert not (tmp_path / "bert" / "vocab.txt").exists()
    return json.loads((tmp_path / "bert" / "tokenizer.json").read_bytes())


def test_a_folder_with_only_tokenizer_json_is_read(
    tmp_path: Path, tokenizer: WordPiece, tokenizer_json: dict[str, Any]
) -> None:
    text = "a red car, ünknown"
    assert build_tokenizer(str(tmp_path / "bert"))([text]) == tokenizer([text])
    vocabulary = tokenizer_json["model"]["vocab"]
    tokenizer_json["model"]["vocab"] = dict(sorted(vocabulary.items()))  # their order means nothing
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json))
    assert build_tokenizer(str(tmp_path / "tokenizer.json"))([text]) == tokenizer([text])


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        (("normalizer", "lowercase"), False, "lowercase is False, not True"),
        (("normalizer",), None, "type is None, not 'BertNormalizer'"),
        (("model", "type"), "BPE", "type is 'BPE', not 'WordPiece'"),
        (("model", "vocab"), ["[PAD]"], "is no tokenizer.json of BERT"),
        (("model", "vocab"), {"[PAD]": 1, "[UNK]": 1}, "does not number its words from 0"),
        (("model", "vocab"), {"[PAD]": "0"}, "does not number its words from 0"),
        (("model", "vocab"), {"[PAD]": 0}, "adds .* to its words"),
        (("model",), 7, "is no tokenizer.json of BERT"),
        (("added_tokens",), [{"content": "[NEW]", "id": 7}], r"adds \[NEW\] to its words"),
        (("added_tokens",), [], ""),
    ],
)
def test_tokenizers_of_another_kind_are_refused(
    tmp_path: Path, tokenizer_json: dict[str, Any], place: tuple[str, ...], value: object, problem: str
) -> None:
    *outer, name = place
    part = tokenizer_json[outer[0]] if outer else tokenizer_json
    part[name] = value
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json))
    if not problem:
        build_tokenizer(str(path))
        return
    with pytest.raises(UserError, match=problem) as caught:
        build_tokenizer(str(path))
    assert str(path) in str(caught.value)


def test_a_pointer_of_git_lfs_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1a\nsize 231508\n")
    with pytest.raises(UserError, match="Git LFS pointer"):
        build_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"one\ntwo\n", r"lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\]"),
        (b"[PAD]\n[UNK]\n[CLS]\ncar\n", r"lacks \[SEP\]"),
        (b"car\n[PAD]\n[UNK]\n[CLS]\n[SEP]\n", "line 2"),
        (b"\x80\x02\xff\xfe", "line 1"),
        (b"", "lacks"),
    ],
)
def test_files_other_than_vocabularies_are_named(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=problem) as caught:
        build_tokenizer(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere/vocab.txt", "bert-base-uncased"])
def test_without_vocabulary_or_internet_the_error_gives_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def no_network(*_: object, **__: object) -> str:
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", no_network)
    with pytest.raises(UserError, match=r"Download .*vocab\.txt to pretrained/bert-base-uncased/vocab\.txt"):
        build_tokenizer(name)


# ---------------------------------------------------------------- transforms


def test_image_is_resized_as_pillow_does_and_normalised() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (47, 61, 3), dtype=np.uint8))
    tensor, _ = PairTransform(16)(image, np.zeros((47, 61), np.uint8))
    pixels = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR), np.float32) / 255
    expected = ((pixels - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)).transpose(2, 0, 1)
    assert np.allclose(tensor.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (47, 61), (200, 300)])
def test_tensors_are_torchvisions_to_the_last_bit(size: tuple[int, int]) -> None:
    """However they are computed; all values of a byte are among the pixels."""
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    mask = pixels[..., 0] % 2
    resized = F.resize(Image.fromarray(pixels), [40, 40], InterpolationMode.BILINEAR)
    image, target = PairTransform(40)(Image.fromarray(pixels), mask)
    assert torch.equal(image, F.normalize(F.to_tensor(resized), IMAGENET_MEAN, IMAGENET_STD))
    assert image.is_contiguous()
    plain = F.resize(Image.fromarray(mask), [40, 40], InterpolationMode.NEAREST)
    assert torch.equal(target, F.pil_to_tensor(plain)[0].long())

    levels = np.stack([np.arange(256, dtype=np.uint8)[None]] * 3, axis=-1)
    assert torch.equal(normalize(levels), F.normalize(F.to_tensor(levels), IMAGENET_MEAN, IMAGENET_STD))


@pytest.mark.parametrize("resize_mask", [True, False])
def test_the_two_steps_make_the_whole(resize_mask: bool) -> None:
    image, mask = Image.effect_noise((WIDTH, HEIGHT), 90).convert("RGB"), box_mask(3, 4, 7, 9)
    transform = PairTransform(16, resize_mask=resize_mask)
    pixels, resized = transform.resize(image, mask)
    assert (pixels.shape, pixels.dtype) == ((16, 16, 3), np.uint8)
    assert (resized.shape, resized.dtype) == ((16, 16) if resize_mask else mask.shape, np.uint8)
    for one, other in zip(transform.to_tensors(pixels, resized), transform(image, mask), strict=True):
        assert torch.equal(one, other)


def test_shrinking_an_image_averages_it() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    tensor = normalize(PairTransform(16).resize_image(Image.fromarray(stripes)))
    grey = tensor * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    assert (grey - 0.5).abs().max() < 0.05


def test_image_and_mask_stay_together() -> None:
    mask = np.zeros((60, 100), np.uint8)
    mask[6:33, 40:85] = 1
    white = Image.fromarray(np.repeat(mask[..., None] * 255, 3, axis=2))
    image, target = PairTransform(40)(white, mask)
    bright = image[0] * IMAGENET_STD[0] + IMAGENET_MEAN[0]
    sure = (bright < 0.01) | (bright > 0.99)
    assert sure.float().mean() > 0.85
    assert torch.equal((bright > 0.5)[sure], target.bool()[sure])


def test_mask_can_keep_its_own_size() -> None:
    mask = box_mask(3, 4, 7, 9)
    image, target = PairTransform(16, resize_mask=False)(Image.new("RGB", (WIDTH, HEIGHT)), mask)
    assert image.shape == (3, 16, 16)
    assert target.dtype == torch.int64
    assert np.array_equal(target.numpy(), mask)


def test_nearest_resizing_makes_no_new_values_and_keeps_the_input() -> None:
    mask = (np.random.default_rng(0).random((37, 53)) < 0.5).astype(np.uint8)
    before = mask.copy()
    target = PairTransform(24).resize_mask(mask)
    assert set(np.unique(target)) == {0, 1}
    assert np.array_equal(target, np.asarray(Image.fromarray(mask).resize((24, 24), Image.Resampling.NEAREST)))
    assert np.array_equal(mask, before)


def test_programming_errors_are_refused() -> None:
    with naming((WIDTH, HEIGHT), (HEIGHT, WIDTH), kind=ValueError):
        PairTransform(16)(Image.new("RGB", (WIDTH, HEIGHT)), np.zeros((WIDTH, HEIGHT), np.uint8))
    with naming("size", 1, 0, kind=ValueError):
        PairTransform(0)


# ---------------------------------------------------------------- the shuffled control


def test_shuffled_samples_keep_their_object_and_read_about_another(dataset: ReferDataset) -> None:
    shuffled = dataset.with_shuffled_expressions(seed=3)
    assert len(shuffled) == len(dataset)
    assert shuffled.objects == dataset.objects
    for index, (own, read) in enumerate(zip(dataset.expressions, shuffled.expressions, strict=True)):
        others = [e for e in dataset.expressions if e.ref_id != own.ref_id]
        assert read[:3] == own[:3]
        source = next(e for e in others if e.sent_id == read.sent_id)
        assert read.text == source.text
        before, after = dataset[index], shuffled[index]
        assert torch.equal(after.image, before.image)
        assert torch.equal(after.target, before.target)
        assert after.number == index
        number = dataset.expressions.index(source)
        assert torch.equal(after.token_ids, dataset[number].token_ids)
        assert torch.equal(after.attention_mask, dataset[number].attention_mask)


def test_an_image_of_several_objects_needs_reading(root: Path, tokenizer: WordPiece) -> None:
    """Sentences of one object, or objects of one image each, leave no choice."""
    for split, choice in (("train", True), ("val", False), ("testB", True)):
        assert ReferDataset(REFER(root), split, tokenizer, PairTransform(20)).has_choice() == choice


def test_shuffling_leaves_the_original_alone(dataset: ReferDataset) -> None:
    texts, ids = list(dataset.expressions), dataset[0].token_ids.clone()
    dataset.with_shuffled_expressions(seed=0)
    assert dataset.expressions == texts
    assert torch.equal(dataset[0].token_ids, ids)


@pytest.mark.parametrize("owners", [range(2), range(3), range(50), [7, 7, 8, 8], [1, 1, 1, 2, 3, 4, 5], [1, 2] * 20])
def test_derangement_moves_every_place_to_another_owner(owners: Sequence[int]) -> None:
    for seed in range(20):
        permutation = derangement(owners, seed)
        assert sorted(permutation) == list(range(len(owners)))
        assert all(owners[place] != owners[other] for place, other in enumerate(permutation))


def test_derangement_follows_its_seed() -> None:
    assert derangement(range(30), 1) == derangement(range(30), 1)
    assert derangement(range(30), 1) != derangement(range(30), 2)


@pytest.mark.parametrize("owners", [[1], [1, 1], [1, 1, 2]])
def test_impossible_derangements_are_refused(owners: list[int]) -> None:
    with naming(len(owners)):
        derangement(owners, 0)


# ---------------------------------------------------------------- images that are not what they should be


def test_a_few_images_are_remembered_by_their_content(root: Path, tokenizer: WordPiece) -> None:
    refs = [ref | {"split": "train"} for ref in tiny_refs()]
    dataset = ReferDataset(REFER(write_refer(root, refs)), "train", tokenizer, PairTransform(8))
    before = dataset.image_prints()
    assert before.keys() == {"1.png", "2.png", "3.png"}
    write_images(root)
    assert dataset.image_prints() == before, "whenever they were written"
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / IMAGES / "2.png")
    (root / IMAGES / "3.png").unlink()
    after = dataset.image_prints()
    assert after["1.png"] == before["1.png"]
    assert after["2.png"] != before["2.png"]
    assert "3.png" not in after, "loading it reports it"


def test_of_many_images_always_the_same_few_are_remembered(
    dataset: ReferDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_refer_bert, "content_of", lambda path: b"")
    described = [dataset._objects[0]._replace(file_name=f"{number}.png") for number in range(100)]
    dataset._objects = described
    names = set(dataset.image_prints())
    dataset._objects = described[::-1]
    assert len(names) == dataset_refer_bert.N_PRINTED
    assert set(dataset.image_prints()) == names


def test_a_missing_image_is_named(dataset: ReferDataset) -> None:
    dataset.image_path(0).unlink()
    with pytest.raises(UserError, match=r"1\.png.*docs/data\.md"):
        dataset[0]


def test_a_worker_hands_over_the_message_intact(dataset: ReferDataset) -> None:
    dataset.image_path(0).unlink()
    with pytest.raises(UserError) as here:
        dataset[0]
    with pytest.raises(UserError) as there:
        next(iter(DataLoader(dataset, num_workers=1)))
    assert user_message(there.value) == str(here.value)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"])
def test_cut_off_images_are_named(tmp_path: Path, format: str) -> None:
    path = tmp_path / "image.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format=format)
    content = path.read_bytes()
    assert open_image(path).size == (40, 30)
    for share in (0.0, 0.02, 0.1, 0.5, 0.8):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(UserError, match=r"image\.jpg cannot be read"):
            open_image(path)


def test_files_other_than_images_are_named(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_text("<html>404 Not Found</html>")
    with pytest.raises(UserError, match=r"image\.jpg cannot be read"):
        open_image(path)


def test_pillows_limit_of_pixels_is_active(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    Image.new("RGB", (100, 100)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match=r"bomb\.png cannot be read .*exceeds limit"):
        open_image(path)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_images_of_any_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "image.tiff"
    Image.new(mode, (5, 4)).save(path)
    assert (open_image(path).mode, open_image(path).size) == ("RGB", (5, 4))


def test_an_image_of_another_size_than_its_mask_is_named(dataset: ReferDataset) -> None:
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(dataset.image_path(0))
    with pytest.raises(UserError, match=rf"1\.png is {WIDTH}×31 .*ref_id 1 \(ann_id 101.* {WIDTH}×{SIZE[0]}"):
        dataset[0]
