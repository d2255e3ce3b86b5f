"""The published weights, brought to where the programs look for them.

    python tools/fetch_pretrained.py download --task resnet20

Nothing half-written is ever there: a file arrives in a folder of its own, is loaded into its network, and is moved.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import fire  # noqa: E402
from published import ledger, sources  # noqa: E402
from published.arguments import need_address, need_booleans, refuse  # noqa: E402
from published.arrivals import Arrivals  # noqa: E402
from published.by_hand import contents  # noqa: E402
from published.layout import TASKS, check, folder_of, is_weights, owner_of, place, safe_name, wanted  # noqa: E402
from published.sources import Remote, transfer  # noqa: E402

from common.config import recipes  # noqa: E402
from common.config.tasks import Task  # noqa: E402
from common.data.download import reason  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.runs.cli import INTERRUPTED, run_cleanly  # noqa: E402

STATES = {
    "missing": "missing",
    "recorded": "here",
    "changed": "here, but changed since it was recorded",
    "own": "here, not fetched by this program",
}


def download(
    *words: Any,
    task: str | None = None,
    dest: str | None = None,
    dry_run: bool = False,
    base_url: str | None = None,
    replace: bool = False,
    retries: int = 5,
    **unknown: Any,
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
    refuse(words, unknown, download)
    need_booleans(dry_run=dry_run, replace=replace)
    need_address(base_url)
    if not (isinstance(retries, int) and not isinstance(retries, bool) and retries >= 0):
        raise UserError(f"--retries {retries}: expected a whole number, 0 or more")
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
                arrivals.take(name, file.url, lambda path, url=file.url: transfer(url, path, retries), file.sha256)
        if arrivals.refused:
            raise UserError(_by_hand(task, folder, arrivals.refused))

    _each(task, one)


def list_published(
    *words: Any, task: str | None = None, dest: str | None = None, base_url: str | None = None, **unknown: Any
) -> None:
    """List the weights in the published folders, and which of them are here.

    Args:
        task: one task (default: all).
        dest: compare with DEST/TASK (default: where the task's programs look).
        base_url: a mirror in place of Google Drive.
    """
    refuse(words, unknown, list_published)
    need_address(base_url)
    sources.require_gdown()

    def one(task: Task) -> None:
        folder = folder_of(task, _path(dest))
        files = _listing(task, folder, base_url, retries=2)
        print(f"{task.name}: {_origin(task, base_url)}, for {folder}")
        for name in files:
            print(f"  {name}  {STATES[ledger.state(folder, name)]}")

    _each(task, one)


def install(
    source: Any = None,
    *words: Any,
    task: str | None = None,
    dest: str | None = None,
    replace: bool = False,
    **unknown: Any,
) -> None:
    """Put weights obtained by hand where the programs look: a folder, or the .zip that Google Drive makes of one.

    Args:
        source: DIR or ZIP.
        task: the task they belong to (default: told from their names).
        dest: put them into DEST/TASK (default: where the task's programs look).
        replace: replace files that are there already.
    """
    refuse(words, unknown, install)
    need_booleans(replace=replace)
    if source is None:
        raise UserError("expected a folder or a .zip, such as: install ~/Downloads/pretrained.zip --task resnet20")
    tasks = _tasks(task)
    with contents(Path(str(source)).expanduser()) as files:
        found = [(file, owner_of(file.name, tasks)) for file in files if is_weights(file.name)]
        if not found:
            raise UserError(f"{source}: holds no weights; expected .pt, .pth or .tar files")
        for owner in {place[0].name: place[0] for _, place in found}.values():
            with Arrivals(owner, folder_of(owner, _path(dest)), replace) as arrivals:
                for file, (other, name) in found:
                    if other is owner:
                        arrivals.take(name, Path(str(source)).name, file.copy, again=True)
            if arrivals.refused:
                raise UserError("; ".join(f"{owner.name}: {name}: {why}" for name, why in arrivals.refused))


def verify(*words: Any, task: str | None = None, dest: str | None = None, **unknown: Any) -> None:
    """Check the fetched files against the lock file, and that each still loads into its network.

    Args:
        task: one task (default: all).
        dest: look into DEST/TASK (default: where the task's programs look).
    """
    refuse(words, unknown, verify)

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


def main() -> None:
    words = sys.argv[1:]
    asked_help = bool({"-h", "--help"} & set(words)) or not words
    if words and not asked_help and words[0] not in COMMANDS:
        raise UserError(f"{words[0]}: expected one of {', '.join(COMMANDS)}")
    command = [word for word in words[:1] if word in COMMANDS]
    try:
        fire.Fire(COMMANDS, command=[*command, "--", "--help"] if asked_help else words)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from there", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise UserError(f"could not write{where}: {reason(error)}; make room, or choose another --dest") from None


def _listing(task: Task, folder: Path, base_url: str | None, retries: int) -> dict[str, Remote]:
    """The weights that a published folder lists, by what they are called here."""
    try:
        if base_url is None:
            files = sources.list_drive(recipes.PRETRAINED_LINKS[task.name])
        else:
            files = sources.list_mirror(str(base_url), task.name, retries)
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
    errors = []
    for task in _tasks(name):
        try:
            act(task)
        except UserError as error:
            errors.append(error)
    for error in errors[:-1]:
        print(f"{sys.argv[0]}: error: {error}", file=sys.stderr)
    if errors:
        raise errors[-1]


def _tasks(name: str | None) -> list[Task]:
    if name is None:
        return list(TASKS.values())
    if str(name) not in TASKS:
        raise UserError(f"--task {name}: expected one of {', '.join(TASKS)}; without --task it is all of them")
    return [TASKS[str(name)]]


def _path(dest: Any) -> Path | None:
    return None if dest is None else Path(str(dest)).expanduser().resolve()


def _origin(task: Task, base_url: str | None) -> str:
    return recipes.PRETRAINED_LINKS[task.name] if base_url is None else f"{base_url}/{task.name}"


if __name__ == "__main__":
    run_cleanly(main, resumes=False)
