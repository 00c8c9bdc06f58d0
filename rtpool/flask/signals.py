"""
What apps and other extensions may listen to: blinker signals, sent on rtpool's workers within an app context.
"""

from __future__ import annotations

from blinker import Namespace

__all__ = ["callback_failed", "gap", "status_changed"]

_signals = Namespace()

#: A callback raised. Sender: the app. Keywords: `exception`, `callback`, `event` (what it was called with).
callback_failed = _signals.signal("rtpool-callback-failed")
#: Something may have been lost. Sender: the app. Keyword: `gap`, a `rtpool.Gap`.
gap = _signals.signal("rtpool-gap")
#: The pool's or a Channel's status changed. Sender: the app. Keyword: `change`, a `rtpool.StatusChange`.
status_changed = _signals.signal("rtpool-status-changed")
