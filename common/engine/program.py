"""A task's program, from its command line to its result: what every main.py calls."""

from collections.abc import Sequence
from typing import Any

from common.adaptation import OBJECTIVES
from common.admm.crp import CRP, strength_note
from common.admm.preservation import make_crp, wants_crp
from common.config.naming import name_files
from common.config.options import Options, parse
from common.config.tasks import Task
from common.data.kinds import DATA, DOMAINS, Batching
from common.engine import realignment
from common.engine.result import test_only
from common.engine.trainer import Trainer
from common.errors import UserError
from common.machine import acceleration, distributed
from common.machine.device import choose_device, seed_everything
from common.models.foreign import digest_of, is_foreign
from common.runs.cli import run_cleanly
from common.runs.job import Job
from common.runs.start import (
    check_classes,
    check_last_batch,
    check_network,
    load_heads,
    load_source,
    make_network,
    start_backbone,
)
from common.runs.teacher import make_distillation


def main(task: Task, argv: Sequence[str] | None = None) -> None:
    """Read the flags, then train or evaluate. Ends the process."""
    run_cleanly(lambda: run(task, argv))


def run(task: Task, argv: Sequence[str] | None = None) -> dict[str, Any]:
    """As ``main``, without ending the process; returns what summary.json holds.

    Raises:
        UserError: anything the user can put right.
    """
    distributed.start()
    options = name_files(parse(task, argv))
    device, note = choose_device(options.device)
    batch = options.training.train_batch_size
    options = options.noting(note, *distributed.check(batch, options.device.sync_bn, device))
    acceleration.check(options.acceleration, device)
    check_network(options)
    realignment.check(options)
    preserves = _wants_crp(options)
    if task.crp and not (preserves or options.run.test_only):
        options = options.noting("without relation preservation: nothing is aligned in this run")
    job = Job(options)
    try:
        print("=> Preparing data..", flush=True)
        batching = Batching(
            batch, options.training.eval_batch_size, options.run.seed, device, distributed.share(), job.folder
        )
        data = DATA[task.data].load(options.data, batching)
        check_last_batch(options, data.train["source"])
        check_classes(options, len(data.classes))
        print("=> Building model...", flush=True)
        distillation = make_distillation(options, len(data.classes), device, job)
        seed_everything(options.run.seed)
        job.classes, job.file_digest = data.classes, digest_of(options.quantization.model)
        network = make_network(options, len(data.classes))
        content = load_source(network, options, job)
        pretrained = content is not None or start_backbone(network, options, job)
        network.to(device)
        crp = _crp(network, options, job).to(device) if preserves else None
        make = OBJECTIVES[options.objective_name]
        objective = make(network, len(data.classes), options.objective, crp).to(device)
        objective.distillation = distillation
        load_heads(objective, content or {}, job)
        if options.device.sync_bn:
            distributed.synchronise_batch_norm(objective.trained)
        if options.run.test_only:
            job.begin()
            return test_only(objective, data, job)
        trainer = Trainer(objective, data, options, job, pretrained)
        job.begin()
        return trainer.train()
    finally:
        job.close()


def _wants_crp(options: Options) -> bool:
    if options.crp is None or options.run.test_only:
        return False
    quantization = options.quantization
    widths = quantization.bitW, quantization.abitW
    return wants_crp(options.crp, quantization.method, *widths, options.typed)


def _crp(network: Any, options: Options, job: Job) -> CRP:
    assert options.crp is not None
    batch_size = options.training.train_batch_size // distributed.size()
    if note := strength_note(batch_size, options.crp.crp_weight):
        job.log(note)
    sites = network.crp_sites()
    if not sites:
        raise UserError(
            f"--model {options.quantization.model}: no activation of it is aligned, so there are no relations to "
            "preserve; add --crp_weight 0, or run it in the cdf_alignment folder"
        )
    if is_foreign(options.quantization.model):
        job.log(f"relations are preserved at {', '.join(sites)}")
    domains = DOMAINS if OBJECTIVES[options.objective_name].adapts else DOMAINS[:1]
    return make_crp(options.crp, sites, batch_size, domains)
