"""Writing the network as an ONNX file, which `predict_onnx.py` and other programs run without PyTorch.

Inputs: image (batch, 3, S, S) float32, normalised; token_ids and attention_mask (batch, tokens) int64. Outputs: see
`lib.network.exportable.outputs`. The metadata has one entry, ENTRY, with JSON: see `lib.contents.ONNX_ABOUT`. A file is
written only if onnxruntime computes what PyTorch does.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from errors import UserError, first_line
from lib.network.exportable import INPUTS, Graph, outputs

OPSET = 20
ENTRY = "crossvlt"
MOST_DIFFERENCE = 1e-4  # of outputs
# Large outputs are rounded as much by float32 itself. A graph may differ by so many times the network's own rounding.
TIMES_ROUNDING = 5
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INSTALL = "pip install -r requirements-onnx.txt"
LEAST_TOKENS = 3  # [CLS], a word, [SEP]


def check_packages() -> None:
    """Raise UserError with the command that installs what is missing for an export."""
    if lacking := [name for name in PACKAGES if find_spec(name) is None]:
        raise UserError(f"the layout onnx needs {', '.join(lacking)}: {INSTALL}")


def write_onnx(
    network: nn.Module,
    about: Mapping[str, Any],
    *,
    vocab_size: int,
    most_tokens: int,
    scale: tuple[tuple[float, float], ...] = (),
) -> tuple[bytes, float]:
    """Return the content of an ONNX file, and the maximal difference of its outputs to those of the network.

    network: a `SegModel` in evaluation mode, on the CPU. about: the metadata, as in `lib.contents.ONNX_ABOUT`.
    vocab_size, most_tokens: the limits of its token ids and of their number. scale: see `Graph`. Raises UserError if
    the outputs differ by more than MOST_DIFFERENCE and by more than float32 explains, or if the network is too large
    for one file.
    """
    graph = Graph(network, scale)
    size: int = about["img_size"]
    batches = list(check_batches(size, vocab_size, about["max_tokens"]))
    names = list(outputs(call(network, batches[0], scale), scale))
    with quiet(), usual_convolutions(), torch.no_grad():
        program = exported(graph, batches[-1], names, most_tokens)
    program.model.metadata_props[ENTRY] = json.dumps(dict(about))
    try:
        content: bytes = program.model_proto.SerializeToString()
    except Exception as error:  # of protobuf, which has a limit of 2 GB
        raise UserError(f"the network cannot be written as one ONNX file ({first_line(error)})") from error
    difference = max_difference(content, network, batches, scale)
    if not difference <= MOST_DIFFERENCE:  # also if it is NaN
        own = own_rounding(network, batches, scale)
        if not difference <= TIMES_ROUNDING * own:
            problem = f"its outputs differ from the network's by {difference:.1e}, more than {MOST_DIFFERENCE:.0e}"
            raise UserError(f"the ONNX file was not written: {problem}, and float32 rounds them by {own:.1e}")
    return content, difference


def exported(graph: Graph, batch: tuple[Tensor, ...], names: list[str], most_tokens: int) -> torch.onnx.ONNXProgram:
    """Return a graph in PyTorch's form of ONNX, of any batch size and number of tokens."""
    n_samples = torch.export.Dim("batch", min=1)
    n_tokens = torch.export.Dim("tokens", min=LEAST_TOKENS, max=most_tokens)
    texts = {0: n_samples, 1: n_tokens}
    shapes = ({0: n_samples}, texts, texts)
    program = torch.export.export(graph, batch, dynamic_shapes=shapes)
    # Without the exporter's optimizer, which takes minutes: onnxruntime optimizes a graph when it loads it.
    converted = torch.onnx.export(
        program,
        dynamo=True,
        dynamic_shapes=shapes,
        opset_version=OPSET,
        input_names=INPUTS,
        output_names=names,
        optimize=False,
        verbose=False,
    )
    assert converted is not None
    return converted


def check_batches(size: int, vocab_size: int, max_tokens: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield random batches of several sizes and numbers of tokens, with padding, as the inputs of the network."""
    generator = torch.Generator().manual_seed(0)
    for n_samples, n_tokens in ((1, LEAST_TOKENS), (3, max_tokens), (2, (LEAST_TOKENS + max_tokens + 1) // 2)):
        image = torch.randn(n_samples, 3, size, size, generator=generator)
        token_ids = torch.randint(vocab_size, (n_samples, n_tokens), generator=generator)
        mask = torch.ones(n_samples, n_tokens, dtype=torch.int64)
        mask[1:, LEAST_TOKENS:] = 0  # all but the first sentence are short
        yield image, token_ids * mask, mask


def call(network: nn.Module, batch: tuple[Tensor, ...], scale: tuple[tuple[float, float], ...]) -> Any:
    """Return the network's output for a batch; scale: () without alignment maps."""
    with torch.inference_mode():
        return network(*batch, with_alignment=bool(scale))


def max_difference(
    content: bytes,
    network: nn.Module,
    batches: list[tuple[Tensor, Tensor, Tensor]],
    scale: tuple[tuple[float, float], ...],
) -> float:
    """Return the maximal difference of any output between an ONNX file and the network it was made of."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    differences = []
    for batch in batches:
        wanted = outputs(call(network, batch, scale), scale)
        inputs = {name: part.numpy() for name, part in zip(INPUTS, batch, strict=True)}
        found = session.run(list(wanted), inputs)
        differences += [
            (torch.from_numpy(one) - other).abs().max() for one, other in zip(found, wanted.values(), strict=True)
        ]
    return torch.stack(differences).max().item()


def own_rounding(
    network: nn.Module, batches: list[tuple[Tensor, Tensor, Tensor]], scale: tuple[tuple[float, float], ...]
) -> float:
    """Return the maximal difference of any output of the network between float32 and float64."""
    exact = copy.deepcopy(network).double()
    differences = []
    for image, *text in batches:
        found = outputs(call(network, (image, *text), scale), scale)
        wanted = outputs(call(exact, (image.double(), *text), scale), scale)
        differences += [(one - other).abs().max() for one, other in zip(found.values(), wanted.values(), strict=True)]
    return torch.stack(differences).max().item()


@contextmanager
def usual_convolutions() -> Iterator[None]:
    """Give convolutions on GPUs PyTorch's default precision, the only one that `torch.export` can save and restore.

    `lib.network.precision` chooses another. Nothing is computed on a GPU here.
    """
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # made when it is imported
    before = conv.fp32_precision
    conv.fp32_precision = "tf32"
    try:
        yield
    finally:
        conv.fp32_precision = before


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's notes for its developers from the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
