"""Relation preservation (CRP) in a run: its flags, whether it is wanted and how it is made."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import nn

from common.admm.correlation import On
from common.admm.crp import CRP, Norm
from common.errors import UserError
from common.flags import flag, flags_of, non_negative, number
from common.quantizers.rounding import FLOAT_BITS

above_zero = number(float, 1e-9, 1e9)


@dataclass(frozen=True)
class CRPOptions:
    mu: float = flag(0.2, above_zero, "penalty of the relations")
    rho: float = flag(0.3, above_zero, "penalty of ADMM")
    crp_weight: float = flag(1.0, non_negative, "weight of relation preservation; 0 is without")
    crp_norm: str = flag("fro", help="norm of the relations' penalty", choices=("fro", "l1"))
    crp_on: str = flag("aligned", help="values whose relations are preserved", choices=("aligned", "quantized"))


CRP_FLAGS = frozenset(flags_of(CRPOptions))


def wants_crp(options: CRPOptions, method: str, bitW: int, abitW: int, typed: Collection[str]) -> bool:
    """Whether a run of a task with CRP preserves relations: for "ours" with quantized activations.

    Args:
        typed: the flags that the user typed.
    Raises:
        UserError: another method, or 32 bits with a CRP flag typed.
    """
    if method == "ours" and abitW != FLOAT_BITS:
        return True
    without = "leave the --crp flags out" if method == "ours" else "add --crp_weight 0"
    quantized = (bitW, abitW) != (FLOAT_BITS, FLOAT_BITS)
    if options.crp_weight > 0 and (CRP_FLAGS & set(typed) or (method != "ours" and quantized)):
        what = f"--method {method}" if method != "ours" else f"--abitW {abitW}"
        raise UserError(f"{what}: relation preservation (CRP) belongs to quantized activations of ours; {without}")
    return False


def make_crp(options: CRPOptions, sites: Mapping[str, nn.Module], batch_size: int, domains: Sequence[str]) -> CRP:
    """
    Args:
        sites: of the network, by name. batch_size: of training, of each domain, in this process.
    """
    return CRP(
        sites,
        batch_size=batch_size,
        mu=options.mu,
        rho=options.rho,
        weight=options.crp_weight,
        norm=cast(Norm, options.crp_norm),
        on=cast(On, options.crp_on),
        domains=domains,
    )
