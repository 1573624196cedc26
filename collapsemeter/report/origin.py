"""The first lines of a result: which data and which network it is of."""

import math
from pathlib import PurePath
from typing import Any

from ..system.escaping import printable
from ..system.suggest import listed
from .report import CollapseReport

COUNTED = ("rows", "classes")  # a layer of its own says these, too
AUDIT = "saved activations"  # the framework of an audit's report


def origin(report: CollapseReport) -> list[str]:
    """Return which rows, classes, shards and files a report is of, and what a head would add."""
    words = _counted(report)
    lines = [words] if words else []
    about = report.provenance
    if about.get("framework") == AUDIT and about.get("head_layer") is None and len(report):
        undecided = math.isnan(report.final.get("nc4_agreement", math.nan))
        lines.append(
            f"no head: {'NC3 and NC4 are' if undecided else 'NC3 is'} not measured; pass "
            "--head FILE, with weight (C, d) and bias (C,), to collapsemeter audit"
        )
    return lines


def _counted(report: CollapseReport) -> str:
    final = report.final.provenance if len(report) else {}
    about: dict[str, Any] = {key: final[key] for key in COUNTED if key in final} | report.provenance
    rows, classes, shards = (about.get(name) for name in (*COUNTED, "shards"))
    if not isinstance(rows, int):
        return ""
    words = _many(rows, "row")
    if isinstance(classes, int):
        words += f" of {_many(classes, 'class')}"
    if isinstance(shards, int):
        words += f" in {_many(shards, 'shard')}"
    files = about.get("files")
    if isinstance(files, list) and files:
        paths = [str(file.get("path")) for file in files if isinstance(file, dict)]
        names = listed((printable(PurePath(path).name) for path in paths), 3)
        words += f", from {_many(len(files), 'file')}: {names}"
    return words


def _many(count: int, what: str) -> str:
    plural = "es" if what.endswith("s") else "s"
    return f"{count:,} {what}{'' if count == 1 else plural}"
