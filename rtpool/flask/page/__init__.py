"""
The debug page at ``/_rtpool/``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

    from rtpool.flask.state import AppState

__all__ = ["register"]


def register(app: Flask, state: AppState) -> None:
    """
    Have the app serve the page. Called by `Realtime.init_app`.
    """
