"""Tables and pictures of the comparison, made only from its results and the sample data.

    python -m experiments.report
    python -m experiments.report --hard             # or --long, --recipes, …: as experiments.compare has it
    python -m experiments.report --results experiments/results --data experiments/data/sample --out experiments

Writes `report.md` and `pictures/*.png` into `--out`, replacing an earlier report; experiments/README.md, which explains
the numbers, is not changed. Draws the sample data into `--data` if they are missing. Networks and data sets without a
result are left out and listed.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from urllib.parse import quote

from errors import answer_first, run
from experiments.plan import FULL, ExperimentConfig, add_comparison_flags, comparison_name, config_and_paths
from experiments.results import PAPER, VARIANTS, Result
from lib.arguments import Parser
from lib.files import write_text
from lib.outputs import check_folder


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags; arguments: None for `sys.argv`."""
    parser = Parser("python -m experiments.report", description=__doc__)
    add = parser.add_argument
    add_comparison_flags(parser, "results", "data")
    add("--out", type=Path, metavar="DIR", help="gets report.md and pictures/; default: experiments, or a folder in it")
    args = parser.parse_args(arguments)
    comparison_name(args)
    return args


if __name__ == "__main__":
    answer_first(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds

from experiments import tables
from experiments.comparison import Comparison, read_comparisons
from experiments.figures import FIGURES
from lib.evaluation.statistics import RESAMPLES

OUTS = {
    "": Path("experiments"),
    "hard": Path("experiments/hard"),
    "long": Path("experiments/long"),
    "hard-long": Path("experiments/hard-long"),
    "recipes": Path("experiments/recipes"),
    "quick": Path("experiments/runs/quick"),
}
TITLES = {
    "": "The comparison, measured",
    "hard": "The comparison on harder data, measured",
    "long": "Longer trainings, measured",
    "hard-long": "Longer trainings on harder data, measured",
    "recipes": "Other recipes, measured",
    "quick": "A trial of the comparison: too short to say anything",
}
PAPERS = VARIANTS[PAPER]
HOW_TO_READ = f"""
- **Scores** are in percent, differences in points. A score is the mean over the seeds ± the sample standard deviation
  over them, or of one seed alone where nothing stands behind it. Where no split is named, the sentences of all splits
  are scored together; val among them, on which the learning rates were chosen, for every network alike. Further down
  every split stands alone.
- **Val shuffled** is a control: every image of val is read a sentence about another object. A network that reads
  scores far lower there.
- **Differences** are the score of {PAPERS} minus that of another network: above zero, {PAPERS} is better. Trainings
  from the same seed are compared with each other, and the mean is over the seeds.
- **95 % intervals** are those of a bootstrap of {RESAMPLES} resamples: images are drawn with replacement, all
  sentences of an image together, because they are not independent, and seeds are drawn along with them; both
  networks are scored on the same images and seeds. So an interval covers that other images of this kind could have
  been drawn, and that training could have begun from other seeds. It does not cover other data, learning rates or
  longer trainings. Three seeds are few: they tell little about how much seeds differ, so the intervals are rather
  too narrow; with one seed they cover the images alone. Where there are many intervals, some leave out zero by
  chance: without any difference, about one in twenty. None is given for sentences about fewer than
  {tables.FEWEST_IMAGES} images.
- **Kinds of expression**: a column counts the sentences (in brackets how many) that hold a kind of information. Most
  hold several, so the columns overlap. "Colour alone": nothing but a colour is said; "looks alone": nothing but
  shape, size, texture or colour; "without colour": no colour is. A group without sentences is left out.
""".strip()
OF_RECIPES = f"""
- **Recipes**: all networks here are the same one. {PAPERS} stands for the paper's recipe, the others for another one.
""".strip()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report."""
    args = parse_args(arguments)
    config, paths = config_and_paths(args)
    out = args.out or OUTS[comparison_name(args)]
    check_folder(out / "pictures", "--out")
    findings = read_comparisons(paths.results, paths.data, config.compared)
    command = " ".join(["python -m experiments.report", *config.flags])
    parts = [
        f"# {TITLES[comparison_name(args)]}",
        f"`{command}` wrote this file; what the numbers mean is said in `experiments/README.md`.",
        "## How to read it",
        HOW_TO_READ + (f"\n{OF_RECIPES}" if any(one.of_recipes for one in findings) else ""),
        *missing_data_sets(findings, config.compared),
    ]
    for one in findings:
        parts += dataset_parts(one, draw_all(one, out / "pictures"))
    results = [result for one in findings for own in one.trained.values() for result in own.values()]
    parts += how_parts(results, config)
    text = "\n\n".join(parts) + "\n"
    write_text(out / "report.md", text)
    print(f"{len(results)} results in {out / 'report.md'}")


def missing_data_sets(findings: Sequence[Comparison], compared: Collection[str]) -> list[str]:
    """Return a sentence about the data sets without a result, if there are any."""
    missing = [name for name in compared if name not in [one.dataset for one in findings]]
    return [f"There are no results yet on {', '.join(missing)}."] if missing else []


def length_parts(findings: Comparison) -> list[str]:
    """Return the paragraphs about steps and time, if not all networks had as many steps."""
    if not any(variant.halved for variant in findings.trained):
        return []
    return ["### Steps and time", tables.lengths_table(findings)]


def map_parts(findings: Comparison) -> list[str]:
    """Return the paragraphs about alignment maps, if they were measured."""
    if not any(result.maps for by_seed in findings.trained.values() for result in by_seed.values()):
        return []
    text = (
        "How well each stage's map ranks the pixels of an image, mean over sentences of val and over seeds: area under "
        "the ROC curve (0.5 by chance), and average precision (by chance the object's share)."
    )
    return ["### Alignment maps", text, tables.maps_table(findings)]


def draw_all(findings: Comparison, folder: Path) -> dict[str, str]:
    """Draw the pictures of a data set into a folder; return those that could be drawn as Markdown, by name."""
    drawn = {}
    for name, figure in FIGURES.items():
        path = folder / f"{findings.dataset}-{name}.png"
        if figure.draw(findings, path):
            link = f"![{findings.dataset}: {figure.title}]({folder.name}/{quote(path.name)})"
            drawn[name] = f"{link}\n\n*{figure.caption}*"
    return drawn


def dataset_parts(findings: Comparison, pictures: dict[str, str]) -> list[str]:
    """Return the paragraphs about one data set."""
    sentences = findings.all_sentences
    counted = ", ".join(f"{len(own)} of {split}" for split, own in findings.sentences.items())
    return [
        f"## {findings.dataset}",
        f"{len(sentences)} sentences ({counted}) about {findings.n_images()} images.",
        *missing_networks(findings),
        "### Scores",
        tables.scores_table(findings),
        "By split:",
        tables.splits_table(findings),
        *length_parts(findings),
        *map_parts(findings),
        f"### {PAPERS} minus the others",
        *difference_parts(findings, pictures),
        "### Mean IoU by kind of expression",
        tables.groups_table(findings),
        pictures["kinds"],
        *group_difference_parts(findings),
        *picture_parts(pictures),
    ]


def difference_parts(findings: Comparison, pictures: dict[str, str]) -> list[str]:
    """Return the differences to the other networks, or that there are none."""
    if not findings.rivals:
        return [f"From no seed were both {PAPERS} and another network trained."]
    return [tables.differences_table(findings), pictures["differences"]]


def group_difference_parts(findings: Comparison) -> list[str]:
    """Return the differences by kind of expression, if there are any."""
    if not findings.rivals:
        return []
    return [f"{PAPERS} minus the others, with the 95 % interval:", tables.group_differences_table(findings)]


def picture_parts(pictures: dict[str, str]) -> list[str]:
    """Return the pictures that belong to no table, each under its heading."""
    headings = {"examples": "Examples", "alignment": "Alignment by stage", "curves": "Training"}
    return [part for name, text in headings.items() if name in pictures for part in (f"### {text}", pictures[name])]


def missing_networks(findings: Comparison) -> list[str]:
    """Return a sentence about the networks that are left out, if there are any."""
    names = [VARIANTS[variant] for variant in findings.missing]
    return [f"Not trained yet, and so left out: {', '.join(names)}."] if names else []


# ---------------------------------------------------------------- how it was made


def how_parts(results: Sequence[Result], config: ExperimentConfig) -> list[str]:
    """Return the paragraphs about commands, settings and machines."""
    example = results[0]
    halved = " or, for half of the steps, half as long" if any(result.variant.halved for result in results) else ""
    return [
        "## How it was made",
        block([" ".join([f"python -m experiments.{name}", *config.flags]) for name in ("compare", "report")]),
        f"The first trained and tested every network; {VARIANTS[example.variant]} on {example.dataset} from seed "
        f"{example.seed} with the commands below, from which folders of the machine are left out. The commands of the "
        "others differ in their flags alone.",
        block([without_folders(command) for command in example.commands]),
        "\n".join(settings_line(name, results) for name in dict.fromkeys(result.dataset for result in results)),
        f"The sample data set: {', '.join(f'{name} {value}' for name, value in example.sample.items())} "
        "(`python -m data.sample`).",
        "Trained on:",
        "\n".join(f"- {text}: {count} trainings" for text, count in Counter(map(machine_text, results)).items()),
        "### Learning rates",
        "Overall IoU on val of trainings that were made only to choose a learning rate: on "
        f"{'the harder' if config.hard else 'the usual'} refcoco, from another seed, {FULL.epochs} epochs long{halved}."
        " The one taken is bold.",
        tables.sweep_table(results),
    ]


def block(lines: Sequence[str]) -> str:
    """Return lines as a Markdown code block."""
    return "\n".join(f"    {line}" for line in lines)


def without_folders(command: str) -> str:
    """Return a command in which absolute paths, which depend on the machine, are reduced to their last part."""
    return re.sub(r"""(^|[\s='"])/(?:[^\s'"/]+/)*""", r"\1", command)


def settings_line(dataset: str, results: Sequence[Result]) -> str:
    """Return a line about the trainings on a data set."""
    trained = [result for result in results if result.dataset == dataset]
    first, minutes = trained[0], round(sum(result.seconds for result in trained) / 60)
    steps = " or ".join(dict.fromkeys(str(result.steps) for result in trained))
    return (
        f"- {dataset}: {len(trained)} trainings of {steps} steps of {first.batch_size} samples at "
        f"{first.img_size}×{first.img_size} pixels, {minutes // 60} h {minutes % 60:02} min of training in all, "
        "validation left out"
    )


def machine_text(result: Result) -> str:
    """Return the machine of a training as text, without values that differ between runs on it."""
    machine = result.machine
    versions, git = machine.get("versions") or {}, machine.get("git") or {}
    revision = git.get("revision")
    code = f"revision {revision[:10]}{' with changes' if git.get('modified') else ''}" if revision else "no revision"
    parts = (
        f"{machine.get('cpu')} ({machine.get('device')})",
        f"cores {machine.get('cores')}",
        f"torch threads {machine.get('torch_threads')}",
        f"torch {versions.get('torch')}",
        f"Python {versions.get('python')}",
        code,
    )
    return ", ".join(parts)


if __name__ == "__main__":
    run(main)
