"""What a task's main.py says of itself; everything else is shared."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Kind = Literal["single", "digits", "dann", "dsan"]
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Task:
    """A task folder.

    Attributes:
        name: its name in the tables (common.config.recipes), e.g. "resnet20".
        kind: which program it is: single-domain, DANN on digits, DANN or DSAN on image folders.
        folder: where its main.py lies; pretrained files are looked for here and in ``shared`` too.
        model: default of --target_model or --model.
        stem: how its files are called, e.g. "res20" in res20_32bit/model_best.pt. Cross-domain files are named by pair.
        crp: whether relation preservation is part of it (the daq_crp folders).
        defaults: the defaults of its flags where the tables have no row.
    """

    name: str
    kind: Kind
    folder: Path
    model: str
    stem: str = ""
    crp: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shared(self) -> Path:
        """The folder that a task's variants have in common, such as cross_domain/dann_office."""
        return self.folder if self.kind == "single" else self.folder.parent
