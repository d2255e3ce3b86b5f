"""Training and evaluating a classifier on one domain: CIFAR-10."""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from common.config.naming import name_files
from common.config.options import parse
from common.config.tasks import Task
from common.data.single_domain import load_data
from common.data.tensors import TensorBatches
from common.engine.meters import FiniteWatch, Pace, Sums, cross_entropy, precision, progress_bar
from common.engine.schedule import learning_rate_factor, parameter_groups, set_learning_rate
from common.engine.single_evaluation import evaluate, finish, test_only
from common.machine import acceleration, distributed
from common.machine.acceleration import Acceleration
from common.machine.device import choose_device, seed_everything
from common.runs.cli import run_cleanly
from common.runs.job import Job
from common.runs.start import load_source, make_model


def main(task: Task, argv: Sequence[str] | None = None) -> None:
    """The program of a single-domain task: read the flags, then train or evaluate. Ends the process."""
    run_cleanly(lambda: run(task, argv))


def run(task: Task, argv: Sequence[str] | None = None) -> dict[str, Any]:
    """As ``main``, without ending the process; returns what summary.json holds.

    Raises:
        UserError: anything the user can put right.
    """
    distributed.start()
    options = parse(task, argv)
    device, device_note = choose_device(options)
    options.notes += [device_note] if device_note else []
    distributed.check(options, device)
    acceleration.check(options, device)
    earlier_runs = name_files(options, task)
    seed_everything(options.seed)
    model = make_model(options)  # before the data are read: refuses bit-widths that a method does not define
    job = Job(options, task)
    try:
        print("=> Preparing data..", flush=True)
        data = load_data(options, device)
        print("=> Building model...", flush=True)
        load_source(model, options, task, job, earlier_runs)
        model.to(device)
        if options.sync_bn:
            model = distributed.synchronise_batch_norm(model)
        if options.test_only:
            return test_only(model, data, job)
        return train(model, data, options, job)
    finally:
        job.close()


def train(model: nn.Module, data: dict[str, TensorBatches], options: argparse.Namespace, job: Job) -> dict[str, Any]:
    """Train to the last epoch, saving after each; returns the summary, in the first process."""
    groups = parameter_groups(model, options.weight_decay)
    optimizer = torch.optim.SGD(groups, options.lr, options.momentum, fused=options.amp == "fp16" or None)
    best = {"prec1": -1.0, "prec5": 0.0, "epoch": -1, "test_prec1": 0.0}
    start = 0
    if content := job.restore():
        model.load_state_dict(content["state_dict_t"])
        optimizer.load_state_dict(content["optimizer_t"])
        start, best = content["epoch"], content["best"]
    faster = Acceleration(options, model, data["train"].device, options.train_batch_size // distributed.size())
    faster.load_state_dict(content.get("amp", {}) if content else {})
    network = distributed.replicate(model)
    for epoch in range(start, options.num_epochs):
        distributed.seed_epoch(options.seed, epoch)
        lr = options.lr * learning_rate_factor(
            epoch, epoch / options.num_epochs, options.lr_decay_steps, options.lr_gamma
        )
        set_learning_rate(optimizer, lr)
        train_means = train_one_epoch(network, data["train"], optimizer, faster, epoch, job)
        distributed.average_statistics(model)
        test_means = evaluate(model, data["test"], job, epoch)
        judged = evaluate(model, data["val"], job, epoch, "val") if "val" in data else test_means
        is_best = options.select == "last" or judged["prec1"] > best["prec1"]
        if is_best:
            best |= {"prec1": judged["prec1"], "epoch": epoch, "test_prec1": test_means["prec1"]}
        best["prec5"] = max(best["prec5"], judged["prec5"])
        row = {"lr": lr, "train": train_means, "test": test_means}
        job.record(epoch, row | ({"val": judged} if "val" in data else {}))
        state = {
            "state_dict_t": model.state_dict(),
            "best_prec1": best["prec1"],
            "best_prec5": best["prec5"],
            "optimizer_t": optimizer.state_dict(),
            "scheduler_t": {"last_epoch": epoch, "lr": lr},
            "best": best,
            "amp": faster.state_dict(),
        }
        job.save(state, epoch, is_best)
    return finish(model, data, options, job, best) if distributed.leave() else {}


def train_one_epoch(
    model: nn.Module,
    batches: TensorBatches,
    optimizer: torch.optim.Optimizer,
    faster: Acceleration,
    epoch: int,
    job: Job,
) -> dict[str, float]:
    """One pass over the training set; returns the means of loss, prec1 and prec5.

    Raises:
        UserError: the loss became NaN or infinite.
    """
    model.train()
    batches.set_epoch(epoch)
    sums, watch, steps, pace = Sums(), FiniteWatch(batches.device), len(batches), Pace()
    last_good = f"the last good checkpoint is {job.last}" if job.last.exists() else "there is no checkpoint yet"
    for step, (images, labels) in enumerate(progress_bar(pace.watch(batches), f"epoch {epoch}", steps), start=1):
        with faster.forward(len(images)):
            logits = model(images)
        loss = cross_entropy(logits, labels)
        faster.descend(optimizer, loss)
        watch.see(loss, step)
        sums.add(len(labels), loss=loss, **precision(logits.detach(), labels))
        if step % job.options.print_freq == 0 or step == steps:
            watch.check(epoch, last_good)
            now, mean = sums.latest(), sums.mean()
            tags = {"Performance_loss": mean["loss"], "Train-top-1": mean["prec1"], "Train-top-5": mean["prec5"]}
            job.scalars("train", tags, steps * epoch + step)
            job.log(
                f"Epoch[{epoch}]({step}/{steps}): \n"
                f"Train_loss: {now['loss']:.4f} ({mean['loss']:.4f})\n"
                f"Prec@1 {now['prec1']:.3f} ({mean['prec1']:.3f}), Prec@5 {now['prec5']:.3f} ({mean['prec5']:.3f})\n"
            )
    job.log(f"epoch {epoch}: {pace}")
    return sums.mean()
