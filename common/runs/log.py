"""What a run says: on stderr at once, above a progress bar, and in logger.log."""

import logging
import os
import sys
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.reading import ordinary

DETAIL = logging.INFO - 5  # level of what is for the file alone


class _BarAwareHandler(logging.StreamHandler):
    """Writes above a progress bar instead of through it, and leaves details to the file."""

    def filter(self, record: logging.LogRecord) -> Any:
        return super().filter(record) if record.levelno > DETAIL else False

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class RunLog:
    """The handlers of a logger while a run has it. The file waits for ``begin``: a refused run makes none.

    Raises:
        UserError: there is something at `path` that is no file.
    """

    def __init__(self, logger: logging.Logger, path: Path) -> None:
        logger.setLevel(DETAIL)
        logger.propagate = False
        layout = logging.Formatter("%(asctime)s | %(message)s", "%m/%d %I:%M:%S %p")
        if os.path.lexists(path):
            ordinary(path, "the log of a run")
        self._logger = logger
        self._file = logging.FileHandler(path, delay=True)
        self._early = MemoryHandler(10**6, logging.CRITICAL + 1, self._file, flushOnClose=False)
        self._handlers: list[logging.Handler] = [self._early, _BarAwareHandler(), self._file]
        for handler in self._handlers:
            handler.setFormatter(layout)
        for handler in self._handlers[:2]:
            logger.addHandler(handler)

    def begin(self) -> None:
        """Write what was said so far, and from here on everything at once."""
        self._early.flush()
        self._logger.removeHandler(self._early)
        self._logger.addHandler(self._file)

    def close(self) -> None:
        for handler in self._handlers:
            self._logger.removeHandler(handler)
            handler.close()
