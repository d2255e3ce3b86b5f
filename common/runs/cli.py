"""How a program ends: one line and a status, for every fault that a user can meet."""

import errno
import os
import select
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from common.errors import UserError, one_line
from common.machine import distributed
from common.reading import reason

INTERRUPTED, DEFECT = 130, 70
RESUME = "the same command with --resume continues from the last finished epoch"
DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)

_broken_threads: list[str] = []


def _interrupt(signum: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def run_cleanly(program: Callable[[], object], resumes: bool = True) -> NoReturn:
    """Run ``program`` and exit: 0; 2 with one line for a UserError, a full disk, another fault of a file or too little
    memory; 130 for Ctrl-C or SIGTERM; 1 with one line where another process of the run has gone; 70 with one line for a
    defect of ours, in a thread too, whose traceback is kept in a file.

    Args:
        resumes: whether the program has --resume, which a line may then recommend.
    """
    hint, short_hint = (f"; {RESUME}", ", --resume continues") if resumes else ("", "")
    signal.signal(signal.SIGTERM, _interrupt)
    threading.excepthook = _in_thread
    _broken_threads.clear()
    name = sys.argv[0]
    try:
        program()
    except UserError as error:
        _end(f"{name}: error: {error}", 2)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and (unread := _unread()):
            for stream in unread:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            sys.exit(1)
        if error.errno not in DISK_FAULTS and error.filename is None:
            _defect(name, error)
        where = f": {error.filename}" if error.filename else ""
        saved = f"; what was saved before is complete{short_hint}" if error.errno in DISK_FAULTS else ""
        line = f"{name}: error: {error.strerror}{where}{saved}"
        distributed.end(lambda: _say(line), 2)
        os._exit(2)  # past the exit handlers of writers that would meet the same fault once more
    except KeyboardInterrupt:
        what = "interrupted" if distributed.size() == 1 else "interrupted, or another process of this run has ended"
        _end(f"{name}: {what}{hint}", INTERRUPTED)
    except Exception as error:
        if _is_lack_of_memory(error):
            _end(f"{name}: error: not enough memory ({reason(error)}); type smaller batches or images", 2)
        if isinstance(error, RuntimeError) and distributed.is_lost_peer(error):
            _end(f"{name}: error: another process of this run has ended or does not answer{hint}", 1)
        _defect(name, error)
    distributed.leave()
    sys.exit(DEFECT if _broken_threads else 0)


def _unread() -> list[int]:
    """Those of stdout and stderr that are a pipe such as "| head", whose reader has seen enough and gone."""
    streams = select.poll()
    for stream in (1, 2):
        streams.register(stream, 0)
    return [stream for stream, event in streams.poll(0) if event & select.POLLERR]


def _is_lack_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _defect(name: str, error: BaseException) -> NoReturn:
    """What nobody foresaw: one line that says so, and the traceback in a file, to be reported."""
    _end(_defect_line(name, error), DEFECT)


def _defect_line(name: str, error: BaseException) -> str:
    line = f"{name}: defect: {type(error).__name__}: {reason(error)}; please report it"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="alignq-defect-", suffix=".txt", delete=False) as file:
            traceback.print_exception(error, file=file)
    except OSError as fault:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{line} with {last.filename}, line {last.lineno} (its traceback could not be kept: {fault.strerror})"
    return f"{line} with {file.name}"


def _in_thread(args: threading.ExceptHookArgs) -> None:
    """A writer's thread that meets a disk fault says so in a line; the main thread decides what becomes of the run."""
    if isinstance(args.exc_value, OSError) and args.exc_value.errno in DISK_FAULTS:
        _say(f"a log for tensorboard could not be written: {args.exc_value.strerror}")
    elif args.exc_value is not None:
        _broken_threads.append(args.exc_value.__class__.__name__)
        _say(_defect_line(sys.argv[0], args.exc_value))


def _end(line: str, status: int) -> NoReturn:
    distributed.end(lambda: _say(line), status)
    sys.exit(status)


def _say(line: str) -> None:
    print(one_line(line), file=sys.stderr, flush=True)
