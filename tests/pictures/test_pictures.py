"""The README's pictures: there, whole, told in words, and free of what is nobody's business."""

from __future__ import annotations

import getpass
import pathlib
import re
from xml.etree import ElementTree

import pyte
import pytest

from tests.pictures.drawing import draw, text_of
from tests.pictures.scenes import FOLDER, PICTURES, take

README = pathlib.Path(__file__).parents[2] / "README.md"
#: Bytes of a picture: it is in every clone.
LARGEST = 40_000
PRIVATE = (
    r"/(home|root|tmp|work|Users|private|var)/",
    r"\b(eyJ|sb_)[\w-]{6}",
    r"\bapikey\b",
    rf"\b{re.escape(getpass.getuser())}@",
)


def look_at(path: pathlib.Path, name: str) -> None:
    svg = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(svg.encode()) < LARGEST
    words = text_of(svg)
    for expected in (PICTURES[name].command, *PICTURES[name].words):
        assert expected in words, words
    assert max(map(len, words.splitlines())) <= 80
    for pattern in PRIVATE:
        assert not re.search(pattern, svg), pattern
    foreign = [url for url in re.findall(r"(?:https?:|//)[^\s\"'<]+", svg) if "www.w3.org/2000/svg" not in url]
    assert not [url for url in foreign if "127.0.0.1" not in url], "it fetches nothing"
    assert set(re.findall(r"url\((.)", svg)) <= {"#"}
    assert not re.search(r"<(script|image|foreignObject)|href|@font-face", svg)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_whole_and_shows_what_it_should_and_no_more(name: str) -> None:
    look_at(FOLDER / f"{name}.svg", name)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_can_be_made_anew(name: str, tmp_path: pathlib.Path) -> None:
    take(name, tmp_path)
    look_at(tmp_path / f"{name}.svg", name)


@pytest.mark.parametrize("name", PICTURES)
def test_the_readme_shows_a_picture_and_says_what_is_in_it(name: str) -> None:
    shown = dict(re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", README.read_text(encoding="utf-8")))
    assert shown.get(PICTURES[name].alt) == f"examples/pictures/{name}.svg"


def test_every_picture_can_be_made_anew() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(PICTURES)


def test_colours_and_wide_characters_of_a_screen_are_drawn_in_their_places() -> None:
    screen = pyte.Screen(40, 4)
    pyte.Stream(screen).feed("\x1b[1;31mred\x1b[0m and \x1b[94m<漢字>\x1b[0m |\r\nport 31999 \x1b[38;2;1;2;3mx\x1b[0m")
    svg = draw(screen, name="some", title="a & b")
    ElementTree.fromstring(svg)
    assert text_of(svg) == "red and <漢字> |\nport 54321 x"
    assert re.search(r"fill: #cc555a;font-weight: bold", svg)
    assert "#010203" in svg
