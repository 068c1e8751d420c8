"""The networks that the paper compares itself with: what each one ignores, and that each one trains and travels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import test
import train
from CrossVLT import SegModel
from errors import UserError
from lib.network.complexity import count_flops, count_parameters, describe_size
from lib.network.fusion import Fusion
from lib.network.inference import optimize_for_inference
from lib.network.losses import Criterion
from lib.network.precision import Precision
from lib.training.optim import build_optimizer
from lib.variants import FUSIONS
from lib.weights.checkpoint import Checkpoint
from lib.weights.identify import identify
from predict import load, main
from tests.helpers import mostly_slow, naming
from tests.networks import reference_nano
from tests.reference.inputs import inputs
from tests.training_runs import training_flags
from trained import from_checkpoint

LANGUAGES = ("lang_stage1", "lang_stage2", "lang_stage3", "lang_stage4")
LEFT_OUT = [name for name in FUSIONS if name != "cross"]
ALL = [(fusion, alignment) for fusion in FUSIONS for alignment in (True, False)]


def nano(fusion: str, *, alignment: bool = True, filled: bool = True) -> SegModel:
    """Return a nano variant, with the reference weights or freshly initialised, no dropout, in evaluation."""
    if filled:
        return reference_nano(fusion=fusion, alignment=alignment).eval()
    torch.manual_seed(0)
    options: dict[str, Any] = {"vocab_size": 1000, "dropout": 0.0, "drop_path": 0.0}
    return SegModel("nano", "nano", fusion=fusion, alignment=alignment, **options).eval()


def outputs(model: SegModel, names: tuple[str, ...], batch: tuple[Tensor, ...]) -> list[Any]:
    """Return what some submodules give for a batch, in the order of their calls."""
    found: list[Any] = []
    hooks = [model.get_submodule(name).register_forward_hook(lambda *args: found.append(args[2])) for name in names]
    with torch.no_grad():
        model(*batch)
    for hook in hooks:
        hook.remove()
    assert len(found) == len(names)
    return found


def two_images() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return two batches: other images, the same words."""
    image, *words = inputs(7, 1, 96, 96, 1000)[:3]
    return (image, *words), (inputs(8, 1, 96, 96, 1000)[0], *words)


def two_sentences() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return two batches: the same images, other words."""
    image, *words = inputs(7, 1, 96, 96, 1000)[:3]
    return (image, *words), (image, *inputs(8, 1, 96, 96, 1000)[1:3])


# ---------------------------------------------------------------- what each one ignores


def test_the_words_of_cross_see_the_image_from_stage_2_on() -> None:
    before, after = (outputs(nano("cross"), LANGUAGES, batch) for batch in two_images())
    same = [torch.equal(*pair) for pair in zip(before, after, strict=True)]
    assert same == [True, False, False, False]


@pytest.mark.parametrize("fusion", mostly_slow(LEFT_OUT, always=["none"]))
def test_other_words_never_see_the_image(fusion: str) -> None:
    before, after = (outputs(nano(fusion), LANGUAGES, batch) for batch in two_images())
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.parametrize("fusion", mostly_slow(["cross", "vision"], always=["cross"]))
def test_pixels_see_the_words_at_every_stage(fusion: str) -> None:
    model = nano(fusion)
    for stage in range(4):
        before, after = (outputs(model, (f"backbone.{stage}",), batch)[0] for batch in two_sentences())
        assert not torch.equal(before.skip, after.skip)
        # what the blocks give was fused a stage before
        assert torch.equal(before.pixels, after.pixels) == (stage == 0)


def test_all_pixels_of_vision_look_at_the_finished_text() -> None:
    model, batch = nano("vision"), two_images()[0]
    finished = outputs(model, ("lang_stage4",), batch)[0]
    seen: list[Tensor] = []
    for stage in model.backbone:
        stage.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    with torch.no_grad():
        model(*batch)
    assert len(seen) == 4
    assert all(torch.equal(text, finished) for text in seen)


def test_only_the_last_stage_of_late_sees_the_words() -> None:
    model = nano("late")
    before, after = (outputs(model, tuple(f"backbone.{i}" for i in range(4)), batch) for batch in two_sentences())
    assert all(torch.equal(*pair) for pair in zip(before[3].pixels, after[3].pixels, strict=True))
    assert [torch.equal(one.skip, other.skip) for one, other in zip(before, after, strict=True)] == [True] * 3 + [False]
    assert sum(isinstance(module, Fusion) for module in model.modules()) == 1


def test_no_pixel_of_none_sees_the_words() -> None:
    model = nano("none")
    before, after = (outputs(model, tuple(f"backbone.{i}" for i in range(4)), batch) for batch in two_sentences())
    assert all(torch.equal(one.skip, other.skip) for one, other in zip(before, after, strict=True))
    logits, others = (outputs(model, ("classifier",), batch)[0] for batch in two_sentences())
    assert not torch.allclose(logits, others, atol=1e-3)


def test_the_decoder_of_none_reads_the_first_token_alone() -> None:
    model, batch = nano("none"), two_images()[0]
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda text: text,
        lambda text: torch.cat([text[:, :1], text[:, 1:] + 1], dim=1),
        lambda text: torch.cat([text[:, :1] + 1, text[:, 1:]], dim=1),
    ]
    found = []
    for change in changes:
        hook = model.lang_stage4.register_forward_hook(lambda *args, change=change: change(args[2]))
        with torch.no_grad():
            found.append(model(*batch).logits)
        hook.remove()
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=1e-3)


@pytest.mark.parametrize("fusion", mostly_slow(FUSIONS, always=["cross"]))
def test_alignment_changes_no_logits(fusion: str) -> None:
    batch = two_images()[0]
    with torch.no_grad():
        assert torch.equal(nano(fusion)(*batch).logits, nano(fusion, alignment=False)(*batch).logits)


# ---------------------------------------------------------------- the same stages


@pytest.mark.parametrize(("fusion", "alignment"), ALL)
def test_one_seed_starts_all_variants_alike(fusion: str, alignment: bool) -> None:
    paper = nano("cross", filled=False).state_dict()
    own = nano(fusion, alignment=alignment, filled=False).state_dict()
    blind = ("lang_stage2.", "lang_stage3.", "lang_stage4.") if fusion != "cross" else ()
    shared = [name for name in own.keys() & paper.keys() if not name.startswith(blind)]
    assert all(torch.equal(own[name], paper[name]) for name in shared)
    new = {name for name in own.keys() - paper.keys() if not name.startswith(blind)}
    assert new == ({"classifier.sentence.weight", "classifier.sentence.bias"} if fusion == "none" else set())
    assert any(name.endswith("layers.proj.weight") for name in own) == ("temp" in own) == alignment


@pytest.mark.slow  # builds several networks
@pytest.mark.parametrize("fusion", LEFT_OUT)
def test_blind_language_is_as_deep_and_wide(fusion: str) -> None:
    """Attention, feed-forward, attention, feed-forward in every later stage, of the same widths."""

    def widths(model: SegModel) -> list[list[tuple[int, int]]]:
        inner = ("query", "intermediate.dense", "output.dense", "attention.output.dense")
        return [
            sorted(
                (module.in_features, module.out_features)
                for name, module in model.get_submodule(stage).named_modules()
                if isinstance(module, nn.Linear) and name.endswith(inner)
            )
            for stage in LANGUAGES[1:]
        ]

    assert widths(nano(fusion)) == widths(nano("cross"))
    depth = [len(stage.layers.blocks) for stage in nano(fusion).backbone]
    assert depth == [len(stage.layers.blocks) for stage in nano("cross").backbone]


@pytest.mark.slow  # builds large networks
def test_sizes_are_counted() -> None:
    sizes = {variant: nano(variant[0], alignment=variant[1]) for variant in ALL}
    for fusion in FUSIONS:
        aligned, plain = sizes[fusion, True], sizes[fusion, False]
        # per stage a projection of C_i and one of D_l, both to 256 with bias, and one temperature
        projections = sum(32 * 2**stage * 256 + 256 for stage in range(4)) + 4 * (128 * 256 + 256) + 4
        assert count_parameters(aligned) - count_parameters(plain) == projections
        assert count_flops(aligned, 56) == count_flops(plain, 56)
    flops = {fusion: count_flops(sizes[fusion, True], 56) for fusion in FUSIONS}
    assert min(flops["cross"], flops["vision"]) > flops["late"] > flops["none"]
    model = sizes["cross", True].train()
    assert describe_size(model, 56) == "6,688,052 parameters; 0.3398 GFLOP for an image of 56×56 pixels"
    assert model.training


# ---------------------------------------------------------------- training, files, command lines


@pytest.mark.parametrize(("fusion", "alignment"), mostly_slow(ALL, always=[("cross", True)]))
def test_every_variant_trains(fusion: str, alignment: bool) -> None:
    model = nano(fusion, alignment=alignment, filled=False).train()
    optimizer, criterion = build_optimizer(model, lr=1e-3, weight_decay=1e-2), Criterion()
    *batch, target = inputs(1, 2, 64, 64, 1000)
    totals = []
    for _ in range(6):
        losses = criterion(model(*batch), target)
        losses.total.backward()
        assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
        optimizer.step()
        optimizer.zero_grad()
        totals.append(losses.total.item())
    assert len(losses.alignment) == (4 if alignment else 0)
    assert totals[-1] < 0.9 * totals[0]


@pytest.mark.parametrize(("fusion", "alignment"), mostly_slow(ALL, always=[("vision", True), ("late", False)]))
def test_weights_say_which_variant_they_are(fusion: str, alignment: bool) -> None:
    model = nano(fusion, alignment=alignment)
    found = identify(model.state_dict())
    assert (found["fusion"], found["alignment"]) == (fusion, alignment)
    again = from_checkpoint(Checkpoint(Path("weights.pth"), model.state_dict()))
    batch = two_images()[0]
    with torch.no_grad():
        expected = model(*batch, with_alignment=True)
        output = again(*batch, with_alignment=True)
        prepared = optimize_for_inference(model, Precision("fp32", torch.device("cpu")))(*batch)
    assert torch.equal(output.logits, expected.logits)
    assert len(output.alignment) == len(expected.alignment) == (4 if alignment else 0)
    torch.testing.assert_close(prepared.logits, expected.logits, atol=1e-4, rtol=1e-4)


def test_a_mixture_of_variants_is_refused() -> None:
    weights = nano("cross").state_dict()
    mixed = {name: value for name, value in weights.items() if not name.startswith("backbone.1.layers.attn1")}
    with pytest.raises(ValueError, match=r"language_to_vision_stages=\(0, 2, 3\)"):
        identify(mixed)


@pytest.mark.slow  # writes networks in several layouts
def test_variants_travel_as_folders(tmp_path: Path) -> None:
    model = nano("late", alignment=False)
    model.save_pretrained(tmp_path)
    again = SegModel.from_pretrained(tmp_path)
    assert again.options == model.options
    assert again.options["fusion"] == "late"
    card = (tmp_path / "README.md").read_text()
    assert "fusion late, without alignment." in card
    nano("cross").save_pretrained(tmp_path / "paper")
    assert "This is not the network of the paper" not in (tmp_path / "paper" / "README.md").read_text()


def test_unknown_fusions_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"fusion 'early'.*cross, vision, late, none"):
        SegModel("nano", "nano", fusion="early")


@pytest.fixture(scope="module")
def unaligned(few_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short training with vision-only fusion, without alignment."""
    out = tmp_path_factory.mktemp("unaligned")
    flags = "--epochs 1 --limit-train 8 --limit-val 4 -b 4 -j 0 --fusion vision --no-alignment"
    train.main(training_flags(few_root, out, *flags.split()))
    return out


@pytest.mark.slow  # trains and tests
def test_scripts_train_test_and_predict_variants(
    unaligned: Path, few_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = unaligned / "best_refcoco.pth"
    common = f"--refer_data_root {few_root} --split val -j 0 --device cpu --resume {weights}"
    test.main([*common.split(), "--no-alignment", "--json", f"{unaligned}/val.json"])
    assert (unaligned / "val.json").exists()

    photo = next((few_root / "images").rglob("*.jpg"))
    words = ["--image", str(photo), "--text", "red circle", "--resume", str(weights), "--device", "cpu"]
    main([*words, "--out", f"{unaligned}/out"])
    counts = [len(list((unaligned / "out" / name).iterdir())) for name in ("masks", "overlays", "alignment")]
    assert counts == [1, 1, 0]
    network = load(weights).network
    assert isinstance(network, SegModel) and network.options["alignment"] is False


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--fusion cross", r"--fusion cross: .*best_refcoco\.pth .*vision"),
        ("--fusion late", r"--fusion late: .*best_refcoco\.pth .*vision"),
    ],
)
def test_tests_refuse_another_fusion(unaligned: Path, few_root: Path, flags: str, message: str) -> None:
    common = f"--refer_data_root {few_root} -j 0 --device cpu --resume {unaligned / 'best_refcoco.pth'}"
    with pytest.raises(UserError, match=message):
        test.main([*common.split(), *flags.split()])


def test_tests_refuse_to_call_aligned_weights_unaligned(sample_root: Path, tmp_path: Path) -> None:
    torch.save(nano("cross").state_dict(), tmp_path / "aligned.pth")
    vocabulary = sample_root / "vocab.txt"
    common = f"--refer_data_root {sample_root} --bert_tokenizer {vocabulary} -j 0 --device cpu"
    with naming("--no-alignment", tmp_path / "aligned.pth"):
        test.main([*common.split(), "--resume", f"{tmp_path}/aligned.pth", "--no-alignment"])


def test_a_variant_is_not_continued_as_another(unaligned: Path, sample_root: Path) -> None:
    flags = "--epochs 1 --limit-train 8 --limit-val 4 -b 4 -j 0 --resume auto"
    with pytest.raises(UserError, match=r"fusion .*vision .*cross; alignment .*False .*True"):
        train.main(training_flags(sample_root, unaligned, *flags.split()))
