"""
Which logger a pool writes to: ``rtpool.io``, ``rtpool.pool``, ``rtpool.dispatch``, or one the user gave.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from rtpool.options import PoolOptions

__all__ = ["Log", "logger_for"]


class Log:
    """
    A logger whose failures are not ours: filters and adapters are user code, and a line that cannot be written must not
    take a thread along. It is told by the library's own logger instead.

    Thread-safety: as the logger's.
    """

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def debug(self, words: str, *args: object) -> None:
        """Write at DEBUG."""
        self._write(self._logger.debug, words, args)

    def info(self, words: str, *args: object) -> None:
        """Write at INFO."""
        self._write(self._logger.info, words, args)

    def warning(self, words: str, *args: object) -> None:
        """Write at WARNING."""
        self._write(self._logger.warning, words, args)

    def error(self, words: str, *args: object) -> None:
        """Write at ERROR."""
        self._write(self._logger.error, words, args)

    def exception(self, words: str, *args: object) -> None:
        """Write at ERROR, with the exception that is being handled."""
        self._write(self._logger.exception, words, args)

    def _write(self, method: Callable[..., None], words: str, args: tuple[object, ...]) -> None:
        try:
            method(words, *args, stacklevel=3)
        except Exception as error:  # user code
            if logging.lastResort is not None:
                told = ("! the logger of a pool raised %r at %r", (error, words))
                logging.lastResort.handle(logging.LogRecord("rtpool", logging.ERROR, __file__, 0, *told, None))


def logger_for(options: PoolOptions, room: str) -> Log:
    """
    The logger for one part of a pool.

    Args:
        room: ``io``, ``pool`` or ``dispatch``; becomes the last part of the logger's name.
    """
    given = options.logger
    if given is None:
        return Log(logging.getLogger(f"rtpool.{room}"))
    return Log(given.getChild(room) if isinstance(given, logging.Logger) else given)
