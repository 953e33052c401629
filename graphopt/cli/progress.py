"""Shows what a long command is doing: a spinner with the library's latest log line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.status import Status


class _ToStatus(logging.Handler):
    def __init__(self, status: Status) -> None:
        super().__init__(logging.INFO)
        self._status = status

    def emit(self, record: logging.LogRecord) -> None:
        """Show the record in place of the last one."""
        if record.levelno < logging.WARNING:
            self._status.update(escape(record.getMessage()))


class _ToConsole(logging.Handler):
    def __init__(self, console: Console, level: int) -> None:
        super().__init__(level)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record on a line of its own."""
        self._console.print(
            f"{record.levelname.lower()}: {record.getMessage()}", markup=False, highlight=False
        )


@contextmanager
def logged(console: Console, level: int) -> Iterator[None]:
    """While the block runs, graphopt's log records from `level` on go to `console`."""
    logger = logging.getLogger("graphopt")
    handler, before, spread = _ToConsole(console, level), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(min(level, logging.INFO))
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        logger.propagate = spread


@contextmanager
def spinner(console: Console, text: str) -> Iterator[None]:
    """A spinner beside `text`, then beside what graphopt logs; nothing unless on a terminal."""
    if not console.is_terminal:
        yield
        return
    logger = logging.getLogger("graphopt")
    with console.status(escape(text)) as status:
        handler = _ToStatus(status)
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
