"""
HS256 tokens: made for tests, verified as a Realtime server does, with its words.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

__all__ = ["make_token", "token_error"]


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _sign(secret: str, text: str) -> str:
    return _encode(hmac.new(secret.encode(), text.encode(), hashlib.sha256).digest())


def make_token(secret: str, claims: dict[str, Any]) -> str:
    """A JWT with these claims, signed with HS256 (RFC 7519)."""
    head = _encode(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
    text = f"{head}.{_encode(json.dumps(claims).encode())}"
    return f"{text}.{_sign(secret, text)}"


def token_error(secret: str, token: str, now: float) -> tuple[str, str] | None:
    """
    Why a token is refused as ``(code, words)``; None when it is good.

    The connection's refusal has the words alone, a join's has both.
    """
    parts = token.split(".")
    try:
        claims = json.loads(_decode(parts[1]))
        if len(parts) != 3 or not isinstance(claims, dict):
            raise ValueError
    except (ValueError, IndexError):
        return "MalformedJWT", "The token provided is not a valid JWT"
    if not hmac.compare_digest(_sign(secret, f"{parts[0]}.{parts[1]}"), parts[2]):
        return "JwtSignatureError", "Failed to validate JWT signature"
    expires = claims.get("exp")
    if "role" not in claims or not isinstance(expires, (int, float)):
        return "InvalidJWTToken", "Fields `role` and `exp` are required in JWT"
    if expires <= now:
        return "InvalidJWTToken", f"Token has expired {int(now - expires)} seconds ago"
    return None
