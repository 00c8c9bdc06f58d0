"""
Tokens signed with a secret: made for tests, verified as a Realtime server does, with its words.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["claims_of", "expiry_of", "make_token", "token_error"]

#: Seconds since the epoch that no clock will show.
LAST = 1e15

_HASHES = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}

_NO_SIGNER = "Failed to generate JWT signer{}, check your JWT secret or JWKS configuration"


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> Any:
    value = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _sign(secret: str, text: str, algorithm: str) -> str:
    return _encode(hmac.new(secret.encode(), text.encode(), _HASHES[algorithm]).digest())


def make_token(secret: str, claims: dict[str, Any], algorithm: str = "HS256") -> str:
    """A JWT with these claims, signed with HS256, HS384 or HS512 (RFC 7519)."""
    head = _encode(json.dumps({"alg": algorithm, "typ": "JWT"}).encode())
    text = f"{head}.{_encode(json.dumps(claims).encode())}"
    return f"{text}.{_sign(secret, text, algorithm)}"


def claims_of(token: str | None) -> dict[str, Any]:
    """The claims of a token, unverified; those of the anonymous role for what is none."""
    try:
        claims: dict[str, Any] = _decode((token or "").split(".")[1])
        return claims
    except (ValueError, IndexError):
        return {"role": "anon"}


def expiry_of(claims: Mapping[str, Any]) -> float | None:
    """When a token ends, in seconds since the epoch; None for what is no such time, which the real server takes too."""
    expires = claims.get("exp")
    if isinstance(expires, bool) or not isinstance(expires, (int, float)) or not abs(expires) < LAST:
        return None
    return float(expires)


def token_error(secret: str, token: str, now: float) -> tuple[str, str] | None:
    """
    Why a token is refused as ``(code, words)``; None when it is good.

    The connection's refusal has the words alone, a join's has both.
    """
    parts = token.split(".")
    try:
        head, claims = _decode(parts[0]), _decode(parts[1])
        if len(parts) != 3:
            raise ValueError
    except (ValueError, IndexError):
        return "MalformedJWT", "The token provided is not a valid JWT"
    algorithm = head.get("alg")
    if algorithm not in _HASHES:
        key = f' for key ID (kid) "{head["kid"]}"' if isinstance(head.get("kid"), str) else ""
        return "JwtSignerError", _NO_SIGNER.format(key)
    if not hmac.compare_digest(_sign(secret, f"{parts[0]}.{parts[1]}", algorithm).encode(), parts[2].encode()):
        return "JwtSignatureError", "Failed to validate JWT signature"
    if "role" not in claims or "exp" not in claims:
        return "InvalidJWTToken", "Fields `role` and `exp` are required in JWT"
    expires = expiry_of(claims)
    if expires is not None and expires <= now:
        return "InvalidJWTToken", f"Token has expired {int(now - expires)} seconds ago"
    return None
