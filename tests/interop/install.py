"""
Installs the official clients that the tests of this folder drive, beside them and where git ignores it:

    python -m tests.interop.install

Needs node with npm for the JavaScript client and Python 3.11 for the Python client; nothing of rtpool.
"""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys

__all__ = ["COMMAND", "JS", "NODE_PACKAGE", "PY", "PYTHON"]

HERE = pathlib.Path(__file__).parent
JS, PY = HERE / "js", HERE / "py"
NODE_PACKAGE = JS / "node_modules" / "@supabase" / "realtime-js"
PYTHON = PY / ".venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
COMMAND = "python -m tests.interop.install"


def install_js() -> None:
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("the JavaScript client needs node and npm")
    subprocess.run([npm, "ci", "--loglevel=error"], cwd=JS, check=True)


def install_py() -> None:
    if sys.version_info < (3, 11):
        sys.exit("the Python client needs Python 3.11")
    subprocess.run([sys.executable, "-m", "venv", str(PY / ".venv")], check=True)
    subprocess.run([str(PYTHON), "-m", "pip", "install", "-q", "-r", str(PY / "requirements.txt")], check=True)


if __name__ == "__main__":
    install_js()
    install_py()
