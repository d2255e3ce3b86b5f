"""The cells of a comparison: which method, bit-width and seed starts from which, and the command that trains it."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.config import recipes
from common.quantizers import METHODS, Method
from runs import result_tables

FLOAT, FLOAT_BITS = "float", 32
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {  # ablations: name -> method, further flags
    "ours-ste": ("ours", ("--grad_approx", "ste")),
}
BEST = "checkpoint/model_best.pt"  # of a job


@dataclass(frozen=True)
class Cell:
    """One run: a method or variant at a bit-width and seed, started from the network of another cell or of none."""

    name: str
    method: str
    bits: int
    seed: int
    source: str | None = None

    def row(self, folder: Path) -> result_tables.Row | None:
        """Its line of results.jsonl; None: it is not finished."""
        weight_bits = None if self.source is None else method_of(self.method).reported_weight_bits
        return result_tables.row(folder / self.name, self.method, self.bits, self.source, weight_bits)

    def arguments(self, folder: Path, shift: bool) -> list[str]:
        """Flags of main.py for what is left to do in ``folder``: training, a later evaluation, or nothing (empty)."""
        width = ["--bitW", str(self.bits), "--abitW", str(self.bits)]
        method, extra = VARIANTS.get(self.method, (self.method, ()))
        if self.source is not None:
            width = ["--method", method, *extra, *width]
        job = [*width, "--seed", str(self.seed), "--job_dir", str(folder / self.name)]
        summary = result_tables.read_summary(folder / self.name)
        if summary is not None:
            return [*job, "--shift", "--test_only"] if shift and "shift" not in summary else []
        if self.source is not None:
            job += ["--source_dir", str(folder), "--source_file", f"{self.source}/{BEST}"]
        return [*job, *(["--shift"] if shift else []), "--resume"]


def method_of(name: str) -> Method:
    return METHODS[VARIANTS[name][0] if name in VARIANTS else name]


def defines(name: str, bits: int) -> bool:
    """Whether a method or variant has both weights and activations of so many bits."""
    method = method_of(name)
    return bits in method.weight_bits and bits in method.act_bits


def plan(task: str, names: Sequence[str], widths: Sequence[int], seeds: Sequence[int], chain: bool) -> list[Cell]:
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


def typed(program: Path, arguments: Sequence[str]) -> str:
    """The command as it is typed in the current folder."""
    here = Path.cwd()
    shown = program.relative_to(here) if program.is_relative_to(here) else program
    return shlex.join(["python", str(shown), *arguments])
