"""Pretrained weights: official, timm's and BERT's files are loaded into the right places, others are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor
from transformers import BertConfig, BertForPreTraining

from CrossVLT import SegModel
from errors import UserError
from lib.variants import SWIN_VARIANTS, SwinVariant
from lib.weights.pretrained import (
    bert_weights,
    default_bert,
    default_swin,
    load_bert,
    load_swin,
    resize_position_bias,
    swin_weights,
)
from tests.networks import fill

Weights = dict[str, Tensor]

VOCAB_SIZE = 40
PRETRAINED_TYPES = ("tiny", "small", "base", "large")
REFERENCE = Path(__file__).parent / "reference"
NANO = SWIN_VARIANTS["nano"]


@pytest.fixture(scope="module")
def fresh() -> SegModel:
    return SegModel("nano", "nano", vocab_size=VOCAB_SIZE, dropout=0.0, drop_path=0.0).eval()


@pytest.fixture(scope="module")
def before(fresh: SegModel) -> Weights:
    """The weights a fresh network begins with."""
    return {name: value.clone() for name, value in fresh.state_dict().items()}


@pytest.fixture
def network(fresh: SegModel, before: Weights) -> SegModel:
    """A network with the weights of `before`."""
    fresh.load_state_dict(before)
    return fresh


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, with an empty cache and no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def save(weights: Weights, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in weights.items()}
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)
    return path


def changed(network: SegModel, before: Weights) -> set[str]:
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


# ---------------------------------------------------------------- Swin


def official_swin(variant: SwinVariant, n_classes: int = 10, window: int | None = None) -> Weights:
    """Return every entry of Microsoft's files, by their names, without values."""
    dim, window = variant.embed_dim, window or variant.window_size
    shapes: dict[str, tuple[int, ...]] = {"patch_embed.proj.weight": (dim, 3, 4, 4), "patch_embed.proj.bias": (dim,)}
    shapes |= {"patch_embed.norm.weight": (dim,), "patch_embed.norm.bias": (dim,)}
    for stage, (depth, heads) in enumerate(zip(variant.depths, variant.num_heads, strict=True)):
        for block in range(depth):
            prefix = f"layers.{stage}.blocks.{block}."
            linear = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim)}
            linear |= {"mlp.fc1": (4 * dim, dim), "mlp.fc2": (dim, 4 * dim)}
            for name, shape in linear.items():
                shapes |= {f"{prefix}{name}.weight": shape, f"{prefix}{name}.bias": shape[:1]}
            for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
                shapes[prefix + name] = (dim,)
            shapes[prefix + "attn.relative_position_bias_table"] = ((2 * window - 1) ** 2, heads)
            shapes[prefix + "attn.relative_position_index"] = (window**2, window**2)
            if block % 2 and stage < 3:
                shapes[prefix + "attn_mask"] = (4, window**2, window**2)
        if stage < 3:
            prefix = f"layers.{stage}.downsample."
            shapes[prefix + "reduction.weight"] = (2 * dim, 4 * dim)
            shapes |= {prefix + "norm.weight": (4 * dim,), prefix + "norm.bias": (4 * dim,)}
            dim *= 2
    shapes |= {"norm.weight": (dim,), "norm.bias": (dim,)}
    shapes |= {"head.weight": (n_classes, dim), "head.bias": (n_classes,)}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def filled(shapes: Weights) -> Weights:
    return fill({name: torch.empty(value.shape) for name, value in shapes.items()}, seed=3)


def is_swin_parameter(name: str) -> bool:
    parts = name.split(".")
    if parts[0] != "backbone" or parts[-1] == "relative_position_index":
        return False
    return parts[2] == "patch_embed" or parts[3] in ("blocks", "downsample")


@pytest.mark.parametrize("swin_type", PRETRAINED_TYPES)
def test_official_file_covers_the_released_backbone(swin_type: str) -> None:
    renamed = swin_weights(official_swin(SWIN_VARIANTS[swin_type], n_classes=21841))
    released = json.loads((REFERENCE / f"state_dict_{swin_type}.json").read_text())
    expected = {name: shape for name, shape, _ in released if is_swin_parameter(name)}
    assert {name: list(value.shape) for name, value in renamed.items()} == expected


@pytest.mark.parametrize("layout", ["model", "bare", "module"])
def test_official_file_is_loaded(tmp_path: Path, network: SegModel, before: Weights, layout: str) -> None:
    official = filled(official_swin(NANO))
    content: dict = {"model": official, "optimizer": {}, "epoch": 299} if layout == "model" else official
    if layout == "module":
        content = {f"module.{name}": value for name, value in official.items()}
    torch.save(content, tmp_path / "swin.pth")
    load_swin(network, "swin.pth", "nano")
    own = network.state_dict()
    assert changed(network, before) == {name for name in own if is_swin_parameter(name)}
    assert torch.equal(own["backbone.0.patch_embed.norm.bias"], official["patch_embed.norm.bias"])
    for stage in range(4):
        for name in ("blocks.0.attn.relative_position_bias_table", "blocks.1.mlp.fc2.weight"):
            assert torch.equal(own[f"backbone.{stage}.layers.{name}"], official[f"layers.{stage}.{name}"])
    for stage in range(3):
        name = "downsample.reduction.weight"
        assert torch.equal(own[f"backbone.{stage}.layers.{name}"], official[f"layers.{stage}.{name}"])


def test_timm_file_computes_what_timm_computes(tmp_path: Path, network: SegModel, before: Weights) -> None:
    theirs: Any = SwinTransformer(num_classes=7, **NANO._asdict()).eval()
    fill(theirs.state_dict(), seed=5)
    save(theirs.state_dict(), tmp_path / "pretrained" / "timm" / "swin_nano.test" / "model.safetensors")
    load_swin(network, "timm/swin_nano.test", "nano")
    assert changed(network, before) == {name for name in before if is_swin_parameter(name)}

    # At 224 pixels the first stages need no padding, so both compute the same; timm merges before a stage, not after.
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own, their = network.backbone[0].patch_embed(image), theirs.patch_embed(image)
        for stage in range(3):
            layers = network.backbone[stage].layers
            for block in layers.blocks:
                own = block(own)
            assert layers.downsample is not None
            own, their = layers.downsample(own), theirs.layers[stage + 1].downsample(theirs.layers[stage].blocks(their))
            assert torch.allclose(own, their, atol=1e-4)
    assert own.shape == (1, 7, 7, 256)


@pytest.mark.parametrize("window", [7, 12])
def test_file_of_another_window_is_interpolated(network: SegModel, window: int) -> None:
    official = filled(official_swin(NANO, window=window))
    torch.save({"model": official}, "swin.pth")
    load_swin(network, "swin.pth", "nano")
    own = network.state_dict()
    for stage in range(4):
        name = "blocks.1.attn.relative_position_bias_table"
        table = own[f"backbone.{stage}.layers.{name}"]
        assert table.shape == (169, NANO.num_heads[stage])
        assert torch.equal(table, resize_position_bias(official[f"layers.{stage}.{name}"], 169))
        assert torch.equal(table, official[f"layers.{stage}.{name}"]) == (window == 7)
    assert torch.equal(own["backbone.2.layers.blocks.0.attn.relative_position_index"].unique(), torch.arange(169))


def test_swin_file_of_another_type_names_the_shapes(network: SegModel, before: Weights) -> None:
    torch.save({"model": filled(official_swin(NANO._replace(embed_dim=64, depths=(2, 2, 4, 2))))}, "swin.pth")
    with pytest.raises(UserError) as caught:
        load_swin(network, "swin.pth", "nano")
    message = str(caught.value)
    assert message.startswith("swin.pth does not fit")
    assert "backbone.0.patch_embed.proj.weight is [64, 3, 4, 4], expected [32, 3, 4, 4]" in message
    assert "unexpected (26): backbone.2.layers.blocks.2.attn.proj.bias, " in message
    assert "missing" not in message
    assert not changed(network, before)


def test_swin_file_must_be_whole_and_nothing_else(network: SegModel, before: Weights) -> None:
    official = filled(official_swin(NANO))
    del official["layers.3.blocks.1.norm2.bias"]
    torch.save(official | {"absolute_pos_embed": torch.ones(1)}, "swin.pth")
    with pytest.raises(UserError) as caught:
        load_swin(network, "swin.pth", "nano")
    assert "missing (1): backbone.3.layers.blocks.1.norm2.bias\n" in str(caught.value)
    assert "unexpected (1): absolute_pos_embed\n" in str(caught.value)
    assert not changed(network, before)


def test_a_table_of_no_square_window_is_named(network: SegModel) -> None:
    official = filled(official_swin(NANO))
    official["layers.0.blocks.0.attn.relative_position_bias_table"] = torch.ones(170, 1)
    torch.save(official, "swin.pth")
    with pytest.raises(UserError, match=r"relative_position_bias_table\b.*\[170, 1\].*\[169, 1\]"):
        load_swin(network, "swin.pth", "nano")


# ---------------------------------------------------------------- interpolation of position biases

SIZES = {7: 13 * 13, 8: 15 * 15, 12: 23 * 23}
CHANGES = [(7, 12), (12, 7), (7, 8)]


@pytest.mark.parametrize("window", SIZES)
def test_same_window_keeps_the_table(window: int) -> None:
    biases = torch.randn(SIZES[window], 3)
    assert resize_position_bias(biases, SIZES[window]) is biases


@pytest.mark.parametrize(("old", "new"), CHANGES)
def test_constants_stay_and_heads_do_not_mix(old: int, new: int) -> None:
    constants = torch.tensor([0.5, -3.0, 7.0])
    resized = resize_position_bias(constants.repeat(SIZES[old], 1), SIZES[new])
    assert resized.shape == (SIZES[new], 3)
    assert torch.allclose(resized, constants.repeat(SIZES[new], 1), atol=1e-5)
    biases = torch.randn(SIZES[old], 3)
    by_head = [resize_position_bias(biases[:, head : head + 1], SIZES[new]) for head in range(3)]
    assert torch.allclose(resize_position_bias(biases, SIZES[new]), torch.cat(by_head, dim=1), atol=1e-6)


@pytest.mark.parametrize(("old", "new"), CHANGES)
def test_mirrored_and_turned_tables_stay_so(old: int, new: int) -> None:
    def grid(biases: Tensor, window: int) -> Tensor:
        return biases.view(2 * window - 1, 2 * window - 1)

    biases = torch.randn(SIZES[old], 1, generator=torch.Generator().manual_seed(1))
    plain = grid(resize_position_bias(biases, SIZES[new]), new)
    for transform in (lambda x: x.flip(0), lambda x: x.flip(1), lambda x: x.T):
        transformed = transform(grid(biases, old)).reshape(-1, 1)
        resized = grid(resize_position_bias(transformed, SIZES[new]), new)
        assert torch.allclose(resized, transform(plain), atol=1e-5)
        assert not torch.allclose(resized, plain, atol=1e-2)


@pytest.mark.parametrize(("old", "new"), CHANGES)
def test_biases_are_stretched_as_pixels_of_an_image_are(old: int, new: int) -> None:
    """Half a step in from either edge, as in Swin's own code: `F.interpolate` without aligned corners."""
    old_side, new_side = 2 * old - 1, 2 * new - 1
    ramp = torch.arange(float(old_side)).expand(old_side, old_side)
    expected = ((torch.arange(new_side) + 0.5) * old_side / new_side - 0.5).expand(new_side, new_side)
    inner = slice(new_side // 4, -(new_side // 4))
    for turn in (lambda x: x, lambda x: x.T):
        resized = resize_position_bias(turn(ramp).reshape(-1, 1), SIZES[new]).view(new_side, new_side)
        assert torch.allclose(turn(resized)[:, inner], expected[:, inner], atol=0.06)  # cubics bend a ramp by 0.05


def test_precision_is_kept() -> None:
    assert resize_position_bias(torch.ones(169, 2, dtype=torch.float16), 529).dtype == torch.float16


# ---------------------------------------------------------------- BERT


@pytest.fixture(scope="module")
def bert() -> BertForPreTraining:
    """BERT with twice the layers that stage 1 of the nano network takes."""
    config = BertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        num_attention_heads=2,
        intermediate_size=512,
        max_position_embeddings=64,
        num_hidden_layers=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForPreTraining(config).eval()
    fill(model.state_dict(), seed=9)
    return model


def bert_file(model: BertForPreTraining, path: Path, *, prefix: str = "bert.", old_names: bool = True) -> Path:
    """Write a BERT file; prefix: `bert.` of pre-training files, nothing, or DistributedDataParallel's before it."""
    weights = model.bert.state_dict() if prefix == "" else model.state_dict()
    weights = {f"{prefix.removesuffix('bert.')}{name}": value for name, value in weights.items()}
    if old_names:
        weights[f"{prefix}embeddings.position_ids"] = torch.arange(64)[None]
        for new, old in {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}.items():
            weights = {name.replace(new, old): value for name, value in weights.items()}
    return save(weights, path)


@pytest.mark.parametrize(
    ("filename", "prefix", "old_names"),
    [
        ("model.safetensors", "bert.", True),  # what the hub has
        ("pytorch_model.bin", "bert.", True),
        ("model.safetensors", "", False),
        ("pytorch_model.bin", "", True),
        ("pytorch_model.bin", "module.bert.", False),
    ],
)
def test_bert_file_computes_what_bert_computes(
    tmp_path: Path,
    network: SegModel,
    before: Weights,
    bert: BertForPreTraining,
    filename: str,
    old_names: bool,
    prefix: str,
) -> None:
    path = bert_file(bert, tmp_path / "some" / filename, prefix=prefix, old_names=old_names)
    load_bert(network, str(path))
    from_bert = {n for n in before if n.startswith(("lang_stage1.embeddings.", "lang_stage1.encoder.layer."))}
    assert changed(network, before) == from_bert

    token_ids = torch.randint(VOCAB_SIZE, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = bert.bert(token_ids, output_hidden_states=True).hidden_states
        own = network.lang_stage1(token_ids, torch.zeros(2, 1, 1, 9))
    assert torch.allclose(own, expected[2], atol=1e-4)
    assert not torch.allclose(own, expected[1], atol=1e-1)


def test_old_names_of_bert_are_in_the_fixture(tmp_path: Path, bert: BertForPreTraining) -> None:
    weights = torch.load(bert_file(bert, tmp_path / "x.bin"))
    assert "bert.encoder.layer.3.output.LayerNorm.gamma" in weights
    assert "cls.predictions.transform.LayerNorm.beta" in weights
    assert not any("LayerNorm.weight" in name for name in weights)


def test_bert_base_covers_the_released_language_stage() -> None:
    with torch.device("meta"):
        weights = BertForPreTraining(BertConfig()).state_dict()
    renamed = bert_weights(weights, num_layers=6)
    released = json.loads((REFERENCE / "state_dict_base.json").read_text())
    expected = {
        name: shape
        for name, shape, _ in released
        if name.startswith("lang_stage1.") and not name.startswith("lang_stage1.encoder.proj.")
    }
    assert {name: list(value.shape) for name, value in renamed.items()} == expected


@pytest.mark.parametrize("place", ["pretrained/bert-base-uncased", "bert-base-uncased"])
def test_bert_in_a_local_folder_goes_by_its_name(
    tmp_path: Path, network: SegModel, bert: BertForPreTraining, place: str
) -> None:
    bert_file(bert, tmp_path / place / "pytorch_model.bin")
    load_bert(network, default_bert("base"))
    own = network.state_dict()["lang_stage1.embeddings.word_embeddings.weight"]
    assert torch.equal(own, bert.bert.embeddings.word_embeddings.weight)


def test_a_foreign_bert_file_is_refused_with_the_differences(
    network: SegModel, before: Weights, bert: BertForPreTraining
) -> None:
    weights = dict(bert.state_dict())
    weights["bert.embeddings.word_embeddings.weight"] = torch.ones(50, 128)
    weights["roberta.dense.weight"] = torch.ones(1)
    del weights["bert.encoder.layer.1.attention.output.LayerNorm.weight"]
    torch.save(weights, "bert.bin")
    with pytest.raises(UserError) as caught:
        load_bert(network, "bert.bin")
    message = str(caught.value)
    assert message.startswith("bert.bin does not fit")
    assert "missing (1): lang_stage1.encoder.layer.1.attention.output.LayerNorm.weight\n" in message
    assert "unexpected (1): lang_stage1.roberta.dense.weight\n" in message
    assert "word_embeddings.weight is [50, 128], expected [40, 128]" in message
    assert not changed(network, before)


# ---------------------------------------------------------------- none, defaults, absent files


@pytest.mark.parametrize("load", [lambda n: load_swin(n, "none", "base"), lambda n: load_bert(n, "none")])
def test_none_starts_from_scratch(network: SegModel, before: Weights, load: Callable[[SegModel], None]) -> None:
    load(network)
    assert not changed(network, before)


def test_defaults() -> None:
    assert [default_swin(swin_type) for swin_type in ("nano", *PRETRAINED_TYPES)] == [
        "none",
        "pretrained/swin_tiny_patch4_window7_224.pth",
        "pretrained/swin_small_patch4_window7_224.pth",
        "pretrained/swin_base_patch4_window12_384_22k.pth",
        "pretrained/swin_large_patch4_window12_384_22k.pth",
    ]
    assert (default_bert("nano"), default_bert("base")) == ("none", "bert-base-uncased")


@pytest.mark.parametrize("swin_type", PRETRAINED_TYPES)
def test_a_missing_swin_file_is_named_with_address_and_folder(network: SegModel, swin_type: str) -> None:
    place = default_swin(swin_type)
    with pytest.raises(UserError) as caught:
        load_swin(network, f"./{place}", swin_type)
    message = str(caught.value)
    assert message.startswith(f"--pretrained_swin_weights: there is no file ./{place}. ")
    url = f"https://github.com/SwinTransformer/storage/releases/download/v1.0.0/{Path(place).name}"
    assert f"Download {url} to {place}." in message
    assert "--pretrained_swin_weights none" in message


@pytest.mark.parametrize(
    ("flag", "name", "load"),
    [
        ("--ck_bert", "bert-base-uncased", load_bert),
        ("--ck_bert", "google-bert/bert-base-uncased", load_bert),
        ("--pretrained_swin_weights", "timm/swin_nano.test", lambda n, name: load_swin(n, name, "base")),
    ],
)
def test_offline_the_error_names_the_file_and_the_folder_where_it_is_then_found(
    network: SegModel,
    before: Weights,
    bert: BertForPreTraining,
    flag: str,
    name: str,
    load: Callable[[SegModel, str], None],
) -> None:
    with pytest.raises(UserError) as caught:
        load(network, name)
    message = str(caught.value)
    assert message.startswith(f"{flag}: {name} could not be downloaded from the hub")
    folder = f"pretrained/{name}"
    advice = (
        f"Download model.safetensors or pytorch_model.bin from https://huggingface.co/{name}/tree/main into {folder}."
    )
    assert advice in message
    assert f"{flag} none" in message

    Path(folder).mkdir(parents=True)
    weights = dict(bert.state_dict()) if flag == "--ck_bert" else filled(official_swin(NANO))
    torch.save(weights, f"{folder}/pytorch_model.bin")
    load(network, name)
    assert changed(network, before)


@pytest.mark.parametrize("name", ["nowhere/bert.bin", "bert.safetensors"])
def test_a_bert_path_that_leads_nowhere_names_the_usual_one(network: SegModel, name: str) -> None:
    with pytest.raises(UserError, match=rf"--ck_bert\b.*\b{name}\b.*/bert-base-uncased/"):
        load_bert(network, name)
