"""
A pool's statistics as metrics, for Prometheus and for OpenTelemetry.

What each exporter needs is imported when its name is first asked for, so neither needs the other's extra.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rtpool.metrics.otel import instrument
    from rtpool.metrics.prometheus import PrometheusCollector

__all__ = ["PrometheusCollector", "instrument"]


def __getattr__(name: str) -> Any:
    if name == "PrometheusCollector":
        try:
            from rtpool.metrics.prometheus import PrometheusCollector
        except ImportError as error:
            raise _advised(error, name, "prometheus_client", "prometheus") from error
        return PrometheusCollector
    if name == "instrument":
        try:
            from rtpool.metrics.otel import instrument
        except ImportError as error:
            raise _advised(error, name, "opentelemetry", "otel") from error
        return instrument
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _advised(error: ImportError, name: str, package: str, extra: str) -> ImportError:
    if (error.name or "").partition(".")[0] != package:
        return error
    return ImportError(f"rtpool.metrics.{name} needs {package}: pip install 'rtpool[{extra}]'", name=error.name)
