"""A figure as an image that is part of the page."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ..report.drawing import svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REFERENCE = "#555555"
EARLIER = "#2171B5"


class Picture(NamedTuple):
    """A figure of the page: a title, what it shows in one sentence, and the address of the image."""

    title: str
    caption: str
    source: str


def picture(title: str, caption: str, draw: Callable[[], Figure]) -> Picture:
    """Draw a figure into the address of an image that needs no other file."""
    data = base64.b64encode(svg(draw)).decode()
    return Picture(title, caption, f"data:image/svg+xml;base64,{data}")


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of that size in inches, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()
