"""What a run trains and tests on, by kind of data. A new kind is one file and one line here."""

from common.data.kinds.base import DOMAINS, Batches, Batching, DataKind, DataOptions, RunData, cyclic
from common.data.kinds.cifar10 import CIFAR10
from common.data.kinds.digits import DIGITS
from common.data.kinds.office import OFFICE

DATA: dict[str, DataKind] = {kind.name: kind for kind in (CIFAR10, DIGITS, OFFICE)}

__all__ = ["DATA", "DOMAINS", "Batches", "Batching", "DataKind", "DataOptions", "RunData", "cyclic"]
