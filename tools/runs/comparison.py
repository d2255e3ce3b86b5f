"""The plan of a comparison: which method, bit-width and seed starts from which, and the flags that train it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import recipes
from common.config.tasks import Task
from common.errors import UserError
from common.quantizers import METHODS, Method
from common.quantizers.rounding import FLOAT_BITS
from tools.runs import paired, recorded, result_tables
from tools.runs.budget import Budget
from tools.runs.main_flags import with_effect
from tools.runs.plan import BEST, Plan, Planned

FLOAT = "float"
TAUGHT = ("--distill_weight", "--distill_temperature")  # of runs that have a teacher, which a float network has not
TRAINED = (*TAUGHT, "--reestimate")  # of runs that train, which a later evaluation does not
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {  # ablations: name -> method, further flags
    "ours-ste": ("ours", ("--grad_approx", "ste")),
}


@dataclass(frozen=True)
class Cell:
    """A method or variant at a bit-width and seed, started from the network of another cell or of none."""

    name: str
    method: str
    bits: int
    seed: int
    source: str | None = None

    def result(self, folder: Path) -> recorded.Result | None:
        """Its line of results.jsonl; None: it is not finished."""
        weight_bits = None if self.source is None else method_of(self.method).reported_weight_bits
        return recorded.result(folder / self.name, self.method, self.bits, self.source, weight_bits)

    def arguments(self, folder: Path, shift: bool, adapt: bool = False) -> list[str]:
        """Flags of main.py for what is left to do in ``folder``: training, a later evaluation, or nothing (empty)."""
        width = ["--bitW", str(self.bits), "--abitW", str(self.bits)]
        method, extra = VARIANTS.get(self.method, (self.method, ()))
        if self.source is not None:
            width = ["--method", method, *extra, *width]
        job = [*width, "--seed", str(self.seed), "--job_dir", str(folder / self.name)]
        summary = recorded.read_summary(folder / self.name)
        if summary is not None:
            left = (shift and "shift" not in summary) or (adapt and not _is_adapted(summary, shift))
            return [*job, *(["--shift"] if shift else []), "--test_only"] if left else []
        if self.source is not None:
            job += ["--source_dir", str(folder), "--source_file", f"{self.source}/{BEST}"]
        return [*job, *(["--shift"] if shift else []), "--resume"]


def _is_adapted(summary: dict[str, Any], shift: bool) -> bool:
    return "adapted" in summary and (not shift or "adapted" in summary.get("shift", {}))


def method_of(name: str) -> Method:
    return METHODS[VARIANTS[name][0] if name in VARIANTS else name]


def defines(name: str, bits: int) -> bool:
    """Whether a method or variant has both weights and activations of so many bits."""
    method = method_of(name)
    return bits in method.weight_bits and bits in method.act_bits


def cells_of(task: str, names: Sequence[str], widths: Sequence[int], seeds: Sequence[int], chain: bool) -> list[Cell]:
    """The cells, each after the one that it starts from; widths that a method does not define are left out.

    Args:
        names: methods and variants. widths: bits of weights and activations alike.
        chain: start from the next wider width of the README's table that the method defines, not from float; widths on
            the way are planned too.
    """
    cells: dict[str, Cell] = {}

    def wider(name: str, bits: int) -> int:
        bits = recipes.pretrained_bits(task, bits) if chain else FLOAT_BITS
        return bits if bits == FLOAT_BITS or defines(name, bits) else wider(name, bits)

    def add(name: str, bits: int, seed: int) -> str:
        if bits == FLOAT_BITS:
            cell = Cell(f"{FLOAT}_seed{seed}", FLOAT, bits, seed)
        else:
            source = add(name, wider(name, bits), seed)
            cell = Cell(f"{name}_{bits}bit{'_chain' if chain else ''}_seed{seed}", name, bits, seed, source)
        return cells.setdefault(cell.name, cell).name

    for seed in seeds:
        add(FLOAT, FLOAT_BITS, seed)
        for bits in sorted(widths, reverse=True):
            for name in names:
                if defines(name, bits):
                    add(name, bits, seed)
    return list(cells.values())


def comparison(
    task: Task,
    names: Sequence[str],
    widths: Sequence[int],
    seeds: Sequence[int],
    *,
    chain: bool,
    shift: bool,
    demo: bool,
    passed: Mapping[str, str],
    folder: Path,
    budget: Budget,
    against: str | None,
) -> Plan:
    """The plan; arguments as of ``cells_of``.

    Args:
        shift: also evaluate on corrupted test images.
        passed: further flags of main.py by name, for every run.
        folder: of the results. budget: of the quantized networks.
        against: the method, or float, from which the others' differences are tabled too.
    Raises:
        UserError: no method defines any of the widths, or ``against`` is none of the methods.
    """
    if against not in (None, FLOAT, *names):
        raise UserError(f"--against {against}: expected one of {', '.join((FLOAT, *names))}, which are compared here")
    cells = cells_of(task.name, names, widths, seeds, chain)
    if len(cells) == len(seeds):
        raise UserError(f"--methods {','.join(names)} --bits {','.join(map(str, widths))}: none of them is defined")
    left = {cell: cell.arguments(folder, shift, passed.get("--adapt", "none") != "none") for cell in cells}

    def words_of(cell: Cell, flags: list[str]) -> list[str]:
        evaluates = "--test_only" in flags
        without = TRAINED if evaluates else TAUGHT if cell.source is None else ()
        known = [name for name in passed if name not in without]
        words = [*(["--demo"] if demo else []), *(word for name in known for word in (name, passed[name])), *flags]
        if cell.source is None or evaluates:
            return words
        teacher = folder / f"{FLOAT}_seed{cell.seed}" / BEST
        return [*words, *budget.flags(task, words, teacher)]

    def collect(folder: Path) -> str | None:
        finished = [result for cell in cells if (result := cell.result(folder)) is not None]
        if not finished:
            return None
        table = result_tables.write(folder, finished, names, widths, len(seeds))
        table += paired.write(folder, finished, names, widths, against) if against else ""
        return f"{table}\n{folder / 'results.jsonl'}, table.md, accuracy.png"

    return Plan(
        [
            Planned(cell.name, task, folder, words_of(cell, flags) if flags else [], cell.source)
            for cell, flags in left.items()
        ],
        settings={folder: {"task": task.name, "demo": demo, **budget.settings(), **with_effect(passed, [task])}},
        collect=collect,
        out=folder,
        each="cell",
    )
