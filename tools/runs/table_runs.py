"""The rows of the README's tables as runs: what each starts from, and the flags that train it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.admm.preservation import CRP_FLAGS
from common.config import recipes
from common.config.naming import find_source, name_files
from common.config.options import parse
from common.config.tasks import Task
from common.quantizers.rounding import FLOAT_BITS
from tools.runs.main_flags import flag_names
from tools.runs.plan import BEST
from tools.runs.programs import programs
from tools.runs.recorded import read_summary

PARTS = {"daq": "DAQ", "grad": "Gradient Approx.", "crp": "CRP"}  # of the method; the tables' columns
ABLATION = (("daq",), ("daq", "grad"), ("daq", "grad", "crp"))


@dataclass(frozen=True, eq=False)
class TableRun:
    """One run: a row of a table at some parts of the method, or the float network (no parts) that rows start from.

    Attributes:
        task: the folder that it runs in. row: whose hyperparameters it takes. bits: of weights and activations.
        parts: some of PARTS. source: the run that it starts from; None: from scratch or from ``file``.
        file: a fetched file to start from.
    """

    task: Task
    row: recipes.Row
    bits: int
    parts: tuple[str, ...] = ()
    source: "TableRun | None" = None
    file: Path | None = None

    @property
    def name(self) -> str:
        """Its folder, e.g. res20_4bit_daq_grad or aw_8bit_daq_grad_crp."""
        if self.row.pair is None:
            stem = self.task.stem
        elif self.task.data == "digits":
            stem = "_".join(self.row.pair)
        else:
            stem = "".join(domain[0] for domain in self.row.pair)
        return "_".join([stem, f"{self.bits}bit", *self.parts])

    def flags(self) -> list[str]:
        """What says which network and data it is about."""
        pair = ["--src_data", self.row.pair[0], "--tgt_data", self.row.pair[1]] if self.row.pair else []
        width = ["--bitW", str(self.bits), "--abitW", str(self.bits)]
        method = ["--method", "ours", "--grad_approx", "sigmoid" if "grad" in self.parts else "ste"]
        return [*pair, *width, *(method if self.parts else [])]

    def arguments(self, folder: Path, passed: Mapping[str, str]) -> list[str]:
        """Flags of main.py for a run in a folder of ``folder``, started or resumed; it may be finished already.

        Args:
            passed: further flags by name; those that this run does not have are left out.
        """
        known = flag_names(self.task) - (set() if "crp" in self.parts else CRP_FLAGS)
        further = [word for name, value in passed.items() if name[2:] in known for word in (name, value)]
        start: list[str] = []
        if self.source is not None:
            start = ["--source_dir", str(folder), "--source_file", f"{self.source.name}/{BEST}"]
        elif self.file is not None:
            start = ["--source_dir", str(self.file.parent), "--source_file", self.file.name]
        return [*self.flags(), *further, *start, "--job_dir", str(folder / self.name), "--resume"]

    def summary(self, folder: Path) -> dict[str, Any] | None:
        """What summary.json says; None: it is not finished."""
        return read_summary(folder / self.name) if (folder / self.name / BEST).exists() else None


def runs_of(
    rows: Sequence[recipes.Row], ablation: bool = False, crp: bool = True, fetched: bool = False
) -> list[TableRun]:
    """The runs, each after the one that it starts from; widths on the way are planned too.

    Args:
        ablation: every row with DAQ alone, with the gradient approximation, and with CRP where the task has it.
        crp: False: the tables' rows without their CRP.
        fetched: start from the published 32-bit files and not from float networks trained here.
    Raises:
        UserError: a published file is not there; says where it was looked for.
    """
    runs: dict[tuple[str, str], TableRun] = {}

    def add(row: recipes.Row, bits: int, parts: tuple[str, ...]) -> TableRun:
        folders = programs()[row.task]
        if bits == FLOAT_BITS:
            run = TableRun(folders[0], row, bits)
        else:
            task = next(task for task in folders if task.crp == ("crp" in parts))
            run = TableRun(task, row, bits, parts)
            wider = row.pretrained_bits
            if wider != FLOAT_BITS:
                source = recipes.find_row(row.task, wider, row.pair)
                if source is None:
                    raise ValueError(f"{row}: the tables have no row of {wider} bits")
                run = replace(run, source=add(source, wider, parts))
            elif fetched:
                run = replace(run, file=_fetched(run))
            else:
                run = replace(run, source=add(row, FLOAT_BITS, ()))
        return runs.setdefault((row.task, run.name), run)

    for row in rows:
        if row.bits == FLOAT_BITS:
            add(row, FLOAT_BITS, ())
            continue
        for parts in ABLATION if ablation else (_parts(row),):
            has_crp = any(task.crp for task in programs()[row.task])
            if "crp" not in parts or (crp and has_crp):
                add(row, row.bits, parts)
            elif not ablation:
                add(row, row.bits, tuple(part for part in parts if part != "crp"))
    return list(runs.values())


def _parts(row: recipes.Row) -> tuple[str, ...]:
    """Those of the README's table."""
    grad = ("grad",) if row.flags["grad_approx"] == "sigmoid" else ()
    return ("daq", *grad, *(("crp",) if row.crp else ()))


def _fetched(run: TableRun) -> Path:
    """The published 32-bit file, where main.py would look for it, default folders of earlier runs left out."""
    return find_source(name_files(parse(run.task, run.flags())), []).absolute()
