"""
rtpool in Flask apps: `Realtime`, an extension by Flask's conventions. Needs the extra ``rtpool[flask]``.
"""

from __future__ import annotations

from rtpool.flask.extension import Realtime
from rtpool.flask.signals import callback_failed, gap, status_changed
from rtpool.flask.streams import Changes

__all__ = ["Changes", "Realtime", "callback_failed", "gap", "status_changed"]

for _public in (Changes, Realtime):
    _public.__module__ = __name__
