"""Placement: fill first, never over capacity, a topic once per socket; and merging what became sparse."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtpool.protocol.placement import FULL_ENOUGH, OPEN, Merge, Slot, merge_plan, place


def slot(connection_id: int, topics: set[str], capacity: int) -> Slot:
    return Slot(connection_id, topics, len(topics), capacity)


def test_the_first_topic_opens_a_connection() -> None:
    assert place("a", [], max_connections=1) == OPEN


def test_the_fullest_connection_with_room_is_taken() -> None:
    slots = [slot(1, {"a"}, 3), slot(2, {"b", "c"}, 3), slot(3, {"d", "e", "f"}, 3)]
    assert place("x", slots, max_connections=3) == 2


@pytest.mark.parametrize("order", list(itertools.permutations([1, 2, 3])))
def test_the_order_in_which_connections_are_looked_at_decides_nothing(order: tuple[int, ...]) -> None:
    held = {1: {"a"}, 2: {"b", "c"}, 3: {"d", "e"}}
    assert place("x", [slot(i, held[i], 3) for i in order], max_connections=3) == 2


def test_among_equally_full_ones_the_oldest_is_taken() -> None:
    assert place("x", [slot(2, {"b"}, 3), slot(1, {"a"}, 3)], max_connections=3) == 1


def test_a_connection_that_is_away_is_taken_only_when_no_open_one_has_room() -> None:
    away = slot(1, {"a", "b"}, 3)._replace(is_open=False)
    assert place("x", [away, slot(2, {"c"}, 3)], max_connections=3) == 2
    assert place("x", [away, slot(2, {"c"}, 1)], max_connections=3) == 1


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


# Merging


def test_the_emptiest_goes_into_the_fullest() -> None:
    slots = [slot(1, {"a", "b"}, 10), slot(2, {"c"}, 10), slot(3, {"d", "e", "f"}, 10)]
    assert merge_plan(slots, {1, 2, 3}) == Merge(2, {"c": 3})


def test_among_equally_empty_ones_the_youngest_goes() -> None:
    assert merge_plan([slot(1, {"a"}, 10), slot(2, {"b"}, 10)], {1, 2}) == Merge(2, {"b": 1})
    assert merge_plan([slot(2, {"b"}, 10), slot(1, {"a"}, 10)], {1, 2}) == Merge(2, {"b": 1})


def test_topics_never_go_to_an_emptier_or_younger_connection() -> None:
    slots = [slot(1, {"a"}, 10), slot(2, {"b"}, 10)]
    assert merge_plan(slots, {1}) is None
    slots = [slot(1, {"a", "c"}, 10), slot(2, {"b"}, 10)]
    assert merge_plan(slots, {1}) is None


def test_a_connection_that_cannot_be_moved_is_passed_over_for_the_next() -> None:
    slots = [slot(1, {"a", "b", "c"}, 10), slot(2, {"d", "e"}, 10), slot(3, {"f"}, 10)]
    assert merge_plan(slots, {1, 2}) == Merge(2, {"d": 1, "e": 1})


def test_a_connection_without_topics_closes_by_itself() -> None:
    assert merge_plan([slot(1, {"a"}, 10), slot(2, set(), 10)], {1, 2}) is None


def test_one_connection_stays_as_it_is() -> None:
    assert merge_plan([], set()) is None
    assert merge_plan([slot(1, {"a"}, 10)], {1}) is None


def test_a_topic_that_stands_on_both_stays() -> None:
    assert merge_plan([slot(1, {"a", "b"}, 10), slot(2, {"a"}, 10)], {1, 2}) is None
    slots = [slot(1, {"a", "b", "c"}, 10), slot(2, {"d", "e"}, 10), slot(3, {"a"}, 10)]
    assert merge_plan(slots, {3}) == Merge(3, {"a": 2})


@pytest.mark.parametrize(("used", "planned"), [(8, True), (9, False)])
def test_room_is_left_for_the_next_topics(used: int, planned: bool) -> None:
    slots = [slot(1, {str(number) for number in range(used)}, 10), slot(2, {"x"}, 10)]
    assert (merge_plan(slots, {1, 2}) is not None) is planned


def test_a_topic_that_few_can_take_is_not_left_without_a_place() -> None:
    slots = [slot(1, {"z", "p", "q"}, 10), slot(2, {"r", "s", "t"}, 5), slot(3, {"z", "b"}, 10)]
    assert merge_plan(slots, {3}) == Merge(3, {"z": 2, "b": 1})
    slots = [slot(1, {"r", "s", "t"}, 5), slot(2, {"z", "p", "q"}, 10), slot(3, {"z", "b"}, 10)]
    assert merge_plan(slots, {3}) == Merge(3, {"z": 1, "b": 2}), "the one room there is goes to who has no other"


@pytest.mark.parametrize("room", [1, 2, 3])
def test_each_topic_that_moves_takes_a_place(room: int) -> None:
    others = {"p", "q", "r", "s"}
    slots = [slot(1, others | {f"x{n}" for n in range(5 - room)}, 10), slot(2, {"a", "b", "c"}, 10)]
    assert merge_plan(slots, {2}) == (Merge(2, dict.fromkeys("abc", 1)) if room == 3 else None)


def test_topics_that_do_not_fit_into_one_connection_are_divided() -> None:
    slots = [slot(1, {"p", "q", "r"}, 5), slot(2, {"s", "t", "u"}, 5), slot(3, {"a", "b"}, 10)]
    assert merge_plan(slots, {3}) == Merge(3, {"a": 1, "b": 2})


@given(
    held=st.lists(st.sets(st.sampled_from("abcdefghij")), max_size=6),
    capacities=st.lists(st.integers(0, 12), min_size=6, max_size=6),
    movable=st.sets(st.integers(0, 5)),
)
def test_any_plan_keeps_the_rules_and_merging_comes_to_an_end(
    held: list[set[str]], capacities: list[int], movable: set[int]
) -> None:
    hosts = dict(enumerate(held))
    for _ in range(len(held) + 1):
        slots = [slot(i, topics, capacities[i]) for i, topics in hosts.items()]
        plan = merge_plan(slots, movable)
        if plan is None:
            return
        source, moves = plan
        assert source in movable
        fuller = {i for i, topics in hosts.items() if (-len(topics), i) < (-len(hosts[source]), source)}
        assert set(moves) == hosts[source]
        for topic, target in moves.items():
            assert target in fuller
            assert topic not in hosts[target]
            hosts[target] = hosts[target] | {topic}
            assert len(hosts[target]) <= capacities[target] * FULL_ENOUGH
        del hosts[source]
    raise AssertionError("each merge takes a connection away")


def fit(topics: list[str], room: dict[int, int], hosts: dict[int, set[str]]) -> bool:
    """Whether all of `topics` find room, each on a host that does not hold it; all ways are tried."""
    if not topics:
        return True
    for host in room:
        rest = {**room, host: room[host] - 1}
        if room[host] > 0 and topics[0] not in hosts[host] and fit(topics[1:], rest, hosts):
            return True
    return False


@given(
    held=st.lists(st.sets(st.sampled_from("abcdef")), max_size=3),
    capacities=st.lists(st.integers(0, 8), min_size=3, max_size=3),
    movable=st.sets(st.integers(0, 2)),
)
def test_a_plan_is_found_whenever_there_is_one_and_the_emptiest_goes(
    held: list[set[str]], capacities: list[int], movable: set[int]
) -> None:
    hosts = {number: topics for number, topics in enumerate(held) if topics}
    emptiest_first = sorted(hosts, key=lambda number: (len(hosts[number]), -number))
    can = []
    for index, number in enumerate(emptiest_first):
        fuller = emptiest_first[index + 1 :]
        room = {other: int(capacities[other] * FULL_ENOUGH) - len(hosts[other]) for other in fuller}
        if number in movable and fit(sorted(hosts[number]), room, hosts):
            can.append(number)
    plan = merge_plan([slot(number, topics, capacities[number]) for number, topics in enumerate(held)], movable)
    assert (plan.connection_id if plan else None) == next(iter(can), None)


@given(
    held=st.lists(st.sets(st.sampled_from("abcdefghij"), min_size=1), min_size=2, max_size=5, unique_by=frozenset),
    new=st.sampled_from("klm"),
)
def test_what_was_merged_does_not_come_apart_with_the_next_topic(held: list[set[str]], new: str) -> None:
    hosts = dict(enumerate(held))
    plan = merge_plan([slot(i, topics, 10) for i, topics in hosts.items()], set(hosts))
    if plan is not None:
        for topic, target in plan.moves.items():
            hosts[target] = hosts[target] | {topic}
        hosts[plan.connection_id] = set()
        choice = place(new, [slot(i, topics, 10) for i, topics in hosts.items()], max_connections=10)
        assert choice not in (OPEN, plan.connection_id)
