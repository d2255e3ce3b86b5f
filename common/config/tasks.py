"""What a task's main.py says of itself; everything else is shared."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Task:
    """A task folder.

    Attributes:
        name: its name in the tables (common.config.recipes), e.g. "resnet20".
        folder: where its main.py lies; pretrained files are looked for here and in ``shared`` too.
        model: default of --model.
        data: kind of its data, a name in ``common.data.kinds.DATA``.
        objective: default of --adaptation, a name in ``common.adaptation.OBJECTIVES``.
        stem: how its files are called, e.g. "res20" in res20_32bit/model_best.pt. Cross-domain files are named by pair.
        crp: whether relation preservation is part of it (the daq_crp folders).
        defaults: the defaults of its flags where the tables have no row.
    """

    name: str
    folder: Path
    model: str
    data: str = "cifar10"
    objective: str = "source_only"
    stem: str = ""
    crp: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cross(self) -> bool:
        """Whether it has a source and a target domain."""
        return self.objective != "source_only"

    @property
    def shared(self) -> Path:
        """The folder that a task's variants have in common, such as cross_domain/dann_office."""
        return self.folder.parent if self.cross else self.folder
