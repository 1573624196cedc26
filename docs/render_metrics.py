"""Write what docs/metrics.md says of every metric from the catalogue: python docs/render_metrics.py."""

from __future__ import annotations

import math
import re
from pathlib import Path

from collapsemeter.metrics.catalogue import METRICS, NOTATION, PAPERS, Metric
from collapsemeter.metrics.convention import SWITCHES

PAGE = Path(__file__).with_name("metrics.md")
_SYMBOLS = {
    math.inf: "∞",
    -math.inf: "−∞",
    math.sqrt(2.0): "√2",
    -math.log(2.0): "−log 2",
    -1.0: "−1",
}


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _number(value: float) -> str:
    return _SYMBOLS.get(value, f"{value:g}")


def _source(metric: Metric) -> str:
    figure = f", {metric.figure}" if metric.figure else ""
    return f"[{metric.source}]({PAPERS[metric.source]}){figure}"


def _metrics(family: str) -> str:
    head = ("name", "formula", "unit", "range", "at collapse", "needs", "source")
    rows = [
        _row(
            f"`{name}`",
            metric.formula,
            metric.unit,
            f"{_number(metric.range[0])} to {_number(metric.range[1])}",
            "" if metric.at_collapse is None else _number(metric.at_collapse),
            ", ".join(metric.needs),
            _source(metric),
        )
        for name, metric in METRICS.items()
        if metric.property == family
    ]
    return "\n".join([_row(*head), "|---" * len(head) + "|", *rows])


def _switches() -> str:
    rows = [_row(f"`{name}`", meaning, papers) for name, meaning, papers in SWITCHES]
    return "\n".join([_row("switch", "what it chooses", "who"), "|---|---|---|", *rows])


def rendered(page: str) -> str:
    """Return the page with everything between its markers made from the catalogue."""

    def block(match: re.Match[str]) -> str:
        name = match[1]
        made = {"notation": lambda: f"Notation: {NOTATION}", "switches": _switches}
        body = made[name]() if name in made else _metrics(name)
        return f"<!-- {name} -->\n{body}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", block, page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text()))
