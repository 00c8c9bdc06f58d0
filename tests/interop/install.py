"""
Installs the official clients that the tests of this folder drive, beside them and where git ignores it:

    python -m tests.interop.install

Needs node with npm for the JavaScript client and Python 3.11 for the Python client; nothing of rtpool.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys

__all__ = ["COMMANDS", "missing"]

JS = pathlib.Path(__file__).parent / "js"
PY = pathlib.Path(__file__).parent / "py"
PYTHON = PY / ".venv" / "bin" / "python"
REQUIREMENTS = PY / "requirements.txt"

#: What runs each official client. The Python client takes nothing from the tests' own environment.
COMMANDS = {"js": ["node", str(JS / "client.js")], "py": [str(PYTHON), "-I", str(PY / "client.py")]}


def missing(name: str) -> str | None:
    """What has to be done to have a client in the version that is asked for; None when it is there."""
    if sys.platform == "win32":
        return "the official clients are driven through POSIX pipes"
    if name == "js" and shutil.which("node") is None:
        return "Supabase's JavaScript client needs node and npm; with them run: python -m tests.interop.install"
    language = {"js": "JavaScript", "py": "Python"}[name]
    there = _has_js() if name == "js" else _has_py()
    asked = "is not installed in the version asked for, and a clone brings none"
    return None if there else f"Supabase's {language} client {asked}; run: python -m tests.interop.install"


def _has_js() -> bool:
    wanted = json.loads((JS / "package.json").read_text())["dependencies"]
    packages = {package: JS / "node_modules" / package / "package.json" for package in wanted}
    return all(
        path.is_file() and json.loads(path.read_text())["version"] == wanted[package]
        for package, path in packages.items()
    )


def _has_py() -> bool:
    name, _, version = REQUIREMENTS.read_text().splitlines()[-1].partition("==")
    return any(PY.glob(f".venv/lib/python*/site-packages/{name}-{version}.dist-info"))


def install_js() -> None:
    """Install the JavaScript client with npm."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("the JavaScript client needs node and npm")
    subprocess.run([npm, "ci", "--loglevel=error"], cwd=JS, check=True)


def install_py() -> None:
    """Install the Python client in a venv of its own."""
    subprocess.run([sys.executable, "-m", "venv", str(PY / ".venv")], check=True)
    subprocess.run([str(PYTHON), "-m", "pip", "install", "-q", "-r", str(REQUIREMENTS)], check=True)


if __name__ == "__main__":
    install_js()
    install_py()
