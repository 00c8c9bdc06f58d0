"""
What a client may read of its own JSON Web Token (RFC 7519): its claims, and when it expires. Nothing is verified; that
is the server's.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["claims_of", "expiry_of"]

#: Seconds since the epoch beyond which no clock goes; more is no expiry.
LATEST = 1e12


def claims_of(token: str) -> Mapping[str, Any] | None:
    """
    The claims of a token; None for opaque keys, and for what is no token.
    """
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        return None
    return claims if isinstance(claims, dict) else None


def expiry_of(token: str) -> float | None:
    """
    The claim ``exp`` of a token, seconds since the epoch; None for opaque keys and for tokens without one.
    """
    expires = (claims_of(token) or {}).get("exp")
    if isinstance(expires, bool) or not isinstance(expires, (int, float)) or not abs(expires) < LATEST:
        return None
    return float(expires)
