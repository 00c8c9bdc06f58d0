"""Every fault in every phase of a Channel's life ends in recovery or in a typed status; a table counts it."""

from __future__ import annotations

import ssl
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from rtpool import ConnectionFailed, HandshakeRefused, JoinRefused
from rtpool.testing import RealtimeServer, faults, refusals
from tests.conftest import Figure
from tests.support.hand import Hand
from tests.support.matrix import PHASES, Cell, Places, Row

ROWS = [
    # The longest first: the server said that there are too many, and rtpool stays away for ten seconds and more.
    Row("join storm", faults.JoinStorm(), "later", tells=JoinRefused),
    Row("reset", faults.Reset()),
    Row("reset within a frame", faults.Reset(after=5), "frame"),
    Row("reset within the upgrade", faults.Reset(after=40), "upgrade"),
    Row("end of stream", faults.Finish()),
    Row("end within a frame", faults.Finish(after=5), "frame"),
    Row("freeze", faults.Freeze(), tells=ConnectionFailed, lasts=True),
    Row("freeze within a frame", faults.Freeze(after=5), "frame", tells=ConnectionFailed, lasts=True),
    Row("dribble", faults.Dribble(), "frame"),
    Row("garbage for an upgrade", faults.Raw(b"SSH-2.0-OpenSSH_9.6\r\n"), "accept"),
    Row("garbage bytes", faults.Raw(b"\xff" * 64), "frame"),
    Row("garbage text", faults.GarbageText(), "frame"),
    Row("bad UTF-8", faults.BadUtf8(), "frame"),
    Row("huge frame", faults.HugeFrame(), "frame"),
    Row("masked frame", faults.MaskedFrame(), "frame"),
    Row("oversize ping", faults.OversizePing(), "frame"),
    *(Row(f"close {code}", faults.Close(code)) for code in (1000, 1001, 1006, 1011, 1012, 4000)),
    Row("close 1008", faults.Close(1008), tells=ConnectionFailed, waits=True),
    Row("duplicate", faults.Duplicate(), "frame", mixes=True),
    Row("reorder", faults.Reorder(), "frame", mixes=True),
    Row("delay", faults.Delay(0.3), "frame"),
    Row("delay of one", faults.Delay(0.3, overtaken=True), "frame", mixes=True),
    Row("lost reply", faults.Drop(), "frame"),
    Row("lost message", faults.Drop(), "asked"),
    Row("stale join_ref", faults.StaleJoinRef(), "frame", costs=1),
    Row("wrong arity", faults.WrongArity(), "frame", costs=1),
    Row("token expired", faults.ExpireToken(), "frame", tells=JoinRefused, waits=True),
    Row("join refused for now", faults.RefuseJoin(refusals.Join.CONNECTING().reason), "later"),
    Row("join refused", faults.RefuseJoin("Unauthorized: no"), "later", tells=JoinRefused, lasts=True, waits=True),
    Row("401", faults.Refuse(401), "later", tells=HandshakeRefused, lasts=True, waits=True),
    Row("404", faults.Refuse(404), "later", tells=HandshakeRefused, lasts=True, waits=True),
    Row("429", faults.Refuse(429, headers={"Retry-After": "1"}), "later"),
    Row("503", faults.Refuse(503), "later", tells=HandshakeRefused, lasts=True),
    Row("restart", faults.Restart(), "server", tells=ConnectionFailed, lasts=True),
    Row("slow TLS", faults.SlowTls(), "server", tls=True, tells=ConnectionFailed, lasts=True),
    Row("black hole", faults.BlackHole(), "server", tells=ConnectionFailed, lasts=True),
]


def table(played: list[Cell]) -> str:
    """What survived, by fault and phase, and the figures."""
    failed = {(cell.row.name, cell.phase) for cell in played if cell.problems}
    lines = [f"{'fault':26}" + "".join(f"{phase:>12}" for phase in PHASES)]
    for name in dict.fromkeys(cell.row.name for cell in played):
        lines.append(f"{name:26}" + "".join(f"{'FAILED' if (name, p) in failed else 'ok':>12}" for p in PHASES))
    published, missing = sum(cell.published for cell in played), sum(cell.missing for cell in played)
    gaps, strikes = sum(cell.told_gaps for cell in played), sum(cell.strikes for cell in played)
    lines.append(
        f"{strikes} strikes; {published} broadcasts while a Channel was wanted, {missing} missed, {gaps} gaps told"
    )
    lines.append(f"cells tried: {len(played)}, cells survived: {len(played) - len(failed)}")
    return "\n".join(lines)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for the state of sockets")
@pytest.mark.timeout(300)
def test_every_fault_in_every_phase_ends_in_recovery_or_in_a_typed_status(
    certificates: tuple[ssl.SSLContext, ssl.SSLContext], figure: Figure
) -> None:
    cells = [Cell(row, phase, certificates) for row in ROWS for phase in PHASES]
    with ThreadPoolExecutor(8, thread_name_prefix="cell") as threads:
        list(threads.map(Cell.run, cells))
    figure(f"\n{table(cells)}")
    assert all(cell.strikes for cell in cells if not cell.problems), "a fault that never struck tests nothing"
    failed = [f"{cell.row.name}, {cell.phase}: {cell.problems}" for cell in cells if cell.problems]
    assert not failed, "\n".join(failed)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for the state of sockets")
@pytest.mark.parametrize("left", [True, False])
def test_a_topic_has_two_places_where_it_is_asked_for_on_two_living_sockets_alone(
    server: RealtimeServer, left: bool
) -> None:
    places = Places(server)
    with Hand(server) as one:
        with server.inject(faults.Freeze()) as frozen:
            frozen.wait()
            one.send("1", "1", "phx_join", {"config": {}})  # read when it thaws
            if left:
                one.ws.shutdown()
            two = Hand(server)
            two.join()
        with two:
            server.wait_for(lambda s: len(s.joins()) == 2)
            server.wait_for(lambda s: len(s.connections) == (1 if left else 2))
            assert bool(places.doubled) is not left
