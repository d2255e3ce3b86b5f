"""What a run begins with: its network, and the weights that it starts from."""

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.adaptation import OBJECTIVES, Objective, offsets
from common.config.groups import Run
from common.config.naming import earlier_runs, find_source
from common.config.options import Options
from common.data.kinds import DATA, Batches
from common.errors import UserError
from common.flags import flags_of, values_of
from common.machine import distributed
from common.models import build_model, class_logits, known_network
from common.quantizers import make_scheme
from common.reading import reason
from common.runs import checkpoint, states
from common.runs.backbone import IMAGENET, NONE, load_backbone
from common.runs.job import Job

ALL_IMAGES = {"train_split": False, "src_split": False, "tgt_split": False}  # of a run that trains on all that there is


def check_network(options: Options) -> None:
    """Refuse, before data are read, a network that this program cannot feed, or what its method does not define."""
    make_scheme(**options.quantization.scheme, **values_of(options.own))  # type: ignore[arg-type]
    entry = known_network(options.quantization.model)
    if entry is not None and entry.data != options.task.data:
        raise UserError(
            f"--model {options.quantization.model}: belongs to {entry.task}, whose images this program does not have; "
            f"expected a network such as {options.task.model}"
        )
    if entry is not None and options.quantization.quant_linear:
        raise UserError(
            f"--quant_linear: {options.quantization.model} keeps the layers of the paper; expected a network "
            "of others, such as --model torchvision:NAME"
        )
    batch = options.training.train_batch_size // distributed.size()
    if entry is None or batch == 1:
        _try(options, min(batch, 2), f"--train_batch_size {options.training.train_batch_size}")


def check_last_batch(options: Options, batches: Batches) -> None:
    """Refuse, before training, a last batch of one image in each process on which the network cannot be trained."""
    if options.run.test_only or batches.drop_last or known_network(options.quantization.model) is not None:
        return
    rest, processes = batches.samples % batches.batch_size, batches.share.size
    own = rest // processes * (processes if options.device.sync_bn else 1)
    if own == 1 or (rest == 1 and options.training.reestimate):  # which takes the batches whole
        each = f", one for each of {processes} processes" if processes > 1 and own == 1 else ""
        _try(options, 1, f"the last of {batches.samples} by --train_batch_size {batches.batch_size}{each}")


def check_classes(options: Options, classes: int) -> None:
    """Refuse, before training, a network of others that tells fewer classes apart than the data have."""
    model = options.quantization.model
    if known_network(model) is None:
        network = build_model(model, num_classes=classes, **network_arguments(options)).eval()
        try_network(network, model, classes, options.data.side, 1)


def _try(options: Options, batch: int, what: str) -> None:
    """One pass of the float network over images of the run's size."""
    model = options.quantization.model
    network = build_model(model, **network_arguments(options)).train(not options.run.test_only)
    try_network(network, model, 1, options.data.side, batch, f", {what}")


@torch.no_grad()
def try_network(network: nn.Module, model: str, classes: int, side: int, batch: int, what: str = "") -> None:
    """One pass of a network over images of this side.

    Raises:
        UserError: it cannot take them, or does not give every image at least this many logits.
    """
    where = f"--model {model}, images of {side} x {side}{what}"
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # to which a traced network writes where it failed
            logits = class_logits(network, torch.zeros(batch, 3, side, side))
    except (AssertionError, RuntimeError, ValueError) as error:  # as the layers of torch and torchvision refuse
        raise UserError(f"{where}: {reason(error)}; expected what this network can take") from None
    shape = tuple(getattr(logits, "shape", ()))
    if len(shape) != 2 or shape[1] < classes:
        what = f"logits {shape}" if shape else f"a {type(logits).__name__}"
        raise UserError(f"{where}: the network gives {what}; expected ({batch}, {classes}), one for each class")


def make_network(options: Options, num_classes: int | None = None) -> nn.Module:
    """The network of a run, freshly initialised."""
    given: dict[str, Any] = {**options.quantization.scheme, **values_of(options.own), "num_classes": num_classes}
    return build_model(options.quantization.model, **given, **network_arguments(options))


def network_arguments(options: Options) -> dict[str, Any]:
    """Those of the network's own, such as the side of its images."""
    entry, flat = known_network(options.quantization.model), options.flat()
    if entry is not None:
        return {name: flat[name] for name in entry.arguments}
    further = {"quant_linear": options.quantization.quant_linear}
    if options.task.cross:
        bottleneck = OBJECTIVES[options.objective_name].bottleneck
        further |= {"adapts": True, "img_size": options.data.side, "bottleneck": bottleneck}
    return further


def load_source(network: nn.Module, options: Options, job: Job) -> dict[str, Any] | None:
    """Fill the network with the weights the run starts from, or that --test_only evaluates.

    Returns:
        What else their file holds; nothing where a checkpoint to resume from will bring all. None: it has no weights.
    """
    run, start = options.run, options.start
    if run.resume is not None and not run.test_only and (job.last.exists() or run.resume):
        return {}
    if run.test_only:
        if run.resume:
            path = Path(run.resume)
        elif job.best.exists() and "source_file" not in options.typed:
            path = job.best
        else:
            path = find_source(options, earlier_runs(options))
    elif start.pretrained and (options.quantization.bits != 32 or "source_file" in options.typed):
        path = find_source(options, earlier_runs(options))
    else:
        job.log("training from scratch")
        return None
    report, content = checkpoint.load_weights(network, path, options.quantization.method)
    for line in report.lines(path):
        job.log(line)
    warn_of_images(content, path, options, job)
    if run.test_only:
        offsets.attach_from(content, network, path)  # of its own source, which this run's images need not be
    return content


def warn_of_images(content: Mapping[str, Any], path: Path, options: Options, job: Job, as_flag: str = "") -> None:
    """Log, and note in the job, that a file which the run learns from was trained on what this run tests on.

    Also log where it is one of the demo data and this run is not.

    Args:
        content, path: of the file. as_flag: what names it in the job's note, where it is not the source file.
    """
    kind = DATA[options.task.data]
    known = flags_of(kind.Options) | {"seed": flags_of(Run)["seed"]}
    config = checkpoint.config_of(content, known, str(path))
    if config.get("demo") and not options.data.demo:
        job.log(f"warning: {path} was trained on demo data")
    seen = kind.split_seen(options.data, config) if config else ""
    if config and not seen and content.get("split_seen") and kind.split_seen(options.data, ALL_IMAGES):
        seen = "it learned from a file that was trained on this run's test images"
    if seen:
        job.log(f"warning: {path}: {seen}; its accuracy is not that of unseen images")
        job.split_seen = "; ".join(filter(None, (job.split_seen, f"{as_flag}: {seen}" if as_flag else seen)))


def load_heads(objective: Objective, content: Mapping[str, Any], job: Job) -> None:
    """Let the objective's heads, such as a discriminator, be those of the file that the network comes from.

    Where it has none, those of another objective, or of other shapes, they stay as initialised, and the log says so.
    """
    if objective.heads is None or not content:
        return
    config = content.get("config")
    same = isinstance(config, dict) and config.get("adaptation") == objective.name
    found = content.get("heads") if same else None
    if found is not None and states.fits(objective.heads, found):
        objective.heads.load_state_dict(found)
    else:
        job.log(f"not in the file, left as initialised: the discriminator of --adaptation {objective.name}")


def start_backbone(network: Any, options: Options, job: Job) -> bool:
    """Give the backbone its ImageNet weights when nothing else did; returns whether it is pretrained now."""
    if options.backbone is None or (options.run.resume is not None and job.last.exists()):
        return False  # there is none, or the checkpoint brings everything
    wanted = options.backbone.backbone_weights or IMAGENET
    for line in load_backbone(network.backbone(), wanted, options.quantization.model):
        job.log(line)
    return wanted != NONE
