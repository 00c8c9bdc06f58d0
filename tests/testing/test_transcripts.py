"""
The recordings of a real Realtime server, played to the embedded one: what the clients sent gets the answers they got.

Compared is every frame of every socket, in order, every close code, refused handshake and REST answer. Made-up names
(ids of messages and bindings, phx_refs) must be the same one for one; times and numbers of seconds are not compared.
What is kept different is in `KEPT`, with its reason.
"""

from __future__ import annotations

import functools
import re

import attrs
import pytest

from tests.support.comparison import differences
from tests.support.replayer import Player
from tests.support.scenarios import scenario_of
from tests.support.transcripts import NAMES


@attrs.frozen
class Kept:
    """
    A difference that stays.

    Attributes:
        files: regular expression of the recordings it is in, each of which must have it.
        what: regular expression of the difference as `differences` says it, or the name of a rule of the comparison.
        why: the reason.
    """

    files: str
    what: str
    why: str


KEPT = [
    Kept(
        "07_",
        r"^refused: ends \d+: wanted \[404, \"Not Found\".*got \"opened\"",
        "/realtime/v1/websocket is the mount of Supabase's gateway, which the embedded server stands in for too",
    ),
    Kept(
        "official_py",
        r"^W1\.1: channel realtime:offpy [45]: wanted null, got .*\"(ref\": \"8\"|phx_close)",
        "the client closed in the very moment in which a refused join let the answer to its leave through",
    ),
    Kept(
        "^(02|04|05_|05b.*v1|05c|13a|14|15|official_py)",
        "rule: order between sources",
        "channels, and what is fanned out to them, are processes of their own in the real server, and their order to "
        "each other changes from one recording to the next; the embedded server takes one thing after the other",
    ),
    Kept(
        "05_",
        "rule: order of ids",
        "the real server's ids of a change come in the order of a hash; ours in the order of the bindings",
    ),
    Kept(
        "16_",
        "rule: foreign frame",
        "two runs overlapped in this recording, and each shows what the other one did",
    ),
    Kept("official_js.*v2", "rule: lost frame", "the recorder kept no bytes of binary frames; they are counted"),
    Kept(
        "official_js",
        "rule: call told by a note",
        "the recorder of the official JavaScript client wrote down no REST calls; the one it made is in a note",
    ),
    Kept(
        "official",
        "rule: close told by no line",
        "the recorder of the official clients wrote down the end of a socket, not that the client asked for it",
    ),
    Kept(
        "09[bde]|13a",
        "rule: management call",
        "the management API is not for clients and not offered; what the call did is done by a method of the server",
    ),
    Kept("09d|12_|16_", "rule: cut frame", "the recorder cut large frames; their filling is made anew in full length"),
    Kept("12_", "rule: frame not recorded", "a text frame that is no UTF-8 was sent past the recorder"),
]


@functools.cache
def found_in(name: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """Every difference in a recording, and the rules by which the comparison overlooked something."""
    player = Player(name, scenario_of(name))
    player.play()
    found = differences(player)
    return tuple(found), frozenset(f"rule: {rule}" for rule in player.rules)


def kept_in(name: str) -> list[Kept]:
    return [kept for kept in KEPT if re.search(kept.files, name)]


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_played_to_the_embedded_server_gets_what_was_recorded(name: str) -> None:
    found, rules = found_in(name)
    known = [kept.what for kept in kept_in(name)]
    assert [text for text in found if not any(re.search(what, text) for what in known)] == []
    assert rules <= set(known)


@pytest.mark.parametrize("kept", KEPT, ids=lambda kept: f"{kept.files} {kept.what}"[:40])
def test_every_difference_that_is_kept_is_really_there(kept: Kept) -> None:
    for name in NAMES:
        if re.search(kept.files, name):
            found, rules = found_in(name)
            assert kept.what in rules or any(re.search(kept.what, text) for text in found), name
