"""
What a client may read of its own JSON Web Token (RFC 7519): when it expires. Nothing is verified; that is the server's.
"""

from __future__ import annotations

import base64
import binascii
import json

__all__ = ["expiry_of"]

#: Seconds since the epoch beyond which no clock goes; more is no expiry.
LATEST = 1e12


def expiry_of(token: str) -> float | None:
    """
    The claim ``exp`` of a token, seconds since the epoch; None for opaque keys and for tokens without one.
    """
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        return None
    expires = claims.get("exp") if isinstance(claims, dict) else None
    if isinstance(expires, bool) or not isinstance(expires, (int, float)) or not abs(expires) < LATEST:
        return None
    return float(expires)
