"""How a program ends: one line and a status, for every fault that a user can meet."""

import errno
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from common.errors import UserError
from common.machine import distributed
from common.reading import reason

INTERRUPTED, DEFECT = 130, 70
RESUME = "the same command with --resume continues from the last finished epoch"
DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


def _interrupt(signum: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def run_cleanly(program: Callable[[], object], resumes: bool = True) -> NoReturn:
    """Run ``program`` and exit: 0; 2 with one line for a UserError, a full disk or another fault of a file; 130 for
    Ctrl-C or SIGTERM; 1 with one line where another process of the run has gone; 70 with one line for a defect of ours,
    whose traceback is kept in a file.

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
        if error.errno not in DISK_FAULTS and error.filename is None:
            _defect(name, error)
        where = f": {error.filename}" if error.filename else ""
        line = f"{name}: error: {error.strerror}{where}; what was saved before is complete{short_hint}"
        distributed.end(lambda: _say(line), 2)
        os._exit(2)  # past the exit handlers of writers that would meet the same fault once more
    except KeyboardInterrupt:
        what = "interrupted" if distributed.size() == 1 else "interrupted, or another process of this run has ended"
        _end(f"{name}: {what}{hint}", INTERRUPTED)
    except Exception as error:
        if isinstance(error, RuntimeError) and distributed.is_lost_peer(error):
            _end(f"{name}: error: another process of this run has ended or does not answer{hint}", 1)
        _defect(name, error)
    distributed.leave()
    sys.exit(0)


def _defect(name: str, error: Exception) -> NoReturn:
    """What nobody foresaw: one line that says so, and the traceback in a file, to be reported."""
    with tempfile.NamedTemporaryFile("w", prefix="alignq-defect-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    _end(f"{name}: defect: {type(error).__name__}: {reason(error)}; please report it with {file.name}", DEFECT)


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
