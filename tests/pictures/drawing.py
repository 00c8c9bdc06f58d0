"""A terminal's screen as SVG."""

from __future__ import annotations

import html
import io
import itertools
import re

import pyte
from pyte.screens import Char
from rich.cells import cell_len
from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.style import Style
from rich.text import Text

__all__ = ["draw", "text_of"]

#: Units that rich gives a column.
COLUMN = 12.2
#: What differs from run to run and means nothing, and what stands for it; as long as what it stands for.
MASKS = ((re.compile(r"(?<=127\.0\.0\.1:)\d{5}"), "54321"), (re.compile(r"(?<=port )\d{5}"), "54321"))
#: Pictures fetch nothing: a browser shows no fonts of elsewhere in them, and a page that is read offline has none.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\n|<!--.*?-->\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
    "Fira Code, monospace", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace"
)


def draw(screen: pyte.Screen, *, name: str, title: str) -> str:
    """
    What a screen shows, without the empty lines at its end.

    Args:
        name: makes the ids within the picture, so that several go on one page.
        title: above it.
    """
    console = Console(record=True, width=screen.columns, file=io.StringIO(), force_terminal=True, highlight=False)
    lines = [_line(screen, row) for row in range(screen.lines)]
    while len(lines) > 1 and not lines[-1].plain.strip():
        lines.pop()
    for line in lines:
        console.print(line, no_wrap=True, overflow="ignore", crop=False)
    svg = console.export_svg(title=title, code_format=FORMAT, unique_id=name)
    return "\n".join(line.rstrip() for line in svg.splitlines() if line.strip()) + "\n"


def text_of(svg: str) -> str:
    """The words in a picture, each where it is on the screen."""
    lines: dict[float, str] = {}
    for found in re.finditer(r'<text [^>]*x="([\d.]+)" y="([\d.]+)" textLength[^>]*>([^<]*)</text>', svg):
        x, y, words = float(found[1]), float(found[2]), html.unescape(found[3]).replace("\xa0", " ")
        if words.strip():
            line = lines.get(y, "")
            lines[y] = line + " " * (round(x / COLUMN) - cell_len(line)) + words
    return "\n".join(lines.values())


def _line(screen: pyte.Screen, row: int) -> Text:
    cells = [screen.buffer[row][column] for column in range(screen.columns)]
    plain = "".join(cell.data for cell in cells)  # the second cell of a wide character is empty
    for pattern, stand_in in MASKS:
        plain = pattern.sub(stand_in, plain)
    line = Text()
    for style, group in itertools.groupby(cells, _style):
        length = sum(len(cell.data) for cell in group)
        line.append(plain[len(line) : len(line) + length], style)
    line.rstrip()
    return line


def _style(cell: Char) -> Style:
    return Style(
        color=_colour(cell.fg),
        bgcolor=_colour(cell.bg),
        bold=cell.bold or None,
        italic=cell.italics or None,
        underline=cell.underscore or None,
        reverse=cell.reverse or None,
    )


def _colour(name: str) -> str | None:
    """A colour of pyte's in rich's words: brown is what terminals show as yellow."""
    if name == "default":
        return None
    if re.fullmatch("[0-9a-f]{6}", name):
        return f"#{name}"
    return re.sub("^br?f?ight", "bright_", name.replace("brown", "yellow"))
