"""The plan of a reproduction: every row after what it starts from, each task's table in a folder of its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.runs import readme_table, recorded
from tools.runs.main_flags import with_effect
from tools.runs.plan import Plan, Planned
from tools.runs.programs import programs
from tools.runs.row_budget import RowBudget
from tools.runs.table_runs import TableRun


def reproduction(
    runs: Sequence[TableRun], *, demo: bool, fetched: bool, budget: RowBudget, passed: Mapping[str, str], out: Path
) -> Plan:
    """The plan of rows and what they start from.

    Args:
        runs: as ``runs_of`` plans them. fetched: whether they start from published files.
        budget: what they may spend.
        passed: further flags of main.py by name, for the runs that have them.
        out: each task has a folder in it, with _demo behind its name for demo data, and the budget's name.
    """
    of_task: dict[str, list[TableRun]] = {}
    for run in runs:
        of_task.setdefault(run.task.name, []).append(run)
    words = ("demo" if demo else "", budget.name)
    folders = {name: out / "_".join(filter(None, (name, *words))) for name in of_task}
    given = {name: budget.passed(name, passed) for name in of_task}
    planned = []
    for run in runs:
        folder = folders[run.task.name]
        flags = [*(["--demo"] if demo else []), *run.arguments(folder, given[run.task.name])]
        source = run.source.name if run.source else None
        planned.append(Planned(run.name, run.task, folder, flags if run.summary(folder) is None else [], source))

    def settings(name: str) -> dict[str, object]:
        return {"task": name, "demo": demo, "fetched": fetched, **with_effect(given[name], programs()[name])}

    def collect(folder: Path) -> str:
        (name,) = (name for name, its in folders.items() if its == folder)
        return write(folder, of_task[name], demo, budget)

    by_folder = {folders[name]: settings(name) for name in of_task}
    return Plan(planned, by_folder, collect, out, each="row", trims=True)


def write(folder: Path, runs: Sequence[TableRun], demo: bool, budget: RowBudget) -> str:
    """Write results.jsonl and table.md of one task; returns the table."""
    found = [entry for run in runs if (entry := readme_table.result(run, folder)) is not None]
    recorded.merge(folder / "results.jsonl", found)
    said = budget.said_of(runs[0].task.name, [entry["last"]["epoch"] for entry in found])
    table = readme_table.markdown(runs[0].task, runs, {entry["cell"]: entry for entry in found}, demo, said)
    (folder / "table.md").write_text(table)
    return f"{table}\n{folder / 'table.md'}"
