"""Domain adaptation: what a step minimises, one objective per file. A new one is one file and one line here."""

from common.adaptation.base import Objective
from common.adaptation.cdan import CDAN
from common.adaptation.dann import DANN
from common.adaptation.dsan import DSAN
from common.adaptation.mcc import MCC
from common.adaptation.source_only import SourceOnly

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective for objective in (SourceOnly, DANN, DSAN, CDAN, MCC)
}

__all__ = ["OBJECTIVES", "Objective"]
