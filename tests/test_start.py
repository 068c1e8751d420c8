"""Starting a training from weights of another network: what is loaded, and what is listed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import train
from CrossVLT import SegModel
from lib.training.run_files import read_state
from lib.weights import __main__ as weights_command
from lib.weights.card import describe_recipe
from lib.weights.checkpoint import read_checkpoint, save_checkpoint
from lib.weights.start import UNKNOWN, WORDS, start_from
from tests.helpers import naming
from tests.networks import fill
from tests.training_runs import ROOT, training_flags

SHIPPED = ROOT / "checkpoints" / "sample_nano.safetensors"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def weights(network: SegModel) -> dict[str, Tensor]:
    """Return the weights of the reference tests for a network."""
    return fill(network.state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Return the names of equal entries."""
    return [name for name in one.keys() & other.keys() if torch.equal(one[name], other[name])]


def test_weights_of_the_same_network_are_loaded_whole() -> None:
    network = SegModel("nano", "nano", vocab_size=40)
    given = weights(network)
    start = start_from(network, given, "weights.pth")
    assert (start.loaded, start.in_part, start.not_fitting, start.not_in_file) == (len(given), {}, {}, [])
    assert len(same(network.state_dict(), given)) == len(given)
    assert str(start) == f"start from weights.pth: {len(given)} of {len(given)} entries of the network loaded"


def test_what_does_not_fit_is_listed_with_the_reason_and_left_as_it_is() -> None:
    """Another vocabulary, a damaged number, an entry of no network, and a head that the file does not have."""
    given = weights(SegModel("nano", "nano", vocab_size=40))
    extra = "pooler.weight"
    broken = next(name for name in sorted(given) if name.startswith("classifier.") and given[name].dim() == 4)
    given[broken][0] = torch.nan
    given[extra] = torch.zeros(3)
    network = SegModel("nano", "nano", vocab_size=50, no_target_head=True)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    start = start_from(network, given, "weights.pth")
    assert start.not_fitting.keys() == {WORDS, broken, extra}
    assert start.not_fitting[extra] == UNKNOWN
    for size in (40, 50):
        assert str(size) in start.not_fitting[WORDS]
    assert start.not_in_file
    assert all(name.startswith("no_target_head.") for name in start.not_in_file)
    for name in (WORDS, broken, *start.not_in_file):
        assert torch.equal(network.state_dict()[name], before[name])
        assert name in str(start)


def test_word_embeddings_follow_the_words() -> None:
    """The vocabularies have the same size, but another order and another word."""
    given = weights(SegModel("nano", "nano", vocab_size=7))
    network = SegModel("nano", "nano", vocab_size=7)
    before = network.state_dict()[WORDS].clone()
    start = start_from(
        network, given, "weights.pth", words=[*SPECIAL, "dog", "cat"], own_words=[*SPECIAL, "cat", "bird"]
    )
    after = network.state_dict()[WORDS]
    assert torch.equal(after[:5], given[WORDS][:5])
    assert torch.equal(after[5], given[WORDS][6])
    assert torch.equal(after[6], before[6])
    assert start.in_part.keys() == {WORDS}
    assert "6 of 7 words" in str(start)


def test_a_file_of_which_nothing_fits_is_refused() -> None:
    with naming("--init swin.pth", "--pretrained_swin_weights"):
        start_from(SegModel("nano", "nano", vocab_size=7), {"layers.0.weight": torch.zeros(2)}, "swin.pth")


def test_a_training_starts_from_the_shipped_network(
    few_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the learning rate 0 its weights stay those of the file; run file, state and model card name it."""
    quick = ("--epochs", 1, "--limit-train", 2, "--limit-val", 2, "--workers", 0, "-b", 2, "--lr", 0)
    train.main(training_flags(few_root, tmp_path, *quick, "--init", SHIPPED))
    assert f"start from {SHIPPED}" in capsys.readouterr().out
    trained, shipped = read_checkpoint(tmp_path / "last_refcoco.pth"), read_checkpoint(SHIPPED)
    parameters = [name for name in shipped.weights if "running_" not in name and "num_batches" not in name]
    # The words of the two vocabularies stand in other rows; there is a bias only with --align-prior.
    others = {"lang_stage1.embeddings.word_embeddings.weight", "align_bias"}
    assert set(parameters) - set(same(trained.weights, shipped.weights)) == others
    run = json.loads((tmp_path / "run_refcoco.json").read_text())
    assert run["start"]["source"] == run["options"]["init"] == str(SHIPPED)
    assert f"- init: {SHIPPED}" in describe_recipe(trained.args)
    # What is exported for others does not tell where the file lay on this machine.
    weights_command.main(["export", str(tmp_path / "last_refcoco.pth"), str(tmp_path / "for_others.safetensors")])
    assert read_checkpoint(tmp_path / "for_others.safetensors").args["init"] == SHIPPED.name


def test_by_default_no_pretrained_file_is_read() -> None:
    args = train.parse_args(["--init", str(SHIPPED)])
    assert train.pretrained_names(args) == ("none", "none")
    named = train.parse_args(["--init", str(SHIPPED), "--ck_bert", "bert.bin"])
    assert train.pretrained_names(named) == ("none", "bert.bin")


@pytest.mark.parametrize("kind", ["safetensors", "own", "old pickle"])
def test_resuming_from_weights_alone_leads_to_init(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights.pth"
    if kind == "safetensors":
        path = SHIPPED
    elif kind == "own":
        save_checkpoint(path, {"model": {"weight": torch.zeros(1)}})
    else:
        torch.save({"weight": torch.zeros(1)}, path, _use_new_zipfile_serialization=False)
    with naming(path, "only weights", f"--init {path}"):
        read_state(path)
