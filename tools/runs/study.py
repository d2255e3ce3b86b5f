"""A study: runs that belong together, listed in a JSON file, and what they found as lines of docs/results."""

import json
import shlex
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.config.tasks import Task
from common.data.kinds.base import SELECT
from common.data.locate import REPOSITORY
from common.errors import UserError
from common.flags import name_below, shown
from common.measure.criteria import CRITERIA
from common.reading import is_whole, read_json, read_objects, read_rows
from common.writing import write_whole
from tools.runs import recorded
from tools.runs.main_flags import WITHOUT_EFFECT, with_effect
from tools.runs.plan import BEST, Plan, Planned
from tools.runs.programs import main_of, programs

EXPECTED = "a study such as docs/studies/digits.json"
Flags = Mapping[str, Any]
Row = dict[str, Any]  # a line of docs/results/NAME.jsonl
Pair = tuple[str, str]  # source and target domain


@dataclass(frozen=True)
class Entry:
    """One run of a study, at every seed.

    Attributes:
        name: of its folder, with the seed behind it. title: what tables call it.
        program: its folder, such as single_domain/resnet20. flags: of its main.py, beside the study's own.
        start: name of the run that it starts from; None: from scratch, or from a file that its flags name.
    """

    name: str
    title: str
    program: str
    flags: Flags
    start: str | None = None

    @property
    def task(self) -> Task:
        tasks = {str(task.folder.relative_to(REPOSITORY)): task for tasks in programs().values() for task in tasks}
        if self.program not in tasks:
            raise UserError(f"program {shown(self.program)} of {self.name}: expected one of {', '.join(tasks)}")
        return tasks[self.program]


@dataclass(frozen=True)
class Study:
    """What docs/studies/NAME.json says.

    Attributes:
        title, data: what it is about and on which images. budget: what it spends, and what the paper would.
        seeds: of every run. flags: of every run. runs: each behind the one that it starts from.
        pairs: of domains, on each of which every run is made; by default a single one, which the flags name.
        claims: {"says", "with", "without"}: a sentence, and the runs whose difference speaks for it.
    """

    name: str
    title: str
    data: str
    budget: str
    seeds: Sequence[int]
    flags: Flags
    runs: Sequence[Entry]
    pairs: Sequence[Pair | None] = (None,)
    claims: Sequence[Mapping[str, str]] = field(default=())


def read(path: Path) -> Study:
    """Raises UserError: it is no study, names a run twice, or one that it starts from too late."""
    content = read_json(path, EXPECTED)
    try:
        runs = [
            Entry(one["name"], one["title"], one.get("program", content["program"]), one["flags"], one.get("from"))
            for one in content["runs"]
        ]
        fields = {key: content[key] for key in ("title", "data", "budget", "seeds", "flags")}
        pairs: list[Pair | None] = [(source, target) for source, target in content.get("pairs", ())]
        study = Study(path.stem, **fields, runs=runs, pairs=pairs or [None], claims=content.get("claims", ()))
        flags = [study.flags, *(run.flags for run in study.runs)]
        if not all(isinstance(one, dict) for one in flags) or not all(is_whole(seed, 0) for seed in study.seeds):
            raise TypeError("flags that are no names and values, or seeds that are no whole numbers")
        names: set[str] = set()
        for run in study.runs:
            if run.name in names or (run.start is not None and run.start not in names):
                raise UserError(f"{path}: run {shown(run.name)} is named twice, or before what it starts from")
            names.add(name_below(run.name))
        for pair in study.pairs:
            name_below(job_of("run", pair, 0))
        for claim in study.claims:
            if {claim["with"], claim["without"]} - names:
                raise UserError(f"{path}: the claim {shown(claim['says'])} names a run that is not there")
    except (ArgumentTypeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {type(error).__name__} {error}; expected {EXPECTED}") from None
    return study


def plan_of(study: Study, passed: Mapping[str, str], out: Path, results: Path) -> Plan:
    """What is left to run.

    Args:
        passed: further flags of main.py by name, such as --data_dir, for every run.
        out: folder of the runs. results: file of the lines; what it says of runs that are not in ``out`` stays.
    """
    planned = []
    wanted = [(entry, pair, seed) for seed in study.seeds for pair in study.pairs for entry in study.runs]
    for entry, pair, seed in wanted:
        job = job_of(entry.name, pair, seed)
        source = job_of(entry.start, pair, seed) if entry.start else None
        left = _arguments(study, entry, pair, seed, passed, out) if recorded.read_summary(out / job) is None else []
        planned.append(Planned(job, entry.task, out, left, source))

    def collect(folder: Path) -> str:
        found = [row for one in wanted if (row := row_of(study, *one, passed, folder))]
        whole = len(wanted)
        if not found:
            return f"no run of {whole} is finished; {results} stays as it is"
        lines = {(row["run"], place_of(row)): row for row in [*read_lines(results), *found]}
        results.parent.mkdir(parents=True, exist_ok=True)
        write_whole(results, "".join(json.dumps(row) + "\n" for row in lines.values()))
        return f"{results}: {len(found)} of {whole} runs are finished here; python tools/results.py draws them"

    tasks = list({run.task.name: run.task for run in planned}.values())
    settings = {"study": study.name, **with_effect({**_typed(study.flags), **passed}, tasks)}
    return Plan(planned, {out: settings}, collect, out, each="cell")


def job_of(run: str, pair: Pair | None, seed: int) -> str:
    """The folder of a run."""
    return "_".join((run, *(pair or ()), f"seed{seed}"))


def place_of(row: Row) -> tuple[Pair | None, int]:
    """The pair of domains that a line is about, where its study has several, and the seed."""
    return (tuple(row["pair"]) if row.get("pair") else None), row["seed"]


def _typed(flags: Flags) -> dict[str, str]:
    return {f"--{name}": str(value) for name, value in flags.items()}


def _arguments(
    study: Study, entry: Entry, pair: Pair | None, seed: int, passed: Mapping[str, str], out: Path
) -> list[str]:
    domains = dict(zip(("src_data", "tgt_data"), pair or (), strict=False))
    flags = {**_typed(study.flags), **passed, **_typed(entry.flags), **_typed(domains)}
    words = [word for flag in flags.items() for word in flag]
    if entry.start is not None:
        words += ["--source_dir", str(out), "--source_file", f"{job_of(entry.start, pair, seed)}/{BEST}"]
    return [*words, "--seed", str(seed), "--job_dir", str(out / job_of(entry.name, pair, seed)), "--resume"]


def row_of(
    study: Study, entry: Entry, pair: Pair | None, seed: int, passed: Mapping[str, str], out: Path
) -> Row | None:
    """The line of a run: what it was, what it found by every selection, and the command that repeats it.

    None: it is not finished.
    """
    job = out / job_of(entry.name, pair, seed)
    summary = recorded.read_summary(job)
    if summary is None:
        return None
    kept = {name: value for name, value in passed.items() if name[2:] not in WITHOUT_EFFECT}
    words = _arguments(study, entry, pair, seed, kept, Path("results") / study.name)
    history = read_rows(job / "metrics.jsonl", "the metrics of a run")
    return {
        "run": entry.name,
        "task": summary["task"],
        "model": summary["model"],
        "method": summary["method"] if summary["bitW"] < 32 else "float",
        "bits": [summary["bitW"], summary["abitW"]],
        "adaptation": summary.get("adaptation"),
        "crp": summary.get("crp", False),
        **({"pair": list(pair)} if pair else {}),
        "seed": seed,
        "epochs": summary["last"]["epoch"] + 1,
        "data": study.data,
        "protocol": summary["protocol"],
        "source": job_of(entry.start, pair, seed) if entry.start else None,
        "top1": selections(history),
        "effective": recorded.effective(summary["layers"], summary["bitW"] < 32),
        "shift": summary.get("shift"),
        "adapted": summary.get("adapted"),
        "command": shlex.join(["python", str(main_of(entry.task).relative_to(REPOSITORY)), *words]),
    }


def read_lines(path: Path) -> list[Row]:
    """The lines of docs/results/NAME.jsonl; none where there is no such file.

    Raises:
        UserError: a line is damaged.
    """
    return read_objects(path, "the results of a study")


def selections(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Top-1 on the images that a run is about, at the epoch that each rule would have chosen.

    Of two domains the rules are those of --select: "last", "target" (which reads target labels), "source" and the
    label-free criteria. Of one they are "last" and "test", which reads the test labels.
    """
    domain = "target" if "target" in history[0] else "test"
    found = {"last": history[-1][domain]["prec1"]}
    rules = {name: (lambda row, n=name: row[n]["prec1"]) for name in (*SELECT, "test") if name in history[0]}
    rules |= {name: (lambda row, n=name: row["target"][n]) for name in CRITERIA if name in history[0][domain]}
    return found | {name: max(history, key=rule)[domain]["prec1"] for name, rule in rules.items()}
