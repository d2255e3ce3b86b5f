"""The files of a folder or a .zip that somebody obtained by hand."""

import shutil
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.data.download import reason
from common.errors import UserError
from tools.published.layout import safe_name


@dataclass(frozen=True)
class Found:
    """A file, and its path below the folder or in the archive."""

    name: str
    path: Path | zipfile.Path

    def copy(self, to: Path) -> None:
        """Write its bytes to ``to``.

        Raises:
            UserError: they cannot be read, or are not what the archive's checksum says.
        """
        try:
            with self.path.open("rb") as source, open(to, "wb") as target:
                shutil.copyfileobj(source, target)
        # what zipfile raises on reading: for a member that is damaged (BadZipFile, EOFError), locked by a password
        # (RuntimeError), or packed in a way that it does not know (NotImplementedError)
        except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError) as error:
            raise UserError(f"cannot be read: {reason(error)}") from None


@contextmanager
def contents(source: Path) -> Iterator[list[Found]]:
    """The files of ``source``; none is written before the paths of all are known to be safe.

    Raises:
        UserError: there is no such folder or .zip, it is damaged, or it holds a link or a path that leaves it.
    """
    if source.is_dir():
        yield [_file(source, path) for path in sorted(source.rglob("*")) if path.is_symlink() or path.is_file()]
        return
    if not source.exists():
        raise UserError(f"{source}: there is no such folder or .zip")
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{source}: expected a folder or a .zip ({reason(error)})") from None
    with archive:
        members = [_member(source, member) for member in archive.infolist() if not member.is_dir()]
        yield [Found(name, zipfile.Path(archive, at)) for name, at in members]


def _file(root: Path, path: Path) -> Found:
    name = path.relative_to(root).as_posix()
    if path.is_symlink():
        raise UserError(f"{root}: {name} is a link; expected files alone")
    return Found(name, path)


def _member(source: Path, member: zipfile.ZipInfo) -> tuple[str, str]:
    if stat.S_ISLNK(member.external_attr >> 16):
        raise UserError(f"{source}: {member.filename} is a link; nothing of it was installed")
    try:
        return safe_name(member.filename), member.filename
    except UserError as error:
        raise UserError(f"{source}: {error}; nothing of it was installed") from None
