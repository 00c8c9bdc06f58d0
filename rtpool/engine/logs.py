"""
Which logger a pool writes to: ``rtpool.io``, ``rtpool.pool``, ``rtpool.dispatch``, or one the user gave.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from rtpool.options import PoolOptions

__all__ = ["Log", "logger_for"]

if TYPE_CHECKING:
    Log = logging.Logger | logging.LoggerAdapter[logging.Logger]
else:  # the class cannot be subscripted before Python 3.11
    Log = logging.Logger | logging.LoggerAdapter


def logger_for(options: PoolOptions, room: str) -> Log:
    """
    The logger for one part of a pool.

    Args:
        room: ``io``, ``pool`` or ``dispatch``; becomes the last part of the logger's name.
    """
    given = options.logger
    if given is None:
        return logging.getLogger(f"rtpool.{room}")
    return given.getChild(room) if isinstance(given, logging.Logger) else given
