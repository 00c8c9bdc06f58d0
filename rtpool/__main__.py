"""
The `rtpool` command, also as `python -m rtpool`.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; says what to install when the extra is missing."""
    try:
        from rtpool.cli import cli
    except ImportError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.stderr.write(f"The rtpool command needs {error.name}: pip install 'rtpool[cli]'\n")
        raise SystemExit(1) from None
    except KeyboardInterrupt:  # while still importing; the commands see to themselves
        raise SystemExit(1) from None
    cli()


if __name__ == "__main__":
    main()
