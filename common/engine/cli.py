"""How a program ends: one line and a status, for every fault that a user can meet."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from common.errors import UserError

INTERRUPTED = 130
DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


def _interrupt(signum: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def run_cleanly(program: Callable[[], object]) -> NoReturn:
    """Run ``program`` and exit: 0; 2 with one line for a UserError or a full disk; 130 for Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, _interrupt)
    threading.excepthook = _in_thread
    name = sys.argv[0]
    try:
        program()
    except UserError as error:
        sys.exit(_say(f"{name}: error: {error}", 2))
    except OSError as error:
        if error.errno not in DISK_FAULTS:
            raise
        where = f": {error.filename}" if error.filename else ""
        _say(f"{name}: error: {error.strerror}{where}; what was saved before is complete, --resume continues", 2)
        os._exit(2)  # past the exit handlers of writers that would meet the same fault once more
    except KeyboardInterrupt:
        line = "interrupted; the same command with --resume continues from the last finished epoch"
        sys.exit(_say(f"{name}: {line}", INTERRUPTED))
    sys.exit(0)


def _in_thread(args: threading.ExceptHookArgs) -> None:
    """A writer's thread that meets a disk fault says so in a line; the main thread decides what becomes of the run."""
    if isinstance(args.exc_value, OSError) and args.exc_value.errno in DISK_FAULTS:
        _say(f"a log for tensorboard could not be written: {args.exc_value.strerror}", 0)
    else:
        threading.__excepthook__(args)


def _say(line: str, status: int) -> int:
    print(" ".join(line.split()), file=sys.stderr, flush=True)
    return status
