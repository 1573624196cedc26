"""Reports to make pages of, and a page read back as a tree."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import numpy as np

import collapsemeter as cm
from collapsemeter import CollapseReport, LayerReport

HOSTILE = (
    '<script>document.title = "owned"</script>',
    "a\"b'c & <img src=x onerror=\"document.title='owned'\">",
    "two\nlines \N{GRINNING FACE} \u202e",
    "</script><!-- --!> ${7*7} {{7*7}} {% raw %}",
    "\ud800" + "x" * 180,
)


def layer(
    classes: int, width: int, noise: float, seed: int = 0, head: bool = False, rows: int = 6
) -> LayerReport:
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((classes, width))
    labels = np.repeat(np.arange(classes), rows)
    features = means[labels] + noise * rng.standard_normal((len(labels), width))
    features = features.astype(np.float32)
    moments = cm.ClassMoments.from_batch(features, labels, classes)
    weights = cm.Head(means + 0.1 * rng.standard_normal(means.shape)) if head else None
    decisions = cm.decide(moments, features, labels, head=weights)
    return cm.measure(moments, head=weights, decisions=decisions)


def report(
    names: tuple[str, ...] = ("conv1", "conv2", "fc"),
    classes: int = 5,
    width: int = 8,
    noise: float = 0.5,
    head: bool = True,
    **more: Any,
) -> CollapseReport:
    layers = {
        name: layer(classes, width, noise * 0.5**i, i, head and name == names[-1])
        for i, name in enumerate(names)
    }
    return CollapseReport(layers, phase="frozen-train", **more)


def history(epochs: int = 4, **options: Any) -> list[tuple[int, CollapseReport]]:
    return [(5 * epoch, report(noise=0.6**epoch, **options)) for epoch in range(epochs)]


VOID = {
    "wbr",
    "meta",
    "line",
    "circle",
    "path",
    "use",
    "image",
    "rect",
    "br",
    "link",
    "input",
    "img",
}


class Page(HTMLParser):
    """The elements of a page: tag and attributes in order, text by the element that holds it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.comments: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open, f"</{tag}> closes nothing"
            assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for actual, attributes in self.elements if actual == tag]

    def within(self, tag: str) -> list[str]:
        return [text.strip() for actual, text in self.texts if actual == tag and text.strip()]

    @property
    def text(self) -> str:
        shown = [t for tag, t in self.texts if tag not in ("script", "style")]
        return " ".join(" ".join(shown).split())
