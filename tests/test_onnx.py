"""The network as an ONNX file: what an export checks, and prediction without PyTorch."""

from __future__ import annotations

import importlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

import predict
import predict_onnx
from errors import UserError
from lib.contracts import Output
from lib.evaluation.expected import expected_iou
from lib.files import alone_in
from lib.inputs import normalized_planes
from lib.network.exportable import Graph
from lib.network.resize import upsample
from lib.weights import onnx_file
from lib.weights.__main__ import hash_file, main
from lib.weights.checkpoint import read_checkpoint
from lib.weights.onnx_file import check_batches
from tests.commands import lines
from tests.helpers import naming
from trained import open_trained

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / predict.SAMPLE_WEIGHTS
SENTENCES = ("big orange diamond", "the red circle on the left", "leftmost star", "blue one " * 40)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of the repository, with its alignment maps; exported once for all processes of pytest."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    path = shared / "sample.onnx"
    with alone_in(shared, waiting=lambda: None):
        if not path.exists():
            main(["export", str(WEIGHTS), str(path), "--alignment"])
    return path


SIDE = 8  # of the images of the graph below
ABOUT = {"img_size": SIDE, "mean": [0.5] * 3, "std": [0.5] * 3, "max_tokens": 6}
ABOUT |= {"vocabulary": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red"]}


def write_graph(path: Path, about: object = ABOUT, *, outputs: Mapping[str, list[object]] | None = None) -> Path:
    """Write a graph with the inputs of an export, whose object is all that is redder than blue.

    It has no target if the sentence has more than two words. about: its metadata; a text stands there as it is, None
    for no entry. outputs: shapes by name.
    """
    helper, types, dims = onnx.helper, onnx.TensorProto, onnx.numpy_helper.from_array
    inputs = {"image": (types.FLOAT, ["batch", 3, SIDE, SIDE])}
    inputs |= dict.fromkeys(("token_ids", "attention_mask"), (types.INT64, ["batch", "tokens"]))
    outputs = outputs or {"logits": ["batch", 2, SIDE, SIDE], "no_target": ["batch", 2]}
    constants = {
        "colours": np.array([[0, 0, 9], [9, 0, 0]], np.float32)[..., None, None],  # blue is the background
        "some": np.float32(4.5),  # [CLS], two words and [SEP] are fewer
        "zero": np.float32(0),
        "axis": np.array([1]),
    }
    nodes = [
        helper.make_node("Conv", ["image", "colours"], ["logits"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=types.FLOAT),
        helper.make_node("ReduceSum", ["mask", "axis"], ["count"]),
        helper.make_node("Sub", ["count", "some"], ["many"]),
        helper.make_node("Mul", ["count", "zero"], ["background"]),
        helper.make_node("Concat", ["background", "many"], ["no_target"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, *one) for name, one in inputs.items()],
        [helper.make_tensor_value_info(name, types.FLOAT, shape) for name, shape in outputs.items()],
        [dims(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", onnx_file.OPSET)], ir_version=10)
    if about is not None:
        helper.set_model_props(model, {"crossvlt": about if isinstance(about, str) else json.dumps(about)})
    onnx.save(model, path)
    return path


def half_red() -> Image.Image:
    """Return a picture whose left half is red, and whose right half is blue."""
    picture = Image.new("RGB", (60, 40), (0, 0, 255))
    picture.paste((255, 0, 0), (0, 0, 30, 40))
    return picture


def run_alone(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the house and these libraries alone: onnxruntime, tokenizers, NumPy, Pillow."""
    (folder / "libraries").mkdir()
    for name in predict_onnx.PACKAGES:
        package = Path(importlib.import_module(name).__file__ or "").parent
        libs = {"PIL": "pillow"}.get(name, name) + ".libs"  # of a wheel, beside its package
        for path in (package, package.with_name(libs)):
            if path.is_dir():
                (folder / "libraries" / path.name).symlink_to(path)
    paths = f"import sys; sys.path += [{str(ROOT)!r}, {str(folder / 'libraries')!r}]\n"
    line = [sys.executable, "-I", "-S", "-c", paths + code]  # without the folder of installed packages
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT)


# ---------------------------------------------------------------- without an export


def test_the_exported_graph_is_the_network(nano: torch.nn.Module) -> None:
    """Also on a map that is smaller than a window, and on one whose windows are cut."""
    for size in (20, 56, 64):
        for batch in check_batches(size, 1000, 9):
            with torch.inference_mode():
                torch.testing.assert_close(Graph(nano)(*batch)[0], nano(*batch).logits)


def test_upsampling_without_pytorch_is_the_same() -> None:
    values = np.random.default_rng(0).normal(size=(7, 9)).astype(np.float32)
    for size in ((7, 9), (20, 31), (3, 1), (1, 5)):
        wanted = upsample(torch.from_numpy(values)[None, None], size)[0, 0].numpy()
        np.testing.assert_allclose(predict_onnx.upsampled(values, *size), wanted, atol=1e-5)


def test_the_expected_iou_without_pytorch_is_the_same() -> None:
    logits = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 100
    margin = (logits[0, 1] - logits[0, 0]).numpy()
    assert predict_onnx.expected_iou(margin) == pytest.approx(expected_iou(logits).item(), abs=1e-6)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "PACKAGES", ("onnx", "no_such_package"))
    with naming("no_such_package", "requirements-onnx.txt"):
        main(["export", str(WEIGHTS), str(tmp_path / "a.onnx")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"\x08\x0a nonsense", b"PK\x03\x04", b"version https://git-lfs.github.com/x"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.onnx").write_bytes(content)
    with naming(tmp_path / "odd.onnx"):
        predict_onnx.load(tmp_path / "odd.onnx")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with naming(tmp_path / "gone.onnx"):
        predict_onnx.load(tmp_path / "gone.onnx")


def test_a_graph_finds_the_object_or_none(tmp_path: Path) -> None:
    model = predict_onnx.load(write_graph(tmp_path / "tiny.onnx"), threads=1)
    found = predict_onnx.segment(model, half_red(), "red one")
    assert found.mask.shape == (40, 60) and found.mask[:, :28].all() and not found.mask[:, 32:].any()
    assert found.score > 0.9 and (found.unread, found.no_target) == ("", False)
    found = predict_onnx.segment(model, half_red(), "red " * 5 + "red")
    assert not found.mask.any() and (found.score, found.unread, found.no_target) == (0, "red", True)


def test_only_four_libraries_are_needed(tmp_path: Path) -> None:
    """All others, PyTorch among them, are out of reach."""
    half_red().save(tmp_path / "a.png")
    flags = ["--image", tmp_path / "a.png", "--text", "red", "--out", tmp_path / "out"]
    flags += ["--resume", write_graph(tmp_path / "tiny.onnx"), "--skip-existing"]
    code = (
        "from importlib.util import find_spec\n"
        "assert not any(map(find_spec, ('torch', 'pycocotools', 'tqdm', 'matplotlib', 'onnx', 'safetensors')))\n"
        f"import predict_onnx; predict_onnx.main({list(map(str, flags))!r})\n"
    )
    result = run_alone(tmp_path, code)
    assert result.returncode == 0, result.stderr
    (mask,) = (tmp_path / "out" / "masks").iterdir()
    assert Image.open(mask).size == (60, 40)


def asked(folder: Path, *more: object) -> list[str]:
    """Return the flags for two sentences about two photos, one a line of a file."""
    for name, photo in (("a", half_red()), ("b", half_red().rotate(180))):
        photo.save(folder / f"{name}.png")
    pairs = [(name, text) for name in "ab" for text in ("red", "the left one")]
    lines = [json.dumps({"image": f"{name}.png", "text": text}) for name, text in pairs]
    (folder / "asked.jsonl").write_text("\n".join(lines))
    flags = ["--jsonl", folder / "asked.jsonl", "--out", folder / "out"]
    return list(map(str, [*flags, "--resume", write_graph(folder / "tiny.onnx"), *more]))


def test_results_are_those_of_coco_or_lines(tmp_path: Path) -> None:
    """PyTorch is out of reach, pycocotools is not."""
    runs = [asked(tmp_path, "--json", tmp_path / name) for name in ("found.json", "found.jsonl")]
    code = "import sys\nsys.modules['torch'] = None\nimport predict_onnx\n"
    code += "\n".join(f"predict_onnx.main({flags!r})" for flags in runs)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    coco = json.loads((tmp_path / "found.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [one["file_name"] for one in coco["images"]] == [str(tmp_path / f"{name}.png") for name in "ab"]
    assert len(lines) == len(coco["annotations"]) == 4
    for line, found in zip(lines, coco["annotations"], strict=True):
        assert line == line | {key: found[key] for key in ("segmentation", "bbox", "area", "score", "text")}
        mask = coco_mask.decode(found["segmentation"])
        assert np.array_equal(mask * 255, np.asarray(Image.open(tmp_path / "out" / "masks" / line["mask"])))


def test_a_run_continues_with_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = asked(tmp_path, "--json", tmp_path / "found.jsonl")
    predict_onnx.main(flags)
    lines = (tmp_path / "found.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "found.jsonl").write_text("".join(lines[:3]) + lines[3][:40])  # as a killed run leaves it
    masks = sorted((tmp_path / "out" / "masks").iterdir())
    masks[0].unlink()
    kept = [path.stat().st_ino for path in masks[1:3]]
    capsys.readouterr()
    predict_onnx.main([*flags, "--skip-existing"])
    printed = capsys.readouterr().out
    assert "2 of 4 masks are already" in printed
    assert [path.name for path in masks if path.name in printed] == [masks[0].name, masks[3].name]
    assert [path.stat().st_ino for path in masks[1:3]] == kept
    assert sorted((tmp_path / "found.jsonl").read_text().splitlines(keepends=True)) == sorted(lines)
    (tmp_path / "tiny.onnx").write_bytes(b"gone")  # nothing is left to do but to remove half of a line
    with (tmp_path / "found.jsonl").open("a") as file:
        file.write(lines[0][:40])
    predict_onnx.main([*flags, "--skip-existing"])
    assert sorted((tmp_path / "found.jsonl").read_text().splitlines(keepends=True)) == sorted(lines)


def test_flags_of_results_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = asked(tmp_path)
    with naming("--skip-existing", tmp_path / "found.json"):
        predict_onnx.parse_args([*flags, "--json", str(tmp_path / "found.json"), "--skip-existing"])
    with naming("--image", "--text", "--jsonl"):
        predict_onnx.parse_args([*flags, "--text", "red"])
    monkeypatch.setattr(predict_onnx, "find_spec", lambda name: None if name == "pycocotools" else True)
    with naming("--json", "pip install pycocotools"):
        predict_onnx.parse_args([*flags, "--json", str(tmp_path / "found.json")])


def test_an_onnx_file_is_no_file_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands name the one that reads it; they ask the hub for none."""
    path = write_graph(tmp_path / "tiny.onnx")
    for command in (predict.load, open_trained, read_checkpoint):
        with naming(path, "predict_onnx.py"):
            command(path)
    monkeypatch.chdir(tmp_path)
    with naming("--resume", "gone.onnx", "there is no file"):
        open_trained("gone.onnx")


class Reached(Exception):
    """The export has begun to write a graph."""


def started(monkeypatch: pytest.MonkeyPatch, source: Path, target: Path, *flags: str) -> dict[str, Any]:
    """Export up to the point at which the graph would be written; return the metadata."""
    found: dict[str, Any] = {}

    def stop(_: torch.nn.Module, about: dict[str, Any], **__: object) -> None:
        found.update(about)
        raise Reached

    monkeypatch.setattr("lib.weights.__main__.write_onnx", stop)
    with pytest.raises(Reached):
        main(["export", str(source), str(target), *flags])
    return found


def test_weights_in_the_folder_pretrained_are_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pretrained").mkdir()
    shutil.copy(WEIGHTS, tmp_path / "pretrained" / "sample.safetensors")
    monkeypatch.chdir(tmp_path)
    found = started(monkeypatch, Path("sample.safetensors"), tmp_path / "a.onnx")
    assert found["sha256"] == hash_file(WEIGHTS)


def test_weights_that_float32_lacks_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = read_checkpoint(WEIGHTS)
    weights = checkpoint.weights | {"temp": torch.full_like(checkpoint.weights["temp"], 1e300, dtype=torch.float64)}
    torch.save({"model": weights, "vocabulary": checkpoint.vocabulary}, tmp_path / "large.pth")
    monkeypatch.setattr("lib.weights.__main__.write_onnx", None)
    with naming(tmp_path / "large.pth", "temp"):
        main(["export", str(tmp_path / "large.pth"), str(tmp_path / "a.onnx")])


def stand_in(monkeypatch: pytest.MonkeyPatch, difference: float, rounding: float) -> None:
    """Let graphs be made at once, differ so much from their networks, and let float32 round these so much."""
    proto = SimpleNamespace(SerializeToString=lambda: b"graph")
    made = SimpleNamespace(model=SimpleNamespace(metadata_props={}), model_proto=proto)
    monkeypatch.setattr(onnx_file, "exported", lambda *_: made)
    monkeypatch.setattr(onnx_file, "max_difference", lambda *_: difference)
    monkeypatch.setattr(onnx_file, "own_rounding", lambda *_: rounding)


def written(monkeypatch: pytest.MonkeyPatch, nano: torch.nn.Module, difference: float, rounding: float) -> Any:
    stand_in(monkeypatch, difference, rounding)
    return onnx_file.write_onnx(nano, {"img_size": 20, "max_tokens": 6}, vocab_size=1000, most_tokens=9)


@pytest.mark.parametrize(("difference", "rounding"), [(1e-4, 0.0), (4e-4, 1e-4)])
def test_a_small_difference_is_accepted(
    monkeypatch: pytest.MonkeyPatch, nano: torch.nn.Module, difference: float, rounding: float
) -> None:
    """Up to 1e-4, or up to five times the network's own rounding."""
    assert written(monkeypatch, nano, difference, rounding) == (b"graph", difference)


@pytest.mark.parametrize(("difference", "rounding"), [(1.1e-4, 0.0), (6e-4, 1e-4), (math.nan, 1e-4), (2e-4, math.nan)])
def test_a_large_difference_is_refused(
    monkeypatch: pytest.MonkeyPatch, nano: torch.nn.Module, difference: float, rounding: float
) -> None:
    with pytest.raises(UserError, match=r"\bdiffer\b"):
        written(monkeypatch, nano, difference, rounding)


def test_an_export_that_differs_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the file that was there stays."""
    target = write_graph(tmp_path / "kept.onnx")
    content = target.read_bytes()
    stand_in(monkeypatch, difference=1.0, rounding=0.0)
    with naming(f"{1:.1e}"):
        main(["export", str(WEIGHTS), str(target)])
    assert [path.name for path in tmp_path.iterdir()] == ["kept.onnx"]
    assert target.read_bytes() == content


def test_the_difference_of_a_graph_is_that_of_its_outputs(tmp_path: Path) -> None:
    class Shifted(torch.nn.Module):
        def forward(self, image: torch.Tensor, *_: torch.Tensor, with_alignment: bool) -> Output:
            blue_and_red = torch.stack([9 * image[:, 2], 9 * image[:, 0] - 0.25], 1)
            return Output(blue_and_red, ())

    content = write_graph(tmp_path / "tiny.onnx").read_bytes()
    batches = list(check_batches(SIDE, 6, 6))
    assert onnx_file.max_difference(content, Shifted(), batches, ()) == pytest.approx(0.25, abs=1e-4)


def test_float32_rounds_little(nano: torch.nn.Module) -> None:
    assert 0 < onnx_file.own_rounding(nano, list(check_batches(56, 1000, 9)), ()) < 1e-3


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_onnx, "PACKAGES", ("numpy", "no_such_package"))
    with naming("no_such_package", predict_onnx.INSTALL):
        predict_onnx.parse_args(["--image", "a.png", "--text", "red", "--out", str(tmp_path), "--resume", "a.onnx"])


@pytest.mark.parametrize(
    "about",
    [
        ABOUT | {"img_size": 2 * SIDE},
        ABOUT | {"vocabulary": ["a"]},
        ABOUT | {"mean": "0"},
        ABOUT | {"std": [0, 0, 0]},
        ABOUT | {"max_tokens": 2},
        "__import__('os')",
        [],
        None,
    ],
)
def test_metadata_of_others_are_refused(tmp_path: Path, about: object) -> None:
    with naming(tmp_path / "odd.onnx"):
        predict_onnx.load(write_graph(tmp_path / "odd.onnx", about))


def test_a_graph_with_other_outputs_is_refused(tmp_path: Path) -> None:
    with naming(tmp_path / "odd.onnx", "logits"):
        predict_onnx.load(write_graph(tmp_path / "odd.onnx", outputs={"no_target": ["batch", 2]}))


@pytest.mark.parametrize("problem", ["unreadable", "too large"])
def test_a_run_goes_on_after_a_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: str) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a", "b"):
        half_red().resize((60, 40) if name == "a" else (44, 33)).save(tmp_path / "photos" / f"{name}.png")
    upsampled = predict_onnx.upsampled

    def without_memory(values: np.ndarray, height: int, width: int) -> np.ndarray:
        if width == 44:
            raise MemoryError
        return upsampled(values, height, width)

    if problem == "unreadable":
        (tmp_path / "photos" / "b.png").write_bytes(b"no picture")
    else:
        monkeypatch.setattr(predict_onnx, "upsampled", without_memory)
    flags = ["--image", tmp_path / "photos", "--text", "red", "the left one", "--out", tmp_path / "out"]
    with naming("1 photos were skipped", tmp_path / "photos" / "b.png"):
        predict_onnx.main([*map(str, flags), "--resume", str(write_graph(tmp_path / "tiny.onnx"))])
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 2


def test_skipped_photos_are_named_also_if_a_picture_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"no picture")
    half_red().save(tmp_path / "photos" / "b.png")
    (tmp_path / "out" / "masks" / "000001_b_red.png").mkdir(parents=True)
    flags = ["--image", tmp_path / "photos", "--text", "red", "--out", tmp_path / "out"]
    with naming("000001_b_red.png", tmp_path / "photos" / "a.png"):
        predict_onnx.main([*map(str, flags), "--resume", str(write_graph(tmp_path / "tiny.onnx"))])


# ---------------------------------------------------------------- with one; each needs the export, which takes a while


@pytest.mark.slow
def test_masks_are_those_of_pytorch(exported: Path, few_root: Path) -> None:
    """In 99.99 % of the pixels; also of rotated, grey and odd-sized images."""
    photos: list[Image.Image] = [Image.open(path) for path in sorted(few_root.rglob("*.jpg"))[:12]]
    turned = photos[2].resize((70, 33))
    turned.getexif()[0x0112] = 6
    photos += [photos[0].convert("L"), photos[1].resize((301, 97)), turned]
    model, other = predict_onnx.load(exported, threads=1), predict.load(WEIGHTS)
    n_equal = n_pixels = 0
    for photo in photos:
        for text in SENTENCES:
            found, wanted = predict_onnx.segment(model, photo, text), predict.segment(other, photo, text)
            n_equal += (found.mask == wanted.mask).sum()
            n_pixels += wanted.mask.size
            assert found.score == pytest.approx(wanted.score, abs=0.02)  # a pixel of a small mask may differ
            assert (found.unread, found.no_target) == (wanted.unread, wanted.no_target)
            for one, two in zip(found.alignment, wanted.alignment, strict=True):
                np.testing.assert_allclose(one, two, atol=1e-3)
    assert n_equal >= 0.9999 * n_pixels


@pytest.mark.slow
def test_metadata_tell_everything_but_the_graph(exported: Path) -> None:
    model = onnx.load(exported)
    (entry,) = (entry for entry in model.metadata_props if entry.key == "crossvlt")
    known = json.loads(entry.value)
    assert known["img_size"] == 112 and known["opset"] == model.opset_import[0].version == onnx_file.OPSET
    assert {"mean", "std", "max_tokens", "vocabulary", "network", "weights", "sha256"} <= known.keys()
    shapes = {
        one.name: [dim.dim_param or dim.dim_value for dim in one.type.tensor_type.shape.dim]
        for one in model.graph.input
    }
    assert shapes["image"] == ["batch", 3, 112, 112]
    assert shapes["token_ids"] == shapes["attention_mask"] == ["batch", "tokens"]
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert np.array_equal(normalized_planes(pixels), normalized_planes(pixels, known["mean"], known["std"]))


@pytest.mark.slow
def test_the_page_shows_a_command_that_predicts(
    exported: Path, few_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(exported, tmp_path / "best.onnx")
    shutil.copy(min(few_root.rglob("*.jpg")), tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    (words,) = (words for words in lines((ROOT / "docs/onnx.md").read_text()) if "predict_onnx.py" in words)
    predict_onnx.main(words[2:])
    assert len(list((tmp_path / "out/masks").iterdir())) == 1
