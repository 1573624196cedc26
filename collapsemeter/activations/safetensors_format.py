"""Named arrays in a ``.safetensors`` file, memory-mapped.

The header is read here: the safetensors library refuses a whole file for one array of a dtype that it
does not know, takes two arrays of one name for one, and returns copies.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from .array_file import (
    MAX_DIRECTORY,
    ActivationsError,
    Array,
    ArrayFile,
    Refused,
    check_array,
    file_size,
    first_line,
    map_array,
)

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


class SafetensorsFile(ArrayFile):
    """The arrays of a ``.safetensors`` file; the places they claim must tile it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            import ml_dtypes  # noqa: F401  # teaches NumPy the name bfloat16
        except ImportError as error:
            raise ImportError(
                f"reading {os.fspath(path)} needs ml_dtypes: pip install 'collapsemeter[audit]'"
            ) from error
        super().__init__(path)
        self._offsets: dict[str, int] = {}
        try:
            start, entries = _header(path)
            _check_tiling(entries, file_size(path) - start)
        except ValueError as error:
            raise ActivationsError(
                f"{self.path} is not a whole safetensors file: {first_line(error)}"
            ) from error
        for name, entry in entries.items():
            begin, end = entry["data_offsets"]
            try:
                self.arrays[name] = _array(entry, end - begin)
                self._offsets[name] = start + begin
            except Refused as reason:
                self.refused[name] = str(reason)

    def _rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        return map_array(self.path, self.arrays[name], self._offsets[name])[start:stop]


def _header(path: str | os.PathLike[str]) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return where the data begins, and the entry of each array."""
    size = file_size(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"its header asks for {length} bytes, it has {max(size - 8, 0)}")
        if length > MAX_DIRECTORY:
            raise ValueError(f"its header has {length} bytes, at most {MAX_DIRECTORY} are read")
        text = file.read(length)
    try:
        entries = json.loads(text.decode(), object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("its header is nested too deep") from error
    if not isinstance(entries, dict):
        raise ValueError("its header is not a JSON object")
    entries.pop("__metadata__", None)
    return 8 + length, entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    name, times = Counter(name for name, _ in pairs).most_common(1)[0] if pairs else ("", 1)
    if times > 1:
        raise ValueError(f"its header has {name!r} twice")
    return dict(pairs)


def _check_tiling(entries: dict[str, Any], size: int) -> None:
    """Raise unless the arrays lie one behind the other and fill the data, as the format demands."""
    spans = []
    for name, entry in entries.items():
        span = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not (
            isinstance(span, list)
            and len(span) == 2
            and all(type(n) is int for n in span)
            and 0 <= span[0] <= span[1]
        ):
            raise ValueError(f"array {name!r} has no place: data_offsets={str(span)[:100]}")
        spans.append((*span, name))
    end = 0
    for begin, stop, name in sorted(spans):
        if begin != end:
            raise ValueError(f"array {name!r} begins at byte {begin}, where {end} is due")
        end = stop
    if end != size:
        raise ValueError(f"its arrays take {end} bytes, the file has {size}")


def _array(entry: dict[str, Any], stored: int) -> Array:
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise Refused(f"has dtype {str(dtype)[:100]}, which is not read")
    if not isinstance(shape, list):
        raise Refused(f"has shape {str(shape)[:100]}: not a shape")
    array = check_array(tuple(shape), np.dtype(_DTYPES[dtype]).newbyteorder("<"))
    if array.nbytes != stored:
        raise Refused(f"asks for {array.nbytes} bytes {array}, it is stored in {stored}")
    return array
