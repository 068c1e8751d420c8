"""The network as an ONNX file: what an export checks, and prediction without PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import predict
import predict_onnx
from errors import UserError
from lib.evaluation.expected import expected_iou
from lib.inputs import normalized_planes
from lib.network.exportable import Graph
from lib.network.resize import upsample
from lib.weights import onnx_file
from lib.weights.__main__ import main
from lib.weights.onnx_file import check_batches
from tests.helpers import naming

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / predict.SAMPLE_WEIGHTS
SENTENCES = ("big orange diamond", "the red circle on the left", "leftmost star", "blue one " * 40)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of the repository, with its alignment maps."""
    path = tmp_path_factory.mktemp("onnx") / "sample.onnx"
    main(["export", str(WEIGHTS), str(path), "--alignment"])
    return path


def changed(exported: Path, path: Path, about: object) -> Path:
    """Write an export with other metadata; a text stands there as it is, None for no entry."""
    model = onnx.load(exported)
    del model.metadata_props[:]
    if about is not None:
        text = about if isinstance(about, str) else json.dumps(about)
        onnx.helper.set_model_props(model, {"crossvlt": text})
    onnx.save(model, path)
    return path


def about(exported: Path) -> dict:
    (entry,) = (entry for entry in onnx.load(exported).metadata_props if entry.key == "crossvlt")
    return json.loads(entry.value)


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


# ---------------------------------------------------------------- with one; each needs the export, which takes a while


@pytest.mark.night
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


@pytest.mark.night
@pytest.mark.slow
def test_metadata_tell_everything_but_the_graph(exported: Path) -> None:
    known, model = about(exported), onnx.load(exported)
    assert known["img_size"] == 56 and known["opset"] == model.opset_import[0].version == onnx_file.OPSET
    assert {"mean", "std", "max_tokens", "vocabulary", "network", "weights", "sha256"} <= known.keys()
    shapes = {
        one.name: [dim.dim_param or dim.dim_value for dim in one.type.tensor_type.shape.dim]
        for one in model.graph.input
    }
    assert shapes["image"] == ["batch", 3, 56, 56]
    assert shapes["token_ids"] == shapes["attention_mask"] == ["batch", "tokens"]
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert np.array_equal(normalized_planes(pixels), normalized_planes(pixels, known["mean"], known["std"]))


@pytest.mark.night
@pytest.mark.slow
def test_pytorch_is_not_imported(exported: Path, tmp_path: Path) -> None:
    """Nor anything else but onnxruntime, tokenizers, NumPy and Pillow: all other libraries are out of reach."""
    Image.new("RGB", (60, 40), (200, 30, 30)).save(tmp_path / "a.png")
    flags = ["--image", tmp_path / "a.png", "--text", "red", "--out", tmp_path / "out", "--resume", exported]
    code = (
        "import sys\n"
        "for name in ('torch', 'pycocotools', 'tqdm', 'matplotlib', 'huggingface_hub', 'safetensors', 'skimage'):\n"
        "    sys.modules[name] = None\n"
        f"import predict_onnx; predict_onnx.main({list(map(str, flags))!r})\n"
        "assert not any(name.partition('.')[0] == 'torch' for name, one in sys.modules.items() if one)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    (mask,) = (tmp_path / "out" / "masks").iterdir()
    assert Image.open(mask).size == (60, 40)


@pytest.mark.night
@pytest.mark.slow
def test_metadata_of_others_are_refused(exported: Path, tmp_path: Path) -> None:
    good = about(exported)
    bad: dict[str, object] = {
        "size": good | {"img_size": 64},
        "words": good | {"vocabulary": ["a"]},
        "mean": good | {"mean": "0"},
    }
    bad |= {"text": "__import__('os')", "list": [], "none": None, "std": good | {"std": [0, 0, 0]}}
    for name, content in bad.items():
        path = changed(exported, tmp_path / f"{name}.onnx", content)
        with naming(path):
            predict_onnx.load(path)


@pytest.mark.night
@pytest.mark.slow
def test_an_export_that_differs_is_refused(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left of it, and the file that was there stays."""
    target = tmp_path / "kept.onnx"
    content = exported.read_bytes()
    target.write_bytes(content)
    made = SimpleNamespace(
        model=SimpleNamespace(metadata_props={}), model_proto=SimpleNamespace(SerializeToString=lambda: content)
    )
    monkeypatch.setattr(onnx_file, "exported", lambda *_: made)  # which takes a minute
    monkeypatch.setattr(onnx_file, "MOST_DIFFERENCE", 0.0)
    monkeypatch.setattr(onnx_file, "TIMES_ROUNDING", 0.0)
    with pytest.raises(UserError, match=r"\bdiffer\b"):
        main(["export", str(WEIGHTS), str(target)])
    assert [path.name for path in tmp_path.iterdir()] == ["kept.onnx"]
    assert target.read_bytes() == content


@pytest.mark.night
@pytest.mark.slow
def test_an_unreadable_photo_is_skipped(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "b.png").write_bytes(b"no picture")
    flags = ["--image", tmp_path / "photos", "--text", "red", "the left one", "--out", tmp_path / "out"]
    with naming(tmp_path / "photos" / "b.png"):
        predict_onnx.main([*map(str, flags), "--resume", str(exported)])
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 2
