"""What a page must be for everybody: readable, within the screen, and said in words where it is not to be seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

#: WCAG 2, level AA: of small text, and of text from 24 pixels or bold from 18.66.
ENOUGH, ENOUGH_LARGE = 4.5, 3.0

#: Each text that can be seen, with the contrast to what is behind it. Opaque colours only, but for what has none.
CONTRASTS = """
    () => {
        const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
        const rgba = (colour) => {
            canvas.clearRect(0, 0, 1, 1);
            canvas.fillStyle = colour;
            canvas.fillRect(0, 0, 1, 1);
            return [...canvas.getImageData(0, 0, 1, 1).data];
        };
        const luminance = (colour) => {
            const [r, g, b] = rgba(colour).map((value) => {
                const part = value / 255;
                return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const behind = (element) => {
            for (let each = element; each; each = each.parentElement) {
                const colour = getComputedStyle(each).backgroundColor;
                if (rgba(colour)[3] === 255) return colour;
            }
            return "Canvas";
        };
        const found = [];
        const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        while (texts.nextNode()) {
            const text = texts.currentNode.textContent.trim();
            const element = texts.currentNode.parentElement;
            const box = element.getBoundingClientRect();
            if (!text || box.width <= 1 || box.height <= 1 || !element.checkVisibility()) continue;
            const style = getComputedStyle(element);
            const [one, other] = [style.color, behind(element)].map(luminance);
            const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
            const size = parseFloat(style.fontSize);
            found.push({ text, contrast, large: size >= 24 || (size >= 18.66 && style.fontWeight >= 700) });
        }
        return found;
    }
"""

#: What can be used but has no name for who does not see it, or is too small for a finger.
UNUSABLE = """
    () => [...document.querySelectorAll("a[href], button, input, select, textarea, summary")]
        .filter((each) => each.checkVisibility() && each.type !== "hidden")
        .filter((each) => {
            const words = [each.ariaLabel, each.textContent, ...[...(each.labels || [])].map((one) => one.textContent)];
            const named = (each.matches("input, select, textarea") ? [words[0], ...words.slice(2)] : words)
                .some((one) => one && one.trim());
            const box = each.getBoundingClientRect();
            return !named || box.height < 24 || box.width < 24;
        })
        .map((each) => each.outerHTML)
"""


def assert_for_everybody(page: Page) -> None:
    """
    Fail where a text cannot be read well, a control has no name, or the page is wider than the screen: at 390 and 1,280
    pixels, light and dark.
    """
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            _assert_for_everybody(page)


def _assert_for_everybody(page: Page) -> None:
    texts = page.evaluate(CONTRASTS)
    assert texts, "the page is empty"
    weak = [each for each in texts if each["contrast"] < (ENOUGH_LARGE if each["large"] else ENOUGH)]
    assert not weak, f"hard to read: {weak}"
    unusable = page.evaluate(UNUSABLE)
    assert not unusable, f"without a name, or too small: {unusable}"
    assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0, "wider than the screen"
    assert page.locator("h1").count() == 1, "it has one heading above all"
    assert page.evaluate("() => document.documentElement.lang && document.title"), "it says neither language nor title"
