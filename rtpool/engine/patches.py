"""
Monkey patches: with gevent's, threads are greenlets and whoever waits lets others run. A pool lives with all of them or
with none; in between, one part would wait where another must run.
"""

from __future__ import annotations

import sys

from rtpool.errors import MonkeyPatchConflict

__all__ = ["is_patched"]

#: The modules of the standard library whose patches a pool notices.
MODULES = ("threading", "socket", "select", "selectors", "ssl")


def is_patched() -> bool:
    """
    Whether gevent has patched this process.

    Raises:
        MonkeyPatchConflict: in part only.
    """
    monkey = sys.modules.get("gevent.monkey")
    patched = [name for name in MODULES if monkey is not None and monkey.is_module_patched(name)]
    if patched and len(patched) < len(MODULES):
        missing = ", ".join(name for name in MODULES if name not in patched)
        raise MonkeyPatchConflict(
            f"gevent has patched {', '.join(patched)} of this process, but not {missing}: call "
            "gevent.monkey.patch_all() with nothing left out, or patch nothing"
        )
    return bool(patched)
