"""What is in each picture: the command that is typed, and what happens meanwhile."""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import re
import tempfile
import threading
from collections.abc import Callable, Iterator

import attrs
import pyte

import rtpool
from rtpool.testing import RealtimeServer, Refusal
from tests.support.terminal import Terminal
from tests.support.wait import CAP

__all__ = ["FOLDER", "PICTURES", "Picture"]

FOLDER = pathlib.Path(__file__).parents[2] / "examples" / "pictures"
CARS = {"id": "int8", "status": "text"}


class Camera(Terminal):
    """A terminal whose screen is drawn."""

    @property
    def screen(self) -> pyte.Screen:
        """All of it, with its colours."""
        return self._screen


Scene = Callable[[pathlib.Path], contextlib.AbstractContextManager[pyte.Screen]]


@attrs.frozen(kw_only=True)
class Picture:
    """
    One picture.

    Attributes:
        command: that is typed; the picture's title.
        scene: runs it and gives the screen to draw.
        words: that are in it.
        alt: what it shows, for who does not see it; README has the same.
    """

    command: str
    scene: Scene
    words: tuple[str, ...]
    alt: str


@contextlib.contextmanager
def demo(folder: pathlib.Path) -> Iterator[pyte.Screen]:
    with Camera(folder) as terminal:
        terminal.type("rtpool demo\n")
        terminal.wait_for(lambda lines: "Every count is right." in lines and lines[-1] == "$", 60)
        yield terminal.screen


@contextlib.contextmanager
def doctor(folder: pathlib.Path) -> Iterator[pyte.Screen]:
    with RealtimeServer() as server:
        server.table("cars", CARS)
        with Camera(folder, SUPABASE_URL=server.url, SUPABASE_KEY=server.api_key) as terminal:
            terminal.type("rtpool doctor --table cars\n")
            terminal.wait_for(lambda lines: len(lines) > 10 and lines[-1] == "$", 60)
            yield terminal.screen


@contextlib.contextmanager
def listen(folder: pathlib.Path) -> Iterator[pyte.Screen]:
    with RealtimeServer() as server:
        server.table("cars", CARS)
        with Camera(folder, SUPABASE_URL=server.url, SUPABASE_KEY=server.api_key) as terminal:
            terminal.type("rtpool listen room --table cars --presence\n")
            terminal.wait_for(lambda lines: any("present" in line for line in lines))
            server.track(server.connections[0], "room", "ann", {"at": "home"})
            server.broadcast("room", "moved", {"lat": 52.52, "lon": 13.405})
            server.change("public", "cars", "INSERT", {"id": 7, "status": "free"})
            server.change("public", "cars", "UPDATE", {"id": 7, "status": "rented"}, {"id": 7})
            terminal.wait_for(lambda lines: any("UPDATE" in line for line in lines))
            refusals = iter([Refusal(503)])
            server.on_connect = lambda request: next(refusals, None)
            server.connections[0].abort()
            terminal.wait_for(lambda lines: lines[-1].startswith("connected") and "1 gap" in lines[-1], 60)
            server.broadcast("room", "moved", {"lat": 52.53, "lon": 13.411})
            terminal.wait_for(lambda lines: "13.411" in "".join(lines) and lines[-1].endswith("ago"))
            yield terminal.screen


@contextlib.contextmanager
def top(folder: pathlib.Path) -> Iterator[pyte.Screen]:
    runtime = {"XDG_RUNTIME_DIR": str(folder)}
    rooms = ["berlin", "paris", "rome", "wien", "oslo"]
    with _environment(runtime), RealtimeServer() as server, Camera(folder, **runtime) as terminal:
        pool = rtpool.RealtimePool(
            server.url, api_key=server.api_key, heartbeat_interval=1.0, max_channels_per_connection=3
        )
        with pool, pool.serve_debug(), _traffic(server, rooms):
            for room in rooms:
                pool.channel(room).on_broadcast("*", lambda message: None).subscribe()
            terminal.type("rtpool top\n")
            busy = re.compile(r"berlin +joined +\d+/10,000 +[1-9]")  # a rate needs two looks
            terminal.wait_for(lambda lines: any(busy.match(line) for line in lines), 60)
            yield terminal.screen
            terminal.type("q")


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    yield
    for name, value in before.items():
        os.environ.pop(name)
        if value is not None:
            os.environ[name] = value


@contextlib.contextmanager
def _traffic(server: RealtimeServer, rooms: list[str]) -> Iterator[None]:
    stop = threading.Event()

    def send() -> None:
        for n in itertools.count():
            if stop.wait(0.01):
                return
            server.broadcast(rooms[n % 5 * (n % 2)], "moved", {"lat": n})

    thread = threading.Thread(target=send)
    thread.start()
    yield
    stop.set()
    thread.join(CAP)


PICTURES = {
    "demo": Picture(
        command="rtpool demo",
        scene=demo,
        words=("$ rtpool demo", "Nine components, one channel", "sockets the server counts", "Every count is right."),
        alt="rtpool demo: nine components with a client each need 9 sockets and 9 joins, with one rtpool 1 and 1; each "
        "received all of 2,000 messages in order, also through a reset, and nothing is left at the end.",
    ),
    "listen": Picture(
        command="rtpool listen",
        scene=listen,
        words=("rtpool listen room --table cars --presence", "broadcast", "INSERT", "GAP", "1 gap", "1 reconnect"),
        alt="rtpool listen: broadcasts, changes of a table and presence, a line each; the gap of a lost connection; "
        "and in the last line how the connection stands.",
    ),
    "doctor": Picture(
        command="rtpool doctor",
        scene=doctor,
        words=("rtpool doctor --table cars", "upgrade", "heartbeat", "replication", "broadcast"),
        alt="rtpool doctor: each step on the way to the server with a tick and its time, from the URL to the round "
        "trip of a broadcast.",
    ),
    "top": Picture(
        command="rtpool top",
        scene=top,
        words=("rtpool top", "Connections", "Channels", "berlin"),
        alt="rtpool top: a live view of a running program's pool: totals and rates, its connections, its Channels with "
        "their queues and callback times, and what is wrong.",
    ),
}


def take(name: str, target: pathlib.Path) -> None:
    """Make one picture."""
    from tests.pictures.drawing import draw

    picture = PICTURES[name]
    with tempfile.TemporaryDirectory() as folder, picture.scene(pathlib.Path(folder)) as screen:
        svg = draw(screen, name=name, title=picture.command)
    target.mkdir(exist_ok=True)
    (target / f"{name}.svg").write_text(svg, encoding="utf-8")
