"""The published weights, brought to where the programs look for them.

    python tools/fetch_pretrained.py download --task resnet20

Nothing half-written is ever there: a file arrives in a folder of its own, is loaded into its network, and is moved.
"""

import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.config import recipes
from common.config.tasks import Task
from common.data.download import reason
from common.errors import UserError
from common.flags import number, shown
from common.runs.annotations import NewFolder, one_of
from common.runs.cli import INTERRUPTED
from common.runs.tool import run_tool
from tools.published import ledger, sources
from tools.published.arrivals import Arrivals
from tools.published.by_hand import contents
from tools.published.layout import TASKS, check, folder_of, is_weights, owner_of, place, safe_name, wanted
from tools.published.sources import Remote, transfer

STATES = {
    "missing": "missing",
    "recorded": "here",
    "changed": "here, but changed since it was recorded",
    "own": "here, not fetched by this program",
}


def address(word: str) -> str:
    if not word.startswith(("http://", "https://")):
        raise ArgumentTypeError(f"expected an address such as http://host:8000, not {shown(word)}")
    return word


TaskName = Annotated[str, one_of(*TASKS)]
Address = Annotated[str, address]
Retries = Annotated[int, number(int, 0, 1000)]


def download(
    *,
    task: TaskName | None = None,
    dest: NewFolder | None = None,
    dry_run: bool = False,
    base_url: Address | None = None,
    replace: bool = False,
    retries: Retries = 5,
) -> None:
    """Fetch the published weights of a task, or of all tasks. The same command continues an interrupted download.

    Args:
        task: resnet20, resnet56, densenet40, dann_digits, dann_office or dsan_office (default: all).
        dest: put them into DEST/TASK (default: where the task's programs look).
        dry_run: say what would go where, without a connection.
        base_url: a mirror in place of Google Drive: a folder made with --dest, served over HTTP.
        replace: replace files that are there but differ from the published ones.
        retries: how often a broken connection is taken up again, per file.
    """
    if not dry_run:
        sources.require_gdown()

    def one(task: Task) -> None:
        folder = folder_of(task, _path(dest))
        if dry_run:
            print(f"{task.name}: {_origin(task, base_url)} would go to {folder}")
            for name in wanted(task):
                print(f"  {name}  {STATES[ledger.state(folder, name)]}")
            return
        files = _listing(task, folder, base_url, retries)
        with Arrivals(task, folder, replace) as arrivals:
            for name, file in files.items():
                arrivals.take(name, file.url, _bring(file.url, retries), file.sha256)
        if arrivals.refused:
            raise UserError(_by_hand(task, folder, arrivals.refused))

    _each(task, one)


def list_published(
    *, task: TaskName | None = None, dest: NewFolder | None = None, base_url: Address | None = None
) -> None:
    """List the weights in the published folders, and which of them are here.

    Args:
        task: one task (default: all).
        dest: compare with DEST/TASK (default: where the task's programs look).
        base_url: a mirror in place of Google Drive.
    """
    sources.require_gdown()

    def one(task: Task) -> None:
        folder = folder_of(task, _path(dest))
        files = _listing(task, folder, base_url, retries=2)
        print(f"{task.name}: {_origin(task, base_url)}, for {folder}")
        for name in files:
            print(f"  {name}  {STATES[ledger.state(folder, name)]}")

    _each(task, one)


def install(
    source: Path, *, task: TaskName | None = None, dest: NewFolder | None = None, replace: bool = False
) -> None:
    """Put weights obtained by hand where the programs look: a folder, or the .zip that Google Drive makes of one.

    Args:
        source: DIR or ZIP.
        task: the task they belong to (default: told from their names).
        dest: put them into DEST/TASK (default: where the task's programs look).
        replace: replace files that are there already.
    """
    tasks = _tasks(task)
    with _how_to_go_on(), contents(source.expanduser()) as files:
        found = [(file, owner_of(file.name, tasks)) for file in files if is_weights(file.name)]
        if not found:
            raise UserError(f"{source}: holds no weights; expected .pt, .pth or .tar files")
        for owner in {place[0].name: place[0] for _, place in found}.values():
            with Arrivals(owner, folder_of(owner, _path(dest)), replace) as arrivals:
                for file, (other, name) in found:
                    if other is owner:
                        arrivals.take(name, source.name, file.copy, again=True)
            if arrivals.refused:
                raise UserError("; ".join(f"{owner.name}: {name}: {why}" for name, why in arrivals.refused))


def verify(*, task: TaskName | None = None, dest: NewFolder | None = None) -> None:
    """Check the fetched files against the lock file, and that each still loads into its network.

    Args:
        task: one task (default: all).
        dest: look into DEST/TASK (default: where the task's programs look).
    """

    def one(task: Task) -> None:
        folder = folder_of(task, _path(dest))
        names = list(ledger.read(folder / ledger.NAME))
        if not names:
            print(f"{task.name}: nothing was fetched into {folder} yet")
        bad = []
        for name in names:
            state = ledger.state(folder, name)
            print(f"{task.name}: {name}  {STATES[state]}")
            try:
                if state != "recorded":
                    raise UserError(STATES[state])
                check(task, name, folder / name)
            except UserError as error:
                bad.append(f"{name}: {error}")
        if bad:
            again = f"python tools/fetch_pretrained.py download --task {task.name} --replace"
            at = f" --dest {dest}" if dest else ""
            raise UserError(f"{task.name}, in {folder}: {'; '.join(bad)}. To fetch again: {again}{at}")

    _each(task, one)


COMMANDS: dict[str, Callable[..., None]] = {
    "download": download,
    "list": list_published,
    "install": install,
    "verify": verify,
}


@contextmanager
def _how_to_go_on() -> Iterator[None]:
    """What an interrupt and a full disk leave, and what to type."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from there", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise UserError(f"could not write{where}: {reason(error)}; make room, or choose another --dest") from None


def _bring(url: str, retries: int) -> Callable[[Path], None]:
    return lambda path: transfer(url, path, retries)


def _listing(task: Task, folder: Path, base_url: str | None, retries: int) -> dict[str, Remote]:
    """The weights that a published folder lists, by what they are called here."""
    try:
        if base_url is None:
            files = sources.list_drive(recipes.PRETRAINED_LINKS[task.name])
        else:
            files = sources.list_mirror(base_url, task.name, retries)
        named = {place(task, file.path) or safe_name(file.path): file for file in files if is_weights(file.path)}
        if not named:
            raise UserError("the folder lists no weights")
    except UserError as error:
        raise UserError(_by_hand(task, folder, [(wanted(task)[0], str(error))])) from None
    return named


def _by_hand(task: Task, folder: Path, refused: list[tuple[str, str]]) -> str:
    """Why files did not come, and how to get them without this program."""
    why = "; ".join(f"{name}: {said}" for name, said in refused)
    return (
        f"{task.name}: {why}. By hand: open {recipes.PRETRAINED_LINKS[task.name]} and put the file at "
        f"{folder / refused[0][0]}, or type: python tools/fetch_pretrained.py install DIR_OR_ZIP --task {task.name}"
    )


def _each(name: str | None, act: Callable[[Task], None]) -> None:
    """``act`` on every task asked for; one that fails does not keep the others from their turn."""
    errors: list[UserError] = []
    for task in _tasks(name):
        try:
            with _how_to_go_on():
                act(task)
        except UserError as error:
            errors.append(error)
    for other in errors[:-1]:
        print(f"{sys.argv[0]}: error: {other}", file=sys.stderr)
    if errors:
        raise errors[-1]


def _tasks(name: str | None) -> list[Task]:
    return list(TASKS.values()) if name is None else [TASKS[name]]


def _path(dest: Path | None) -> Path | None:
    return None if dest is None else dest.expanduser().resolve()


def _origin(task: Task, base_url: str | None) -> str:
    return recipes.PRETRAINED_LINKS[task.name] if base_url is None else f"{base_url}/{task.name}"


if __name__ == "__main__":
    run_tool(COMMANDS)
