"""
Faults of networks and servers, for tests of what a client makes of them.

```python
from rtpool.testing import faults

server.inject(faults.Refuse(503), times=3)                                  # the next three upgrades
with server.inject(faults.Freeze()):                                        # every open socket, thawed afterwards
    ...
fault = server.inject(faults.Reset(after=10), on=faults.Sending("broadcast", topic="room", skip=2))
fault.wait()                                                                # the third broadcast broke off at byte 10
```

A fault says what happens, a moment says when and to whom: `Now` (at once, to open sockets), `Accepting`, `Upgrading`,
`Opening`, `Receiving`, `Sending`, `Replying`. `RealtimeServer.inject` puts the two together, takes how often, and
returns an `Injection` that tells how often it struck, can be waited for, and is taken back by `undo` or at the end of a
``with`` block. Several may be injected at a time; at one moment they strike in the order of injection.

| fault | without `on` | other moments |
|---|---|---|
| `Reset`, `Finish`, `Freeze`, `Dribble`, `Raw` | `Now` | all |
| `Close`, `ExpireToken` | `Now` | from `Opening` on |
| `GarbageText`, `BadUtf8`, `HugeFrame`, `MaskedFrame`, `OversizePing` | `Now` | from `Opening` on |
| `Drop` | `Sending` | `Receiving`, `Replying` |
| `Delay` | `Sending` | `Upgrading`, `Receiving`, `Replying` |
| `Duplicate`, `Reorder`, `StaleJoinRef`, `WrongArity` | `Sending` | `Replying` |
| `Refuse` | `Upgrading` | |
| `RefuseJoin`, `JoinStorm` | `Receiving` of ``phx_join`` | |
| `SlowTls`, `BlackHole`, `Restart` | `Now`, to the whole server | |

Seconds are of the server's clock: where that stands still, `RealtimeServer.advance` moves them. Bytes are counted on
the stream to the client, above TLS, from the moment on: at `Accepting` from the first of the upgrade's answer, at
`Sending` from the first of the frame's header. At `Accepting` and `Upgrading` a connection has no number yet, and at
`Accepting` a REST call looks like any other.
"""

from __future__ import annotations

from rtpool.testing.faults.base import Fault
from rtpool.testing.faults.decisions import ExpireToken, JoinStorm, Refuse, RefuseJoin
from rtpool.testing.faults.forged import BadUtf8, Close, GarbageText, HugeFrame, MaskedFrame, OversizePing
from rtpool.testing.faults.injection import Injection, Strike
from rtpool.testing.faults.messages import Delay, Drop, Duplicate, Reorder, StaleJoinRef, WrongArity
from rtpool.testing.faults.moments import (
    Accepting,
    Moment,
    Now,
    Occasion,
    Opening,
    Receiving,
    Replying,
    Sending,
    Upgrading,
)
from rtpool.testing.faults.server import BlackHole, Restart, SlowTls
from rtpool.testing.faults.streams import Dribble, Finish, Freeze, Raw, Reset

__all__ = [
    "Accepting",
    "BadUtf8",
    "BlackHole",
    "Close",
    "Delay",
    "Dribble",
    "Drop",
    "Duplicate",
    "ExpireToken",
    "Fault",
    "Finish",
    "Freeze",
    "GarbageText",
    "HugeFrame",
    "Injection",
    "JoinStorm",
    "MaskedFrame",
    "Moment",
    "Now",
    "Occasion",
    "Opening",
    "OversizePing",
    "Raw",
    "Receiving",
    "Refuse",
    "RefuseJoin",
    "Reorder",
    "Replying",
    "Reset",
    "Restart",
    "Sending",
    "SlowTls",
    "StaleJoinRef",
    "Strike",
    "Upgrading",
    "WrongArity",
]
