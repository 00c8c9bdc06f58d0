"""
What the key and the access token say of themselves; never what they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlsplit

from rtpool.doctor.address import project_of
from rtpool.doctor.case import Case
from rtpool.doctor.report import Finding, failed, ok, skipped, warning
from rtpool.protocol.jwt import claims_of, expiry_of
from rtpool.protocol.refusals import printable

__all__ = ["read_key", "read_token"]

#: Where keys are to be had.
WHERE = "Project Settings, API Keys; for the Supabase CLI: `supabase status`."
#: Of keys that may do everything.
SECRET = "Keep it on servers: it must never reach a browser, an app or a log. For users there is the publishable key."
#: Of a user's token in the key's place.
USERS = f"Give it as --token, and the project's key as --key. {WHERE}"
#: Where another key or token is to be had; what to do about one that ends soon.
SOURCES = {
    "key": f"Take the project's present key. {WHERE}",
    "token": "Have the user sign in again, or the session refreshed.",
}
RENEWALS = {
    "key": f"Take another one in time. {WHERE}",
    "token": "Give rtpool a callable as access_token: it asks for the next one before this one ends.",
}
#: Roles that see and may do everything, row-level security or not.
MIGHTY = ("service_role", "supabase_admin", "postgres")
#: Days before its end from which on a key is told of; of a token, which lives for an hour, seconds.
SOON_DAYS, SOON_SECONDS = 30, 300


def read_key(case: Case) -> Finding:
    """Whether the key can be one, whose it is, for which project, and how long it holds."""
    key = case.key
    if not key:
        return failed("there is no API key", f"Give --key, or SUPABASE_KEY. {WHERE}")
    form = _form(key)
    if form is not None:
        words, them = form
        return failed(f"the key {words}", f"Take {them} off; look at the .env file or the secret it is from.")
    if key.startswith("sbp_"):
        return failed("this is a personal access token of the Management API, no key of a project", WHERE)
    if key.startswith("sb_publishable_"):
        case.role = "anon"
        return _opaque(case, ok, "a publishable key", "publishable")
    if key.startswith("sb_secret_"):
        case.role = "service_role"
        return _opaque(case, warning, "a secret key: row-level security does not bind it", "secret", SECRET)
    claims = claims_of(key)
    if claims is None:
        return warning(
            "neither a JWT nor a key of Supabase's", f"A hosted project takes no such key. {WHERE}", kind="?"
        )
    case.role = _role(claims)
    return _judged(case, key, claims, "key")


def _form(text: str) -> tuple[str, str] | None:
    """What is around a key or token that does not belong to it, and the pronoun for that."""
    if text != text.strip():
        return "has a space or a line break at an end", "it"
    if text[0] in "\"'" or text[-1] in "\"'":
        return "is in quotes", "them"
    if re.match(r"(?i)bearer\s", text):
        return "has the word Bearer in front", "it"
    if re.search(r"\s", text) or not (text.isascii() and text.isprintable()):
        return "has a space, a line break or another character that no key has", "it"
    return None


def _opaque(case: Case, say: Any, words: str, kind: str, advice: str = "") -> Finding:
    if project_of(case.host) is None:
        gateway = "A Realtime server itself knows no such key: it needs Supabase's gateway in front."
        return warning(words, f"{advice} {gateway}".strip(), kind=kind)
    finding: Finding = say(f"{words}; nothing in it can be read", advice, kind=kind)
    return finding


def _judged(case: Case, text: str, claims: Mapping[str, Any], what: str) -> Finding:
    """A finding on a JWT by its claims."""
    now, expires = datetime.now(timezone.utc), expiry_of(text)
    role, ref = _role(claims), _project(claims)
    details: dict[str, Any] = {
        "kind": "jwt",
        "role": role,
        "project": ref,
        "expires": _at(expires),
        "issued": _at(claims.get("iat")),
    }
    words = f"role {role or 'none'}" + (f", project {ref}" if ref else "")
    if not role or "exp" not in claims:
        missing = " and ".join(name for name in ("role", "exp") if not claims.get(name))
        return failed(f"the {what} has no claim {missing}", f"Realtime refuses it. {SOURCES[what]}", **details)
    theirs = project_of(case.host)
    if theirs is not None and ref is not None and ref != theirs:
        return failed(
            f"the {what} is of project {ref}, the URL of {theirs}", f"They must be of one. {SOURCES[what]}", **details
        )
    if expires is not None and expires <= now.timestamp():
        ago = _span(now.timestamp() - expires)
        clock = f"This machine's clock says {now:%Y-%m-%d %H:%M} UTC: is that right?"
        return failed(f"{words}: expired {ago} ago", f"{SOURCES[what]} {clock}", **details)
    left = None if expires is None else expires - now.timestamp()
    words += "" if left is None else f", {_span(left)} left"
    if what == "key" and (role == "authenticated" or "session_id" in claims):
        return warning(f"{words}: a user's access token, no API key", USERS, **details)
    issued = claims.get("iat")
    if isinstance(issued, (int, float)) and issued > now.timestamp() + 60:
        return warning(
            words, f"It was issued {_span(issued - now.timestamp())} from now: look at the clocks.", **details
        )
    if role in MIGHTY:
        return warning(f"{words}: row-level security does not bind it", SECRET, **details)
    if left is not None and left < (SOON_DAYS * 86_400 if what == "key" else SOON_SECONDS):
        return warning(words, RENEWALS[what], **details)
    return ok(words, **details)


def _role(claims: Mapping[str, Any]) -> str:
    return printable(str(claims.get("role", "")))[:40]


def _project(claims: Mapping[str, Any]) -> str | None:
    """The project's reference: the claim ``ref`` of a key, in the issuer of a user's token."""
    ref = claims.get("ref")
    if isinstance(ref, str) and ref:
        return printable(ref)[:40]
    try:
        return project_of(urlsplit(str(claims.get("iss", ""))).hostname or "")
    except ValueError:
        return None


def _at(seconds: Any) -> str | None:
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).isoformat()
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _span(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size):,} {unit}"
    return f"{int(seconds)} seconds"


def read_token(case: Case) -> Finding:
    """The same of the user's access token, if there is one."""
    token = case.token
    if not token:
        return skipped("none was given: joins use the key")
    if token.startswith("sbp_"):
        case.token = None
        return warning(
            "this is the Supabase CLI's own token, no user's; it is not used",
            "SUPABASE_ACCESS_TOKEN is the CLI's variable as well. Give a user's token as --token.",
        )
    form = _form(token)
    if form is not None:
        case.token = None
        words, them = form
        return failed(f"the token {words}; it is not used", f"Take {them} off; look at where it is from.")
    claims = claims_of(token)
    if claims is None:
        if token.startswith("sb_"):
            return warning("this is an API key, no user's token; joins use the key", "Leave --token out.")
        return failed("this is no JWT", SOURCES["token"])
    case.role = _role(claims)
    return _judged(case, token, claims, "token")
