"""
rtpool in Flask apps: `Realtime`, an extension by Flask's conventions. Needs the extra ``rtpool[flask]``.
"""

from __future__ import annotations

from rtpool.flask.extension import Realtime
from rtpool.flask.signals import callback_failed, gap, status_changed

__all__ = ["Realtime", "callback_failed", "gap", "status_changed"]

for _public in (Realtime,):
    _public.__module__ = __name__
