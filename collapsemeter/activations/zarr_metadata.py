"""What the metadata of a Zarr array say, versions 2 and 3, as one plan of how to read it."""

from __future__ import annotations

import math
import struct
import warnings
from typing import Any, NamedTuple

import numpy as np

from .array_file import Array, Refused, check_array
from .zarr_codecs import CODECS

_FLOATS = ("bfloat16", "float8_e4m3fn", "float8_e5m2")  # of ml_dtypes
_NUMBERS = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", *_FLOATS,
)  # fmt: skip


class Plan(NamedTuple):
    """How to read an array: everything that the metadata decide."""

    array: Array
    chunk: tuple[int, ...]  # of one file; or, within a shard, of what is packed by itself
    fill: Any
    order: tuple[int, ...]  # in which the dimensions are stored
    codecs: list[tuple[str, int]]
    prefix: str  # of the name of a chunk's file
    separator: str
    shard: Shard | None = None


class Shard(NamedTuple):
    """How many chunks a file has, and how its index is stored."""

    grid: tuple[int, ...]
    at_end: bool
    codecs: list[tuple[str, int]]
    big: bool

    @property
    def nbytes(self) -> int:
        """Length of the index in the file."""
        return 16 * math.prod(self.grid) + 4 * len(self.codecs)


def plan_v2(meta: dict[str, Any]) -> Plan:
    """Return the plan of a ``.zarray``.

    Raises
    ------
    Refused
        If it asks for what is not read.

    Examples
    --------
    >>> plan = plan_v2(
    ...     {"zarr_format": 2, "shape": [4], "chunks": [2], "dtype": "<f4", "order": "C",
    ...      "compressor": {"id": "pickle"}, "filters": None, "fill_value": 0})
    Traceback (most recent call last):
        ...
    collapsemeter.activations.array_file.Refused: has codec 'pickle': only gzip, zlib, bz2, blosc, lz4, zstd, crc32c, shuffle are read
    """
    stored = meta.get("dtype")
    if not isinstance(stored, str):
        raise Refused(f"has dtype {str(stored)[:200]}: only real numbers are read")
    array = check_array(_shape(meta.get("shape")), _dtype(stored))
    chunk = _chunk(meta.get("chunks"), array)
    steps = [*(meta.get("filters") or []), meta.get("compressor")]
    codecs = [_codec(_text(step, "id"), step) for step in steps if step is not None]
    axes = tuple(range(len(chunk)))
    order = {"C": axes, "F": axes[::-1]}.get(str(meta.get("order")))
    if order is None:
        raise Refused(f"has order {str(meta.get('order'))[:50]!r}: it is 'C' or 'F'")
    separator = _separator(meta.get("dimension_separator", "."))
    return Plan(array, chunk, _fill(meta, array), order, codecs, "", separator)


def plan_v3(meta: dict[str, Any]) -> Plan:
    """Return the plan of a ``zarr.json``.

    Raises
    ------
    Refused
        If it asks for what is not read.
    """
    stored = meta.get("data_type")
    if stored not in _NUMBERS:
        raise Refused(f"has data type {str(stored)[:200]}: only real numbers are read")
    if meta.get("storage_transformers"):
        raise Refused("has storage transformers, which are not read")
    outer = _configuration(meta.get("chunk_grid"), "regular").get("chunk_shape")
    shape, codecs = _shape(meta.get("shape")), _list(meta.get("codecs"), "codecs")
    native = check_array(shape, np.dtype(stored))
    chunk, shard = _chunk(outer, native), None
    if any(_text(step, "name") == "sharding_indexed" for step in codecs):
        if len(codecs) > 1:
            raise Refused("has other codecs beside sharding_indexed: that is not read")
        config = _configuration(codecs[0], "sharding_indexed")
        inner, codecs = (
            _chunk(config.get("chunk_shape"), native),
            _list(config.get("codecs"), "codecs"),
        )
        shard, chunk = _shard(config, chunk, inner), inner
    order, big, packers = _split(codecs, len(shape))
    array = Array(shape, _ordered(native.dtype, big))
    prefix, separator = _key(meta.get("chunk_key_encoding"))
    return Plan(array, chunk, _fill(meta, array), order, packers, prefix, separator, shard)


def _shard(config: dict[str, Any], outer: tuple[int, ...], inner: tuple[int, ...]) -> Shard:
    if any(o % i for o, i in zip(outer, inner, strict=True)):
        raise Refused(f"has shards of {outer}, which chunks of {inner} do not fill")
    grid = tuple(o // i for o, i in zip(outer, inner, strict=True))
    order, big, codecs = _split(_list(config.get("index_codecs"), "index_codecs"), len(grid) + 1)
    if order != tuple(range(len(grid) + 1)) or any(name != "crc32c" for name, _ in codecs):
        raise Refused("has an index of shards in other codecs than bytes and crc32c")
    return Shard(grid, config.get("index_location", "end") != "start", codecs, big)


def _split(
    steps: list[Any], dimensions: int
) -> tuple[tuple[int, ...], bool, list[tuple[str, int]]]:
    """Return the order of dimensions, whether numbers are big-endian, and what packs the bytes."""
    names = [_text(step, "name") for step in steps]
    if names.count("bytes") != 1:
        raise Refused(f"has codecs {str(names)[:200]}: exactly one of them must be 'bytes'")
    at = names.index("bytes")
    order = tuple(range(dimensions))
    for step in steps[:at]:
        asked = _configuration(step, "transpose").get("order")
        # By representation, for True == 1.
        if not isinstance(asked, list) or sorted(map(repr, asked)) != sorted(map(repr, order)):
            raise Refused(f"has a transposition to {str(asked)[:100]}")
        order = tuple(order[i] for i in asked)
    big = _configuration(steps[at], "bytes").get("endian") == "big"
    rest = zip(names[at + 1 :], steps[at + 1 :], strict=True)
    packers = [_codec(name, _configuration(step, name)) for name, step in rest]
    return order, big, packers


def _codec(name: str, config: dict[str, Any]) -> tuple[str, int]:
    known = name.removeprefix("numcodecs.")
    if known not in CODECS:
        raise Refused(f"has codec {name[:100]!r}: only {', '.join(CODECS)} are read")
    width = config.get("elementsize", 4) if known == "shuffle" else 0
    if type(width) is not int or width < 0:
        raise Refused(f"has a shuffle of elements of {str(width)[:50]} bytes")
    return known, width


def _dtype(stored: str) -> np.dtype[Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of names that NumPy no longer has
            return np.dtype(stored)
    except (TypeError, ValueError, SyntaxError, DeprecationWarning) as error:
        raise Refused(f"has dtype {stored[:100]!r}, which is not read") from error


def _ordered(dtype: np.dtype[Any], big: bool) -> np.dtype[Any]:
    if big and dtype.name in _FLOATS and dtype.itemsize > 1:
        raise Refused(f"has big-endian {dtype.name}, which is not read")
    return dtype if dtype.name in _FLOATS else dtype.newbyteorder(">" if big else "<")


def _fill(meta: dict[str, Any], array: Array) -> Any:
    """Return the value of what is not stored."""
    value = meta.get("fill_value")
    try:
        if isinstance(value, str) and value.startswith("0x"):  # the bits of a number
            bits = int(value, 16).to_bytes(array.dtype.itemsize, "little")
            return np.frombuffer(bits, array.dtype.newbyteorder("<"))[0]
        if isinstance(value, str):  # NaN, Infinity, -Infinity
            value = float(value)
        if not isinstance(value, int | float | None):
            raise TypeError
        with np.errstate(all="ignore"):
            return np.asarray(value or 0, array.dtype)[()]
    except (TypeError, ValueError, OverflowError, struct.error) as error:
        raise Refused(f"has fill value {str(value)[:100]!r}, which is no {array.dtype}") from error


def _shape(value: Any) -> tuple[Any, ...]:
    return tuple(_list(value, "shape"))


def _chunk(value: Any, array: Array) -> tuple[int, ...]:
    chunk = tuple(_list(value, "chunks"))
    fits = len(chunk) == len(array.shape) and all(type(n) is int and n > 0 for n in chunk)
    if not fits:
        raise Refused(f"has chunks {str(chunk)[:200]} in shape {array.shape}")
    return chunk


def _key(encoding: Any) -> tuple[str, str]:
    name = _text(encoding, "name")
    config = _configuration(encoding, name)
    if name == "default":
        separator = _separator(config.get("separator", "/"))
        return "c" + separator, separator
    if name == "v2":
        return "", _separator(config.get("separator", "."))
    raise Refused(f"has chunk keys encoded as {name[:100]!r}, which is not read")


def _separator(value: Any) -> str:
    if value not in (".", "/"):
        raise Refused(f"has separator {str(value)[:50]!r}: it is '.' or '/'")
    return str(value)


def _text(step: Any, key: str) -> str:
    name = step if isinstance(step, str) else step.get(key) if isinstance(step, dict) else None
    if not isinstance(name, str):
        raise Refused(f"has damaged metadata: {str(step)[:100]} has no {key}")
    return name


def _configuration(step: Any, name: str) -> dict[str, Any]:
    if _text(step, "name") != name:
        raise Refused(f"has {_text(step, 'name')[:100]!r} where {name!r} is due")
    config = step.get("configuration", {}) if isinstance(step, dict) else {}
    if not isinstance(config, dict):
        raise Refused(f"has damaged metadata: the configuration of {name!r} is {str(config)[:100]}")
    return config


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise Refused(f"has damaged metadata: its {key} are {str(value)[:100]}")
    return value
