"""Train CrossVLT.

One process, on a GPU where there is one:
    python train.py --dataset refcoco --splitBy unc --swin_type base

Two GPUs, the published recipe:
    torchrun --nproc_per_node 2 train.py --dataset refcoco --splitBy unc --swin_type base
    torchrun --nproc_per_node 2 train.py --dataset refcoco+ --splitBy unc --swin_type base
    torchrun --nproc_per_node 2 train.py --dataset refcocog --splitBy umd --swin_type base

Go on after the last finished epoch:
    torchrun --nproc_per_node 2 train.py … --resume ./checkpoints/last_refcoco.pth

Every epoch is validated on all sentences of `--split`. `--output-dir` receives last_{dataset}.pth, best_{dataset}.pth
(best overall IoU) and log_{dataset}.jsonl, one line per epoch.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

import utils
from CrossVLT import build_model
from data.dataset_refer_bert import build_tokenizer
from data.loaders import TrainBatches, build_datasets, evaluation_loader, train_loader
from lib.arguments import build_parser, check, share
from lib.engine import DivergedError, evaluate, train_one_epoch
from lib.losses import Criterion
from lib.optim import build_optimizer, build_scheduler, describe_groups
from lib.pretrained import default_bert, default_swin, load_bert, load_swin
from lib.run_files import RunFiles
from utils import UserError


def parse_args() -> argparse.Namespace:
    """Return the checked command line."""
    parser = build_parser(__doc__)
    add = parser.add_argument
    add("--dropout", type=share, default=0.1, help="training: of the language stages")
    add("--drop_path", type=share, default=0.3, help="training: of the last Swin block, rising linearly from 0")
    add("--overwrite", action="store_true", help="replace the checkpoints of an earlier run in --output-dir")
    args = parser.parse_args()
    check(args)
    return args


def main() -> None:
    """Train for `--epochs` epochs and keep the last and the best network."""
    args = parse_args()
    device = utils.start_processes(torch.device(args.device))
    files = RunFiles(vars(args), overwrite=args.overwrite)

    # data
    tokenizer = build_tokenizer(args.bert_tokenizer)
    train_set, val_set = build_datasets(args, ("train", args.split), tokenizer)
    world = {"rank": utils.rank(), "world_size": utils.world_size()}
    loading = {"workers": args.workers, "pin_memory": args.pin_mem}
    batches = TrainBatches(train_set.objects, args.batch_size, seed=args.seed, **world)
    loader = train_loader(train_set, batches, **loading)
    val_loader = evaluation_loader(val_set, batch_size=args.batch_size, **loading, **world)

    # network
    utils.seed_everything(args.seed)
    network = build_network(args, len(tokenizer)).to(device)
    model = utils.distribute(network, device)
    criterion = Criterion().to(device)
    optimizer = build_optimizer(network, args.lr, args.weight_decay, args.amsgrad)
    scheduler = build_scheduler(optimizer, total_steps=args.epochs * len(batches))
    first_epoch = files.resume(network, optimizer, scheduler)
    utils.log(describe_groups(optimizer))
    utils.log(f"{len(train_set.objects)} objects, {len(batches)} steps an epoch; {len(val_set)} expressions to test")

    if first_epoch == args.epochs:
        utils.log(f"all {args.epochs} epochs are done: nothing is left to train")
    for epoch in range(first_epoch, args.epochs):
        batches.epoch = epoch
        utils.seed_everything(args.seed, epoch, utils.rank())
        try:
            summary = train_one_epoch(
                model, criterion, loader, optimizer, scheduler, device, epoch=epoch, print_freq=args.print_freq
            )
        except DivergedError as error:
            raise UserError(f"{error}. {files.last_good()} Try a smaller --lr.") from error
        except KeyboardInterrupt as error:
            raise UserError(f"interrupted. {files.last_good()}") from error
        scores = evaluate(model, val_loader, device)
        utils.log(f"epoch {epoch}: loss {summary.loss:.4f}, {summary.seconds:.0f} s\n{scores.table()}")
        files.finish_epoch(epoch, summary, scores, network, optimizer, scheduler)


def build_network(args: argparse.Namespace, vocab_size: int) -> nn.Module:
    """Return the network that the flags describe, with its starting weights."""
    try:
        model = build_model(
            args.swin_type, args.bert_type, vocab_size=vocab_size, dropout=args.dropout, drop_path=args.drop_path
        )
    except ValueError as error:
        raise UserError(f"--swin_type, --bert_type: {error}") from error
    if not args.resume:
        load_swin(model, args.pretrained_swin_weights or default_swin(args.swin_type), args.swin_type)
        load_bert(model, args.ck_bert or default_bert(args.bert_type))
    return model


if __name__ == "__main__":
    utils.run(main)
