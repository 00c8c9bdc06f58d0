"""
What is wrong with a pool, in plain words, with what to do about it.
"""

from __future__ import annotations

from rtpool.debug.debugger import Debugger
from rtpool.debug.issues import CODES, Code, Issue, Severity
from rtpool.debug.lifecycle import LifecycleReport
from rtpool.debug.signals import DumpOnSignal, dump_on_signal
from rtpool.debug.thresholds import Thresholds

__all__ = [
    "CODES",
    "Code",
    "Debugger",
    "DumpOnSignal",
    "Issue",
    "LifecycleReport",
    "Severity",
    "Thresholds",
    "dump_on_signal",
]
