"""Training on a labelled source domain and an unlabelled target domain: DANN and DSAN, with CRP where a task has it."""

import argparse
import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from common.adaptation.objectives import DANN, DSAN, Objective
from common.admm.preservation import crp_state, make_crp, wants_crp
from common.config.naming import name_files
from common.config.options import parse
from common.config.tasks import Task
from common.data.cross_domain import CrossData, cyclic, load_digits, load_office
from common.engine.cross_evaluation import evaluate, finish, test_only
from common.engine.meters import FiniteWatch, Pace, Sums, precision, progress_bar
from common.engine.schedule import learning_rate_factor, parameter_groups, set_learning_rate
from common.machine import acceleration, distributed
from common.machine.acceleration import Acceleration
from common.machine.device import choose_device, seed_everything
from common.measure import feature_map
from common.models.backbone import IMAGENET, NONE, load_backbone
from common.quantizers import make_scheme
from common.quantizers.learned_scale import scales_from_first_batch
from common.runs.cli import run_cleanly
from common.runs.job import Job
from common.runs.start import load_source, make_model, scheme_options


def main(task: Task, argv: Sequence[str] | None = None) -> None:
    """The program of a cross-domain task: read the flags, then train or evaluate. Ends the process."""
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
    with_crp = wants_crp(options, task)
    make_scheme(**scheme_options(options))  # refuses what a method does not define before data are read
    job = Job(options, task)
    try:
        print("=> Preparing data..", flush=True)
        data = load_digits(options, device) if task.kind == "digits" else load_office(options, device, job.folder)
        print("=> Building model...", flush=True)
        seed_everything(options.seed)
        model: Any = make_model(options, num_classes=len(data.classes), **model_arguments(options, task))
        loaded = load_source(model, options, task, job, earlier_runs)
        pretrained = loaded or (task.kind != "digits" and start_backbone(model, options, job))
        model.to(device)
        if options.sync_bn:
            model = distributed.synchronise_batch_norm(model)
        crp = make_crp(model, options, job).to(device) if with_crp else None
        objective = (DSAN if task.kind == "dsan" else DANN)(model, options, crp)
        if options.test_only:
            return test_only(objective, data, job)
        return train(objective, data, job, pretrained)
    finally:
        job.close()


def model_arguments(options: argparse.Namespace, task: Task) -> dict[str, Any]:
    if task.kind == "digits":
        return {"img_size": options.img_size}
    return {"quant_shortcut": options.quant_shortcut}


def start_backbone(model: Any, options: argparse.Namespace, job: Job) -> bool:
    """Give the backbone its ImageNet weights when nothing else did; returns whether it is pretrained now."""
    if options.resume is not None and job.last.exists():
        return False  # the checkpoint brings everything
    wanted = options.backbone_weights or IMAGENET
    for line in load_backbone(model.backbone(), wanted):
        job.log(line)
    return wanted != NONE


def train(objective: Objective, data: CrossData, job: Job, pretrained: bool) -> dict[str, Any]:
    """Train to the last epoch, saving after each; returns the summary, in the first process."""
    options, model = job.options, objective.model
    content = job.restore()
    if content:
        pretrained = content["pretrained"]
    slow = model.backbone() if pretrained and hasattr(model, "backbone") else None
    groups = parameter_groups(model, options.weight_decay, slow, getattr(options, "backbone_lr_scale", 1.0))
    optimizer = torch.optim.SGD(groups, options.lr, options.momentum, fused=options.amp == "fp16" or None)
    best: dict[str, Any] = {"judged": -1.0, "epoch": -1, "target": {}, "source": {}}
    peaks = {f"{d}_best_{what}": 0.0 for d in ("tgt", "src") for what in ("prec1", "prec5", "prec1_domain")}
    start = 0
    if content:
        model.load_state_dict(content["state_dict_t"])
        optimizer.load_state_dict(content["optimizer_t"])
        if objective.crp is not None:
            objective.crp.load_state_dict(crp_state(content))
        start, best = content["epoch"], content["best"]
        peaks = {key: content[key] for key in peaks}
    if start == 0 and job.writes:
        untrained = copy.deepcopy(model)  # whose learned scales wait for a training batch
        with scales_from_first_batch(untrained):
            feature_map.save(feature_map.collect(untrained, data), job.folder / "features_before.npz")
    device = data.train["source"].device
    faster = Acceleration(options, model, device, options.train_batch_size // distributed.size())
    faster.load_state_dict(content.get("amp", {}) if content else {})
    compute = distributed.replicate(model, objective, unused=options.src_only_flag or options.warmup_epochs > 0)
    for epoch in range(start, options.num_epochs):
        distributed.seed_epoch(options.seed, epoch)
        row = train_one_epoch(objective, compute, data, optimizer, faster, epoch, job)
        distributed.average_statistics(model)
        for domain in ("target", "source"):
            row[domain], _ = evaluate(objective, data.test[domain], job, epoch, domain)
        judged = row["source" if options.select == "source" else "target"]["prec1"]
        is_best = options.select == "last" or judged > best["judged"]
        if is_best:
            best = {"judged": judged, "epoch": epoch, "target": row["target"], "source": row["source"]}
        for key in peaks:
            domain, what = ("target" if key.startswith("tgt") else "source"), key.split("_best_")[1]
            peaks[key] = max(peaks[key], row[domain].get(what, 0.0))
        job.record(epoch, row)
        state = {
            "state_dict_t": model.state_dict(),
            **peaks,
            "optimizer_t": optimizer.state_dict(),
            "scheduler_t": {"last_epoch": epoch, "lr": row["lr"]},
            "best": best,
            "pretrained": pretrained,
            "amp": faster.state_dict(),
        }
        if objective.crp is not None:
            state["crp"], *others = distributed.gather({k: v.cpu() for k, v in objective.crp.state_dict().items()})
            state |= {"crp_others": others} if others else {}
        job.save(state, epoch, is_best)
    return finish(objective, data, job, best) if distributed.leave() else {}


def train_one_epoch(
    objective: Objective,
    compute: Any,
    data: CrossData,
    optimizer: torch.optim.Optimizer,
    faster: Acceleration,
    epoch: int,
    job: Job,
) -> dict[str, Any]:
    """One epoch over both domains; returns the row for metrics.jsonl: learning rate, training means, relation shifts.

    The schedules of adaptation run over the epochs behind --warmup_epochs, which see the source alone.

    Raises:
        UserError: the loss became NaN or infinite.
    """
    options, crp = job.options, objective.crp
    objective.model.train()
    alone = options.src_only_flag or epoch < options.warmup_epochs
    steps = len(data.train["source"]) if alone else data.steps(options.epoch_length)
    sums, watch, pace = Sums(), FiniteWatch(data.train["source"].device), Pace()
    source = pace.watch(cyclic(data.train["source"], epoch, steps))
    target = None if alone else pace.watch(cyclic(data.train["target"], epoch, steps))
    last_good = f"the last good checkpoint is {job.last}" if job.last.exists() else "there is no checkpoint yet"
    lr = options.lr
    for step, (images, labels) in enumerate(progress_bar(source, f"epoch {epoch}", steps), start=1):
        progress = (epoch * steps + step - 1) / (options.num_epochs * steps)
        lr = options.lr * learning_rate_factor(epoch, progress, options.lr_decay_steps, options.lr_gamma, options.alpha)
        set_learning_rate(optimizer, lr)
        target_images = next(target)[0] if target is not None else None  # target labels are never read
        adapted = max(epoch - options.warmup_epochs + (step - 1) / steps, 0) / (
            options.num_epochs - options.warmup_epochs
        )
        with faster.forward(len(images)):
            losses, logits = compute(images, labels, target_images, adapted)
        faster.descend(optimizer, losses["Train_loss"])
        if crp is not None:
            for domain in crp.domains if target is not None else crp.domains[:1]:
                crp.update(domain)
                shifts = crp.mean_abs_shift(domain)
                sums.add(1, **{f"shift {domain} {name}": value for name, value in shifts.items()})
        watch.see(losses["Train_loss"], step)
        sums.add(len(labels), **losses, **precision(logits.detach(), labels))
        if step % options.print_freq == 0 or step == steps:
            watch.check(epoch, last_good)
            report(sums, lr, epoch, step, steps, job)
    job.log(f"epoch {epoch}: {pace}")
    mean = sums.mean()
    row: dict[str, Any] = {"lr": lr, "train": {k: v for k, v in mean.items() if not k.startswith("shift ")}}
    if crp is not None:
        by_layer = {k.removeprefix("shift "): v for k, v in mean.items() if k.startswith("shift ")}
        row["relation_shift"] = {"mean": float(np.mean(list(by_layer.values()))), "layers": by_layer}
    return row


def report(sums: Sums, lr: float, epoch: int, step: int, steps: int, job: Job) -> None:
    """The published block of lines, and the published tags."""
    now, mean = sums.latest(), sums.mean()
    losses = [name for name in mean if name.endswith("_loss")]
    lines = [f"Epoch[{epoch}]({step}/{steps}): "]
    lines += [f"{name}: {now[name]:.4f} ({mean[name]:.4f})" for name in losses]
    lines.append(f"Prec@1 {now['prec1']:.3f} ({mean['prec1']:.3f}), Prec@5 {now['prec5']:.3f} ({mean['prec5']:.3f})")
    lines.append(f"LR = {lr:.6g}")
    job.log("\n".join(lines) + "\n")
    tags = {name: mean[name] for name in losses if name != "Train_loss"}
    tags |= {"Performance_loss": mean["Train_loss"], "Train-top-1": mean["prec1"], "Train-top-5": mean["prec5"]}
    job.scalars("train", tags, epoch * steps + step)
