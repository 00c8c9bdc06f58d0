"""
Where the time of a received message goes: `python -m tests.benchmarks.profile [--stdlib]`.

Each layer is fed alone, on one thread, with what the layer before it made of the same recorded bytes, and beside it
stands the piece of the floor that does the same. A profiler would be no use: it makes calls dearer than what they do.
What is left between the sum and the rate of the whole is what the threads cost each other.
"""

from __future__ import annotations

import argparse
import functools
import gc
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from tests.benchmarks.clients.floor import exhaust, reads
from tests.benchmarks.peers import receiver
from tests.benchmarks.processes import module, run, server
from tests.benchmarks.traffic import Plan

MESSAGES = {50: 50_000, 250: 50_000, 2_000: 20_000, 100_000: 1_000}
REPEATS = 5


class Layers:
    """
    A pool with one joined Channel, whose parts are fed on its I/O thread; nothing comes from its socket meanwhile.

    `take` is called once, on the I/O thread, and leaves its nanoseconds a message in `times`.
    """

    def __init__(self, pool: Any, channel: Any, plan: Plan) -> None:
        self._engine, self._subscriber, self._plan = pool._engine, channel._subscriber, plan
        self.times: dict[str, float] = {}
        self.error: BaseException | None = None
        self.over = threading.Event()

    def take(self) -> None:
        """Time every layer."""
        try:
            self._take()
        except BaseException as error:
            self.error = error
        finally:
            self.over.set()

    def _take(self) -> None:
        coordinator = self._engine.coordinator
        (connection,) = coordinator.connections.all
        cut = self._frames(reads(self._plan))
        session, router = connection.session, coordinator.router
        serializer, dispatcher = session._serializer, router._dispatcher
        self._time("decode", lambda: exhaust(chain.from_iterable(map(serializer.decode_all, cut))))
        decoded = {id(messages): list(serializer.decode_all(messages)) for messages in cut}

        def hear(messages: Sequence[Any]) -> Any:
            session.receive_all(messages, 0.0)
            return session.events()

        session._serializer = _Stub(decode_all=lambda messages: decoded[id(messages)])
        self._time("session", lambda: exhaust(map(hear, cut)))
        heard = list(map(hear, cut))
        session._serializer = serializer
        batches: list[list[Any]] = []

        def note(batch: Any) -> list[Any]:
            batches.append(list(batch))
            return []

        router._dispatcher = _Stub(deliver=note)
        exhaust(coordinator.heard(connection, events) for events in heard)
        router._dispatcher = _Stub(deliver=lambda batch: [])
        self._time("coordinator, router", lambda: exhaust(coordinator.heard(connection, events) for events in heard))
        router._dispatcher = dispatcher
        self._hand_over(batches)
        deliveries = [items for batch in batches for _, items in batch]
        self._subscriber.mailbox.interrupted = False  # as a worker says before it begins
        self._time("callback", lambda: exhaust(map(self._subscriber.mailbox.run_each, deliveries)))

    def _frames(self, chunks: Sequence[bytes]) -> list[Any]:
        from rtpool.protocol.frames import FrameDecoder

        def decoder() -> Callable[[bytes], Any]:
            return FrameDecoder(self._engine.options.max_message_size).receive

        self._time("frames", lambda: exhaust(map(decoder(), chunks)))
        return [messages for messages in map(decoder(), chunks) if messages]

    def _hand_over(self, batches: Sequence[Sequence[Any]]) -> None:
        """A dispatcher of its own without threads: its worker's work is done here, between deliveries."""
        from rtpool.engine.dispatcher import Dispatcher, Mailbox
        from rtpool.engine.threads import Bell

        class Silent(Mailbox):
            """Calls nobody back."""

            def run_each(self, items: Sequence[Any]) -> None:
                self.done += len(items)

        dispatcher = Dispatcher("profile", 1, on_drained=lambda mailbox: None)
        mailbox = Silent(None, limit=10_000, overflow="block")
        dispatcher.open(mailbox)
        own = [[(mailbox, items) for _, items in batch] for batch in batches if batch]

        def once() -> None:
            for batch in own:
                dispatcher.deliver(batch)
                while dispatcher._runnable:
                    dispatcher._work_once(Bell.ear())

        self._time("mailbox, worker", once)

    def _time(self, name: str, layer: Callable[[], object]) -> float:
        seconds = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            layer()
            seconds.append(time.perf_counter() - started)
        self.times[name] = 1e9 * min(seconds) / self._plan.messages
        return self.times[name]


class _Stub:
    """In the place of the next layer, or of the one before, so that it costs nothing."""

    def __init__(self, **methods: Callable[..., Any]) -> None:
        vars(self).update(methods)


def layers(size: int) -> dict[str, float]:
    """The nanoseconds a message of every layer."""
    import rtpool

    plan = Plan(1, MESSAGES[size], size)
    url = "http://127.0.0.1:{port}"
    with (
        server("traffic", {"topics": 1, "messages": 1, "size": size}) as served,
        rtpool.RealtimePool(url.format(**served), api_key="k") as pool,
    ):
        channel = pool.channel("bench-0").on_broadcast("x", lambda message: None)
        channel.subscribe()
        gc.disable()
        taken = Layers(pool, channel, plan)
        pool._engine.loop.post(taken.take)
        assert taken.over.wait(100)
        gc.enable()
    if taken.error is not None:
        raise taken.error
    return taken.times


def whole(size: int, name: str) -> tuple[float, dict[str, float]]:
    """The nanoseconds a message of the whole, threads and all, and those of the floor's pieces."""
    count = MESSAGES[size] * 2
    with server("traffic", {"topics": 1, "messages": count, "size": size}) as served:
        rates = [receiver(name, messages=count).measure(served)["messages/s"] for _ in range(3)]
        ask = functools.partial(run, module("clients.floor"))
        told = {**served, "messages": count // 2, "size": size}
        pieces = {p: ask({**told, "piece": p})["ns/message"] for p in ("recv", "cut", "orjson", "json", "hand-over")}
    return 1e9 / sorted(rates)[1], pieces


def main() -> None:
    """Print a table a payload size."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.profile")
    parser.add_argument("--stdlib", action="store_true", help="without orjson")
    stdlib = parser.parse_args().stdlib
    if stdlib:
        sys.modules["orjson"] = None  # type: ignore[assignment]
    for size in MESSAGES:
        total, floor = whole(size, "rtpool, no orjson" if stdlib else "rtpool")
        beside = {
            "frames": floor["cut"],
            "decode": floor["json" if stdlib else "orjson"],
            "mailbox, worker": floor["hand-over"],
        }
        times = {"recv of 64 KiB": floor["recv"], **layers(size)}
        summed = sum(times.values())
        print(f"\n{size:,} B: ns a message {'(standard library json)' if stdlib else '(orjson)'}")
        print(f"  {'':<28} {'rtpool':>8} {'part':>6} {'floor':>8}")
        for name, ns in times.items():
            print(f"  {name:<28} {ns:>8,.0f} {ns / total:>6.0%} {f'{beside[name]:,.0f}' if name in beside else '':>8}")
        print(f"  {'all of it, on one thread':<28} {summed:>8,.0f} {summed / total:>6.0%}")
        print(f"  {'the whole, as received':<28} {total:>8,.0f} {'100%':>6}   ({1e9 / total:,.0f} messages/s)")


if __name__ == "__main__":
    main()
