"""How a program ends: one line and a status, for every fault that a user can meet."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from common.errors import UserError
from common.machine import distributed

INTERRUPTED = 130
RESUME = "the same command with --resume continues from the last finished epoch"
DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


def _interrupt(signum: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def run_cleanly(program: Callable[[], object], resumes: bool = True) -> NoReturn:
    """Run ``program`` and exit: 0; 2 with one line for a UserError or a full disk; 130 for Ctrl-C or SIGTERM;
    1 with one line where another process of the run has gone.

    Args:
        resumes: whether the program has --resume, which a line may then recommend.
    """
    hint, short_hint = (f"; {RESUME}", ", --resume continues") if resumes else ("", "")
    signal.signal(signal.SIGTERM, _interrupt)
    threading.excepthook = _in_thread
    name = sys.argv[0]
    try:
        program()
    except UserError as error:
        _end(f"{name}: error: {error}", 2)
    except BrokenPipeError:  # of a pipe such as "| head", whose reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in DISK_FAULTS:
            raise
        where = f": {error.filename}" if error.filename else ""
        line = f"{name}: error: {error.strerror}{where}; what was saved before is complete{short_hint}"
        distributed.end(lambda: _say(line), 2)
        os._exit(2)  # past the exit handlers of writers that would meet the same fault once more
    except KeyboardInterrupt:
        what = "interrupted" if distributed.size() == 1 else "interrupted, or another process of this run has ended"
        _end(f"{name}: {what}{hint}", INTERRUPTED)
    except RuntimeError as error:
        if not distributed.is_lost_peer(error):
            raise
        _end(f"{name}: error: another process of this run has ended or does not answer{hint}", 1)
    distributed.leave()
    sys.exit(0)


def _in_thread(args: threading.ExceptHookArgs) -> None:
    """A writer's thread that meets a disk fault says so in a line; the main thread decides what becomes of the run."""
    if isinstance(args.exc_value, OSError) and args.exc_value.errno in DISK_FAULTS:
        _say(f"a log for tensorboard could not be written: {args.exc_value.strerror}")
    else:
        threading.__excepthook__(args)


def _end(line: str, status: int) -> NoReturn:
    distributed.end(lambda: _say(line), status)
    sys.exit(status)


def _say(line: str) -> None:
    print(" ".join(line.split()), file=sys.stderr, flush=True)
