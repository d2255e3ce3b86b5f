"""The float teacher of --distill: read, refused where it is no such network, and known by the digest of its weights."""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.adaptation.distillation import Distillation
from common.config.groups import FLOAT, Quantization
from common.config.options import Options
from common.errors import UserError
from common.flags import flags_of
from common.models import build_model, class_logits
from common.runs import checkpoint
from common.runs.job import Job
from common.runs.start import network_arguments, warn_of_images


def make_distillation(options: Options, num_classes: int, device: torch.device, job: Job) -> Distillation | None:
    """What --distill asks for, None without it or where nothing is trained.

    The job records the teacher's digest, and a warning where the teacher was trained on this run's test images. Drawn
    from before the run is seeded: a teacher changes no other draw.

    Raises:
        UserError: as ``read_teacher``.
    """
    wanted = options.distillation
    if wanted.distill is None or options.run.test_only:
        return None
    path = Path(wanted.distill)
    teacher, content = read_teacher(path, options, num_classes)
    warn_of_images(content, path, options, job, as_flag=f"--distill {path}")
    job.teacher = digest_of_weights(teacher)
    job.log(f"distilled from {wanted.distill} (weights {job.teacher[:12]}), weight {wanted.distill_weight:g}")
    return Distillation(partial(class_logits, teacher.to(device)), wanted.distill_weight, wanted.distill_temperature)


def read_teacher(path: Path, options: Options, num_classes: int) -> tuple[nn.Module, dict[str, Any]]:
    """The float network of a file, in evaluation mode and without gradients, and what the file holds.

    Raises:
        UserError: it cannot be read, is no float network, or is one of another --model or number of classes.
    """
    where = f"--distill {path}"
    try:
        recorded = checkpoint.config_of(checkpoint.read(path), flags_of(Quantization), str(path))
        found, model = recorded.get("model", options.quantization.model), options.quantization.model
        if found != model:
            raise UserError(f"{path}: a file of {found}; expected one of {model}")
        for name in ("bitW", "abitW"):
            if recorded.get(name, FLOAT) != FLOAT:
                raise UserError(f"{path}: trained with --{name} {recorded[name]}; expected a float network's file")
        kept = {name: recorded[name] for name in ("act_range", "stage") if name in recorded}
        kept["stage"] = "align" if kept.get("stage") == "align" else "plain"
        teacher = build_model(model, **kept, num_classes=num_classes, **network_arguments(options))
        report, content = checkpoint.load_weights(teacher, path)
    except UserError as error:
        raise UserError(f"--distill {error}") from None
    if missing := [name for name in report.missing if not name.endswith("num_batches_tracked")]:
        raise UserError(f"{where}: {len(missing)} tensors of {model} such as {missing[0]} are not in it")
    return teacher.eval().requires_grad_(False), content


def digest_of_weights(network: nn.Module) -> str:
    """SHA-256 of all that a network's state holds, by name: the same for every file of the same weights."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
