"""What a published folder lists, and how one of its files gets here: from Google Drive, or from a mirror over HTTP."""

import sys
import tempfile
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from common.data.download import is_web_page
from common.errors import UserError
from common.runs.cli import DISK_FAULTS
from tools.published import ledger

TIMEOUT = 30  # seconds without a byte
_DRIVE_FILE = "https://drive.google.com/uc?id={}"


@dataclass(frozen=True)
class Remote:
    """A file of a published folder: its path there, its address, and its checksum where the lister knows it."""

    path: str
    url: str
    sha256: str | None = None


def list_drive(link: str) -> list[Remote]:
    """The files of a Google Drive folder, with those of its subfolders.

    Raises:
        UserError: gdown is missing, there is no connection, or the folder is private, empty or over its quota.
    """
    gdown = require_gdown()
    try:
        found = gdown.download_folder(link, skip_download=True, quiet=True, use_cookies=False, timeout=TIMEOUT)
    except (OSError, ValueError, gdown.exceptions.DownloadError) as error:  # those of requests are OSErrors
        raise UserError(f"the folder could not be listed: {_short(error)}") from None
    if not found:
        raise UserError("the folder lists no file; is it private?")
    return [Remote(file.path, _DRIVE_FILE.format(file.id)) for file in found]


def list_mirror(base_url: str, task: str, retries: int) -> list[Remote]:
    """The files of BASE_URL/TASK, by the lock file there.

    Raises:
        UserError: no connection, no such folder, or something else than a lock file.
    """
    root = f"{base_url.rstrip('/')}/{task}/"
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder, ledger.NAME)
        transfer(root + ledger.NAME, listing, retries)
        records = ledger.read(listing)
    return [Remote(name, root + urllib.parse.quote(name), record["sha256"]) for name, record in records.items()]


def transfer(url: str, path: Path, retries: int) -> None:
    """Bring the file behind ``url`` to ``path``, going on from what an earlier attempt left beside it.

    Raises:
        UserError: the connection failed ``retries`` + 1 times, the server refused, or sent a web page in its place.
            What has arrived of a broken transfer is kept beside ``path``, for the next attempt.
    """
    gdown = require_gdown()
    settings = {"quiet": not sys.stderr.isatty(), "use_cookies": False, "timeout": TIMEOUT, "retries": retries}
    try:
        try:
            gdown.download(url, str(path), resume=True, **settings)
        except gdown.exceptions.FileURLRetrievalError:
            raise
        except gdown.exceptions.DownloadError as error:
            if isinstance(error.__cause__, OSError) or not discard_partial(path):
                raise
            gdown.download(url, str(path), resume=True, **settings)  # a server that cannot resume, from the start
    except gdown.exceptions.DownloadError as error:
        raise UserError(_short(error)) from None
    except OSError as error:
        if error.errno in DISK_FAULTS:
            raise
        raise UserError(_short(error)) from None
    with open(path, "rb") as file:
        if is_web_page(file.read(200)):
            path.unlink()
            raise UserError("the server sent a web page in place of the file (no permission, or over its quota)")


def discard_partial(path: Path) -> bool:
    """Remove what gdown left of a transfer to ``path``; False: there was nothing."""
    partial = [file for file in path.parent.glob(f"{path.name}*.part") if file.is_file()]
    for file in partial:
        file.unlink()
    return bool(partial)


def require_gdown() -> ModuleType:
    """The gdown module.

    Raises:
        UserError: it is not installed.
    """
    try:
        import gdown  # here, since everything but fetching works without
    except ImportError:
        raise UserError('gdown is not installed; type: python -m pip install -e ".[fetch]"') from None
    return gdown


def _short(error: Exception) -> str:
    """What gdown or requests say, without the addresses and the advice that come after it."""
    fault = error if isinstance(error, OSError) else error.__cause__
    request = getattr(fault, "request", None)
    if request is not None and getattr(fault, "response", None) is None:
        return f"no connection to {urllib.parse.urlsplit(request.url).hostname} ({type(fault).__name__})"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:200].rstrip(".:")
