"""README.md and docs/: links lead somewhere, commands are understood, flags are named, and all of it stays small."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest

from lib.hub import RELEASED_URL
from lib.options import check_flags
from lib.weights.pretrained import RELEASED_BERT, SWIN_FILES, SWIN_URL
from refer.splits import fill_data_flags
from tests.commands import BLOCK, Command, blocks, is_ours, launcher_flags, lines, parse

ROOT = Path(__file__).parent.parent
FOLDERS = (".", "docs", "refer", "experiments", "checkpoints", "pretrained", "benchmarks/results", "tests/reference")
REPORTS = ("experiments/hard", "experiments/long", "experiments/hard-long", "experiments/recipes")
PAGES = sorted(page for folder in (*FOLDERS, *REPORTS) for page in (ROOT / folder).glob("*.md"))
DOCS = sorted((ROOT / "docs").glob("*.md"))
README = ROOT / "README.md"
MOST_LINES = 150  # of the README
MOST_BYTES = 3_000_000  # of all pictures
PICTURES = (".png", ".svg", ".jpg", ".jpeg", ".gif", ".webp")
# The page that lists the flags of a script, and a command line that its parser accepts.
LISTED = {
    "training.md": "python train.py",
    "evaluation.md": "python test.py --resume x.pth",
    "predict.md": "python predict.py --image a.png --text b --out c",
}
# Started by other commands, not by people.
INNER = {f"python -m {name}" for name in ("benchmarks.profile_main", "benchmarks.plain_test", "experiments.trial")}
OTHERS = {"pip", "source", "export", "mkdir", "ln", "tensorboard", "grep", "pre-commit"}  # programs in blocks
OTHERS |= {"sbatch", "docker"}  # what they start: tests/test_clusters.py
FOREIGN_FLAGS = {"--no-index", "--find-links", "--logdir"}  # of pip and TensorBoard
FOREIGN_FLAGS |= {"--nodes", "--gpus-per-node", "--ntasks-per-node", "--time", "--partition", "--account"}  # of SLURM
FOREIGN_FLAGS |= {"--signal", "--requeue", "--kill-on-bad-exit", "--gpus-per-task"}
FOREIGN_FLAGS |= {"--gpus", "--shm-size", "--build-arg", "--rm", "--user"}  # of Docker


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def steps_of(title: str) -> list[tuple[Path, list[str]]]:
    """Return the steps of a numbered list on the page about the design: each one's file, and the names in it."""
    text = read(ROOT / "docs" / "design.md").partition(f"## {title}\n")[2].partition("\n## ")[0]
    steps = re.findall(r"^\d+\. `(\S+)`: (.+)$", text, re.MULTILINE)
    return [(ROOT / file, re.findall(r"`([A-Za-z_]\w*)`", line)) for file, line in steps]


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", read(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page: Path) -> list[str]:
    """Return the targets of a page's links and pictures, inline and by reference, that do not lead to other hosts."""
    text = re.sub(r"`[^`\n]+`", "", BLOCK.sub("", read(page)))
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.MULTILINE)
    return [target for target in found if not re.match(r"https?://", target)]


# ---------------------------------------------------------------- size and order


def test_the_readme_is_short() -> None:
    assert len(read(README).splitlines()) <= MOST_LINES


def test_the_readme_begins_with_the_two_commands() -> None:
    assert blocks(read(README), "bash")[0] == (
        "make demo     # install, draw the sample data, train a nano network on it, test it\n"
        "make test     # install, check style and types, run the tests; `make test-all` also runs the slow ones\n"
    )


def test_the_readme_shows_the_published_commands_word_for_word() -> None:
    recipe = "--swin_type base --lr 0.00003 --epochs 40 --img_size 480"
    shown = {" ".join(words) for words in lines(read(README))}
    for dataset, split_by in (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd")):
        assert f"torchrun --nproc_per_node 2 train.py --dataset {dataset} --splitBy {split_by} {recipe}" in shown
    launched = "python -m torch.distributed.launch --nproc_per_node 2 --master_port 12345 train.py"
    assert f"{launched} --dataset refcocog --splitBy umd {recipe}" in shown
    for data, split in (
        ("refcoco", "val"),
        ("refcoco", "testA"),
        ("refcoco", "testB"),
        ("refcoco+", "val"),
        ("refcocog --splitBy umd", "val"),
        ("refcocog --splitBy umd", "test"),
    ):
        weights = f"--resume ./checkpoints/best_{data.split()[0]}.pth --workers 1 --img_size 480"
        assert f"python test.py --swin_type base --dataset {data} --split {split} {weights}" in shown


@pytest.mark.parametrize("page", DOCS, ids=name_of)
def test_a_page_begins_with_the_command(page: Path) -> None:
    assert re.match(r"# [^\n]+\n```bash\n", read(page))


@pytest.mark.parametrize("title", ["The way of a flag", "The way of a sample"])
def test_a_way_through_the_code_names_existing_code(title: str) -> None:
    steps = steps_of(title)
    assert len(steps) == 10
    for file, names in steps:
        words = set(re.findall(r"\w+", read(file)))
        assert names and words.issuperset(names), f"{file}: {names}"


def listed_files() -> list[Path]:
    """Return the tracked files of the checkout; skip the test if there is no git."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a checkout of git")
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_pictures_are_few_and_small() -> None:
    """And each of them is shown on a page."""
    pictures = [file for file in listed_files() if file.suffix in PICTURES]
    assert pictures
    assert sum(file.stat().st_size for file in pictures) <= MOST_BYTES
    shown = {(page.parent / unquote(target)).resolve() for page in PAGES for target in links(page)}
    assert not [name_of(file) for file in pictures if file not in shown]


# ---------------------------------------------------------------- links


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in links(page):
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(file), target


def test_every_page_is_linked_in_the_readme() -> None:
    targets = {target.partition("#")[0] for target in links(README)}
    assert {name_of(page) for page in DOCS} <= targets


def test_a_heading_has_the_anchor_that_github_gives_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# RefCOCO+, `--flag` & more\n```bash\n# no heading\n```\n## Two words\n")
    assert anchors(page) == {"refcoco---flag--more", "two-words"}


@pytest.mark.parametrize("page", ["README.md", "docs/weights.md", "docs/reproduce.md"])
def test_released_weights_are_linked(page: str) -> None:
    for address in (RELEASED_URL, SWIN_URL + SWIN_FILES["base"], RELEASED_BERT):
        assert address in read(ROOT / page), address


def test_folders_of_weights_say_where_they_come_from() -> None:
    assert RELEASED_URL in read(ROOT / "checkpoints" / "README.md")
    for address in (SWIN_URL + SWIN_FILES["base"], RELEASED_BERT):
        assert address in read(ROOT / "pretrained" / "README.md")


# ---------------------------------------------------------------- commands


def commands(page: Path) -> list[Command]:
    """Return this project's commands in a page's blocks, parsed."""
    return [parse(" ".join(map(quoted, words))) for words in lines(read(page)) if is_ours(words)]


def quoted(word: str) -> str:
    return f"'{word}'" if " " in word or "*" in word else word


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(read(page), "bash")], ids=name_of)
def test_commands_are_understood(page: Path) -> None:
    """By the real parsers, and by the checks that follow them in training and testing."""
    for command in commands(page):
        if command.module in ("train", "test"):
            check_flags(command.args)
            fill_data_flags(command.args, training=command.module == "train")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(read(page), "bash")], ids=name_of)
def test_other_commands_name_existing_files(page: Path) -> None:
    makefile = read(ROOT / "Makefile")
    for program, *words in lines(read(page)):
        if program == "make":
            for word in words:
                name, is_variable, _ = word.partition("=")
                assert re.search(rf"^{name} \??:?=|\({name}\)" if is_variable else rf"^{name}:", makefile, re.M), word
        elif words[:2] == ["-m", "pytest"]:
            for word in words[2:]:
                assert word.startswith("-") or (ROOT / word).exists(), word
        elif not is_ours([program, *words]):
            assert program in OTHERS or words[:2] == ["-m", "venv"], program
            for flag, file in pairwise(words):
                assert flag != "-r" or (ROOT / file).is_file(), file


def test_a_flag_or_a_value_that_does_not_exist_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for line in ("python train.py --no-such-flag", "torchrun --nproc_per_node 2 test.py --overlap union"):
        page.write_text(f"```bash\n{line}    # explained\n```\n")
        with pytest.raises(SystemExit):
            commands(page)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(read(page), "python")], ids=name_of)
def test_python_in_pages_imports_existing_names(page: Path) -> None:
    for code in blocks(read(page), "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names)


def starts() -> set[str]:
    """Return the command lines that start what the project has to start."""
    folders = ("benchmarks", "data", "experiments", "lib", "refer")
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    files += [ROOT / "tests" / "fault_drill.py", ROOT / "tests" / "versions.py", ROOT / "tests" / "web" / "pictures.py"]
    found = [path.relative_to(ROOT) for path in files if '__name__ == "__main__"' in read(path)]
    modules = {path: ".".join(path.with_suffix("").parts).removesuffix(".__main__") for path in found}
    return {f"python -m {name}" if path.parent.name else f"python {path}" for path, name in modules.items()}


def test_one_page_names_every_command() -> None:
    text = read(ROOT / "docs" / "commands.md")
    for command in starts():
        shown = command.removeprefix("python -m ") if command in INNER else command
        assert re.search(rf"`{re.escape(shown)}[` ]", text), command
    assert starts() >= INNER
    for target in re.findall(r"^([a-z][\w-]*):", read(ROOT / "Makefile"), re.MULTILINE):
        assert f"`make {target}`" in text, target


# ---------------------------------------------------------------- flags


def named_flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", text))


@pytest.mark.parametrize(("page", "line"), LISTED.items())
def test_a_page_lists_every_flag(page: str, line: str) -> None:
    flags = parse(line).flags - {"-h", "--help"}
    assert len(flags) > 10
    listed = {flag for row in re.findall(r"^\|.*", read(ROOT / "docs" / page), re.M) for flag in named_flags(row)}
    assert not flags - listed


def test_flags_that_pages_name_exist() -> None:
    known = set.union(*(command.flags for page in PAGES for command in commands(page))) | launcher_flags()
    for page in (README, *DOCS, ROOT / "refer" / "README.md", ROOT / "experiments" / "README.md"):
        named = {flag for flag in named_flags(read(page)) if flag.startswith("--")}
        unknown = named - known - FOREIGN_FLAGS
        assert not unknown, page
