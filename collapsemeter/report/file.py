"""Reports read back from JSON, from a file or a history; what is wrong with one, in one sentence."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from ..metrics.catalogue import METRICS
from ..metrics.convention import Convention
from ..metrics.layer import LayerReport
from ..stats.undefined import REASONS
from .history import Entry, History, name_runs, run_of
from .report import FORMAT, VERSION, CollapseReport

_WRITE = "pass a file that report.to_json() or `collapsemeter audit --json` wrote"
DEEPEST = 32
_GAPS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # as a history tells them apart


def load_report(path: str | os.PathLike[str]) -> CollapseReport:
    """Read the report in a file that holds what `CollapseReport.to_json` returned.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    CollapseReport

    Raises
    ------
    ValueError
        If the file is not JSON or not a report, is damaged, or was written by a newer version.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "report.json"
    >>> _ = path.write_text(CollapseReport({"fc": LayerReport({"nc1_pinv": 0.25})}).to_json())
    >>> load_report(path)["fc"]["nc1_pinv"]
    0.25
    """
    source = os.fspath(path)
    record = _parse(_decoded(Path(path).read_bytes(), source), source)
    try:
        return report_from_dict(record)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def report_from_dict(record: Any) -> CollapseReport:
    """Return the report that `CollapseReport.to_dict` wrote.

    Parameters
    ----------
    record : dict
        As read from JSON.

    Returns
    -------
    CollapseReport
        Null as NaN, lists as arrays: int64 where every entry is a whole number, else float64.

    Raises
    ------
    ValueError
        If it is not a report, is damaged, or was written by a newer version; in one sentence.

    Examples
    --------
    >>> report_from_dict({"format": "collapsemeter.Comparison"})
    Traceback (most recent call last):
    ValueError: not a collapsemeter report: format is 'collapsemeter.Comparison', expected 'collapsemeter.CollapseReport'; pass a file that report.to_json() or `collapsemeter audit --json` wrote
    """
    _check_format(record)
    return CollapseReport(
        layers={
            name: _layer(layer, f"layers[{name!r}]")
            for name, layer in _mapping(record, "layers").items()
        },
        phase=_string(record.get("phase"), "phase"),
        skipped=_strings_by_name(record, "skipped"),
        warnings=_strings(record, "warnings"),
        provenance=_provenance(record),
    )


def read_history(path: str | os.PathLike[str]) -> History:
    """Read the reports of one or several runs from the JSON lines that `JsonlSink` wrote.

    A line that does not read, such as one that a full disk cut, is left out and counted in the notes.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    History
        Step and report, run after run, the one that wrote last at the end. They hold metrics, reasons,
        flags and the numbers of classes and features only. In a file that names no runs, a step that
        goes back starts another.

    Raises
    ------
    ValueError
        If no line is a report, in one sentence on the first of them.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> from collapsemeter.sinks import JsonlSink
    >>> path = Path(tempfile.mkdtemp()) / "run.jsonl"
    >>> JsonlSink(path).write(3, CollapseReport({"fc": LayerReport({"nc1_pinv": 0.25})}))
    >>> [(step, report["fc"]["nc1_pinv"]) for step, report in read_history(path)]
    [(3, 0.25)]
    """
    source = os.fspath(path)
    entries, wrong = [], []
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), start=1):
        if line.strip():
            try:
                entries.append(_entry(line, f"{source}, line {number}"))
            except ValueError as error:
                wrong.append(str(error))
    if not entries:
        empty = f"{source} holds no report: pass a history that JsonlSink wrote"
        raise ValueError(wrong[0] if wrong else empty)
    named = name_runs(entries)
    several = len({run_of(report) for _, report in named}) > 1
    return History(named if several else entries, _left_out(wrong, len(entries)))


def _left_out(wrong: list[str], read: int) -> list[str]:
    if not wrong:
        return []
    lines = len(wrong) + read
    were = f"line{'' if lines == 1 else 's'} {'was' if len(wrong) == 1 else 'were'}"
    return [f"{len(wrong)} of {lines} {were} left out: {wrong[0]}"]


def _entry(line: bytes, source: str) -> Entry:
    record = _parse(_decoded(line, source), source)
    try:
        return _step_and_report(record)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _step_and_report(record: Any) -> Entry:
    if not isinstance(record, dict) or not {"step", "phase", "layers"} <= record.keys():
        raise ValueError(
            "not a line of a history: it has no step, phase and layers; pass a file that JsonlSink wrote"
        )
    step = _integer(record["step"], "step")
    layers = _mapping(record, "layers")
    run = {"run": _string(record["run"], "run")} if "run" in record else {}
    report = CollapseReport(
        {name: _layer(layer, f"layers[{name!r}]") for name, layer in layers.items()},
        phase=_string(record["phase"], "phase"),
        warnings=_strings(record, "warnings"),
        provenance=run,
    )
    return step, report


def _decoded(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not JSON, but binary: {_WRITE}") from error


def _parse(text: str, source: str) -> Any:
    def refuse(literal: str) -> NoReturn:
        raise ValueError(f"{literal} is not JSON, an undefined value is null")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError(f"{source} is nested too deeply to be a report: {_WRITE}") from None
    except ValueError as error:
        raise ValueError(f"{source} is not JSON ({error}): {_WRITE}") from None


def _check_format(record: Any) -> None:
    if not isinstance(record, dict):
        raise ValueError(
            f"not a collapsemeter report but {_kind(record)}, expected an object; {_WRITE}"
        )
    if record.get("format") != FORMAT:
        raise ValueError(
            f"not a collapsemeter report: format is {_shown(record.get('format'))}, "
            f"expected {FORMAT!r}; {_WRITE}"
        )
    version = _integer(record.get("version"), "version")
    if version > VERSION:
        written = f" {_shown(record['collapsemeter'])}" if "collapsemeter" in record else ""
        raise ValueError(
            f"the report has version {version}, of a newer collapsemeter{written}; this one reads up "
            f"to {VERSION}: install a newer collapsemeter"
        )


def _provenance(record: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Return the provenance, any plain values, as long as recursion over them is safe."""
    found = _mapping(record, "provenance", {}, where)
    inside: list[Any] = [found]
    for _ in range(DEEPEST):
        inside = [item for value in inside for item in _items(value)]
    if inside:
        at = f"{where}.provenance".lstrip(".")
        raise ValueError(f"{at} is nested more than {DEEPEST} levels deep: not what a report holds")
    return found


def _items(value: Any) -> list[Any]:
    """The containers in a container."""
    items = value.values() if isinstance(value, dict) else value
    return [item for item in items if isinstance(item, (dict, list))]


def _layer(record: Any, where: str) -> LayerReport:
    if not isinstance(record, dict):
        _wrong(where, record, "an object")
    names = _mapping(record, "metrics", where=where)
    stray = [name for name in names if name not in METRICS]
    if stray:
        raise ValueError(
            f"{where} has the metric {_shown(stray[0])}, which this version does not know: it is "
            "mistyped, or install a newer collapsemeter"
        )
    values = {name: _number(value, f"{where}.metrics.{name}") for name, value in names.items()}
    reasons = _reasons(record, values, where)
    layer = LayerReport(
        values_by_name=values,
        reasons=reasons,
        flags=_strings(record, "flags", where),
        per_class=_arrays(record, "per_class", where),
        vectors=_arrays(record, "vectors", where),
        matrices=_arrays(record, "matrices", where, square=True),
        intervals=_intervals(record, where),
        standard_errors={
            name: _number(error, f"{where}.standard_errors[{name!r}]")
            for name, error in _mapping(record, "standard_errors", {}, where).items()
        },
        provenance=_provenance(record, where),
    )
    _check_sizes(layer, where)
    _check_provenance(layer.provenance, f"{where}.provenance")
    return layer


def _reasons(record: Any, values: dict[str, float], where: str) -> dict[str, str]:
    reasons = {}
    for name, code in _strings_by_name(record, "reasons", where).items():
        if code in _GAPS and name in values:
            values[name] = _GAPS[code]
        elif code in REASONS:
            reasons[name] = code
        else:
            _wrong(f"{where}.reasons[{_shown(name)}]", code, "a code of collapsemeter.REASONS")
    return reasons


def _intervals(record: Any, where: str) -> dict[str, tuple[float, float]]:
    intervals = {}
    for name, ends in _mapping(record, "intervals", {}, where).items():
        at = f"{where}.intervals[{name!r}]"
        if not isinstance(ends, list) or len(ends) != 2:
            _wrong(at, ends, "two numbers")
        intervals[name] = (_number(ends[0], at), _number(ends[1], at))
    return intervals


def _arrays(record: Any, key: str, where: str, square: bool = False) -> dict[str, npt.NDArray[Any]]:
    found = _mapping(record, key, {}, where)
    read: Callable[[Any, str], npt.NDArray[Any]] = _square if square else _array
    return {name: read(values, f"{where}.{key}[{name!r}]") for name, values in found.items()}


def _array(values: Any, where: str) -> npt.NDArray[Any]:
    if not isinstance(values, list):
        _wrong(where, values, "a list of numbers")
    if values and all(map(_is_integer, values)):
        try:
            return np.array(values, np.int64)
        except OverflowError:
            raise ValueError(f"{where} holds a whole number beyond 2^63") from None
    return np.array([_number(value, where) for value in values], np.float64)


def _square(rows: Any, where: str) -> npt.NDArray[np.float64]:
    if not isinstance(rows, list) or not all(
        isinstance(row, list) and len(row) == len(rows) for row in rows
    ):
        _wrong(where, rows, "a square matrix as a list of rows")
    values = [[_number(value, where) for value in row] for row in rows]
    matrix = np.array(values, np.float64).reshape(len(rows), len(rows))
    if not np.isfinite(matrix).all():
        raise ValueError(f"{where} holds null: every entry must be a number")
    return matrix


def _check_sizes(layer: LayerReport, where: str) -> None:
    """Refuse arrays that contradict each other: who reads them relies on their sizes."""
    sizes = {name: len(values) for name, values in layer.per_class.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{where}.per_class has columns of different length: {sizes}")
    for name in {"count", "nearest_class"} & layer.per_class.keys():
        values = layer.per_class[name]
        least = 0 if name == "count" else -1
        if values.size and (values.dtype != np.int64 or values.min() < least):
            raise ValueError(f"{where}.per_class[{name!r}] must hold whole numbers from {least} on")
    if (
        "nearest_class" in sizes
        and (layer.per_class["nearest_class"] >= sizes["nearest_class"]).any()
    ):
        raise ValueError(
            f"{where}.per_class['nearest_class'] names a class beyond the "
            f"{sizes['nearest_class']} there are"
        )
    if not layer.matrices:
        return
    present = int((layer.per_class.get("count", np.zeros(0)) > 0).sum())
    for name, matrix in layer.matrices.items():
        if len(matrix) != present:
            raise ValueError(
                f"{where}.matrices[{name!r}] is {len(matrix)} x {len(matrix)}, but "
                f"{present} classes are present in per_class['count']"
            )


def _check_provenance(provenance: Mapping[str, Any], where: str) -> None:
    """Refuse what `compare` and the HTML report would stumble over."""
    if provenance.get("width") is not None:
        _integer(provenance["width"], f"{where}.width")
    floors = _mapping(provenance, "dtype_floor", {}, where)
    for name, floor in floors.items():
        _number(floor, f"{where}.dtype_floor.{name}")
    switches = _mapping(provenance, "convention", {}, where)
    try:
        Convention(**{k: v for k, v in switches.items() if k not in ("name", "center_head")})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}.convention does not read: {error}") from None


def _mapping(
    record: Mapping[str, Any], key: str, default: Any = None, where: str = ""
) -> dict[str, Any]:
    value = record.get(key, default)
    if not isinstance(value, dict):
        _wrong(f"{where}.{key}".lstrip("."), value, "an object")
    return value


def _strings(record: Mapping[str, Any], key: str, where: str = "") -> tuple[str, ...]:
    at = f"{where}.{key}".lstrip(".")
    values = record.get(key, [])
    if not isinstance(values, list):
        _wrong(at, values, "a list of texts")
    return tuple(_string(value, at) for value in values)


def _strings_by_name(record: Mapping[str, Any], key: str, where: str = "") -> dict[str, str]:
    at = f"{where}.{key}".lstrip(".")
    found = _mapping(record, key, {}, where)
    return {name: _string(value, f"{at}[{name!r}]") for name, value in found.items()}


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        _wrong(where, value, "a text")
    return value


def _number(value: Any, where: str) -> float:
    if value is None:
        return math.nan
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not _fits(value):
        _wrong(where, value, "a finite number or null")
    return float(value)


def _integer(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        _wrong(where, value, "a whole number")
    return value


def _fits(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong(where: str, value: Any, due: str) -> NoReturn:
    raise ValueError(f"{where} is {_shown(value)}, expected {due}")


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number")


def _shown(value: Any) -> str:
    """A value as the message repeats it: of bounded length, and not the inside of a container."""
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**40:
        return "a number beyond 1e40"
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
