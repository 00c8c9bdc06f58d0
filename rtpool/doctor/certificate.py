"""
What a server's certificate says, also one that is not trusted: `ssl` decodes only those that are.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from datetime import datetime, timezone

import attrs

__all__ = ["Certificate", "read_certificate"]

#: Tags of X.690, and of RFC 5280 for the parts of a certificate that are optional.
SEQUENCE, UTC_TIME, VERSION, EXTENSIONS = 0x30, 0x17, 0xA0, 0xA3
COMMON_NAME, ORGANIZATION, ALTERNATIVE_NAMES = b"\x55\x04\x03", b"\x55\x04\x0a", b"\x55\x1d\x11"
#: Of a GeneralName: a DNS name, an IP address.
DNS_NAME, IP_ADDRESS = 0x82, 0x87


@attrs.frozen
class Certificate:
    """
    The parts of a certificate that people ask for.

    Attributes:
        subject, issuer: common name, or organization where there is none.
        names: DNS names and addresses it is for.
        not_before, not_after: aware.
        self_signed: whether it was issued by itself.
    """

    subject: str
    issuer: str
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    self_signed: bool


def read_certificate(der: bytes) -> Certificate:
    """
    Read a certificate in DER (RFC 5280 §4.1). Nothing is verified.

    Raises:
        ValueError: it is none.
    """
    try:
        return _read(der)
    except (IndexError, StopIteration, UnicodeDecodeError) as error:
        raise ValueError("these bytes are no certificate") from error


def _read(der: bytes) -> Certificate:
    _, whole = next(_parts(der))
    _, signed = next(_parts(whole))
    parts = list(_parts(signed))
    if parts[0][0] == VERSION:
        del parts[0]
    _, _, (_, issuer), (_, validity), (_, subject), *rest = parts
    begins, ends = (_time(tag, data) for tag, data in _parts(validity))
    return Certificate(_name(subject), _name(issuer), tuple(_names(rest)), begins, ends, subject == issuer)


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each value in turn."""
    at = 0
    while at < len(data):
        tag, size, at = data[at], data[at + 1], at + 2
        if size & 0x80:
            count = size & 0x7F
            size, at = int.from_bytes(data[at : at + count], "big"), at + count
        if at + size > len(data):
            raise ValueError("these bytes are no certificate: they break off")
        yield tag, data[at : at + size]
        at += size


def _time(tag: int, data: bytes) -> datetime:
    text = data.decode("ascii")
    if tag == UTC_TIME:  # RFC 5280 §4.1.2.5.1: its years are 1950 to 2049
        text = ("19" if text >= "5" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc)


def _name(data: bytes) -> str:
    found: dict[bytes, str] = {}
    for _, group in _parts(data):
        for _, pair in _parts(group):
            (_, kind), (_, value) = _parts(pair)
            found.setdefault(kind, value.decode("utf-8", "replace"))
    return found.get(COMMON_NAME) or found.get(ORGANIZATION) or ""


def _names(rest: list[tuple[int, bytes]]) -> Iterator[str]:
    for tag, data in rest:
        if tag != EXTENSIONS:
            continue
        for _, extension in _parts(next(_parts(data))[1]):
            (_, kind), *_, (_, value) = _parts(extension)
            if kind != ALTERNATIVE_NAMES:
                continue
            for name_tag, name in _parts(next(_parts(value))[1]):
                if name_tag == DNS_NAME:
                    yield name.decode("ascii")
                elif name_tag == IP_ADDRESS:
                    yield str(ipaddress.ip_address(name))
