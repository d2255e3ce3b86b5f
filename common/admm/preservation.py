"""Relation preservation (CRP) in a run: whether it is wanted, how it is made, and its state in a checkpoint."""

import argparse
from typing import Any

from common.admm.crp import CRP, strength_note
from common.config.tasks import Task
from common.data.cross_domain import DOMAINS
from common.errors import UserError
from common.machine import distributed
from common.runs.job import Job

CRP_FLAGS = {"mu", "rho", "crp_weight", "crp_norm", "crp_on"}


def wants_crp(options: argparse.Namespace, task: Task) -> bool:
    """Whether the run preserves relations: in a task that has CRP, for "ours" with quantized activations.

    Raises:
        UserError: another method, or 32 bits with a CRP flag typed.
    """
    if not task.crp or options.test_only:
        return False
    if options.method == "ours" and options.abitW != 32:
        return True
    without = "leave the --crp flags out" if options.method == "ours" else "add --crp_weight 0"
    asked = CRP_FLAGS & options.typed and options.crp_weight > 0
    if asked or (options.method != "ours" and options.bits != 32 and options.crp_weight > 0):
        what = f"--method {options.method}" if options.method != "ours" else f"--abitW {options.abitW}"
        raise UserError(f"{what}: relation preservation (CRP) belongs to quantized activations of ours; {without}")
    options.notes.append("without relation preservation: nothing is aligned in this run")
    return False


def make_crp(model: Any, options: argparse.Namespace, job: Job) -> CRP:
    batch_size = options.train_batch_size // distributed.size()
    if note := strength_note(batch_size, options.crp_weight):
        job.log(note)
    return CRP(
        model.crp_sites(),
        batch_size=batch_size,
        mu=options.mu,
        rho=options.rho,
        weight=options.crp_weight,
        norm=options.crp_norm,
        on=options.crp_on,
        domains=DOMAINS[:1] if options.src_only_flag else DOMAINS,
    )


def crp_state(content: dict[str, Any]) -> dict[str, Any]:
    """This process's CRP state in a checkpoint; the first one's where it was written by fewer processes."""
    states = [content.get("crp", {}), *content.get("crp_others", [])]
    return states[distributed.rank() if distributed.rank() < len(states) else 0]
