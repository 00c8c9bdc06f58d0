"""
Figures as people read them: on a terminal, on a page.
"""

from __future__ import annotations

__all__ = ["age", "latency", "milliseconds", "rate", "size", "whole"]


def whole(value: int) -> str:
    """A count."""
    return f"{value:,}" if value < 10_000_000 else f"{value / 1e6:,.1f}M"


def rate(value: float | None) -> str:
    """So many a second; a dash where nothing is known."""
    return "-" if value is None else f"{value:.1f}" if value < 9.95 else whole(round(value))


def size(value: float | None) -> str:
    """Bytes, in the unit that fits; a dash where nothing is known."""
    if value is None:
        return "-"
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"
        value /= 1_000
    return f"{value:.1f} GB"


def milliseconds(value: float | None) -> str:
    """Seconds in milliseconds, without the unit; a dash where nothing is known."""
    if value is None:
        return "-"
    digits = 3 if value < 0.0001 else 2 if value < 0.009995 else 0
    return f"{value * 1_000:,.{digits}f}"


def latency(value: float | None) -> str:
    """Seconds in milliseconds or seconds; a dash where nothing is known."""
    if value is None:
        return "-"
    return f"{value * 1_000:.1f} ms" if value < 0.9995 else f"{value:.1f} s"


def age(seconds: float) -> str:
    """Seconds as hours, minutes and seconds, after a day as days, hours and minutes."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}d {hour:02}:{minute:02}" if days else f"{hour}:{minute:02}:{second:02}"
