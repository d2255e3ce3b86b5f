"""Relation preservation: sample relations, and ADMM that keeps them under alignment."""

from common.admm.correlation import align_with_shift, relation_matrix, relation_shift
from common.admm.crp import CRP, admm_update, prox_frobenius, prox_l1, strength_note

__all__ = [
    "CRP",
    "admm_update",
    "align_with_shift",
    "prox_frobenius",
    "prox_l1",
    "relation_matrix",
    "relation_shift",
    "strength_note",
]
