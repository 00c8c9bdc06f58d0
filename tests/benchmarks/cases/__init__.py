"""The cases, one module each with a `CASE`; a new module is found by itself."""

from __future__ import annotations

import importlib
import pkgutil

from tests.benchmarks.model import Case

__all__ = ["all_cases"]


def all_cases() -> dict[str, Case]:
    """Every case, by its name."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    cases: list[Case] = [module.CASE for module in modules]
    return {case.name: case for case in cases}
