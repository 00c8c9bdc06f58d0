"""
`rtpool demo`: nine callers, first with a client each, then through one pool; and a connection reset on the way.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

import rtpool
from rtpool.testing import RealtimeServer

__all__ = ["run_demo"]

TOPIC = "car-status-changes"
COMPONENTS = ("map", "list", "detail", "billing", "alerts", "audit", "fleet", "search", "mobile")
MESSAGES = 2_000
#: Messages of the stream in whose middle the server resets the socket.
STREAM = 600
#: Seconds a step may take before the demo gives up.
PATIENCE = 10.0


class Component:
    """One part of an application: counts what it receives and looks at the order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.numbers: list[int] = []
        self.gaps: list[rtpool.Gap] = []
        self.changed = threading.Condition()

    def subscribe(self, pool: rtpool.RealtimePool) -> rtpool.Channel:
        channel = pool.channel(TOPIC)
        return channel.on_broadcast("status", self._received).on_gap(self.gaps.append).subscribe(timeout=PATIENCE)

    def _received(self, message: rtpool.Broadcast) -> None:
        with self.changed:
            self.numbers.append(message.payload["n"])
            self.changed.notify_all()

    def wait_for(self, number: int) -> bool:
        """Wait until message `number` was received."""
        with self.changed:
            return self.changed.wait_for(lambda: bool(self.numbers) and self.numbers[-1] >= number, PATIENCE)

    @property
    def in_order(self) -> bool:
        return all(a < b for a, b in zip(self.numbers, self.numbers[1:], strict=False))


@attrs.define
class Result:
    """What the demo counted, by the server's count and the components' own."""

    sockets_before: int = 0
    joins_before: int = 0
    sockets_after: int = 0
    joins_after: int = 0
    messages: int = MESSAGES
    received: dict[str, int] = attrs.field(factory=dict)
    in_order: bool = False
    back_after_reset: bool = False
    most_sockets_at_once: int = 0
    lost_during_reset: int = 0
    gaps_announced: int = 0
    sockets_left: int = -1
    threads_left: list[str] = attrs.field(factory=list)
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether every count is what it has to be."""
        return (
            (self.sockets_before, self.sockets_after, self.joins_after) == (9, 1, 1)
            and len(self.received) == 9
            and all(count == self.messages for count in self.received.values())
            and self.in_order
            and self.back_after_reset
            and self.most_sockets_at_once == 1
            and self.gaps_announced == 9
            and self.sockets_left == 0
            and not self.threads_left
        )


def run_demo(*, as_json: bool = False) -> bool:
    """
    Run the demo and print what came out.

    Returns:
        Whether every count was right.
    """
    console = Console(stderr=as_json, highlight=False)
    started = time.monotonic()
    result = Result()
    with _display(console, quiet=as_json) as step, RealtimeServer() as server:
        _before(server, result, step)
        _after(server, result, step)
    result.threads_left = [t.name for t in threading.enumerate() if t.name.startswith("rtpool-")]
    result.seconds = round(time.monotonic() - started, 2)
    if as_json:
        sys.stdout.write(json.dumps({**attrs.asdict(result), "ok": result.good}) + "\n")
    else:
        console.print(_table(result))
        console.print("[bold green]Every count is right.[/]" if result.good else "[bold red]A count is off.[/]")
    return result.good


def _before(server: RealtimeServer, result: Result, step: Callable[[str, float], None]) -> None:
    with ExitStack() as stack:
        for index, name in enumerate(COMPONENTS):
            step(f"before: {name} opens a client of its own", index / 9)
            pool = stack.enter_context(rtpool.RealtimePool(server.url, api_key=server.api_key))
            Component(name).subscribe(pool)
        result.sockets_before = len(server.connections)
        result.joins_before = len(server.joins(TOPIC))
    server.wait_for(lambda s: not s.connections, timeout=PATIENCE)


def _after(server: RealtimeServer, result: Result, step: Callable[[str, float], None]) -> None:
    opened, joined = server.connections_total, len(server.joins(TOPIC))
    components = [Component(name) for name in COMPONENTS]

    def get() -> rtpool.RealtimePool:
        # As nine modules would that never heard of each other.
        return rtpool.get_pool(server.url, api_key=server.api_key, cleanup_interval=0.2)

    def count(_request: object) -> None:
        # Asked before each upgrade: how many sockets there will be at once.
        result.most_sockets_at_once = max(result.most_sockets_at_once, len(server.connections) + 1)

    server.on_connect = count
    step("after: nine threads ask get_pool() for the same channel", 0.0)
    channels = _in_threads(lambda component: component.subscribe(get()), components)
    result.sockets_after = server.connections_total - opened
    result.joins_after = len(server.joins(TOPIC)) - joined

    for number in range(MESSAGES):
        if number % 100 == 0:
            step(f"the server publishes {MESSAGES:,} messages", number / MESSAGES)
        server.broadcast(TOPIC, "status", {"n": number})
    for component in components:
        component.wait_for(MESSAGES - 1)
    result.received = {component.name: len(component.numbers) for component in components}

    _reset(server, result, step, components, opened)
    result.in_order = all(component.in_order for component in components)
    result.gaps_announced = sum(len(component.gaps) for component in components)

    step("all nine unsubscribe", 1.0)
    for channel in channels:
        channel.unsubscribe()
    server.wait_for(lambda s: not s.connections, timeout=PATIENCE)
    result.sockets_left = len(server.connections)
    get().close()


def _reset(
    server: RealtimeServer,
    result: Result,
    step: Callable[[str, float], None],
    components: list[Component],
    opened: int,
) -> None:
    """Reset the socket in the middle of a stream, and go on publishing until everybody counts on."""
    number = MESSAGES
    for index in range(STREAM):
        if index == STREAM // 2:
            step("the server resets the socket in mid-stream", 0.5)
            server.connections[0].abort()
        server.broadcast(TOPIC, "status", {"n": number + index})
    server.wait_for(lambda s: s.connections_total - opened == 2 and s.members(TOPIC) == 1, timeout=PATIENCE)
    step("everybody is back", 0.9)
    last = number + STREAM
    server.broadcast(TOPIC, "status", {"n": last})
    result.back_after_reset = all(component.wait_for(last) for component in components)
    result.lost_during_reset = last + 1 - len(components[0].numbers)


def _in_threads(call: Callable[[Component], rtpool.Channel], components: list[Component]) -> list[rtpool.Channel]:
    channels: list[rtpool.Channel] = []
    failures: list[Exception] = []
    barrier = threading.Barrier(len(components))

    def run(component: Component) -> None:
        try:
            barrier.wait(PATIENCE)
            channels.append(call(component))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(c,), name=f"component-{c.name}") for c in components]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    if failures:
        raise failures[0]
    return channels


@contextmanager
def _display(console: Console, *, quiet: bool) -> Iterator[Callable[[str, float], None]]:
    if quiet:
        yield lambda text, part: None
        return
    columns = (TextColumn("{task.description}"), BarColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=1.0)

        def step(text: str, part: float) -> None:
            progress.update(task, description=text, completed=part)

        yield step


def _table(result: Result) -> Table:
    table = Table(title="Nine components, one channel", title_justify="left")
    table.add_column("")
    table.add_column("a client each", justify="right")
    table.add_column("one rtpool", justify="right")

    def mark(good: bool, text: Any) -> str:
        return f"[{'green' if good else 'red'}]{text}[/]"

    received = sorted(set(result.received.values()))
    yes_no = {True: "yes", False: "no"}
    sockets, joins, peak = result.sockets_after, result.joins_after, result.most_sockets_at_once
    table.add_row("sockets the server counts", str(result.sockets_before), mark(sockets == 1, sockets))
    table.add_row("joins the server counts", str(result.joins_before), mark(joins == 1, joins))
    each = mark(received == [result.messages], "/".join(f"{n:,}" for n in received))
    table.add_row(f"messages each received of {result.messages:,}", "", each)
    table.add_row("in the server's order", "", mark(result.in_order, yes_no[result.in_order]))
    back = mark(result.back_after_reset, yes_no[result.back_after_reset])
    table.add_row("all back after a reset in mid-stream", "", back)
    table.add_row("sockets at once, at the most", "", mark(peak == 1, peak))
    table.add_row("lost in the reset, announced as gaps", "", f"{result.lost_during_reset} in {result.gaps_announced}")
    table.add_row("sockets left", "", mark(result.sockets_left == 0, result.sockets_left))
    table.add_row("threads left", "", mark(not result.threads_left, len(result.threads_left)))
    table.add_row("seconds", "", f"{result.seconds:.1f}")
    return table
