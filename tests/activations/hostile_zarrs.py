"""Zarr folders that lie, made by code."""

from __future__ import annotations

import json
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import numcodecs
import numpy as np
import zarr

ROWS = np.arange(60, dtype="<f4").reshape(20, 3)
CASES: dict[str, tuple[Callable[[Path], Path], str]] = {}

V2 = {
    "zarr_format": 2, "shape": [20, 3], "chunks": [20, 3], "dtype": "<f4", "compressor": None,
    "filters": None, "fill_value": 0, "order": "C",
}  # fmt: skip
V3 = {
    "zarr_format": 3, "node_type": "array", "shape": [20, 3], "data_type": "float32",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [20, 3]}},
    "chunk_key_encoding": {"name": "default"}, "fill_value": 0, "codecs": [{"name": "bytes"}],
}  # fmt: skip


def write_valid(path: Path) -> None:
    """Write a folder of two arrays, whose every chunk is checked by its length or checksum."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = zarr.open_group(path, mode="w", zarr_format=3)
        group.create_array("a", data=ROWS, chunks=(20, 3), compressors=zarr.codecs.GzipCodec())
        group.create_array("b", data=ROWS, chunks=(10, 3), shards=(20, 3))


def folder(name: str, text: str, meta: object, chunks: dict[str, bytes] | None = None) -> None:
    """Register a folder with one array of these metadata and files."""

    def write(parent: Path) -> Path:
        path = parent / "acts.zarr"
        path.mkdir()
        new = isinstance(meta, dict) and meta.get("zarr_format") == 3
        content = meta if isinstance(meta, str) else json.dumps(meta)
        (path / ("zarr.json" if new else ".zarray")).write_text(content)
        for key, data in (chunks or {}).items():
            (path / key).parent.mkdir(parents=True, exist_ok=True)
            (path / key).write_bytes(data)
        return path

    CASES[f"zarr: {name}"] = write, text


def v2(name: str, text: str, chunk: bytes | None = None, **changes) -> None:
    """Register an array of version 2 with something changed."""
    folder(name, text, V2 | changes, None if chunk is None else {"0.0": chunk})


def v3(name: str, text: str, chunk: bytes | None = None, **changes) -> None:
    """Register an array of version 3 with something changed."""
    folder(name, text, V3 | changes, None if chunk is None else {"c/0/0": chunk})


folder("not JSON", r"has damaged metadata, \.zarray: ", "{")
folder("nested", r"has damaged metadata, \.zarray: ", "[" * 100_000)
folder("a list", r"has damaged metadata: \.zarray is not a JSON object", "[1]")
folder("long metadata", "has metadata of .* bytes: at most 524288 is read", " " * 2**20)
folder("version 1", "has Zarr version 1: 2 and 3 are read", V2 | {"zarr_format": 1})

v2("pickle filter", "has codec 'pickle': only gzip, .* are read", filters=[{"id": "pickle"}])
v2("pickle compressor", "has codec 'pickle': only", compressor={"id": "pickle"})
v2("object", "has dtype object: .* pickle never", dtype="|O", filters=[{"id": "json2"}])
v2("records", "has dtype .*: only real numbers", dtype=[["a", "<f4"]])
v2("unknown dtype", "has dtype 'nothing', which is not read", dtype="nothing")
v2("old dtype", "has dtype '|a5', which is not read", dtype="|a5")
v2("text", "has dtype <U4: only real numbers", dtype="<U4")
v2("no codec", "has damaged metadata: .* has no id", compressor={"level": 1})
v2("scalar", "is a scalar", shape=[], chunks=[])
v2("negative length", "not a shape", shape=[-20, 3])
v2("length of another type", "not a shape", shape=[20.0, 3])
v2("no shape", "has damaged metadata: ", shape=7)
v2("chunks of nothing", r"has chunks \(0, 3\) in shape \(20, 3\)", chunks=[0, 3])
v2("other dimensions", "has damaged metadata: ", chunks=[20])
v2("order", "has damaged metadata: ", order="X")
v2("separator", "has damaged metadata: ", dimension_separator="../")
v2("fill value", "has damaged metadata: ", fill_value="x")
v2("fill value of a list", "has damaged metadata: ", fill_value=[1])
v2("fill value too large", "has damaged metadata: ", fill_value=300, dtype="|u1")
v2("shape bomb", "expands .* times, from .* to 4398046511104", shape=[2**40], chunks=[2**10],
   fill_value="NaN")  # fmt: skip
v2("chunks never written", r"has no stored values in rows 0 to 1024 \(chunk 0\)",
   shape=[2**40], chunks=[2**10])  # fmt: skip
v2("a chunk never written", r"in rows 10 to 20 \(chunk 1\.0\): .*write_empty_chunks", b"1" * 120,
   chunks=[10, 3])  # fmt: skip
v2("chunk bomb", "has chunks of 536870912 bytes", shape=[10], chunks=[2**27])
v2("short chunk", "has a chunk that unpacks to 5 bytes, not 240: it is damaged", b"12345")
v2("empty chunk", "has a chunk that unpacks to 0 bytes, not 240", b"")
v2("long chunk", "has a chunk that does not end after 240 bytes", b"1" * 300)

BOMB = b"\0" * 20_000_000
LONG = "has a chunk that does not end after 240 bytes"
v2("gzip bomb", LONG, numcodecs.GZip().encode(BOMB), compressor={"id": "gzip"})
v2("zlib bomb", LONG, zlib.compress(BOMB), compressor={"id": "zlib"})
v2("bz2 bomb", LONG, numcodecs.BZ2().encode(BOMB), compressor={"id": "bz2"})
v2(
    "blosc bomb", LONG, struct.pack("<4B3i", 2, 1, 33, 1, 2**31 - 1, 2**31 - 1, 16),
    compressor={"id": "blosc"},
)  # fmt: skip
v2(
    "blosc without a header",
    "its blosc header says another length",
    b"12",
    compressor={"id": "blosc"},
)
v2("lz4 bomb", LONG, struct.pack("<i", 2**31 - 1) + b"garbage", compressor={"id": "lz4"})
v2(
    "zstd bomb", LONG, b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", 2**31 - 1) + b"x" * 9,
    compressor={"id": "zstd"},
)  # fmt: skip
v2(
    "zstd without a size", "its zstd frame does not say its size",
    b"\x28\xb5\x2f\xfd\x00\x58" + b"x" * 9, compressor={"id": "zstd"},
)  # fmt: skip
v2("no zstd", "has a damaged chunk: it is no zstd frame", b"garbage", compressor={"id": "zstd"})
for codec in ("gzip", "zlib", "bz2", "lz4"):
    garbage = b"\xf0\0\0\0" + b"\xff" * 20
    v2(f"damaged {codec}", "has a damaged chunk: |unpacks to|does not end", garbage,
       compressor={"id": codec})  # fmt: skip
v2(
    "damaged zstd", "has a damaged chunk: ", b"\x28\xb5\x2f\xfd\x20\xf0" + b"\xff" * 9,
    compressor={"id": "zstd"},
)  # fmt: skip
v2(
    "damaged blosc", "has a damaged chunk: ",
    struct.pack("<4B3i", 2, 1, 33, 1, 240, 240, 30) + b"\xff" * 14, compressor={"id": "blosc"},
)  # fmt: skip

D = "has damaged metadata: "
BYTES, CRC = {"name": "bytes"}, {"name": "crc32c"}
v3("text", "has dtype 'string', which is not read", data_type="string")
v3(
    "an unknown codec",
    "has codec 'pickle': only",
    codecs=[BYTES, {"name": "numcodecs.pickle"}],
)
v3("no codec of bytes", D, codecs=[CRC])
v3("codecs that are no list", "has damaged metadata: |has codec", codecs={"name": "bytes"})
v3("a codec without a name", "has no name", codecs=[{}, BYTES])
v3("a configuration of text", D,
   codecs=[{"name": "bytes", "configuration": "abc"}])  # fmt: skip
v3("another codec before bytes", D, codecs=[CRC, BYTES])
v3("a transposition out of range", D,
   codecs=[{"name": "transpose", "configuration": {"order": [0, 7]}}, BYTES])  # fmt: skip
v3("a transposition by text", D,
   codecs=[{"name": "transpose", "configuration": {"order": ["0", "1"]}}, BYTES])  # fmt: skip
v3(
    "storage transformers",
    "has damaged metadata: .*storage transformers",
    storage_transformers=[{"name": "x"}],
)
v3("another grid", D, chunk_grid={"name": "oblong"})
v3("another key", D, chunk_key_encoding={"name": "hash"})
v3("separator", D, chunk_key_encoding={
    "name": "default", "configuration": {"separator": "/../"}})  # fmt: skip
v3("other checksum", "has a damaged chunk: .*checksum", b"x" * 244, codecs=[BYTES, CRC])
v3("no checksum", "unpacks to 0 bytes, not 240", b"x", codecs=[BYTES, CRC])
v3("bits of a fill value", D, fill_value="0x123456789")


def sharded(name: str, text: str, file: bytes | None = None, **changes) -> None:
    """Register an array of one shard with two chunks."""
    config = {"chunk_shape": [10, 3], "codecs": [BYTES], "index_codecs": [BYTES, CRC]} | changes
    shards = {"name": "sharding_indexed", "configuration": config}
    v3(name, text, file, codecs=[shards])


def index(*numbers: int) -> bytes:
    """Return the index of a shard with its checksum."""
    body = struct.pack(f"<{len(numbers)}Q", *numbers)
    return body + struct.pack("<I", google_crc32c.value(body))


MISSING = (2**64 - 1, 2**64 - 1)
sharded("shard never written", r"has no stored values in rows 0 to 10 \(chunk 0\.0\)")
sharded("chunk of a shard never written", r"has no stored values in rows 10 to 20 \(chunk 1\.0\)",
        b"x" * 120 + index(0, 120, *MISSING))  # fmt: skip
sharded("shard too short", "has a shard of 3 bytes, its index alone has 36", b"abc")
sharded("shard with another checksum", "has a damaged chunk: .*checksum",
        b"x" * 240 + index(0, 120, 120, 120)[:-4] + b"crc.")  # fmt: skip
sharded("chunk outside of its shard", "has a chunk of 120 bytes at 999 in a shard of 156",
        b"x" * 120 + index(0, 120, 999, 120))  # fmt: skip
sharded("place that overflows", f"has a chunk of 120 bytes at {2**64 - 5} in",
        b"x" * 120 + index(0, 120, 2**64 - 5, 120))  # fmt: skip
sharded("chunks that do not fill shards", D,
        chunk_shape=[7, 3])  # fmt: skip
sharded("index in gzip", "has an index of shards in other codecs",
        index_codecs=[BYTES, {"name": "gzip"}])  # fmt: skip
v2("compressed twice", "has chunks that are compressed twice, by zlib, gzip", b"1" * 40,
   filters=[{"id": "zlib"}], compressor={"id": "gzip"})  # fmt: skip
v2("two gzip members", "has a damaged chunk: it ends early, or something follows its end",
   numcodecs.GZip().encode(bytes(240)) + numcodecs.GZip().encode(BOMB), compressor={"id": "gzip"})  # fmt: skip
sharded("shards in shards", "has codec 'sharding_indexed'",
        codecs=[{"name": "sharding_indexed"}])  # fmt: skip
v3("shards and more", "has other codecs beside sharding_indexed",
   codecs=[{"name": "sharding_indexed"}, CRC])  # fmt: skip


def link(name: str, text: str):
    """Register a folder in which something is a symbolic link."""

    def register(change: Callable[[Path, Path], None]) -> None:
        def write(parent: Path) -> Path:
            path, another = parent / "acts.zarr", parent / "other"
            zarr.open_group(path, mode="w", zarr_format=2)
            for place in (path / "a", another):
                zarr.create_array(place, data=ROWS, chunks=(20, 3), zarr_format=2, compressors=None)
            change(path, another)
            return path

        CASES[f"zarr: {name}"] = write, text

    return register


@link("chunk elsewhere", r"'a' has a symbolic link, 0\.0: links are not followed")
def _(path, other):
    (path / "a" / "0.0").unlink()
    (path / "a" / "0.0").symlink_to(other / "0.0")


@link("array elsewhere", "'b' is a symbolic link: links are not followed")
def _(path, other):
    (path / "b").symlink_to(other)


@link("metadata elsewhere", r"'a' has a symbolic link, \.zarray: links are not followed")
def _(path, other):
    (path / "a" / ".zarray").unlink()
    (path / "a" / ".zarray").symlink_to(other / ".zarray")


@link("chunk is a folder", "'a' has a damaged chunk: .*Is a directory")
def _(path, other):
    (path / "a" / "0.0").unlink()
    (path / "a" / "0.0").mkdir()


@link("folder without metadata", "is not a Zarr folder: it has no zarr.json or .zgroup")
def _(path, other):
    (path / ".zgroup").unlink()
