"""Loading a trained network: the sources of its tokenizer and its image size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bert.tokenizer import read_vocabulary
from errors import UserError
from tests.helpers import naming
from tests.networks import reference_nano
from trained import open_trained


def weights(folder: Path, **metadata: object) -> Path:
    """Return a file with a small network's weights and metadata."""
    path = folder / "weights.pth"
    torch.save({"model": reference_nano().state_dict(), **metadata}, path)
    return path


def test_the_file_provides_what_the_flags_omit(sample_root: Path, tmp_path: Path) -> None:
    path, vocabulary = tmp_path / "weights.pth", sample_root / "vocab.txt"
    weights(tmp_path, args={"img_size": 64, "bert_tokenizer": str(vocabulary)})
    trained = open_trained(path)
    assert (trained.img_size, len(trained.tokenizer), trained.path) == (64, 1000, path)
    assert not trained.network.training
    assert open_trained(path, img_size=32).img_size == 32
    assert open_trained(weights(tmp_path), bert_tokenizer=str(vocabulary)).img_size == 480


@pytest.mark.slow  # reads two files of weights
def test_the_vocabulary_in_the_file_has_priority(sample_root: Path, tmp_path: Path) -> None:
    words = list(read_vocabulary(sample_root / "vocab.txt"))
    args = {"img_size": 64, "bert_tokenizer": str(tmp_path / "gone.txt")}
    assert len(open_trained(weights(tmp_path, args=args, vocabulary=words)).tokenizer) == 1000
    with pytest.raises(UserError, match=r"--bert_tokenizer: .*gone\.txt"):
        open_trained(weights(tmp_path, args=args))


def test_a_vocabulary_in_another_order_is_refused(sample_root: Path, tmp_path: Path) -> None:
    """As long as that of the weights, it would give every word another meaning without a word about it."""
    words = list(read_vocabulary(sample_root / "vocab.txt"))
    path, other = weights(tmp_path, args={"img_size": 64}, vocabulary=words), tmp_path / "other.txt"
    other.write_text("\n".join([*words[:300], words[301], words[300], *words[302:]]))
    with naming(path, 300, repr(words[300]), repr(words[301]), "--bert_tokenizer"):
        open_trained(path, bert_tokenizer=str(other))
    assert open_trained(path, bert_tokenizer=str(sample_root / "vocab.txt")).tokenizer.words == words


def test_a_tokenizer_with_another_vocabulary_is_refused(sample_root: Path, tmp_path: Path) -> None:
    words = list(read_vocabulary(sample_root / "vocab.txt"))[:500]
    path = weights(tmp_path, vocabulary=words)
    with naming(500, path, 1000, "--bert_tokenizer"):
        open_trained(path)
    with naming("--resume", tmp_path / "none.pth"):
        open_trained(tmp_path / "none.pth")


@pytest.mark.slow  # a training
def test_as_many_tokens_are_read_as_in_the_training(sample_root: Path, tmp_path: Path) -> None:
    """21 if the file is older than the option; for bare weights the usual number of the data."""
    path, words = weights(tmp_path), str(sample_root / "vocab.txt")
    bare = torch.load(path)

    def tokens(saved: dict[str, object], **given: int) -> int:
        torch.save(bare | ({"args": {"img_size": 64} | saved} if saved else {}), path)
        return open_trained(path, bert_tokenizer=words, **given).max_tokens

    assert tokens({"max_tokens": 50}, usual_tokens=22) == 50
    assert tokens({"max_tokens": 50}, max_tokens=30) == 30
    assert tokens({"img_size": 32}, usual_tokens=50) == 21
    assert tokens({}, usual_tokens=50) == 50
    with naming("--max-tokens 65", 64):
        tokens({}, max_tokens=65)
    with naming("args.max_tokens"):
        tokens({"max_tokens": "many"})
