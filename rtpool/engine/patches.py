"""
Monkey patches: with gevent's, threads are greenlets and whoever waits lets others run. A pool lives with all of them or
with none; in between, one part would wait where another must run.
"""

from __future__ import annotations

import sys

from rtpool.errors import MonkeyPatchConflict

__all__ = ["is_patched", "pass_on"]

#: The modules of the standard library whose patches a pool notices.
MODULES = ("threading", "socket", "select", "selectors", "ssl")


def is_patched() -> bool:
    """
    Whether gevent has patched this process.

    Raises:
        MonkeyPatchConflict: in part only.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        return False
    patched = [name for name in MODULES if monkey.is_module_patched(name)]
    if patched and len(patched) < len(MODULES):
        missing = ", ".join(name for name in MODULES if name not in patched)
        raise MonkeyPatchConflict(
            f"gevent has patched {', '.join(patched)} of this process, but not {missing}: call "
            "gevent.monkey.patch_all() with nothing left out, or patch nothing"
        )
    return bool(patched)


def pass_on(error: KeyboardInterrupt) -> bool:
    """
    Have Ctrl-C end the program where it struck a thread of ours: as a greenlet it may, a real one it never does.

    What gevent does with greenlets that end with it, `threading` keeps it from doing with threads.

    Returns:
        False where it did not, for the process is not patched.
    """
    patched = is_patched()
    if patched:
        sys.modules["gevent"].get_hub().handle_system_error(KeyboardInterrupt, error)
    return patched
