"""SVG that matplotlib wrote, made part of a page: no clashing ids, no styles for the whole page."""

from __future__ import annotations

import re
from typing import NamedTuple

from markupsafe import Markup, escape

from ..system.escaping import printable

_REMOVED = re.compile(
    r"<!--.*?-->|<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", re.DOTALL
)
_OPENING = re.compile(r'<svg [^>]*?viewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*>')


class Picture(NamedTuple):
    """A figure of the page: its SVG, what it shows in one sentence, and a title."""

    title: str
    svg: Markup
    caption: str


def inline(svg: str, prefix: str, label: str) -> Markup:
    """Return an SVG file as an element of a page.

    Comments, metadata and the style sheet go (a style inside an SVG holds for the whole page), ids get
    the prefix, and the size in points becomes one in pixels that the page may shrink.

    Parameters
    ----------
    svg : str
        As `figure.svg` returns it.
    prefix : str
        Of the ids; one of its own for every figure of a page.
    label : str
        The alternative text.

    Returns
    -------
    Markup

    Examples
    --------
    >>> text = '<?xml?><svg width="9pt" viewBox="0 0 9 6"><!-- a --><g id="b"/><use xlink:href="#b"/></svg>'
    >>> print(inline(text, "p", "a < b"))
    <svg class="plot" width="12" height="8" viewBox="0 0 9 6" role="img" aria-label="a &lt; b"><g id="p-b"/><use href="#p-b"/></svg>
    """
    body = _REMOVED.sub("", svg[svg.index("<svg") :]).strip()
    body = body.replace(' id="', f' id="{prefix}-').replace("url(#", f"url(#{prefix}-")
    body = body.replace('xlink:href="#', f'href="#{prefix}-').replace("xlink:href=", "href=")
    body = re.sub(r">\s+<", "><", body)

    def opening(found: re.Match[str]) -> str:
        width, height = (float(size) * 4 / 3 for size in found.groups())
        return (
            f'<svg class="plot" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {found[1]} {found[2]}" role="img" aria-label="{escape(printable(label))}">'
        )

    return Markup(_OPENING.sub(opening, body, count=1))
