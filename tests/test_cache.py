"""`--cache`: the pixels of the uncached way, or a refusal that says why."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import platform
import shutil
import signal
import subprocess
import zlib
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import utils
from bert.tokenizer import WordPiece, build_tokenizer
from data import cache as cache_module
from data.cache import ADVICE, Cache, Contents, Rows, find_rows, open_cache
from data.dataset_refer_bert import ReferDataset
from data.loaders import evaluation_loader
from data.transforms import PairTransform
from errors import UserError, user_message
from refer.refer import REFER
from tests.helpers import mostly_slow, naming, small_disk
from tests.refer_fixture import (
    HEIGHT,
    IMAGES,
    WIDTH,
    box,
    tiny_instances,
    tiny_refs,
    write_images,
    write_refer,
    write_vocabulary,
)
from tests.training_runs import launch

SIZE = 9  # a row of a mask takes two bytes, the second one hardly used


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data of `root` and the cache of `built`, which takes processes to build."""
    folder = tmp_path_factory.mktemp("kept")
    for path in write_images(folder / "data").iterdir():
        Image.open(path).save(path, format="BMP")
    opened(write_refer(folder / "data"), folder / "refcoco.h5")
    return folder


@pytest.fixture
def root(kept: Path, tmp_path: Path) -> Path:
    """Three images, six objects, uncompressed: any pixels take as many bytes."""
    return Path(shutil.copytree(kept / "data", tmp_path / "data"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "refcoco.h5"


@pytest.fixture
def built(root: Path, file: Path, kept: Path) -> Path:
    """The cache of `root`, which is as good as one that was built here."""
    file.parent.mkdir()
    shutil.copy(kept / "refcoco.h5", file)
    return file


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> WordPiece:
    return build_tokenizer(str(write_vocabulary(tmp_path_factory.mktemp("bert") / "vocab.txt")))


def opened(root: Path, file: Path, size: int = SIZE, workers: int = 1) -> Cache:
    return open_cache(file, REFER(root), size, workers)


def everything(cache: Cache) -> list[np.ndarray]:
    """Read every row."""
    images = [cache.image(row) for row in range(cache.layout.n_images)]
    return images + [cache.mask(row) for row in range(cache.layout.n_masks)]


def fresh(root: Path, size: int = SIZE) -> list[np.ndarray]:
    """What every row must be, from the files."""
    refer, transform = REFER(root), PairTransform(size)
    refs = refer.loadRefs(refer.getRefIds())
    paths = [
        Path(refer.IMAGE_DIR, refer.Imgs[image_id]["file_name"]) for image_id in refer.getImgIds(refer.getRefIds())
    ]
    images = [transform.resize_image(Image.open(path).convert("RGB")) for path in paths]
    return images + [transform.resize_mask(refer.getMask(ref)["mask"]) for ref in refs]


def assert_equal(arrays: list[np.ndarray], others: list[np.ndarray]) -> None:
    assert len(arrays) == len(others)
    for array, other in zip(arrays, others, strict=True):
        assert (array.dtype, array.shape) == (other.dtype, other.shape) == (np.uint8, other.shape)
        assert np.array_equal(array, other)


def assert_same_samples(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    """Compare samples, or batches."""
    for values, expected in zip(one[:4], other[:4], strict=True):
        if isinstance(expected, list):  # targets of different sizes
            assert all(torch.equal(*pair) for pair in zip(values, expected, strict=True))
        else:
            assert torch.equal(values, expected)


def no_image(*_: object) -> None:
    raise AssertionError("an image was decoded")


# ---------------------------------------------------------------- the same pixels


@pytest.mark.parametrize("size", [1, 8, 9, 50])
def test_rows_are_what_the_files_give(root: Path, file: Path, size: int) -> None:
    assert_equal(everything(opened(root, file, size)), fresh(root, size))
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(("workers", "resize_mask"), mostly_slow(product((0, 2), (True, False)), always=[(0, True)]))
def test_samples_are_those_of_the_files(
    sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, resize_mask: bool
) -> None:
    """In training, in evaluation, and with masks at their own size; from one file for all splits."""
    refer, transform = REFER(sample_root), PairTransform(24, resize_mask=resize_mask)
    tokenizer = build_tokenizer(str(sample_root / "vocab.txt"))
    cache = open_cache(tmp_path / "c.h5", refer, 24, 2)
    for split in ("train", "testB"):
        plain, cached = (ReferDataset(refer, split, tokenizer, transform, cache=source) for source in (None, cache))
        assert plain.fingerprint() == cached.fingerprint()
        chosen = range(0, len(plain), 7)
        expected = [plain[index] for index in chosen]
        scored = list(evaluation_loader(plain, batch_size=4, workers=0, pin_memory=False))
        with monkeypatch.context() as patch:
            patch.setattr("data.objects.open_image", no_image)
            samples = list(DataLoader(cached, batch_size=None, sampler=chosen, num_workers=workers))
            batches = list(evaluation_loader(cached, batch_size=4, workers=workers, pin_memory=False))
        for one, other in zip([*samples, *batches], [*expected, *scored], strict=True):
            assert_same_samples(one, other)


def test_pictures_and_the_shuffled_control(root: Path, built: Path, tokenizer: WordPiece) -> None:
    refer = REFER(root)
    options: dict[str, Any] = {"tokenizer": tokenizer, "transform": PairTransform(SIZE)}
    plain = ReferDataset(refer, "train", **options)
    cached = ReferDataset(refer, "train", **options, cache=opened(root, built))
    image, mask = cached.load(2)
    assert (image.size, mask.shape) == ((WIDTH, HEIGHT), (HEIGHT, WIDTH))
    for index in range(len(plain)):
        assert_same_samples(*(dataset.with_shuffled_expressions(3)[index] for dataset in (cached, plain)))
    with pytest.raises(ValueError, match=r"\b9\b.*\b8\b"):
        ReferDataset(refer, "train", tokenizer, PairTransform(8), cache=opened(root, built))


def test_rows_are_in_the_order_of_the_refs(root: Path) -> None:
    refer = REFER(root)
    refs = refer.loadRefs([6, 1, 4])
    assert find_rows(refer, refs) == [Rows(2, 5), Rows(0, 0), Rows(1, 3)]


def test_any_number_of_workers_writes_the_same(root: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{workers}.h5" for workers in (0, 1, 2)]
    for workers, file in enumerate(files):
        opened(root, file, workers=workers)
    first, *others = map(content_of, files)
    assert others == [first, first]


def content_of(file: Path) -> dict[str, Any]:
    """Return all arrays and attributes of a cache; older versions of HDF5 also write the time into the file."""
    with h5py.File(file) as content:
        arrays = {name: content[name][:].tolist() for name in content}
        return arrays | {f"attribute {name}": np.asarray(value).tolist() for name, value in content.attrs.items()}


def test_a_row_is_read_at_once_and_as_it_is(built: Path) -> None:
    with h5py.File(built) as content:
        for name, shape in (("images", (3, SIZE, SIZE, 3)), ("masks", (6, SIZE, 2))):
            array = content[name]
            assert (array.shape, array.dtype, array.chunks) == (shape, np.uint8, (1, *shape[1:]))
            assert (array.fletcher32, array.compression, array.shuffle) == (True, None, False)


class Readers(Dataset):
    """Who opened the file that a row was read from."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache

    def __getitem__(self, row: int) -> tuple[int, int, torch.Tensor]:
        image = self.cache.image(row)
        return os.getpid(), self.cache._process, torch.from_numpy(image)


def test_every_process_opens_the_file_for_itself(root: Path, built: Path) -> None:
    """Also one forked from a process that has it open."""
    cache = opened(root, built)
    expected = everything(cache)
    loader = DataLoader(Readers(cache), batch_size=None, sampler=[0, 1, 2, 0, 1, 2], num_workers=2)
    for number, (process, opener, image) in enumerate(loader):
        assert process == opener != os.getpid()
        assert np.array_equal(image, expected[number % 3])
    assert_equal(everything(cache), expected)
    assert_equal(everything(pickle.loads(pickle.dumps(cache))), expected)


# ---------------------------------------------------------------- whether it is still the data set's


def test_a_copy_of_the_data_is_as_good(root: Path, built: Path, tmp_path: Path) -> None:
    """Another folder, other times of change."""
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    before = built.read_bytes()
    opened(tmp_path / "copy", built)
    assert built.read_bytes() == before


def move_a_point(root: Path) -> None:
    instances = tiny_instances()
    instances["annotations"][3]["segmentation"] = [box(5, 5, 10, 9)]
    write_refer(root, instances=instances)


def rename_an_image(root: Path) -> None:
    instances = tiny_instances()
    instances["images"][1]["file_name"] = "4.png"
    shutil.copy(root / IMAGES / "2.png", root / IMAGES / "4.png")
    write_refer(root, instances=instances)


def lengthen_an_image(root: Path) -> None:
    with (root / IMAGES / "3.png").open("ab") as file:
        file.write(b"!")


def drop_an_object(root: Path) -> None:
    write_refer(root, tiny_refs()[:-1])


def swap_two_objects(root: Path) -> None:
    refs = tiny_refs()
    write_refer(root, [refs[1], refs[0], *refs[2:]])


@pytest.mark.parametrize("change", [move_a_point, rename_an_image, lengthen_an_image, drop_an_object, swap_two_objects])
def test_a_cache_of_data_that_changed_is_refused(root: Path, built: Path, change: Callable[[Path], None]) -> None:
    change(root)
    refused(root, built, r"refcoco \(unc\) in .*data\b")


def test_a_cache_of_another_data_set_is_refused(root: Path, built: Path) -> None:
    write_refer(root, dataset="refcoco+")
    with pytest.raises(UserError, match=r"refcoco\+ \(unc\)"):
        open_cache(built, REFER(root, "refcoco+"), SIZE, 1)


def test_a_cache_of_the_other_overlap_is_refused(root: Path, built: Path, tokenizer: WordPiece) -> None:
    """In both directions; the fingerprint of the training also differs."""
    joined, plain = REFER(root, overlap="object"), REFER(root)
    with pytest.raises(UserError, match="--overlap"):
        open_cache(built, joined, SIZE, 1)
    other = built.with_name("joined.h5")
    open_cache(other, joined, SIZE, 1)
    refused(root, other, "--overlap")
    options: dict[str, Any] = {"split": "train", "tokenizer": tokenizer, "transform": PairTransform(SIZE)}
    assert ReferDataset(joined, **options).fingerprint() != ReferDataset(plain, **options).fingerprint()


def test_an_image_of_other_content_but_equal_length_is_noticed(root: Path, built: Path) -> None:
    path = root / IMAGES / "2.png"
    length = path.stat().st_size
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(path, format="BMP")
    assert path.stat().st_size == length
    refused(root, built, r"2\.png")


def test_a_library_that_resizes_differently_is_noticed(
    root: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PairTransform, "resize_mask", lambda self, mask: np.zeros((SIZE, SIZE), np.uint8))
    refused(root, built, "Pillow .*pycocotools")


def test_another_size_is_refused_with_both_named(root: Path, built: Path) -> None:
    with naming(built, "9×9", "--img_size", 10, ADVICE):
        opened(root, built, size=10)


# ---------------------------------------------------------------- files that are no sound cache


def refused(root: Path, file: Path, problem: str) -> None:
    """A message names the file, the problem and the way out; the file is left as it is."""
    before = file.read_bytes() if file.is_file() else None
    with pytest.raises(UserError, match=f"(?s){problem}") as caught:
        everything(opened(root, file))
    assert str(file) in str(caught.value)
    assert before is None or ADVICE in str(caught.value)
    assert [path.name for path in file.parent.glob(".*")] == []
    assert (file.read_bytes() if file.is_file() else None) == before


@pytest.mark.parametrize("content", [b"", b"no HDF5", b"\x89HDF\r\n\x1a\n", bytes(5000)])
def test_files_other_than_hdf5_are_refused(root: Path, file: Path, content: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    refused(root, file, "is damaged or cannot be read")


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.999])
def test_a_file_cut_short_is_refused(root: Path, built: Path, share: float) -> None:
    content = built.read_bytes()
    built.write_bytes(content[: int(share * len(content))])
    refused(root, built, "is damaged or cannot be read")


def test_a_folder_is_refused(root: Path, file: Path) -> None:
    file.mkdir(parents=True)
    refused(root, file, "is no file")


def forget(name: str) -> Callable[[h5py.File, Path], None]:
    return lambda content, _: content.attrs.__delitem__(name)


def note(name: str, value: Any) -> Callable[[h5py.File, Path], None]:
    return lambda content, _: content.attrs.__setitem__(name, value)


def replace(name: str, put: Callable[[h5py.File, np.ndarray, Path], None]) -> Callable[[h5py.File, Path], None]:
    """Put something else in the place of an array, given its values."""

    def change(content: h5py.File, folder: Path) -> None:
        values = content[name][()]
        del content[name]
        put(content, values, folder)

    return change


def array(name: str, convert: Callable[[np.ndarray], np.ndarray] = np.asarray, **options: Any) -> Callable:
    """Write the values again, in another way."""

    def put(content: h5py.File, values: np.ndarray, _: Path) -> None:
        chosen = {"chunks": (1, *values.shape[1:]), "fletcher32": True} | options
        content.create_dataset(name, data=convert(values), **chosen)

    return replace(name, put)


def elsewhere(content: h5py.File, values: np.ndarray, folder: Path) -> Path:
    """Keep the values in another file, and return it."""
    path = folder / "other.h5"
    with h5py.File(path, "w") as other:
        other["images"] = values
    return path


def soft_link(content: h5py.File, values: np.ndarray, _: Path) -> None:
    content["elsewhere"] = values
    content["images"] = h5py.SoftLink("/elsewhere")


def external_link(content: h5py.File, values: np.ndarray, folder: Path) -> None:
    content["images"] = h5py.ExternalLink(elsewhere(content, values, folder), "images")


def virtual_array(content: h5py.File, values: np.ndarray, folder: Path) -> None:
    layout = h5py.VirtualLayout(shape=values.shape, dtype=values.dtype)
    layout[:] = h5py.VirtualSource(elsewhere(content, values, folder), "images", shape=values.shape)
    content.create_virtual_dataset("images", layout)


def external_array(content: h5py.File, values: np.ndarray, folder: Path) -> None:
    path = folder / "raw"
    path.write_bytes(values.tobytes())
    content.create_dataset("images", values.shape, values.dtype, external=[(str(path), 0, values.nbytes)])


def group(content: h5py.File, values: np.ndarray, folder: Path) -> None:
    content.create_group("images")


def half_written(content: h5py.File, values: np.ndarray, folder: Path) -> None:
    made = content.create_dataset("images", values.shape, "u1", chunks=(1, *values.shape[1:]), fletcher32=True)
    made[:2] = values[:2]


CHANGES = {
    "nothing of ours": (lambda content, _: content.attrs.clear(), "train.py or test.py"),
    "a version that is no number": (note("version", "1"), "train.py or test.py"),
    "a fingerprint of any length": (note("source", "0" * 64), "train.py or test.py"),
    "two sizes": (note("img_size", np.array([9, 9])), "train.py or test.py"),
    "another version": (note("version", np.int64(2)), r"version 2\b.* version 1\b"),
    "another source": (note("source", np.bytes_("0" * 64)), r"refcoco \(unc\)"),
    "no end": (forget("finished"), "its end"),
    "an array less": (lambda content, _: content.__delitem__("masks"), "'masks' is missing"),
    "a soft link": (replace("images", soft_link), "'images' .*link"),
    "a link to another file": (replace("images", external_link), "'images' .*link"),
    "a group": (replace("images", group), "'images' is no array"),
    "a virtual array": (replace("images", virtual_array), "'images' is not stored in this file"),
    "an array in another file": (replace("images", external_array), "'images' is not stored in this file"),
    "an array in one piece": (array("images", chunks=None, fletcher32=False), "'images' is not stored .* in chunks"),
    "no checksums": (array("images", fletcher32=False), "'images' has no checksums"),
    "compressed": (array("images", compression="gzip"), "'images' has no checksums, or is compressed"),
    "numbers of another kind": (
        array("images", lambda values: values.astype(np.int8)),
        r"'images' is \(3, 9, 9, 3\) int8, expected .* uint8",
    ),
    "a row too few": (array("masks", lambda values: values[1:]), r"'masks' is \(5, 9, 2\) uint8, expected \(6, 9, 2\)"),
    "other chunks": (array("masks", chunks=(2, 9, 2)), "'masks' is"),
    "rows never written": (replace("images", half_written), "'images' has 2 chunks of 3"),
    "other pixels": (array("images", lambda values: values ^ 1), "row 0 .*images .*checksum"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_hdf5_files_other_than_caches_are_refused(root: Path, built: Path, tmp_path: Path, change: str) -> None:
    spoil, problem = CHANGES[change]
    with h5py.File(built, "r+", libver="latest") as content:
        spoil(content, tmp_path)
    refused(root, built, problem)


def test_the_unchanged_cache_is_accepted(root: Path, built: Path, tmp_path: Path) -> None:
    """Otherwise the test above might see its own tools refused."""
    with h5py.File(built, "r+", libver="latest") as content:
        array("images")(content, tmp_path)
    assert_equal(everything(opened(root, built)), fresh(root))


@pytest.mark.slow  # reads hundreds of damaged files
def test_a_flipped_bit_gives_an_error_or_the_same_pixels(root: Path, built: Path) -> None:
    content = built.read_bytes()
    cache = Cache(built, Contents(REFER(root), SIZE).layout())
    expected, refusals, tries = everything(cache), 0, range(0, 8 * len(content), 61)
    for bit in tries:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        cache.close()
        built.write_bytes(damaged)
        try:
            assert_equal(everything(cache), expected)
        except UserError as error:
            assert "is damaged or cannot be read" in str(error)
            refusals += 1
    assert refusals > len(tries) / 2


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_bytes_lost_to_zeros_are_noticed(root: Path, file: Path, share: float) -> None:
    """In a white image, or a whole row with its checksum: HDF5 alone takes either for sound."""
    for path in (root / IMAGES).iterdir():
        Image.new("RGB", (WIDTH, HEIGHT), "white").save(path, format="BMP")
    cache = opened(root, file)
    with h5py.File(file) as content:
        place = content["images"].id.get_chunk_info(0)
    length = int(share * place.size) // 4 * 4 or place.size
    with file.open("r+b") as content:
        content.seek(place.byte_offset)
        content.write(bytes(place.size if share == 1 else length))
    with h5py.File(file) as content:
        assert not content["images"][0].all(), "HDF5 reads zeros instead of white"
    with pytest.raises(UserError, match=r"row 0 .*images .*checksum"):
        cache.image(0)


def test_a_file_that_vanishes_is_named(root: Path, built: Path) -> None:
    cache = opened(root, built)
    built.unlink()
    with pytest.raises(UserError, match=r"refcoco\.h5 is no file \(any more\)"):
        cache.image(0)


# ---------------------------------------------------------------- building that fails


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:40])])
def test_an_image_that_cannot_be_read_is_named_as_without_a_cache(
    root: Path, file: Path, tokenizer: WordPiece, damage: Callable[[Path], object]
) -> None:
    damage(root / IMAGES / "2.png")
    with pytest.raises(UserError) as caught:
        opened(root, file)
    with pytest.raises(UserError) as plain:
        ReferDataset(REFER(root), "val", tokenizer, PairTransform(SIZE))[0]
    assert user_message(caught.value) == str(plain.value)
    assert not file.parent.exists() or left(file.parent) == []


def test_an_image_of_another_size_than_its_masks_is_named(root: Path, file: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(root / IMAGES / "2.png")
    with pytest.raises(UserError, match=rf"2\.png is {WIDTH}×31 pixels, but the mask of object ref_id 3 "):
        opened(root, file)
    assert left(file.parent) == []


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_full_disk_leaves_nothing_behind(root: Path, file: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    file.parent.mkdir()
    (file.parent / "neighbour").write_text("unharmed")
    allocate = cache_module._allocate

    def crowded(*arguments: Any) -> None:
        with small_disk(size):
            allocate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "_allocate", crowded)
        with naming("--cache", file, "File too large"):
            opened(root, file)
    assert left(file.parent) == ["neighbour"]
    assert_equal(everything(opened(root, file)), fresh(root))


def test_a_failure_in_the_middle_leaves_nothing_behind(root: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("data.cache.zlib.crc32", fail)
    with pytest.raises(UserError, match="Input/output error"):
        opened(root, file)
    assert left(file.parent) == []


@pytest.fixture
def signals_while_building(monkeypatch: pytest.MonkeyPatch) -> Callable[[signal.Signals], list[int]]:
    """Send this process a signal when the first row is written; counts the rows that are."""
    rows: list[int] = []

    def send(number: signal.Signals) -> list[int]:
        def crc32(content: memoryview) -> int:
            if not rows:
                signal.raise_signal(number)
            rows.append(len(content))
            return zlib.crc32(content)

        monkeypatch.setattr(cache_module, "zlib", SimpleNamespace(crc32=crc32))
        return rows

    return send


@pytest.mark.parametrize("number", utils.STOP_SIGNALS)
def test_a_signal_stops_the_building_and_then_what_comes_after(
    root: Path, file: Path, signals_while_building: Callable[[signal.Signals], list[int]], number: signal.Signals
) -> None:
    rows = signals_while_building(number)
    with utils.StopSignal() as stop, pytest.raises(utils.Stopped, match=rf"stopped by {number.name}: .*{file}"):
        opened(root, file)
    assert stop.name == number.name
    assert len(rows) == 3, "an image and its two masks"
    assert left(file.parent) == []


def test_ctrl_c_interrupts_the_command(
    root: Path, file: Path, signals_while_building: Callable[[signal.Signals], list[int]]
) -> None:
    signals_while_building(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        opened(root, file)
    assert left(file.parent) == []


def test_a_signal_that_is_not_caught_ends_the_process_after_it_cleaned_up(
    root: Path, file: Path, signals_while_building: Callable[[signal.Signals], list[int]]
) -> None:
    signals_while_building(signal.SIGTERM)
    command = multiprocessing.get_context("fork").Process(target=opened, args=(root, file))
    command.start()
    command.join()
    assert command.exitcode == -signal.SIGTERM
    assert left(file.parent) == []


def test_an_unwritable_folder_is_named(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"c\.h5 .*(Not a directory|File exists)"):
        opened(root, tmp_path / "file" / "c.h5")


def test_files_of_killed_builders_are_removed(root: Path, file: Path) -> None:
    """Nobody else's: a builder that still runs, another machine's, another cache's."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    here, alive = platform.node(), os.getppid()
    kept = [
        f".{file.name}.{here}.{alive}.0123abcd.tmp",
        f".{file.name}.elsewhere.{dead.pid}.0123abcd.tmp",
        f".other.h5.{here}.{dead.pid}.0123abcd.tmp",
        f".{file.name}.{here}.{dead.pid}.txt",
    ]
    removed = [f".{file.name}.{here}.{process}.0123abcd.tmp" for process in (dead.pid, os.getpid())]
    file.parent.mkdir()
    for name in kept + removed:
        (file.parent / name).write_text("half a cache")
    opened(root, file)
    assert left(file.parent) == sorted([*kept, file.name])


# ---------------------------------------------------------------- several processes


def build_and_read(root: Path, file: Path, start: Any, results: Any) -> None:
    cache_module._exists = lambda path: False
    start.wait()
    results.put([values.tobytes() for values in everything(opened(root, file))])


def test_two_commands_may_build_the_same_file_at_once(root: Path, file: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(2), context.Queue()
    builders = [context.Process(target=build_and_read, args=(root, file, start, results)) for _ in range(2)]
    for builder in builders:
        builder.start()
    found = [results.get(timeout=60) for _ in builders]
    for builder in builders:
        builder.join()
    assert [builder.exitcode for builder in builders] == [0, 0]
    assert found[0] == found[1] == [values.tobytes() for values in fresh(root)]
    assert left(file.parent) == [file.name]


# A cache that a process which waits is asked to stop, one that all processes see, one on a disk of each process's own,
# and one of an image that cannot be read. Every image makes a sign of life.
WORKER = """
import signal
import sys
from pathlib import Path
import torch
import utils
from data import cache
from refer.refer import REFER

def ask_to_stop(flag, votes=utils.any_process):
    if not asked:
        asked.append(True)
        signal.raise_signal(signal.SIGTERM)
    return votes(flag)

asked = []

def main():
    root, folder = sys.argv[1:]
    utils.start_processes(torch.device("cpu"))
    cache.HEARTBEAT = 0
    with utils.StopSignal():
        votes = utils.any_process
        if not utils.is_main():
            utils.any_process = ask_to_stop
        try:
            cache.open_cache(f"{folder}/stopped.h5", REFER(root), 9, 1)
        except utils.Stopped as stopped:
            sys.stdout.write(f"{stopped}\\n")
        utils.any_process = votes
    for file in ("shared.h5", f"{utils.rank()}/own.h5", "broken.h5"):
        if file == "broken.h5" and utils.is_main():
            Path(root, "images/mscoco/images/train2014/2.png").write_bytes(b"no image" * 500)
        utils.any_process(False)
        opened = cache.open_cache(f"{folder}/{file}", REFER(root), 9, 1)
        assert opened.image(2).shape == (9, 9, 3)

if __name__ == "__main__":
    utils.run(main)
"""


def contents(path: Path) -> dict[str, object]:
    """Return all that an HDF5 file holds but the second in which it was made."""
    with h5py.File(path, "r") as file:
        arrays = {name: (array.dtype, array.shape, array[()].tobytes()) for name, array in file.items()}
        return arrays | {f"attribute {name}": str(value) for name, value in file.attrs.items()}


@pytest.mark.slow  # builds four caches in two processes
def test_one_process_builds_all_read_and_end_together(root: Path, tmp_path: Path) -> None:
    script, folder = tmp_path / "worker.py", tmp_path / "caches"
    script.write_text(WORKER)
    outcome = launch(2, script, root, folder)
    assert left(folder) == ["0", "1", "own.h5", "own.h5", "shared.h5"], outcome.stderr
    assert sorted(line.split(":")[0] for line in outcome.stdout.splitlines() if "stopped by" in line) == [
        "stopped by SIGTERM",
        "stopped by a signal",
    ]
    first, *others = (contents(path) for path in sorted(folder.rglob("*.h5")))
    assert others == [first, first]
    assert outcome.returncode != 0
    assert outcome.stderr.count("2.png cannot be read") == 1
    assert "Traceback" not in outcome.stderr.partition("error:")[0]
