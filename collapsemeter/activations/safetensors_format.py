"""Named arrays in a ``.safetensors`` file, memory-mapped.

The header is read here: the safetensors library refuses a whole file for one array of a dtype that it
does not know, takes two arrays of one name for one, and returns copies.
"""

import json
import os
from collections import Counter
from functools import partial
from typing import Any

import numpy as np

from .array_file import (
    MAX_DIRECTORY,
    Array,
    ArrayFile,
    Mapped,
    Refused,
    check_array,
    file_size,
    required,
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
        required("ml_dtypes", f"reading {os.fspath(path)}", "audit")  # teaches NumPy bfloat16
        super().__init__(path)
        size = file_size(path)
        with self._whole("safetensors file", ValueError):
            start, entries = _header(path, size)
            _check_tiling(entries, size - start)
        for name, entry in entries.items():
            self._add(name, partial(_locate, self.path, start, entry))


def _header(path: str | os.PathLike[str], size: int) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return where the arrays begin, and the entry of each."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"its header asks for {length} bytes, it has {max(size - 8, 0)}")
        if length > MAX_DIRECTORY:
            raise ValueError(f"its header has {length} bytes, at most {MAX_DIRECTORY} are read")
        text = file.read(length).decode()
    try:
        entries = json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("its header is nested too deep") from error
    if not isinstance(entries, dict):
        raise ValueError("its header is not a JSON object")
    entries.pop("__metadata__", None)
    return 8 + length, entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for name, times in Counter(name for name, _ in pairs).items():
        if times > 1:
            raise ValueError(f"its header has {name!r} twice")
    return dict(pairs)


def _check_tiling(entries: dict[str, Any], size: int) -> None:
    """Raise unless the arrays lie one behind the other and fill the data, as the format demands."""
    spans = []
    for name, entry in entries.items():
        span = entry.get("data_offsets") if isinstance(entry, dict) else None
        match span:
            case [int(begin), int(stop)] if 0 <= begin <= stop and bool not in map(type, span):
                spans.append((begin, stop, name))
            case _:
                raise ValueError(f"array {name!r} has no place: data_offsets={str(span)[:100]}")
    end = 0
    for begin, stop, name in sorted(spans):
        if begin != end:
            raise ValueError(f"array {name!r} begins at byte {begin}, where {end} is due")
        end = stop
    if end != size:
        raise ValueError(f"its arrays take {end} bytes, the file has {size}")


def _locate(path: str, start: int, entry: dict[str, Any]) -> tuple[Array, Mapped]:
    dtype, shape, (begin, stop) = entry.get("dtype"), entry.get("shape"), entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise Refused(f"has dtype {str(dtype)[:100]}, which is not read")
    if not isinstance(shape, list):
        raise Refused(f"has shape {str(shape)[:100]}: not a shape")
    array = check_array(tuple(shape), np.dtype(_DTYPES[dtype]).newbyteorder("<"))
    if array.nbytes != stop - begin:
        raise Refused(f"asks for {array.nbytes} bytes {array}, it is stored in {stop - begin}")
    return array, Mapped(path, array, start + begin)
