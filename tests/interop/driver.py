"""
Official clients in processes of their own, driven by a line of JSON per command and telling a line per event.

Everything here runs on the test's thread: a wait reads what the process wrote until what was waited for is there.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from rtpool.testing import RealtimeServer
from tests.support.wait import CAP

__all__ = ["Driver", "Peer", "PeerChannel", "Row", "metas", "wait_for_received"]

#: Seconds the official clients themselves wait for a reply; longer than any test waits, so that only a test that asks
#: for a shorter time sees one pass.
PATIENCE = 60.0


def _pack(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    raise TypeError(type(value).__name__)


def _unpack(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["$bytes"]) if "$bytes" in value else value


class Driver:
    """A process with any number of official clients in it."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, bufsize=0
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._commands, self._output = self._process.stdin, self._process.stdout
        self._poll = select.poll()
        self._poll.register(self._output, select.POLLIN)
        self._half_line = b""
        self._ids = itertools.count(1)
        self._replies: dict[int, Mapping[str, Any]] = {}
        self._peers: dict[str, Peer] = {}

    def connect(self, url: str, key: str, *, vsn: str, timeout: float = PATIENCE, heartbeat: float = 0) -> Peer:
        """A new client; it opens its socket at the first subscription."""
        peer = Peer(self, f"{self.name}-{next(self._ids)}")
        self._peers[peer.id] = peer
        peer.call("connect", url=url, key=key, vsn=vsn, timeout=timeout, heartbeat=heartbeat)
        return peer

    def call(self, command: str, **arguments: Any) -> Any:
        """Carry a command out and return what the client returned, awaited."""
        number = next(self._ids)
        line = json.dumps({"id": number, "command": command, **arguments}, default=_pack) + "\n"
        self._commands.write(line.encode())
        self.wait_for(lambda: number in self._replies, f"{self.name} answers {command}")
        reply = self._replies.pop(number)
        assert "failure" not in reply, f"{self.name} {command}: {reply['failure']}"
        return reply["value"]

    def wait_for(self, predicate: Callable[[], object], what: str, cap: float = CAP) -> None:
        """Read what the process tells until the predicate holds."""
        deadline = time.monotonic() + cap
        while not predicate():
            left = deadline - time.monotonic()
            if left <= 0 or not self._poll.poll(left * 1000):
                raise AssertionError(f"not within {cap} s: {what}{self._trouble()}")
            data = os.read(self._output.fileno(), 65_536)
            assert data, f"{self.name} ended with {self._process.wait(CAP)}{self._trouble()}"
            *lines, self._half_line = (self._half_line + data).split(b"\n")
            for line in lines:
                self._take(json.loads(line, object_hook=_unpack))

    def _take(self, message: dict[str, Any]) -> None:
        if "reply" in message:
            self._replies[message["reply"]] = message
        elif message["client"] in self._peers:
            self._peers[message["client"]].events.append(message)

    def _trouble(self) -> str:
        self._stderr.seek(0)
        told = self._stderr.read()[-2000:].decode(errors="replace")
        return f"; its stderr ends with:\n{told}" if told else ""

    def forget(self, peer: Peer) -> None:
        """Disconnect a client; what it still tells is dropped."""
        peer.call("disconnect")
        del self._peers[peer.id]

    def close(self) -> None:
        """End the process: at the end of its commands it goes by itself."""
        self._commands.close()
        try:
            self._process.wait(CAP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._output.close()
            self._stderr.close()


class Peer:
    """One official client."""

    def __init__(self, driver: Driver, id: str) -> None:
        self.driver = driver
        self.id = id
        self.events: list[dict[str, Any]] = []
        self._channels = itertools.count(1)

    def call(self, command: str, **arguments: Any) -> Any:
        """A command to this client."""
        return self.driver.call(command, client=self.id, **arguments)

    def channel(
        self,
        topic: str = "room",
        *,
        ack: bool = False,
        receive_own: bool = False,
        private: bool = False,
        presence_key: str = "",
        replay: Mapping[str, int] | None = None,
    ) -> PeerChannel:
        """A channel of it, not yet subscribed."""
        broadcast: dict[str, Any] = {"ack": ack, "self": receive_own}
        if replay is not None:
            broadcast["replay"] = dict(replay)
        presence = {"key": presence_key, "enabled": bool(presence_key)}
        channel = PeerChannel(self, f"{self.id}-{next(self._channels)}")
        channel.call("channel", topic=topic, config={"broadcast": broadcast, "presence": presence, "private": private})
        return channel

    def set_auth(self, token: str) -> None:
        """Use another access token."""
        self.call("set_auth", token=token)

    def wait_for_heartbeat(self, status: str) -> None:
        """Wait until the client tells so of a heartbeat."""
        self.driver.wait_for(
            lambda: any(e["kind"] == "heartbeat" and e["status"] == status for e in self.events), f"heartbeat {status}"
        )


class PeerChannel:
    """A channel of an official client, and what its callbacks got, in order."""

    def __init__(self, peer: Peer, id: str) -> None:
        self._peer = peer
        self._id = id

    def call(self, command: str, **arguments: Any) -> Any:
        """A command to this channel."""
        return self._peer.call(command, channel=self._id, **arguments)

    def on(self, type: str, **filter: Any) -> PeerChannel:
        """Register a callback, in the JavaScript client's words."""
        self.call("on", type=type, filter=filter)
        return self

    def subscribe(self, status: str = "SUBSCRIBED") -> PeerChannel:
        """Subscribe and wait for the status."""
        self.call("subscribe")
        self.wait_for_status(status)
        return self

    def send(self, event: str, payload: Any) -> str:
        """Broadcast; ``"ok"`` comes from the server where acknowledgements were asked for."""
        result: str = self.call("send", event=event, payload=payload)
        return result

    def http_send(self, event: str, payload: Any) -> bool:
        """Broadcast over REST."""
        done: bool = self.call("http_send", event=event, payload=payload)
        return done

    def track(self, payload: Mapping[str, Any]) -> str | None:
        """Be present; the JavaScript client says ``"ok"`` or ``"error"``, the Python client nothing."""
        result: str | None = self.call("track", payload=payload)
        return result

    def untrack(self) -> None:
        """Be present no more."""
        self.call("untrack")

    def unsubscribe(self) -> None:
        """Leave, and wait until the client says so."""
        self.call("unsubscribe")
        self.wait_for_status("CLOSED")

    @property
    def state(self) -> str:
        """Phoenix's word for where the channel is in its life."""
        state: str = self.call("state")
        return state

    @property
    def presence(self) -> dict[str, list[dict[str, Any]]]:
        """Who the client knows to be present, refs left out."""
        return metas(self.call("presence_state"))

    @property
    def events(self) -> list[dict[str, Any]]:
        """All the events of this channel."""
        return [event for event in self._peer.events if event.get("channel") == self._id]

    @property
    def statuses(self) -> list[str]:
        """What the subscribe callback was told."""
        return [event["status"] for event in self.events if event["kind"] == "status"]

    def heard(self, kind: str) -> list[Any]:
        """What the callbacks of a kind got."""
        return [event["args"] for event in self.events if event["kind"] == kind]

    @property
    def broadcasts(self) -> list[tuple[str, Any]]:
        """The event and the payload of each broadcast heard."""
        return [(message["event"], message["payload"]) for message in self.heard("broadcast")]

    @property
    def rows(self) -> list[Row]:
        """The changed rows heard, in one form for both clients."""
        return [Row.of(change) for change in self.heard("postgres_changes")]

    def wait_for(self, predicate: Callable[[], object], what: str = "what was waited for") -> None:
        """Wait until something holds of what was heard."""
        try:
            self._peer.driver.wait_for(predicate, f"{self._id}: {what}")
        except AssertionError as error:
            raise AssertionError(f"{error}; heard was {self.events[-5:]}") from None

    def wait_for_status(self, status: str) -> str | None:
        """Wait until the last status is this one; returns the words of its error."""
        self.wait_for(lambda: self.statuses[-1:] == [status], f"status {status}")
        error: str | None = [event for event in self.events if event["kind"] == "status"][-1]["error"]
        return error

    def wait_for_broadcasts(self, count: int) -> list[tuple[str, Any]]:
        """Wait until so many broadcasts were heard."""
        self.wait_for(lambda: len(self.broadcasts) >= count, f"{count} broadcasts")
        return self.broadcasts

    def wait_for_rows(self, count: int) -> list[Row]:
        """Wait until so many changed rows were heard."""
        self.wait_for(lambda: len(self.rows) >= count, f"{count} changed rows")
        return self.rows

    def wait_for_presence(self, expected: Mapping[str, list[Any]]) -> None:
        """Wait until the client's own state is this one, refs left out."""
        synced = len(self.heard("presence sync"))
        while (state := self.presence) != expected:
            self.wait_for(lambda n=synced: len(self.heard("presence sync")) > n, f"{expected}, not {state}")  # type: ignore[misc]
            synced = len(self.heard("presence sync"))


@attrs.frozen
class Row:
    """A changed row, as any client tells it."""

    type: str
    schema: str
    table: str
    new: Mapping[str, Any]
    old: Mapping[str, Any]

    @classmethod
    def of(cls, change: Any) -> Row:
        """From what a callback got: the JavaScript client's object, the Python client's, or rtpool's."""
        if not isinstance(change, dict):
            return cls(change.type, change.schema, change.table, dict(change.record), dict(change.old_record))
        if "data" in change:
            data = change["data"]
            return cls(
                data["type"], data["schema"], data["table"], data.get("record") or {}, data.get("old_record") or {}
            )
        return cls(change["eventType"], change["schema"], change["table"], change["new"], change["old"])


def metas(state: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """A presence state, of any client, without what the server or the client adds."""
    refs = ("phx_ref", "phx_ref_prev", "presence_ref")
    return {
        key: [{name: value for name, value in meta.items() if name not in refs} for meta in entry]
        for key, entry in state.items()
    }


def wait_for_received(server: RealtimeServer, event: str, count: int) -> list[Any]:
    """Wait until clients sent so many messages of an event; their payloads."""

    def payloads() -> list[Any]:
        return [message.payload for message in server.received if message.event == event]

    server.wait_for(lambda _: len(payloads()) >= count, CAP)
    return payloads()
