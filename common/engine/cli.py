"""How a program ends: one line and a status, for every fault that a user can meet."""

import errno
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from common.errors import UserError

INTERRUPTED = 130


def _interrupt(signum: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def run_cleanly(program: Callable[[], object]) -> NoReturn:
    """Run ``program`` and exit: 0; 2 with one line for a UserError or a full disk; 130 for Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, _interrupt)
    name = sys.argv[0]
    try:
        program()
    except UserError as error:
        sys.exit(_say(f"{name}: error: {error}", 2))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        where = f": {error.filename}" if error.filename else ""
        sys.exit(
            _say(f"{name}: error: {error.strerror}{where}; what was saved before is complete, --resume continues", 2)
        )
    except KeyboardInterrupt:
        sys.exit(
            _say(
                f"{name}: interrupted; the same command with --resume continues from the last finished epoch",
                INTERRUPTED,
            )
        )
    sys.exit(0)


def _say(line: str, status: int) -> int:
    print(" ".join(line.split()), file=sys.stderr)
    return status
