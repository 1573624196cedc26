"""A report's JSON, checked field by field into plain keyword arguments; what is wrong is one sentence."""

import codecs
import contextlib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from ..metrics.catalogue import METRICS
from ..metrics.convention import Convention
from ..stats.undefined import REASONS
from .training_error import is_error

FORMAT, VERSION = "collapsemeter.CollapseReport", 1
DEEPEST = 32  # levels of a provenance, which is read and written by recursion

Fields: TypeAlias = dict[str, Any]
Check: TypeAlias = Callable[[Any, str], Any]  # takes a value and its place, returns what is kept

_WRITE = "pass a file that report.to_json() or `collapsemeter audit --json` wrote"
_GAPS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # as a history tells them apart


def read_json(data: bytes, source: str, fields: Callable[[Any], Fields]) -> Fields:
    """Return the fields of JSON text; a ValueError begins with the source."""
    try:
        record = json.loads(in_utf8(data).decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not JSON, but binary: {_WRITE}") from error
    except RecursionError:
        raise ValueError(f"{source} is nested too deeply to be a report: {_WRITE}") from None
    except ValueError as error:
        raise ValueError(f"{source} is not JSON ({error}): {_WRITE}") from None
    try:
        return fields(record)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def in_utf8(data: bytes) -> bytes:
    """Return what tools of Windows keep with a byte order mark, or in UTF-16, as UTF-8 without one."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        with contextlib.suppress(UnicodeError):
            return data.decode("utf-16").encode()
    return data.removeprefix(codecs.BOM_UTF8)


def report_fields(record: Any) -> Fields:
    """Return the arguments of the `CollapseReport` that `to_dict` wrote, each layer as arguments, too."""
    if not isinstance(record, dict):
        raise ValueError(
            f"not a collapsemeter report but {_kind(record)}, expected an object; {_WRITE}"
        )
    if record.get("format") != FORMAT:
        raise ValueError(
            f"not a collapsemeter report: format is {_shown(record.get('format'))}, "
            f"expected {FORMAT!r}; {_WRITE}"
        )
    version = _whole(record.get("version"), "version")
    if version > VERSION:
        written = f" {_shown(record['collapsemeter'])}" if "collapsemeter" in record else ""
        raise ValueError(
            f"the report has version {version}, of a newer collapsemeter{written}; this one reads up "
            f"to {VERSION}: install a newer collapsemeter"
        )
    return _read(record, _REPORT)


def line_fields(record: Any) -> Fields:
    """Return step, run and the report's arguments of a line that `JsonlSink` wrote."""
    if not isinstance(record, dict) or not {"step", "phase", "layers"} <= record.keys():
        raise ValueError(
            "not a line of a history: it has no step, phase and layers; pass a file that JsonlSink wrote"
        )
    return _read(record, _LINE)


def _refuse_constant(literal: str) -> NoReturn:
    raise ValueError(f"{literal} is not JSON, an undefined value is null")


def _read(record: Mapping[str, Any], table: Mapping[str, Check], where: str = "") -> Fields:
    """Check the fields of a table; one that a record may lack is left out where it does."""
    return {
        key: check(record.get(key), f"{where}.{key}".removeprefix("."))
        for key, check in table.items()
        if key in record or key in _REQUIRED
    }


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _wrong(where, value, "an object")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        _wrong(where, value, "a text")
    return value


def _texts(values: Any, where: str) -> tuple[str, ...]:
    if not isinstance(values, list):
        _wrong(where, values, "a list of texts")
    return tuple(_text(value, where) for value in values)


def _whole(value: Any, where: str) -> int:
    if not _is_whole(value):
        _wrong(where, value, "a whole number")
    return int(value)


def _number(value: Any, where: str) -> float:
    if value is None:
        return math.nan
    try:
        finite = not isinstance(value, bool) and math.isfinite(value)
    except (TypeError, OverflowError):
        finite = False
    if not finite:
        _wrong(where, value, "a finite number or null")
    return float(value)


def _error(value: Any, where: str) -> float:
    if not is_error(value):
        _wrong(where, value, "a share from 0 to 1")
    return value


def _two_numbers(ends: Any, where: str) -> tuple[float, float]:
    if not isinstance(ends, list) or len(ends) != 2:
        _wrong(where, ends, "two numbers")
    return _number(ends[0], where), _number(ends[1], where)


def _array(values: Any, where: str) -> npt.NDArray[Any]:
    """Return int64 where every entry is a whole number, else float64."""
    if not isinstance(values, list):
        _wrong(where, values, "a list of numbers")
    if values and all(map(_is_whole, values)):
        try:
            return np.array(values, np.int64)
        except OverflowError:
            raise ValueError(f"{where} holds a whole number beyond 2^63") from None
    return np.array([_number(value, where) for value in values], np.float64)


def _square(rows: Any, where: str) -> npt.NDArray[np.float64]:
    lists = isinstance(rows, list) and all(isinstance(row, list) for row in rows)
    if not lists or any(len(row) != len(rows) for row in rows):
        _wrong(where, rows, "a square matrix as a list of rows")
    values = [[_number(value, where) for value in row] for row in rows]
    matrix = np.array(values, np.float64).reshape(len(rows), len(rows))
    if not np.isfinite(matrix).all():
        raise ValueError(f"{where} holds null: every entry must be a number")
    return matrix


def _by_name(check: Check, place: str = "{}[{!r}]") -> Check:
    """Return the check of an object whose every value passes another check."""

    def check_all(record: Any, where: str) -> Fields:
        values = _object(record, where)
        return {name: check(value, place.format(where, name)) for name, value in values.items()}

    return check_all


def _metrics(record: Any, where: str) -> dict[str, float]:
    unknown = [name for name in _object(record, where) if name not in METRICS]
    if unknown:
        raise ValueError(
            f"{where.removesuffix('.metrics')} has the metric {_shown(unknown[0])}, which this version "
            "does not know: it is mistyped, or install a newer collapsemeter"
        )
    values: dict[str, float] = _by_name(_number, "{}.{}")(record, where)
    return values


def _provenance(record: Any, where: str) -> dict[str, Any]:
    """Return any plain values, as long as recursion over them is safe."""
    level: list[Any] = [_object(record, where)]
    for _ in range(DEEPEST):
        inside = [value.values() if isinstance(value, dict) else value for value in level]
        level = [item for items in inside for item in items if isinstance(item, (dict, list))]
    if level:
        raise ValueError(
            f"{where} is nested more than {DEEPEST} levels deep: not what a report holds"
        )
    return dict(record)


def _layer(record: Any, where: str) -> Fields:
    fields = _read(_object(record, where), _LAYER, where)
    values = fields.pop("metrics")
    reasons = fields.get("reasons", {})
    for name, code in list(reasons.items()):
        if code in _GAPS and name in values:
            values[name] = _GAPS[reasons.pop(name)]
        elif code not in REASONS:
            _wrong(f"{where}.reasons[{_shown(name)}]", code, "a code of collapsemeter.REASONS")
    _check_sizes(fields.get("per_class", {}), fields.get("matrices", {}), where)
    _read(fields.get("provenance", {}), _USED_PROVENANCE, f"{where}.provenance")
    return {"values_by_name": values, **fields}


def _check_sizes(per_class: Mapping[str, Any], matrices: Mapping[str, Any], where: str) -> None:
    """Refuse arrays that contradict each other: who reads them relies on their sizes."""
    sizes = {name: len(values) for name, values in per_class.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{where}.per_class has columns of different length: {sizes}")
    for name, least in (("count", 0), ("nearest_class", -1)):
        values = per_class.get(name, np.zeros(0))
        if values.size and (values.dtype != np.int64 or values.min() < least):
            raise ValueError(f"{where}.per_class[{name!r}] must hold whole numbers from {least} on")
    classes = sizes.get("nearest_class", 0)
    if classes and per_class["nearest_class"].max() >= classes:
        raise ValueError(
            f"{where}.per_class['nearest_class'] names a class beyond the {classes} there are"
        )
    present = int((per_class.get("count", np.zeros(0)) > 0).sum())
    for name, matrix in matrices.items():
        if len(matrix) != present:
            raise ValueError(
                f"{where}.matrices[{name!r}] is {len(matrix)} x {len(matrix)}, but "
                f"{present} classes are present in per_class['count']"
            )


def _width(value: Any, where: str) -> None:
    if value is not None:
        _whole(value, where)


def _convention(record: Any, where: str) -> None:
    switches = _object(record, where)
    try:
        Convention(**{k: v for k, v in switches.items() if k not in ("name", "center_head")})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} does not read: {error}") from None


_REQUIRED = {"layers", "phase", "step", "metrics"}
_LAYER: dict[str, Check] = {
    "metrics": _metrics,
    "reasons": _by_name(_text),
    "flags": _texts,
    "per_class": _by_name(_array),
    "vectors": _by_name(_array),
    "matrices": _by_name(_square),
    "intervals": _by_name(_two_numbers),
    "standard_errors": _by_name(_number),
    "estimates": _by_name(_number),
    "no_estimate": _by_name(_text),
    "no_interval": _by_name(_text),
    "provenance": _provenance,
}
_REPORT: dict[str, Check] = {
    "layers": _by_name(_layer),
    "phase": _text,
    "skipped": _by_name(_text),
    "warnings": _texts,
    "provenance": _provenance,
}
_LINE: dict[str, Check] = {
    "step": _whole,
    "run": _text,
    "training_error": _error,
    "layers": _by_name(_layer),
    "phase": _text,
    "warnings": _texts,
}
_USED_PROVENANCE: dict[str, Check] = {  # what `compare` and the HTML report would stumble over
    "width": _width,
    "dtype_floor": _by_name(_number, "{}.{}"),
    "convention": _convention,
}


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong(where: str, value: Any, expected: str) -> NoReturn:
    raise ValueError(f"{where} is {_shown(value)}, expected {expected}")


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number")


def _shown(value: Any) -> str:
    """Return a value as a message repeats it: of bounded length, and not the inside of a container."""
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if _is_whole(value) and abs(value) > 10**40:
        return "a number beyond 1e40"
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
