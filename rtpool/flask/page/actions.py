"""
What the debug page's buttons do.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from rtpool.debug import figures
from rtpool.errors import RtpoolError

if TYPE_CHECKING:
    from rtpool.debug.debugger import Debugger

__all__ = ["Actions"]

#: Seconds the probe may take, while a browser waits.
PROBE_SECONDS = 10.0


class Actions:
    """
    Does one thing at a time: a button that is pressed a hundred times costs one thread, not a hundred.

    Thread-safety: every method may be called from any thread.
    """

    def __init__(self) -> None:
        self._busy = threading.Semaphore()

    def do(self, key: str, debugger: Debugger) -> dict[str, Any]:
        """
        Do it.

        Args:
            key: of one of `rtpool.flask.page.layout.ACTIONS`.

        Returns:
            ``ok``, ``words`` for a person, and ``details``, lines with more of it.
        """
        if not self._busy.acquire(blocking=False):
            return _told(False, "Another action is under way: wait for it, and try again.")
        try:
            return {"log-stats": _log_stats, "check-lifecycle": _check, "force-clean-up": _clean_up}[key](debugger)
        except RtpoolError as error:
            return _told(False, f"{type(error).__name__}: {error}")
        finally:
            self._busy.release()


def _told(ok: bool, words: str, *details: str) -> dict[str, Any]:
    return {"ok": ok, "words": words, "details": list(details)}


def _log_stats(debugger: Debugger) -> dict[str, Any]:
    debugger.log_stats()
    pool = debugger._pool()
    if pool is None:
        return _told(False, "The pool is gone.")
    logger = pool._engine.logs.debug._logger
    while isinstance(logger, logging.LoggerAdapter):
        logger = logger.logger
    name = logger.name
    if _is_heard(logger):
        return _told(True, f"The statistics are in the log {name}, at INFO.")
    return _told(
        False,
        f"Nobody takes the log {name} at INFO, so the statistics are nowhere. In the app, for example:",
        "logging.basicConfig()",
        f"logging.getLogger({name!r}).setLevel(logging.INFO)",
    )


def _is_heard(logger: logging.Logger) -> bool:
    """Whether a handler takes what a logger is told at INFO."""
    if not logger.isEnabledFor(logging.INFO):
        return False
    each: logging.Logger | None = logger
    while each is not None:
        if any(handler.level <= logging.INFO for handler in each.handlers):
            return True
        each = each.parent if each.propagate else None
    return False


def _check(debugger: Debugger) -> dict[str, Any]:
    report = debugger.check_lifecycle(timeout=PROBE_SECONDS)
    if report.ok:
        joined, left = figures.latency(report.joined_in), figures.latency(report.left_in)
        return _told(True, f"A probe channel was joined in {joined} and left in {left}; nothing of it is left.")
    why = report.error or f"this is left of it: {', '.join(report.left_over)}"
    counts = [f"{name}: {report.before[name]} before, {report.after[name]} after" for name in report.before]
    return _told(False, f"The probe channel {report.topic} failed: {why}", *counts)


def _clean_up(debugger: Debugger) -> dict[str, Any]:
    closed = debugger.force_cleanup()
    return _told(True, f"{closed} idle connection{'' if closed == 1 else 's'} closed.")
