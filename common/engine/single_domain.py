"""Training and evaluating a classifier on one domain: CIFAR-10."""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common.data import cifar10
from common.data.corruptions import STRENGTHS, corrupt
from common.data.demo import cifar10 as demo_cifar10
from common.data.locate import data_folder
from common.data.sharding import Share
from common.data.tensors import ImageSet, TensorBatches
from common.engine import acceleration, checkpoint, distributed, effective_bits, feature_map, relation_error
from common.engine.acceleration import Acceleration
from common.engine.cli import run_cleanly
from common.engine.device import choose_device, seed_everything
from common.engine.job import Job
from common.engine.meters import FiniteWatch, Sums, cross_entropy, precision, progress_bar
from common.engine.naming import name_files
from common.engine.options import parse
from common.engine.schedule import learning_rate_factor, parameter_groups, set_learning_rate
from common.engine.start import load_source, make_model
from common.engine.tasks import REPOSITORY, Task


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


def load_data(options: argparse.Namespace, device: torch.device) -> dict[str, TensorBatches]:
    """The batches of "train", "test" and, for --select val, "val", which is then held out of the training set."""
    folder = data_folder(options.data_dir, REPOSITORY, "demo" if options.demo else "cifar10")
    if options.demo:
        root = demo_cifar10.write(folder / "demo" / "cifar10")
    else:
        root = folder / "cifar10" if (folder / "cifar10").exists() or options.data_dir is None else folder
    train_set, test_set = cifar10.load(root, download=options.download)
    sets = {"train": train_set, "test": test_set}
    if options.select == "val":
        sets["train"], sets["val"] = train_set.split(options.val_fraction, options.seed)
    return {split: make_batches(images, split, options, device) for split, images in sets.items()}


def make_batches(images: ImageSet, split: str, options: argparse.Namespace, device: torch.device) -> TensorBatches:
    train = split == "train"
    return TensorBatches(
        image_set=images,
        batch_size=options.train_batch_size if train else options.eval_batch_size,
        mean=cifar10.MEAN,
        std=cifar10.STD,
        seed=options.seed,
        shuffle=train,
        augment="crop_flip" if train else None,
        device=device,
        share=distributed.share() if train else Share(),
    )


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
    sums, watch, steps = Sums(), FiniteWatch(batches.device), len(batches)
    last_good = f"the last good checkpoint is {job.last}" if job.last.exists() else "there is no checkpoint yet"
    for step, (images, labels) in enumerate(progress_bar(batches, f"epoch {epoch}", steps), start=1):
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
    return sums.mean()


def evaluate(model: nn.Module, batches: TensorBatches, job: Job, epoch: int, split: str = "test") -> dict[str, float]:
    """Means of loss, prec1 and prec5 over a set, logged; the model is in evaluation mode meanwhile."""
    mean = means_over(model, batches)
    name = split.capitalize()
    tags = {f"{name}_loss": mean["loss"], f"{name}-top-1": mean["prec1"], f"{name}-top-5": mean["prec5"]}
    job.scalars("test", tags, epoch + 1)
    label = "" if split == "test" else f" [{split}]"
    job.log(f"Prec@1 {mean['prec1']:.3f} Prec@5 {mean['prec5']:.3f}{label}\n" + "=" * 47 + "\n")
    return mean


@torch.no_grad()
def means_over(model: nn.Module, batches: TensorBatches) -> dict[str, float]:
    model.eval()
    sums = Sums()
    for images, labels in distributed.dealt(batches):
        logits = model(images)
        sums.add(len(labels), loss=cross_entropy(logits, labels), **precision(logits, labels))
    return sums.mean()


@torch.no_grad()
def confusion_over(model: nn.Module, batches: TensorBatches) -> Tensor:
    """(C, C) counts over a set, rows the true class."""
    model.eval()
    return torch.stack([feature_map.confusion(model(images), labels).cpu() for images, labels in batches]).sum(0)


def evaluate_shifted(model: nn.Module, test: TensorBatches, job: Job) -> dict[str, Any]:
    """Top-1 on corrupted test images: {corruption: [at each of its strengths], "mean": over all of them, "images": N}.

    --shift_images N takes a sample of N, the same share of every class and the same for every network.
    """
    clean, wanted = test.image_set, job.options.shift_images
    if 0 < wanted < len(clean):
        clean = clean.split(wanted / len(clean), seed=0)[1]
    top1: dict[str, list[float]] = {}
    for kind, strengths in STRENGTHS.items():
        levels = range(1, len(strengths) + 1)
        sets = (make_batches(corrupt(clean, kind, n), "test", job.options, test.device) for n in levels)
        top1[kind] = [means_over(model, batches)["prec1"] for batches in sets]
        values = ", ".join(f"{value:.3f}" for value in top1[kind])
        job.log(f"{'demo ' if job.options.demo else ''}test top-1 under {kind} {strengths}: {values}")
    every = [value for values in top1.values() for value in values]
    return {**top1, "mean": sum(every) / len(every), "images": len(clean)}


def finish(
    model: nn.Module, data: dict[str, TensorBatches], options: argparse.Namespace, job: Job, best: dict
) -> dict[str, Any]:
    """Log and record the result: best and last epoch, by which rule, per class, and the levels of every layer."""
    images: Tensor = next(iter(data["test"]))[0][:32]
    levels = effective_bits.measure(model, images)
    relations = relation_error.measure(model, images)
    for line in effective_bits.summary_lines(levels) if options.bits != 32 else []:
        job.log(line)
    last = job.history()[-1]["test"]
    demo = "demo " if options.demo else ""
    job.log(f"Best @prec1: {best['prec1']:.3f} @prec5: {best['prec5']:.3f}")
    job.log(
        f"{demo}test top-1: {best['test_prec1']:.3f} at epoch {best['epoch']} (selected by {options.select}), "
        f"{last['prec1']:.3f} at the last epoch"
    )
    classes = data["test"].image_set.classes
    confusions = {"last": confusion_over(model, data["test"])}
    confusions["best"] = confusions["last"]
    if best["epoch"] < options.num_epochs - 1:
        model.load_state_dict(checkpoint.weights_of(checkpoint.read(job.best), job.best))
        confusions["best"] = confusion_over(model, data["test"])
    summary = {
        "task": job.task.name,
        "model": options.model,
        "method": options.method,
        "bitW": options.bitW,
        "abitW": options.abitW,
        "seed": options.seed,
        "demo": options.demo,
        "selected_by": options.select,
        "best": {"epoch": best["epoch"], "test_prec1": best["test_prec1"]},
        "last": {"epoch": options.num_epochs - 1, "test_prec1": last["prec1"]},
        "per_class": {when: feature_map.per_class(counts, classes) for when, counts in confusions.items()},
        "confusion": {when: counts.tolist() for when, counts in confusions.items()},
        "classes": list(classes),
        "relation_error": relations,
        "layers": [entry.row() for entry in levels],
    }
    if options.shift:  # of the best epoch's network, which the model now is
        summary["shift"] = evaluate_shifted(model, data["test"], job)
    job.write_json("summary.json", summary)
    return summary


def test_only(model: nn.Module, data: dict[str, TensorBatches], job: Job) -> dict[str, Any]:
    """Evaluate once on the test set, and with --shift on its corruptions; writes test.json."""
    mean = evaluate(model, data["test"], job, 0)
    job.log(f"{'demo ' if job.options.demo else ''}test top-1: {mean['prec1']:.3f} top-5: {mean['prec5']:.3f}")
    result: dict[str, Any] = {"test": mean}
    if job.options.shift:
        result["shift"] = evaluate_shifted(model, data["test"], job)
    job.write_json("test.json", result)
    return result
