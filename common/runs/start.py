"""What a run begins with: its network, and the weights that it starts from."""

import argparse
from typing import Any

from torch import nn

from common.config.naming import find_source
from common.config.tasks import Task
from common.models import build_model
from common.runs import checkpoint
from common.runs.job import Job


def make_model(options: argparse.Namespace, **task_arguments: Any) -> nn.Module:
    return build_model(options.model, **scheme_options(options), **task_arguments)


def scheme_options(options: argparse.Namespace) -> dict[str, Any]:
    """The flags that say how the network is quantized, as ``make_scheme`` and ``build_model`` take them."""
    names = ("method", "bitW", "abitW", "act_range", "levels", "grad_approx", "lam", "lam2")
    stage = "align" if options.stage == "align" else "plain"
    return {**{name: getattr(options, name) for name in names}, "stage": stage}


def load_source(model: nn.Module, options: argparse.Namespace, task: Task, job: Job, earlier_runs: list) -> bool:
    """Fill the model with the weights the run starts from, or that --test_only evaluates; False: there are none."""
    if options.resume is not None and not options.test_only and (job.last.exists() or options.resume):
        return True  # the checkpoint brings everything
    if options.test_only:
        if options.resume:
            path = options.resume
        elif job.best.exists() and "source_file" not in options.typed:
            path = job.best
        else:
            path = find_source(options, task, earlier_runs)
    elif options.pretrained and (options.bits != 32 or "source_file" in options.typed):
        path = find_source(options, task, earlier_runs)
    else:
        job.log("training from scratch")
        return False
    report, content = checkpoint.load_weights(model, path, options.method)
    for line in report.lines(path):
        job.log(line)
    if (content.get("config") or {}).get("demo") and not options.demo:
        job.log(f"warning: {path} was trained on demo data")
    return True
