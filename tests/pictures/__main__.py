"""`python -m tests.pictures [NAME]…` makes the README's pictures anew."""

from __future__ import annotations

import sys

from tests.pictures.scenes import FOLDER, PICTURES, take

names = sys.argv[1:] or list(PICTURES)
unknown = [name for name in names if name not in PICTURES]
if unknown:
    raise SystemExit(f"no picture {', '.join(unknown)}; there are {', '.join(PICTURES)}")
for name in names:
    take(name, FOLDER)
    print(f"{FOLDER.name}/{name}.svg")
