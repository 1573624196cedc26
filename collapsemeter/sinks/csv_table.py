"""CSV: one row per step and layer, one column per metric."""

import csv
import io
import math
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from ..metrics.catalogue import METRICS
from ..metrics.layer import LayerReport
from ..metrics.uncertainty import NAMES
from ..report.report import CollapseReport
from ..report.trust_words import PARTS, trust
from ..system.escaping import printable
from ..system.warning import warn
from .base import AppendedFile, GuardedSink, checked_run, run_in_file

_KEYS = ("run", "step", "phase", "layer")
_SHARES = tuple(name for name, metric in METRICS.items() if metric.unit == "share of rows")
_PARTS = (
    *((name, part) for name in NAMES for part in PARTS),
    *((name, part) for name in _SHARES for part in PARTS if part != "estimate"),
)
_COLUMNS = (*_KEYS, *METRICS, *(f"{name}.{part}" for name, part in _PARTS), "flags")
_HEADERS = (",".join(_KEYS), "step,phase,layer")  # how tables of this and earlier versions begin


class CsvSink(GuardedSink):
    """Append one row per layer and report; the columns are every metric there is, from the first on.

    Those that may have an interval have columns such as ``nc1_trace_ratio.low``, ``.high`` and ``.estimate``, too.

    A table of this form needs no reshaping in pandas: ``df[df.layer == "fc"].plot("step", "nc1_pinv")``,
    or ``df.pivot(index="step", columns="layer", values="nc1_pinv")`` where it holds one run. Cells are
    float64, written so that they read back equal; an undefined or absent value is an empty cell (its
    reason is in the JSON lines). Names that a spreadsheet would take for a formula get an apostrophe.

    Parameters
    ----------
    path : str or path
        Made with its folder; a file with the same columns is continued. Where it is a table of another
        version, with other columns, a numbered one beside it is begun, with a warning.
    run : str, optional
        Name of the run, in every row; see `Fan`.
    prefix : str
        Put behind the name of the run, see `Fan`.

    Raises
    ------
    ValueError
        If the file exists and is another table.
    OSError
        If the file cannot be opened for appending.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "run.csv"
    >>> sink = CsvSink(path, run="night-3")
    >>> sink.write(1, CollapseReport({"fc": LayerReport({"nc1_pinv": 0.25})}))
    >>> row = next(csv.DictReader(path.read_text().splitlines()))
    >>> row["run"], row["layer"], row["nc1_pinv"], row["nc3_cosine"]
    ('night-3', 'fc', '0.25', '')
    """

    def __init__(
        self, path: str | os.PathLike[str], *, run: str | None = None, prefix: str = ""
    ) -> None:
        self.run, self.prefix = checked_run(run), prefix
        self.name = f"CsvSink({os.fspath(path)})"
        self._file = AppendedFile(path)
        first, count = Path(path), 1
        while self._has_other_columns():
            count += 1
            self._file = AppendedFile(first.with_name(f"{first.stem}-{count}{first.suffix}"))
        if count > 1:
            self.name = f"CsvSink({self._file.path})"
            warn(
                f"{os.fspath(path)} has the columns of another version: the rows go to "
                f"{self._file.path.name} beside it",
                stacklevel=3,
            )

    def _has_other_columns(self) -> bool:
        """Whether another version wrote the table; ValueError where nobody here did."""
        if self._file.empty():
            return False
        with self._file.path.open(encoding="utf-8", errors="replace", newline="") as file:
            line = file.readline(1 << 16)
        header = line.rstrip("\r\n")
        cut = header == line  # the only line, and it may go on anyhow
        header = header.removeprefix("\ufeff")  # a spreadsheet's
        if not any(header.startswith(start) or start.startswith(header) for start in _HEADERS):
            raise ValueError(
                f"{self._file.path} has other columns than this version writes ({header[:120]!r}...): "
                "move it away or pass another path, so that two tables are not mixed in one file"
            )
        return not cut and header != ",".join(_COLUMNS)

    def _write(self, step: int, report: CollapseReport, prefix: str = "") -> None:
        keys = run_in_file(self.run, prefix), str(step), report.phase
        rows = [_row(*keys, name, layer) for name, layer in report.items()]
        with self._file.alone():  # a row that another process is writing is none that was cut
            self._mend()
            if self._has_other_columns():
                raise ValueError(f"{self._file.path} has got other columns meanwhile")
            # The header goes out with the first rows: a run that fails before them leaves an empty file.
            self._file.append(_lines([_COLUMNS, *rows] if self._file.empty() else rows))
        unknown = sorted({metric for layer in report.values() for metric in layer} - METRICS.keys())
        if unknown:
            raise ValueError(
                f"the table has no column for {', '.join(unknown)}; the rest is written"
            )

    def _mend(self) -> None:
        """Finish what a crash cut: a header is written anew, a row keeps its whole cells."""
        cut = self._file.unfinished()
        if not cut:
            return
        header_alone = len(cut) == self._file.path.stat().st_size
        cells = _cells(cut.decode("utf-8", "replace"))
        if len(cells) < len(_COLUMNS):
            cells.pop()  # it may be half a number
        self._file.take_back(len(cut))
        if not header_alone and len(cells) > len(_KEYS):
            self._file.append(_lines([cells + [""] * (len(_COLUMNS) - len(cells))]))


def _row(run: str, step: str, phase: str, name: str, layer: LayerReport) -> list[str]:
    values = [layer.get(metric, math.nan) for metric in METRICS]
    values += [getattr(trust(layer, metric), part) for metric, part in _PARTS]
    cells = [repr(float(value)) if math.isfinite(value) else "" for value in values]
    return [_text(run), step, _text(phase), _text(name), *cells, _text(" ".join(layer.flags))]


def _cells(line: str) -> list[str]:
    try:
        return next(csv.reader([line]))
    except csv.Error:  # no row at all, but a block that a crash left
        return [""]


def _text(name: str) -> str:
    """Return a name as a cell of one line, and no formula: =, +, - and @ begin one, in full width too."""
    formula = unicodedata.normalize("NFKC", name[:1]) in ("=", "+", "-", "@")
    return ("'" if formula else "") + printable(name)


def _lines(rows: Iterable[Iterable[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
