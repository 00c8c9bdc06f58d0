"""
What apps and other extensions may listen to: blinker signals, sent on rtpool's workers within an app context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blinker import NamedSignal, Namespace

if TYPE_CHECKING:
    from flask import Flask

__all__ = ["callback_failed", "gap", "send", "status_changed"]

_signals = Namespace()

#: A callback raised. Sender: the app. Keywords: `exception`, `callback`, `event` (what it was called with).
callback_failed = _signals.signal("rtpool-callback-failed")
#: Something may have been lost. Sender: the app. Keyword: `gap`, a `rtpool.Gap`.
gap = _signals.signal("rtpool-gap")
#: The pool's or a Channel's status changed. Sender: the app. Keyword: `change`, a `rtpool.StatusChange`.
status_changed = _signals.signal("rtpool-status-changed")


def send(signal: NamedSignal, app: Flask, **words: Any) -> None:
    """Send one of these in a context of the app. What a receiver raises is logged, and harms no one else."""
    with app.app_context():
        try:
            signal.send(app, **words)
        except Exception:
            name = signal.name.removeprefix("rtpool-").replace("-", "_")
            app.logger.exception("rtpool: a receiver of %s raised", name)
