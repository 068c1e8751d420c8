"""Train CrossVLT.

One process, on a GPU if there is one:
    python train.py --dataset refcoco --splitBy unc --swin_type base

Two GPUs, as in the paper:
    torchrun --nproc_per_node 2 train.py --dataset refcoco --splitBy unc --swin_type base
    torchrun --nproc_per_node 2 train.py --dataset refcoco+ --splitBy unc --swin_type base
    torchrun --nproc_per_node 2 train.py --dataset refcocog --splitBy umd --swin_type base

From weights of another training, in any layout; what fits is loaded, the rest listed:
    python train.py --dataset jsonl --data train.jsonl val.jsonl --init ./checkpoints/best_refcoco.pth

On a cluster that may end the job at any moment; every start resumes after the newest saved step:
    torchrun --nproc_per_node 2 --max-restarts 3 train.py … --save-every 200 --resume auto

Every epoch is validated on all sentences of `--split`. `--output-dir` receives last_{dataset}.pth, best_{dataset}.pth
(best oIoU; of gRefCOCO gIoU), log_{dataset}.jsonl, run_{dataset}.json, a strip of overlays per epoch and TensorBoard
files; the name of own data is that of `--name`. After SIGTERM, Ctrl-C, SIGHUP, SIGUSR1 or SIGUSR2 the training
finishes its step, saves, and exits with code 0.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from errors import UserError, answer_first, few
from lib.options import build_parser, check_flags
from lib.recipes import RECIPES, SET_BY_RECIPES
from lib.variants import MASK_PATCH, NO_TARGET_WEIGHT
from refer.splits import fill_data_flags, protocol_of, title_of


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the checked flags; arguments: None for `sys.argv`."""
    parser = build_parser(__doc__, training=True)
    args = parser.parse_args(arguments)
    if args.recipe != "paper":  # whose values are the defaults
        parser.set_defaults(**RECIPES[args.recipe])
        args = parser.parse_args(arguments)
        if "+" not in args.loss:  # another loss than the recipe's, which has no dice that its weight could weigh
            parser.set_defaults(dice_weight=None)
            args = parser.parse_args(arguments)
    check_flags(args)
    fill_no_target_weight(args)
    check_alignment(args)
    check_mask_loss(args)
    check_masking(args)
    fill_data_flags(args, training=True)
    return args


def fill_no_target_weight(args: argparse.Namespace) -> None:
    """Fill in the weight of the head's loss unless it is given; UserError if there is no head."""
    if args.no_target_head and args.no_target_weight is None:
        args.no_target_weight = NO_TARGET_WEIGHT
    elif args.no_target_weight is not None and not args.no_target_head:
        raise UserError("--no-target-weight: this network has no head to weigh; add --no-target-head")


def check_mask_loss(args: argparse.Namespace) -> None:
    """Raise UserError for `--dice-weight` with a loss that is not a sum."""
    if args.dice_weight is not None and "+" not in args.loss:
        raise UserError(f"--dice-weight: --loss {args.loss} is no sum; choose ce+dice or ce+dice2")


def check_masking(args: argparse.Namespace) -> None:
    """Raise UserError for a size of patches if none are removed."""
    if args.mask_patch != MASK_PATCH and not args.mask_image:
        raise UserError(f"--mask-patch {args.mask_patch}: no patch is removed; add --mask-image SHARE")


def check_alignment(args: argparse.Namespace) -> None:
    """Raise UserError for flags of an alignment that the network does not have."""
    given = {
        "--align-temperature": args.align_temperature != 1,
        "--train-temperature": args.train_temperature,
        "--align-prior": args.align_prior is not None,
        "--align-loss": args.align_loss != "bce",
    }
    if not args.alignment and any(given.values()):
        raise UserError(f"{few([name for name, is_set in given.items() if is_set])}: not with --no-alignment")


if __name__ == "__main__":
    answer_first(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds

import torch
from torch import nn

import utils
from bert.tokenizer import MASK, WordPiece, build_tokenizer
from CrossVLT import SegModel
from data.dataset_refer_bert import ReferDataset
from data.loaders import (
    Batching,
    EvaluationLoader,
    TrainBatches,
    build_datasets,
    collate,
    evaluation_loader,
    train_loader,
)
from dry_run import (
    Check,
    cache_bytes,
    check_space,
    data_checks,
    found,
    run_checks,
    state_bytes,
    vocabulary_check,
    without_memory,
)
from lib.contracts import Batch
from lib.engine import EpochConfig, epoch_name, epoch_record, evaluate, predict, train_one_epoch, warm_up_ddp_buckets
from lib.environment import describe_environment, device_name, time_and_host
from lib.evaluation.protocols import AnyScores, Counting
from lib.network.compilation import compile_training
from lib.network.complexity import describe_size
from lib.network.inference import optimize_for_inference
from lib.network.losses import Criterion
from lib.network.precision import Precision
from lib.pictures.preview import PreviewSheet
from lib.scores import leading
from lib.training.masking import Masking, Words
from lib.training.optim import build_optimizer, build_scheduler, describe_groups
from lib.training.run_files import AUTO, RunFiles, refuse_other_run
from lib.training.run_log import RunLog
from lib.training.state import DivergedError, TrainingState
from lib.weights.checkpoint import Checkpoint
from lib.weights.pretrained import NONE, default_bert, default_swin, find_bert, find_swin, load_bert, load_swin
from lib.weights.start import Start, start_from
from refer.missing import Present
from trained import find_weight_file, find_weights, words_of

LARGEST_VOCABULARY = 30522  # words of bert-base-uncased


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the flags say; a signal stops the training between two steps."""
    args = parse_args(arguments)
    if args.dry_run:
        list_missing(args)
        return
    args.device = str(utils.find_device(args.device))
    device = utils.start_processes(torch.device(args.device))
    with (
        utils.StopSignal() as stop,
        closing(run_files(args)) as files,
        closing(RunLog(files.folder, args.name or args.dataset)) as log,
    ):
        train(args, device, files, log, stop)


def run_files(args: argparse.Namespace) -> RunFiles:
    """Return the files of this training, which bear the name of its data."""
    return RunFiles(args.output_dir, args.name or args.dataset, args.keep)


def list_missing(args: argparse.Namespace) -> None:
    """Print what this training finds. Raises UserError with all that is missing; writes nothing."""
    files = run_files(args)
    network = without_memory(lambda: build_network(args, LARGEST_VOCABULARY, filled=True))
    newest = args.keep if args.save_every else min(args.keep, args.epochs)
    states = newest + 2 - len(files.present())  # also the best one, and one that is being written
    space = {files.folder: max(1, states) * state_bytes(network, amsgrad=args.amsgrad)}
    present: list[Present] = []
    run_checks(
        {
            **vocabulary_check(args.bert_tokenizer),
            **data_checks(args, ("train", args.split), present),
            **weight_checks(args, files),
            "disk space": lambda: check_space(space | cache_bytes(args.cache, args.img_size, present)),
        }
    )


def weight_checks(args: argparse.Namespace, files: RunFiles) -> dict[str, Check]:
    """Return the checks of the weights that this training starts from."""
    states = files.present() if args.resume == AUTO else [Path(args.resume)] if args.resume else []
    if states:
        state = states[0]  # the newest
        return {"state": lambda: found(find_weight_file(state, flag="--resume", offline=True))}
    swin, bert = pretrained_names(args)
    checks: dict[str, Check] = {
        "Swin weights": lambda: found(find_swin(swin, args.swin_type, offline=True)),
        "BERT weights": lambda: found(find_bert(bert, offline=True)),
    }
    if args.init:
        checks["start weights"] = lambda: found(find_weight_file(args.init, flag="--init", offline=True))
    return checks


def train(args: argparse.Namespace, device: torch.device, files: RunFiles, log: RunLog, stop: utils.StopSignal) -> None:
    """Train for `--epochs` epochs and keep the newest and the best network; files and log are opened here."""
    saved = files.open(args.resume, overwrite=args.overwrite)
    log_place(args, device, files)
    batching = build_batching(args, saved)
    if saved:  # checked before the data are read; `state.begin` checks what depends on them
        refuse_other_run(saved, describe_steps(args, batching), so_far=True)

    # data
    tokenizer = build_tokenizer(args.bert_tokenizer)
    masking = build_masking(args, tokenizer)
    train_set, val_set = build_datasets(args, ("train", args.split), tokenizer, training=True)
    check_no_target(args, train_set)
    batches, loader, val_loader = build_loaders(args, batching, train_set, val_set, device)

    # network, optimizer and training state
    utils.seed_everything(args.seed)
    network = build_network(args, len(tokenizer), filled=saved is not None)
    start = load_start(args, network, tokenizer) if args.init and saved is None else None
    network.to(device)
    model = utils.distribute(network, device)
    criterion = build_criterion(args).to(device)
    precision = Precision(args.precision, device, compiled=args.compile)
    options = describe_run(args, batching, batches, f"{train_set.fingerprint()} {val_set.fingerprint()}")
    state = build_state(args, network, precision, options, log)
    state.images = train_set.image_prints() | val_set.image_prints()
    state.begin(saved)
    del saved  # as large as the network and its optimizer
    warm_up_ddp_buckets(model, device)
    if args.compile:
        compile_training(model, device)
    files.write_description(
        {"options": options} | describe_environment(device) | ({"start": start._asdict()} if start else {})
    )
    log_start(args, state, batches, val_set, resumed=files.newest is not None)
    config = build_epoch_config(
        args, batching, precision, masking, save=lambda: files.save(state.state_dict()), stop=stop.agreed
    )
    if state.epoch == args.epochs:
        utils.log(f"all {args.epochs} epochs are done: there is nothing left to train")
    try:
        with suppress(utils.Stopped):
            while state.epoch < args.epochs:
                batches.start(state.epoch, state.step)
                train_one_epoch(model, criterion, loader, state, device, config)
                scores = validate(args, state, val_set, val_loader, precision, stop)
                finish_epoch(state, files, config, scores)
        if state.epoch < args.epochs:
            config.save()
            utils.log(f"stopped by {stop.name or 'a signal'}: saved, resume with --resume {files.last}")
        elif state.log.best_score >= 0:
            utils.log(describe_end(args, state, files))
    except DivergedError as error:
        raise UserError(f"{error}. {files.last_good()} Try a smaller --lr.") from error


def log_place(args: argparse.Namespace, device: torch.device, files: RunFiles) -> None:
    """Log when and where a training starts, on what device, and where its files are."""
    place = time_and_host()
    threads = f" with {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    processes = f", {utils.world_size()} processes" if utils.world_size() > 1 else ""
    utils.log(
        f"{place['time']} on {place['host']}: {device} ({device_name(device)}{threads}){processes}, {args.precision}; "
        f"files in {files.folder}, log {files.log}"
    )


def describe_weights(args: argparse.Namespace) -> str:
    """Return where the weights of a new training come from."""
    swin, bert = pretrained_names(args)
    origins = [f"{name} {source}" for name, source in (("Swin", swin), ("BERT", bert)) if source != NONE]
    origins += [f"start {args.init}"] if args.init else []
    return f"{', '.join(origins)}{'; the rest ' if origins else ''}random (seed {args.seed})"


def log_start(
    args: argparse.Namespace, state: TrainingState, batches: TrainBatches, val_set: ReferDataset, *, resumed: bool
) -> None:
    """Log data, weights, network, recipe, parameter groups and steps of a training."""
    n_train, n_val = sum(map(len, batches.objects)), len(val_set)
    short = f" of at most {args.max_words} words" if args.max_words else ""
    validated = f", the first {args.limit_val} of them validated" if args.limit_val and args.limit_val < n_val else ""
    title = title_of(args.dataset, args.splitBy, args.name)
    utils.log(
        f"data {title}: train {len(batches.objects):,} objects, {n_train:,} sentences{short}; "
        f"{args.split} {len(val_set.objects):,} objects, {n_val:,} sentences{validated}"
    )
    if not resumed:
        utils.log(f"weights: {describe_weights(args)}")
    if utils.is_main():
        size = describe_size(state.network, args.img_size, args.max_tokens)
        head = ", with a no-target head" if args.no_target_head else ""
        utils.log(f"fusion {args.fusion}, alignment {args.alignment}{head}: {size}")
    utils.log(describe_recipe(args))
    utils.log(describe_groups(state.optimizer))
    utils.log(f"{len(batches.objects)} objects, {batches.steps} steps per epoch; samples per step: {batches.batching}")


def check_no_target(args: argparse.Namespace, train_set: ReferDataset) -> None:
    """Raise UserError if a no-target head would never see what it is for."""
    if args.no_target_head and not any(train_set.no_target):
        title = title_of(args.dataset, args.splitBy, args.name)
        raise UserError(
            f"--no-target-head: every sentence of {title} train means something in its image, so there is nothing to "
            "learn for the head: train without it, or on grefcoco or refzom"
        )


def build_batching(args: argparse.Namespace, saved: Checkpoint | None) -> Batching:
    """Return how the samples of a step are distributed.

    A run that resumes with another number of processes keeps its global batch size. Raises UserError if these
    processes cannot make up that size.
    """
    batching = Batching(args.batch_size, utils.world_size(), args.accumulate)
    if saved is None or not saved.args.keys() >= {"asked", *Batching._fields}:  # the total is compared later
        return batching
    before = Batching(*(saved.args[name] for name in Batching._fields))
    same_flags = saved.args["asked"] == asked(args)
    if batching.total != before.total and (same_flags or batching.processes != before.processes):
        accumulate, rest = divmod(before.total, batching.batch_size * batching.processes)
        if rest or not accumulate:
            raise UserError(
                f"--resume {saved.path}: a step has {before} samples, which {batching.processes} processes × "
                f"--batch-size {batching.batch_size} cannot make: choose a --batch-size that divides "
                f"{before.total} / {batching.processes}"
            )
        batching = batching._replace(accumulate=accumulate)
    if batching != before and batching.total == before.total:
        utils.log(
            f"samples per step: {before} before, {batching} now. Training resumes at the same sample, but the result "
            "is no longer bit-exact"
        )
    return batching


def asked(args: argparse.Namespace) -> list[int]:
    """Return the flags that set the number of samples per step, as they were given."""
    return [args.batch_size, args.accumulate]


def build_loaders(
    args: argparse.Namespace,
    batching: Batching,
    train_set: ReferDataset,
    val_set: ReferDataset,
    device: torch.device,
) -> tuple[TrainBatches, Iterable[Batch], EvaluationLoader]:
    """Return the training batches, their loader, and the validation loader."""
    pin_memory = args.pin_mem or device.type == "cuda"
    objects = train_set.objects if args.max_words is None else train_set.short_objects(args.max_words)
    batches = TrainBatches(objects[: args.limit_train], batching, seed=args.seed, rank=utils.rank())
    val_loader = evaluation_loader(
        val_set,
        batch_size=args.batch_size,
        workers=args.workers,
        pin_memory=pin_memory,
        device=device,
        limit=args.limit_val,
        rank=utils.rank(),
        world_size=utils.world_size(),
    )
    return batches, train_loader(train_set, batches, workers=args.workers, pin_memory=pin_memory), val_loader


def build_network(args: argparse.Namespace, vocab_size: int, *, filled: bool) -> nn.Module:
    """Return the network that the flags describe; filled: draw no initial weights, because a saved state follows."""
    build = SegModel.unfilled if filled else SegModel
    model = build(
        swin_type=args.swin_type,
        bert_type=args.bert_type,
        vocab_size=vocab_size,
        dropout=args.dropout,
        drop_path=args.drop_path,
        checkpointing=args.checkpointing,
        freeze_bert=args.freeze_bert,
        train_embeddings=args.train_embeddings,
        train_temperature=args.train_temperature,
        fusion=args.fusion,
        alignment=args.alignment,
        no_target_head=args.no_target_head,
        align_bias=args.align_prior is not None,
    )
    if not filled:
        model.start_alignment(args.align_temperature, args.align_prior)
        swin, bert = pretrained_names(args)
        load_swin(model, swin, args.swin_type)
        load_bert(model, bert)
    return model


def pretrained_names(args: argparse.Namespace) -> tuple[str, str]:
    """Return the names of the pretrained Swin and BERT weights; with `--init` none by default."""
    swin, bert = (NONE, NONE) if args.init else (default_swin(args.swin_type), default_bert(args.bert_type))
    return args.pretrained_swin_weights or swin, args.ck_bert or bert


def load_start(args: argparse.Namespace, network: nn.Module, tokenizer: WordPiece) -> Start:
    """Load the weights of `--init` that fit, log what was loaded and what was not, and return it."""
    found = find_weights(args.init, flag="--init")
    start = start_from(network, found.weights, args.init, words=words_of(found), own_words=tokenizer.words)
    utils.log(str(start))
    return start


def build_criterion(args: argparse.Namespace) -> Criterion:
    """Return the loss that the flags describe."""
    return Criterion(
        args.loss,
        args.no_target_weight or 0.0,
        dice_weight=args.dice_weight or 1.0,
        align_loss=args.align_loss,
        masked=is_masked(args),
    )


def build_masking(args: argparse.Namespace, tokenizer: WordPiece) -> Masking | None:
    """Return how to mask the samples of the second pass; None if there is only one.

    Raises UserError if nothing of the images would stay.
    """
    if not is_masked(args):
        return None
    words = Words(len(tokenizer), tokenizer.special_ids[MASK], tokenizer.special_ids.values())
    masking = Masking(args.mask_image, args.mask_text, words, args.seed, args.mask_patch)
    if not masking.n_kept(args.img_size, args.img_size):
        raise UserError(
            f"--mask-image {args.mask_image:g}: of the patches of --mask-patch {args.mask_patch} in images of "
            f"--img_size {args.img_size} none would stay; choose smaller patches"
        )
    return masking


def is_masked(args: argparse.Namespace) -> bool:
    """Return whether every step has a second pass over masked samples."""
    return bool(args.mask_image or args.mask_text)


def describe_recipe(args: argparse.Namespace) -> str:
    """Return the recipe's name, every value that a recipe can set, and which of them a flag changed."""
    values = [f"{name} {getattr(args, name)}" for name in SET_BY_RECIPES]
    of_recipe = RECIPES[args.recipe]
    changed = [name for name, value in of_recipe.items() if getattr(args, name) != value]
    other = f"; changed by flags: {', '.join(changed)}" if changed else ""
    return f"recipe {args.recipe}: {', '.join(values)}{other}"


def describe_steps(args: argparse.Namespace, batching: Batching) -> dict[str, Any]:
    """Return the flags and the batching: all options of a run that do not depend on its data."""
    return vars(args) | batching._asdict() | {"global_batch": batching.total, "asked": asked(args)}


def describe_run(args: argparse.Namespace, batching: Batching, batches: TrainBatches, data: str) -> dict[str, Any]:
    """Return all options of a run; data: fingerprint of the training and validation data."""
    steps = {"steps_per_epoch": batches.steps, "steps": args.epochs * batches.steps}
    return describe_steps(args, batching) | steps | {"data": data}


def build_state(
    args: argparse.Namespace, network: nn.Module, precision: Precision, options: dict[str, Any], log: RunLog
) -> TrainingState:
    """Return the state of a new training."""
    optimizer = build_optimizer(
        network, args.lr, args.weight_decay, args.amsgrad, encoder_lr_scale=args.encoder_lr_scale
    )
    if args.warmup >= options["steps"]:
        raise UserError(f"--warmup {args.warmup}: the whole training has only {options['steps']} steps")
    scheduler = build_scheduler(optimizer, options["steps"], args.warmup)
    return TrainingState(network, optimizer, scheduler, precision.scaler, log, options)


def build_epoch_config(
    args: argparse.Namespace,
    batching: Batching,
    precision: Precision,
    masking: Masking | None,
    *,
    save: Callable[[], None],
    stop: Callable[[], bool],
) -> EpochConfig:
    """Return how to train each epoch."""
    return EpochConfig(
        epochs=args.epochs,
        global_batch=batching.total,
        precision=precision,
        accumulate=batching.accumulate,
        clip_grad=args.clip_grad,
        masking=masking,
        seed=args.seed,
        print_freq=args.print_freq,
        save_every=args.save_every,
        save=save,
        stop=stop,
    )


def validate(
    args: argparse.Namespace,
    state: TrainingState,
    val_set: ReferDataset,
    val_loader: EvaluationLoader,
    precision: Precision,
    stop: utils.StopSignal,
) -> AnyScores | None:
    """Draw predictions of a few samples, and return the scores of an epoch: None if `--eval-every` skips it."""
    due = (state.epoch + 1) % args.eval_every == 0 or state.epoch + 1 == args.epochs
    if not (due or utils.is_main()):
        return None
    network = optimize_for_inference(state.network, precision)
    scores = None
    if due:
        counting = Counting(protocol_of(args.dataset), val_set.no_target, args.no_target_pixels)
        scores = evaluate(network, val_loader, precision.device, precision, stop=stop, counting=counting).scores
    if utils.is_main():
        draw_strip(args, state, network, val_set, precision)
    return scores


def draw_strip(
    args: argparse.Namespace, state: TrainingState, network: nn.Module, val_set: ReferDataset, precision: Precision
) -> None:
    """Log a picture of predictions for a few sentences, the same ones in every epoch."""
    strip = PreviewSheet(val_set, limit=args.limit_val)
    starts = range(0, len(strip.indices), args.batch_size)
    batches = [[val_set[n] for n in strip.indices[start : start + args.batch_size]] for start in starts]
    logits = torch.cat([predict(network, collate(batch), precision.device, precision) for batch in batches])
    state.log.add_strip(strip.draw(logits), state.epoch, state.global_step)


def finish_epoch(state: TrainingState, files: RunFiles, config: EpochConfig, scores: AnyScores | None) -> None:
    """Log an epoch and save it; scores: None if it was not validated."""
    record = epoch_record(state, config, scores)
    best = scores is not None and leading(scores.as_dict()) > state.log.best_score
    utils.log(f"{epoch_name(state, config)}: {state.meter.means()}, {record['seconds']:.0f} s")
    state.log.add({"model_id": state.options["model_id"]} | record)
    if scores:
        utils.log(scores.table())
    if scores and state.log.best_score >= 0:  # a few sentences may all be of a kind that the leading number leaves out
        utils.log(f"best so far: {state.log.describe_best()}")
    state.next_epoch()
    files.save(state.state_dict(), best=best)


def describe_end(args: argparse.Namespace, state: TrainingState, files: RunFiles) -> str:
    """Return where the best network of a finished training is, and the command that tests it."""
    best = f"best on {args.split}: {state.log.describe_best()}"
    if not files.best.exists():  # it was removed, or not copied along with the state that this training resumed
        return f"{best}, of which no file is in {files.folder}"
    python = Path(sys.executable)  # of an environment in this folder, as `make` installs it, or the one that is active
    own = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else "python"
    command = shlex.join([str(own), "test.py", *flags_to_test(args, files.best)])
    return f"{best}, in {files.best}. To test it:\n    {command}"


def flags_to_test(args: argparse.Namespace, weights: Path) -> list[str]:
    """Return the flags with which `test.py` scores weights as the validation does, but on all sentences of the split.

    Their file holds the rest.
    """
    flags = ["--resume", weights, "--dataset", args.dataset, "--split", args.split]
    if args.data_files:
        flags += ["--data", *args.data_files]
    else:
        flags += ["--splitBy", args.splitBy, "--refer_data_root", args.refer_data_root]
    if args.overlap:
        flags += ["--overlap", args.overlap]
    if protocol_of(args.dataset) != "classic":
        flags += ["--no-target-pixels", args.no_target_pixels]
    if args.precision != "fp32":  # the default of both scripts
        flags += ["--precision", args.precision]
    return [str(flag) for flag in flags]


if __name__ == "__main__":
    utils.run(main)
