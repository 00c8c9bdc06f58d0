"""
What is wrong with a pool, in plain words, with what to do about it.
"""

from __future__ import annotations

from rtpool.debug.issues import CODES, Code, Issue, Severity

__all__ = ["CODES", "Code", "Issue", "Severity"]
