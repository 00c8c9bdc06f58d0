"""The catalogue: codes that stay, words for people."""

from __future__ import annotations

import json
import re

import pytest

import rtpool
from rtpool.debug import CODES, Code, Issue, Severity
from rtpool.options import PoolOptions


def test_codes_are_numbered_without_a_hole_and_in_order() -> None:
    assert list(CODES) == [f"RTP{number:03}" for number in range(1, len(CODES) + 1)]


def test_an_issue_says_what_where_and_what_to_do_and_is_json() -> None:
    issue = Issue.of("RTP008", "'room'", "9 of 10 events wait", queued=9, limit=10)
    assert json.loads(json.dumps(issue.as_dict())) == {
        "code": "RTP008",
        "severity": "warning",
        "title": "a mailbox is nearly full",
        "subject": "'room'",
        "observed": "9 of 10 events wait",
        "meaning": CODES["RTP008"].meaning,
        "advice": CODES["RTP008"].advice,
        "details": {"queued": 9, "limit": 10},
    }
    assert str(issue).startswith("RTP008 'room': a mailbox is nearly full: 9 of 10 events wait. Make")
    assert issue.severity == "warning" == str(issue.severity)


def test_what_is_worse_ranks_higher() -> None:
    assert Severity.ERROR.rank > Severity.WARNING.rank > Severity.INFO.rank


@pytest.mark.parametrize("code", CODES.values(), ids=lambda code: code.code)
def test_the_words_of_a_code_are_sentences_and_name_what_exists(code: Code) -> None:
    for sentences in (code.meaning, code.advice):
        assert re.fullmatch(r"[A-Z].*\.", sentences)
    assert re.fullmatch(r"[a-z].{,44}[^.]", code.title)
    options = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", f"{code.meaning} {code.advice}"))
    for owner, method in re.findall(r"\b(pool|Channel|rtpool)\.(\w+)", code.advice):
        known = {"pool": rtpool.RealtimePool, "Channel": rtpool.Channel, "rtpool": rtpool}[owner]
        assert hasattr(known, method) or method == "dispatch", f"{owner}.{method}"
        options.discard(method)
    words = {*vars(rtpool.RealtimePool), *vars(rtpool.Channel), "access_token", "presence_key", "api_key"}
    words |= {"supabase_realtime", "sb_publishable_", "lost_from", "lost_to", "get_pool"}
    assert options <= words | set(PoolOptions.__slots__), options - words
