"""Fetching published files: whole or not at all, and only what their checksum says they are."""

import contextlib
import fcntl
import hashlib
import http.client
import os
import shutil
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from common.errors import UserError

DEMO_HINT = "or add --demo, which needs no download"
_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without an answer


def fetch(url: str, destination: Path | str, md5: str, hint: str = "") -> Path:
    """Download `url` to `destination` unless the file with that checksum is there already.

    The bytes go to a temporary name beside `destination` and are renamed once they are complete, flushed and verified,
    so an interrupted download never looks like a file. Processes that ask for the same folder together wait in line.

    Args:
        url: where the file is published.
        destination: path of the file; its folder is made if need be.
        md5: the published checksum, 32 hexadecimal digits.
        hint: what else the user may do, added to every error.
    Returns:
        `destination`
    Raises:
        UserError: no connection, an error or a web page instead of the file, a wrong checksum, or no room on the disk.
    """
    destination = Path(destination)
    by_hand = f"fetch it by other means and put it at {destination}" + (f", {hint}" if hint else "")
    part = destination.with_name(f".{destination.name}.part")
    try:
        with lock(destination.parent):
            if destination.is_file() and md5_of(destination) == md5:
                return destination
            try:
                _download(url, part)
                found = md5_of(part)
                if found != md5:
                    raise _Refused(f"the file has md5 {found}, expected {md5}")
                os.replace(part, destination)
            finally:
                part.unlink(missing_ok=True)
    except _Refused as refusal:
        raise UserError(f"could not download {url}: {refusal}; {by_hand}") from None
    except OSError as error:
        raise UserError(f"could not write {destination}: {reason(error)}; make room or choose another folder") from None
    return destination


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the one folder inside the tar file `archive` as `folder`, whole or not at all.

    Raises:
        UserError: the archive is damaged or holds no folder of that name, or the disk is full.
    """
    with lock(folder.parent):
        if folder.is_dir():
            return folder
        building = folder.with_name(f".{folder.name}.unpacking")
        shutil.rmtree(building, ignore_errors=True)
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(building, filter="data")
            os.rename(building / folder.name, folder)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise UserError(
                f"could not unpack {archive}: {reason(error)}; expected {folder.name}/ inside; delete it and run "
                "again to download it afresh"
            ) from None
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return folder


def unpack_file(archive: Path, file: Path) -> None:
    """Unpack the one member of a tar file that is called like `file`, whole or not at all.

    Raises:
        UserError: the archive is damaged or holds no such file, or the disk is full.
    """
    part = file.with_name(f".{file.name}.part")
    with lock(file.parent):
        try:
            with tarfile.open(archive) as tar:
                member = next((member for member in tar if Path(member.name).name == file.name), None)
                content = tar.extractfile(member) if member else None
                if content is None:
                    raise UserError(f"{archive} holds no {file.name}; delete it and run again to download it afresh")
                with content, open(part, "wb") as target:
                    shutil.copyfileobj(content, target)
            os.replace(part, file)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise UserError(f"could not unpack {archive} to {file}: {error}; delete it and run again") from None
        finally:
            part.unlink(missing_ok=True)


def verify(path: Path, md5: str) -> None:
    """Raises UserError: the file is not the published one."""
    found = md5_of(path)
    if found != md5:
        raise UserError(f"{path} is damaged: its md5 is {found}, the published file's {md5}; delete it and run again")


def md5_of(path: Path | str) -> str:
    """The MD5 of a file's bytes, as 32 hexadecimal digits."""
    return _digest(path, hashlib.md5(usedforsecurity=False))


def sha256_of(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    return _digest(path, hashlib.sha256())


def is_web_page(start: bytes) -> bool:
    """Whether a file that starts with these bytes is what a server says in place of the file asked for."""
    return start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html"))


def _digest(path: Path | str, digest: "hashlib._Hash") -> str:
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold `folder` (made if need be) for one process at a time; a killed process leaves no lock behind."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Refused(Exception):
    """Why the bytes at the other end are not wanted."""


def _download(url: str, part: Path) -> None:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(part, "wb"))
        shown = sys.stderr.isatty()
        bar = stack.enter_context(tqdm(unit="B", unit_scale=True, desc=part.name[1:-5], disable=not shown))
        for index, (chunk, size) in enumerate(_chunks(url)):
            if index == 0 and is_web_page(chunk):
                raise _Refused("the answer is a web page, not the file")
            file.write(chunk)
            bar.total = size
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())


def _chunks(url: str) -> Iterator[tuple[bytes, int | None]]:
    """The bytes behind `url` in order, each piece with the announced total; every fault on the way is a `_Refused`."""
    request = urllib.request.Request(url, headers={"User-Agent": "alignq"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            size = int(answer.headers.get("Content-Length") or 0) or None
            while chunk := answer.read(_CHUNK):
                yield chunk, size
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError and a timeout are OSErrors
        raise _Refused(reason(error)) from None


def reason(error: BaseException) -> str:
    """What an error says, in one line."""
    said = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    return " ".join(str(said).split()) or type(error).__name__
