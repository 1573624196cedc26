"""CSV: one row per step and layer, one column per metric."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable

from ..catalogue import METRICS
from ..report import CollapseReport, LayerReport
from .append import AppendedFile
from .guard import GuardedSink

_COLUMNS = ("step", "phase", "layer", *METRICS, "flags")


class CsvSink(GuardedSink):
    """Append one row per layer and report; the columns are every metric there is, from the first on.

    A table of this form needs no reshaping in pandas: ``df[df.layer == "fc"].plot("step", "nc1_pinv")``,
    or ``df.pivot(index="step", columns="layer", values="nc1_pinv")``. Cells are float64, written so that
    they read back equal; an undefined or absent value is an empty cell (its reason is in the JSON lines).

    Parameters
    ----------
    path : str or path
        Made with its folder; a file with the same columns is continued.

    Raises
    ------
    ValueError
        If the file exists and has other columns.
    OSError
        If the file cannot be opened for appending.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "run.csv"
    >>> sink = CsvSink(path)
    >>> sink.write(1, CollapseReport({"fc": LayerReport({"nc1_pinv": 0.25})}))
    >>> row = next(csv.DictReader(path.read_text().splitlines()))
    >>> row["layer"], row["nc1_pinv"], row["nc3_cosine"]
    ('fc', '0.25', '')
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = f"CsvSink({os.fspath(path)})"
        self._file = AppendedFile(path)
        self._check_columns()

    def _check_columns(self) -> None:
        if self._file.empty():
            return
        with self._file.path.open(encoding="utf-8", errors="replace", newline="") as file:
            header = file.readline().rstrip("\r\n")
        if header != ",".join(_COLUMNS):
            raise ValueError(
                f"{self._file.path} has other columns than this version writes ({header[:120]!r}...): "
                "move it away or pass another path, so that two tables are not mixed in one file"
            )

    def _write(self, step: int, report: CollapseReport) -> None:
        rows = [_row(step, report.phase, name, layer) for name, layer in report.items()]
        # The header goes out with the first rows: a run that fails before them leaves an empty file.
        self._file.append(_lines([_COLUMNS, *rows] if self._file.empty() else rows))
        unknown = sorted({metric for layer in report.values() for metric in layer} - METRICS.keys())
        if unknown:
            raise ValueError(
                f"the table has no column for {', '.join(unknown)}; the rest is written"
            )


def _row(step: int, phase: str, name: str, layer: LayerReport) -> list[str]:
    return [
        str(step),
        phase,
        name,
        *(_cell(layer.get(metric, math.nan)) for metric in METRICS),
        " ".join(layer.flags),
    ]


def _cell(value: float) -> str:
    return repr(float(value)) if math.isfinite(value) else ""


def _lines(rows: Iterable[Iterable[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
