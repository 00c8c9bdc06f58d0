"""How the public names of the Flask extension are used, checked by mypy --strict; never run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Flask, Response
from typing_extensions import assert_type

import rtpool
from rtpool.filters import col
from rtpool.flask import Changes, Realtime, callback_failed

realtime = Realtime()


@realtime.on_changes("cars", "UPDATE", filter=col("status").eq("rented"), select=["id"])
def changed(change: rtpool.PostgresChange) -> int:
    return len(change.record)


@realtime.on_broadcast("room", "moved", private=True)
def heard(message: rtpool.Broadcast) -> None:
    print(message.payload)


@realtime.on_presence("room", "join")
def joined(presence: rtpool.Presence) -> None:
    print(presence.key)


@realtime.on_gap()
def missed(gap: rtpool.Gap) -> None:
    print(gap.cause)


@realtime.on_broadcast("room")
async def awaited(message: rtpool.Broadcast) -> None:
    print(message)


@realtime.on_changes("cars")
@realtime.on_broadcast("room")
def either(event: rtpool.PostgresChange | rtpool.Broadcast) -> None:
    print(event.topic)


def use(app: Flask) -> Response:
    assert_type(changed(rtpool.PostgresChange("t", "INSERT", "public", "cars", {}, {})), int)
    keeps: Callable[[rtpool.Broadcast], None] = heard
    realtime.init_app(app)
    realtime.start(app, wait=True, timeout=5, alive=lambda: True)
    assert_type(realtime.pool, rtpool.RealtimePool)
    with realtime.channel("room", access_token="token", params=None) as channel:
        assert_type(channel, rtpool.Channel)
    assert_type(realtime.close(5, app=app), bool)
    callback_failed.connect(print)
    print(keeps)

    realtime.on_broadcast("room")(changed)  # type: ignore[type-var]
    realtime.on_gap()(heard)  # type: ignore[type-var]
    realtime.channel(3)  # type: ignore[arg-type]
    realtime.stream("cars", slow="never")  # type: ignore[arg-type]

    def view(event: rtpool.events.Event) -> Any:
        return None

    return realtime.stream("cars", changes=Changes("cars", "UPDATE"), view=view, authorize=lambda: True)
