"""Placement: fill first, never over capacity, a topic once per socket."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rtpool.protocol.placement import OPEN, Slot, place


def slot(connection_id: int, topics: set[str], capacity: int) -> Slot:
    return Slot(connection_id, topics, len(topics), capacity)


def test_the_first_topic_opens_a_connection() -> None:
    assert place("a", [], max_connections=1) == OPEN


def test_the_fullest_connection_with_room_is_taken() -> None:
    slots = [slot(1, {"a"}, 3), slot(2, {"b", "c"}, 3), slot(3, {"d", "e", "f"}, 3)]
    assert place("x", slots, max_connections=3) == 2


def test_among_equally_full_ones_the_oldest_is_taken() -> None:
    assert place("x", [slot(2, {"b"}, 3), slot(1, {"a"}, 3)], max_connections=3) == 1


def test_a_topic_stands_once_per_connection() -> None:
    assert place("a", [slot(1, {"a"}, 3)], max_connections=2) == OPEN
    assert place("a", [slot(1, {"a"}, 3), slot(2, set(), 3)], max_connections=2) == 2


def test_there_is_no_room_when_all_are_full_or_hold_the_topic() -> None:
    assert place("a", [slot(1, {"a"}, 3), slot(2, {"b"}, 1)], max_connections=2) is None


@given(
    topics=st.lists(st.integers(0, 30), max_size=120),
    capacity=st.integers(1, 7),
    max_connections=st.integers(1, 6),
    leave=st.lists(st.integers(0, 119)),
)
def test_any_sequence_keeps_the_rules_and_uses_as_few_sockets_as_it_may(
    topics: list[int], capacity: int, max_connections: int, leave: list[int]
) -> None:
    hosts: dict[int, set[str]] = {}
    placed: list[tuple[int, str]] = []
    for index, number in enumerate(topics):
        topic = str(number)
        slots = [slot(i, held, capacity) for i, held in hosts.items()]
        choice = place(topic, slots, max_connections=max_connections)
        usable = [i for i, held in hosts.items() if len(held) < capacity and topic not in held]
        if choice is None:
            assert not usable
            assert len(hosts) == max_connections
            continue
        if choice == OPEN:
            assert not usable, "a socket with room is never passed over"
            assert len(hosts) < max_connections
            choice = max(hosts, default=0) + 1
            hosts[choice] = set()
        else:
            assert choice in usable
            assert len(hosts[choice]) == max(len(hosts[i]) for i in usable)
        hosts[choice].add(topic)
        placed.append((choice, topic))
        if index in leave and placed:
            host, gone = placed.pop(0)
            hosts[host].discard(gone)
    assert all(len(held) <= capacity for held in hosts.values())
