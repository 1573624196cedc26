"""The form of class moments in a state file: a header and named arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .groups import Groups
from .rounding import Rounding
from .sums import ARRAYS, LEFT_OUT

if TYPE_CHECKING:
    from .fields import MomentFields

Arrays = dict[str, npt.NDArray[Any]]

_ALWAYS, _WHERE_KEPT = ARRAYS[:4], ARRAYS[4:]
_PLAIN = ("feature_dtype", "phase", *LEFT_OUT)


def header_of(moments: MomentFields) -> dict[str, Any]:
    """Return what a file says besides its arrays."""
    named = {name: getattr(moments, name) for name in _PLAIN}
    sets = {"shards": sorted(moments.shards), "seeds": sorted(moments.seeds)}
    return named | sets | {"rows": moments.rows}


def arrays_of(moments: MomentFields) -> Arrays:
    """Return the arrays by name."""
    named = {name: getattr(moments, name) for name in ARRAYS}
    arrays = {name: array for name, array in named.items() if array is not None}
    for part in (moments.rounding, moments.groups):
        if part is not None:
            arrays |= part.arrays()
    return arrays


def fields_of(header: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Return the fields of stored moments; raise KeyError, TypeError or ValueError if one is not as written."""
    parts: dict[str, Any] = {name: arrays[name] for name in _ALWAYS}
    parts |= {name: arrays.get(name) for name in _WHERE_KEPT}
    check_stored(parts)
    header = {"unlabelled": 0, "mixed": 0, "seeds": [], **header}  # older files lack these
    parts |= {name: header[name] for name in _PLAIN}
    parts |= {name: frozenset(list_of(header[name])) for name in ("shards", "seeds")}
    return parts | {"rounding": Rounding.among(arrays), "groups": Groups.among(arrays)}


def check_rows(moments: MomentFields, header: Mapping[str, Any]) -> None:
    """Raise ValueError if a header (older ones do not) or the groups say another number of rows."""
    if header.get("rows", moments.rows) != moments.rows:
        raise ValueError(f"its counts add up to {moments.rows} rows of {header['rows']}")
    if moments.groups is not None:
        moments.groups.check(moments.counts, moments.traces)


def check_stored(arrays: Mapping[str, npt.NDArray[Any] | None]) -> None:
    """Raise TypeError unless arrays have the dtypes that a state is written in."""
    for name, array in arrays.items():
        written = np.dtype(np.int64 if name == "counts" else np.float64)
        if array is not None and array.dtype.newbyteorder("=") != written:
            raise TypeError(f"{name} have dtype {array.dtype}, {written} is written")


def list_of(value: Any) -> list[Any]:
    """Return a list of a header; raise TypeError if it is something else."""
    if not isinstance(value, list):
        raise TypeError(f"{str(value)[:100]!r} is not a list")
    return value
