"""
``flask rtpool …``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

__all__ = ["register"]


def register(app: Flask) -> None:
    """
    Give the app's command line the commands. Called by `Realtime.init_app`.
    """
