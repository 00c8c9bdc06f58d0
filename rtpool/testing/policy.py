"""
Who may do what on a private topic, and on rows: the server's stand-in for row-level security.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

__all__ = ["EVERYTHING", "Permissions", "Policy", "PolicyRequest", "evaluate"]


@attrs.frozen
class Permissions:
    """What a token may do on a private topic; nothing unless said."""

    read_broadcast: bool = False
    write_broadcast: bool = False
    read_presence: bool = False
    write_presence: bool = False


@attrs.frozen
class PolicyRequest:
    """
    What a policy is asked about.

    Attributes:
        topic: as users write it.
        claims: of the token in force, decoded.
        headers: the ``x-*`` headers of the socket or the request, names in lower case.
    """

    topic: str
    claims: Mapping[str, Any]
    headers: Mapping[str, str]


#: True is everything, False nothing; raising is nothing too, as with a policy whose SQL fails.
Policy = Callable[[PolicyRequest], "Permissions | bool"]

EVERYTHING = Permissions(True, True, True, True)


def evaluate(policy: Policy | None, request: PolicyRequest) -> Permissions:
    """What a policy says; everything without one, and for the role that row-level security does not bind."""
    if policy is None or request.claims.get("role") == "service_role":
        return EVERYTHING
    try:
        answer = policy(request)
    except Exception:
        return Permissions()
    if isinstance(answer, Permissions):
        return answer
    return EVERYTHING if answer else Permissions()
