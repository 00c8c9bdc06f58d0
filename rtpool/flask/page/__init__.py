"""
The debug page at ``/_rtpool/``: what an app's pool does, what is wrong with it, and three things to do about it; with
``health`` for probes and ``metrics`` for Prometheus.
"""

from __future__ import annotations

from rtpool.flask.page.routes import register

__all__ = ["register"]
