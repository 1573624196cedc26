"""Files that lie, made by code: each case writes one and says what must be said of it."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

ROWS = np.arange(60, dtype="<f4").reshape(20, 3)
CASES: dict[str, tuple[Callable[[Path], Path], str]] = {}


def case(text: str):
    """Register a function that writes a file into a folder, with a pattern of what must be said."""

    def register(write: Callable[[Path], Path]) -> Callable[[Path], Path]:
        CASES[write.__name__] = write, text
        return write

    return register


def file(name: str, text: str, ending: str, content: Callable[[], bytes]) -> None:
    """Register a file of given bytes."""

    def write(folder: Path) -> Path:
        path = folder / f"acts{ending}"
        path.write_bytes(content())
        return path

    CASES[name] = write, text


# --- .npy


def npy_header(text: str, version: bytes = b"\1\0") -> bytes:
    """Return a header with this text and nothing behind it."""
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text.encode("latin1")


def npy_of(shape: str, descr: str = "'<f4'") -> bytes:
    """Return a header that claims this."""
    return npy_header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n")


def npy_bytes(array: np.ndarray) -> bytes:
    """Return a .npy file, pickled if need be."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


NPY = {
    "empty": (lambda: b"", r"acts\.npy is empty \(0 bytes\)"),
    "garbage": (lambda: b"garbage " * 20, r"acts\.npy is text, which begins 'garbage"),
    "raw numbers": (
        lambda: ROWS.tobytes(),
        "it has no header; if these are raw numbers, as np.memmap",
    ),
    "float8": (
        lambda: npy_of("(2, 3)", "'<f1'") + b"123456",
        "has dtype '<f1', .* float8 .* save it as",
    ),
    "pickle of another name": (lambda: b"\x80\x04\x95" + b"\0" * 30, r"acts\.npy is a pickle: "),
    "version 9": (lambda: npy_header("{}", b"\x09\0"), r"version \(9, 0\) is not read"),
    "shape bomb": (lambda: npy_of("(8589934592,)"), "asks for 34359738368 bytes .* holds 0"),
    "trailing bytes": (lambda: npy_bytes(ROWS) + b"x", "asks for 240 bytes .* holds 241"),
    "negative length": (lambda: npy_of("(-1, 3)"), r"has shape \(-1, 3\): not a shape"),
    "bool length": (lambda: npy_of("(True, 3)"), "has shape .True, 3.: not a shape"),
    "too many dimensions": (lambda: npy_of(str((1,) * 40)), "not a shape"),
    "overflow without elements": (lambda: npy_of(f"(0, {2**62})"), "more than any memory holds"),
    "overflow": (lambda: npy_of(f"({2**62}, 4)"), "more than any memory holds"),
    "scalar": (lambda: npy_bytes(np.float32(1)), "is a scalar: it has no rows"),
    "pickle": (lambda: npy_bytes(np.array([{}], object)), "dtype object: .* pickle never"),
    "text": (lambda: npy_bytes(np.array(["a"])), "has dtype <U1: only real numbers"),
    "complex": (lambda: npy_bytes(np.zeros(2, complex)), "dtype complex128: only real numbers"),
    "records": (lambda: npy_bytes(np.zeros(2, "f4,i4")), "only real numbers"),
    "sub-array dtype": (lambda: npy_of("(2,)", "'(2,)f4'"), "only real numbers are read"),
    "raw bytes": (lambda: npy_bytes(np.zeros(2, "V2")), "save it as safetensors"),
    "nested header": (lambda: npy_header("(" * 9000), "is not a .npy array"),
    "header too long": (lambda: npy_header("{" + " " * 20000 + "}"), "is not a .npy array"),
    "code for a header": (lambda: npy_header("__import__('os').abort()"), "is not a .npy array"),
    "syntax that warns": (lambda: npy_header("{1is 2}"), "is not a .npy array"),
}
for key, (make, said) in NPY.items():
    file(f"npy: {key}", said, ".npy", make)


# --- .npz


def npz_bytes(compress: bool = False, **arrays: np.ndarray) -> bytes:
    """Return an archive of arrays."""
    stream = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(stream, **arrays)
    return stream.getvalue()


def raw_zip(
    *members: tuple[str, bytes],
    method: int = 8,
    flags: int = 0,
    size: int | None = None,
    crc: int | None = None,
    offsets: dict[int, int] | None = None,
    prefix: int = 0,
) -> bytes:
    """Return a zip archive in which everything may be claimed."""
    body, directory = b"\0" * prefix, b""
    for i, (name, content) in enumerate(members):
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed = packer.compress(content) + packer.flush() if method == 8 else content
        what = (
            zlib.crc32(content) if crc is None else crc,
            len(packed),
            len(content) if size is None else size,
        )
        place = (offsets or {}).get(i, len(body))
        label = name.encode()
        body += struct.pack("<4s5H3L2H", b"PK\3\4", 20, flags, method, 0, 0, *what, len(label), 0)
        body += label + packed
        directory += struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 20, 20, flags, method, 0, 0, *what, len(label),
            0, 0, 0, 0, 0, place,
        ) + label  # fmt: skip
    count = len(members)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), len(body), 0)
    return body + directory + end


def quoted_zip() -> bytes:
    """Return an archive in which two members share their data."""
    return raw_zip(("a.npy", npy_bytes(ROWS)), ("a.npy", b""), offsets={1: 0})


A, B = ("a.npy", npy_bytes(ROWS)), ("b.npy", npy_bytes(ROWS + 1))
BOMB = npy_of("(30000000,)", "'|u1'")
NPZ = {
    "empty": (lambda: b"", r"acts\.npz is empty \(0 bytes\)"),
    "garbage": (lambda: b"garbage " * 20, r"acts\.npz is text, which begins 'garbage"),
    "no zip": (lambda: b"garbage\0" * 20, "File is not a zip file"),
    "pictures": (lambda: b"\x89PNG\r\n\x1a\n" + b"\0" * 30, r"acts\.npz is a picture \(PNG\)"),
    "bomb": (
        lambda: raw_zip(("a.npy", BOMB + b"\0" * 30_000_000)),
        r"'a' expands 10\d\d times, from 2\d{4} bytes to 30000000: at most 200 times",
    ),
    "claims more": (lambda: raw_zip(A, size=10**9), "'a' ends after 368 bytes of 1000000000"),
    "holds more": (
        lambda: raw_zip(("a.npy", npy_of("(20,)") + b"x" * 20_000)),
        "'a' asks for 80 bytes .* its member has 20000: it is damaged",
    ),
    "ends early": (
        lambda: raw_zip(("a.npy", npy_of("(100,)") + b"1234"), size=len(npy_of("(100,)")) + 400),
        "'a' ends after 72 bytes of 468: it is damaged",
    ),
    "goes on": (
        lambda: raw_zip(("a.npy", npy_bytes(ROWS) + b"x" * 9), size=len(npy_bytes(ROWS))),
        "'a' has another checksum",
    ),
    "other checksum": (lambda: raw_zip(A, crc=1), "'a' has another checksum"),
    "other checksum, stored": (lambda: raw_zip(A, crc=1, method=0), "'a' has another checksum"),
    "stored sizes differ": (lambda: raw_zip(A, size=99, method=0), "has 368 bytes that should unpack to 99"),
    "same name": (lambda: raw_zip(A, A), "it has two members 'a.npy'"),
    "same array": (lambda: raw_zip(A, ("a", b"")), "two of its members are array 'a'"),
    "parent": (lambda: raw_zip(("../a.npy", A[1])), r"'\.\./a\.npy' has a name that leads out"),
    "inner parent": (lambda: raw_zip(("b/../../a.npy", A[1])), "has a name that leads out"),
    "absolute": (lambda: raw_zip(("/a.npy", A[1])), "'/a.npy' has a name that leads out"),
    "backslash": (lambda: raw_zip(("..\\a.npy", A[1])), "has a name that leads out"),
    "overlap": (quoted_zip, "it has two members|lies over another one"),
    "overlapping": (lambda: overlapping(), "lies over another one"),
    "over the directory": (lambda: over_directory(), "lies over the directory"),
    "outside": (lambda: raw_zip(A, offsets={0: 10**6}), "is not a whole .npz file: unpack requires"),
    "other header": (
        lambda: raw_zip(A).replace(b"a.npy", b"b.npy", 1), "File name in directory 'a.npy' and header"
    ),
    "encrypted": (lambda: raw_zip(A, flags=1), "'a' is encrypted"),
    "method 12": (lambda: raw_zip(A, method=12), "'a' is packed by method 12"),
    "damaged deflate": (
        lambda: npz_bytes(True, a=ROWS)[:60] + b"\xff" * 9 + npz_bytes(True, a=ROWS)[69:],
        "'a' is damaged|'a' is not a .npy array|'a' has another|'a' ends",
    ),
    "pickle": (lambda: npz_bytes(a=np.array([{}], object)), "'a' has dtype object: .* pickle never"),
    "no array": (lambda: raw_zip(("a.txt", b"hello")), r"'a\.txt' is no \.npy member"),
    "garbage array": (lambda: raw_zip(("a.npy", b"hello")), "'a' is not a .npy array"),
    "scalar": (lambda: npz_bytes(a=np.float64(1)), "'a' is a scalar"),
    "directory damaged": (
        lambda: raw_zip(A, B).replace(b"PK\1\2", b"PK\1\3"), "Bad magic number for central directory"
    ),
    "directory too long": (
        lambda: raw_zip(*((f"{i:0200d}", b"") for i in range(3000))), "at most 524288 are read"
    ),
    "the longest directory": (
        lambda: raw_zip(*((f"{i:x}", b"") for i in range(10_000)), A, A), "two members 'a.npy'"
    ),
}  # fmt: skip
for key, (make, said) in NPZ.items():
    file(f"npz: {key}", said, ".npz", make)


def overlapping() -> bytes:
    """Return an archive whose second member lies within the first one's data."""
    inner = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, 5, 0) + b"b.npy"
    whole = raw_zip(("a.npy", A[1] + inner), ("b.npy", b""), method=0, offsets={1: 35 + len(A[1])})
    return whole


def over_directory() -> bytes:
    """Return an archive whose member is said to be longer than the file."""
    data = raw_zip(A, method=0)
    at = data.index(b"PK\1\2")
    return data[: at + 20] + struct.pack("<L", 10**6) + data[at + 24 :]


# --- .safetensors


def tensors(header: object, data: bytes = b"\0" * 240, length: int | None = None) -> bytes:
    """Return a file with this header, given as text or as what becomes JSON."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(
    begin: object = 0, end: object = 240, shape: object = (20, 3), dtype: object = "F32"
) -> dict:
    """Return an entry of the header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


TENSORS = {
    "empty": (lambda: b"", r"acts\.safetensors is empty \(0 bytes\)"),
    "short": (lambda: b"ab\0", "its header asks for"),
    "a checkpoint": (
        lambda: raw_zip(("acts/data.pkl", b"\x80\x02.")), r"acts\.safetensors is a PyTorch checkpoint"),
    "huge header": (lambda: tensors({}, length=2**63), "asks for 9223372036854775808 bytes, it has"),
    "long header": (lambda: tensors('{"a": 1' + " " * 2**20 + "}"), "at most 524288 are read"),
    "the longest header": (
        lambda: tensors("{" + ",".join(f'"{i}":{{}}' for i in range(48_000)) + "}"), "has no place"
    ),
    "the longest list": (
        lambda: tensors("[" + ",".join(["[]"] * 170_000) + "]"), "is not a JSON object"
    ),
    "not JSON": (lambda: tensors("{a: 1}"), "is not a whole safetensors file"),
    "not text": (lambda: struct.pack("<Q", 4) + b"\xff" * 4, "is not a whole safetensors file"),
    "nested": (lambda: tensors("[" * 100_000), "its header is nested too deep"),
    "a list": (lambda: tensors([1]), "its header is not a JSON object"),
    "number of 9999 digits": (lambda: tensors('{"a": ' + "9" * 9999 + "}"), "is not a whole"),
    "same name": (
        lambda: tensors(f'{{"a": {json.dumps(tensor())}, "a": {json.dumps(tensor())}}}'),
        "its header has 'a' twice",
    ),
    "overlap": (
        lambda: tensors({"a": tensor(0, 240), "b": tensor(120, 240, (10, 3))}),
        "'b' begins at byte 120, where 240 is due",
    ),
    "hole": (lambda: tensors({"a": tensor(4, 240)}), "'a' begins at byte 4, where 0 is due"),
    "beyond": (lambda: tensors({"a": tensor(0, 10**12)}), "take 1000000000000 bytes, the file has 240"),
    "no place": (lambda: tensors({"a": {"dtype": "F32"}}), "'a' has no place: data_offsets=None"),
    "no entry": (lambda: tensors({"a": 3}), "'a' has no place"),
    "negative place": (lambda: tensors({"a": tensor(-4, 240)}), "'a' has no place"),
    "bool place": (lambda: tensors({"a": tensor(False, 240)}), "'a' has no place"),
    "backwards": (lambda: tensors({"a": tensor(240, 0)}), "'a' has no place"),
    "unknown dtype": (lambda: tensors({"a": tensor(dtype="F4")}), "'a' has dtype F4, which is not read"),
    "dtype of another type": (lambda: tensors({"a": tensor(dtype=[])}), r"has dtype \[\], which is not"),
    "other shape": (lambda: tensors({"a": tensor(shape=(9, 3))}), "asks for 108 bytes .* stored in 240"),
    "negative shape": (lambda: tensors({"a": tensor(shape=(-20, -3))}), "not a shape"),
    "no shape": (lambda: tensors({"a": tensor(shape=7)}), "has shape 7: not a shape"),
    "shape bomb": (lambda: tensors({"a": tensor(shape=(2**40, 3))}), "asks for .* it is stored in 240"),
}  # fmt: skip
for key, (make, said) in TENSORS.items():
    file(f"safetensors: {key}", said, ".safetensors", make)


# --- HDF5


def hdf5(name: str, text: str):
    """Register a function that fills an open HDF5 file."""

    def register(fill: Callable[[h5py.File], None]) -> None:
        def write(folder: Path) -> Path:
            (folder / "secret").write_bytes(bytes(range(240)))
            with h5py.File(folder / "other.h5", "w") as another:
                another["a"] = ROWS
            with h5py.File(folder / "acts.h5", "w") as built:
                fill(built)
            return folder / "acts.h5"

        CASES[f"hdf5: {name}"] = write, text

    return register


file("hdf5: empty", r"acts\.h5 is empty \(0 bytes\)", ".h5", lambda: b"")
file("hdf5: garbage", "is not a whole HDF5 file", ".h5", lambda: b"garbage\0" * 20)
file("hdf5: a table", r"acts\.h5 is a Parquet table: ", ".h5", lambda: b"PAR1" + b"\0" * 60)
file(
    "unknown: nested JSON", r"acts\.json is a JSON file", ".json", lambda: b"{" + b'"a":{' * 100_000
)
file("unknown: an index of nothing", "is the index of a sharded checkpoint, of nothing", ".json",
     lambda: b'{"weight_map": {}}')  # fmt: skip
file("unknown: a zip bomb", r"acts\.zip is a zip archive: unpack it", ".zip",
     lambda: raw_zip(("a.txt", b"\0" * 10**7)))  # fmt: skip
file("unknown: bytes", r"acts\.bin is a PyTorch checkpoint", ".bin", lambda: b"\1\2\3\0" * 40)
file("hdf5: signature only", "is not a whole HDF5 file", ".h5", lambda: b"\x89HDF\r\n\x1a\n")


@hdf5("external link", "'a' is not in the file: it is a ExternalLink")
def _(made):
    made["a"] = h5py.ExternalLink("other.h5", "/a")


@hdf5("soft link", "'a' is not in the file: it is a SoftLink")
def _(made):
    made["a"] = h5py.SoftLink("/b")


@hdf5("external storage", "'a' is not in the file: it has external storage")
def _(made):
    made.create_dataset("a", (20, 3), "f4", external=[("secret", 0, 240)])


@hdf5("virtual", "'a' is not in the file: it is a virtual dataset")
def _(made):
    layout = h5py.VirtualLayout((20, 3), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "a", (20, 3))
    made.create_virtual_dataset("a", layout)


@hdf5("fill value bomb", "'a' expands .* times, from 0 bytes to 4398046511104")
def _(made):
    made.create_dataset("a", (2**40,), "f4", chunks=(2**10,), fillvalue=np.nan)


@hdf5("late allocation bomb", "'a' expands .* times, from 0 bytes to 4398046511104")
def _(made):
    made.create_dataset("a", (2**40,), "f4", fillvalue=np.nan)


@hdf5(
    "chunks never written",
    r"'a' has no stored values in rows 0 to 1024 \(chunk 0\): they were never",
)
def _(made):
    made.create_dataset("a", (2**40,), "f4", chunks=(2**10,), fillvalue=1)


@hdf5("a chunk never written", r"'a' has no stored values in rows 10 to 20 \(chunk 1\.0\)")
def _(made):
    made.create_dataset("a", (20, 3), "f4", chunks=(10, 3))[:10] = 1


@hdf5(
    "never written", "'a' has no stored values in rows 0 to 1099511627776: they were never written"
)
def _(made):
    made.create_dataset("a", (2**40,), "f4")


@hdf5("MATLAB's", "'a' was written by MATLAB, whose arrays are transposed")
def _(made):
    made["a"] = ROWS
    made["a"].attrs["MATLAB_class"] = np.bytes_(b"double")


@hdf5("chunk bomb", "'a' has chunks of 536870912 bytes, which must be in memory whole")
def _(made):
    made.create_dataset("a", (10,), "f4", chunks=(2**27,), maxshape=(None,), compression="gzip")


@hdf5("chunk goes on", "'a' has a chunk that does not end after 40 bytes: it is damaged")
def _(made):
    data = made.create_dataset("a", (10,), "f4", chunks=(10,), compression="gzip")
    data.id.write_direct_chunk((0,), zlib.compress(b"\0" * 30_000_000))


@hdf5("chunk ends early", "'a' has a chunk that unpacks to 4 bytes, not 40")
def _(made):
    data = made.create_dataset("a", (10,), "f4", chunks=(10,), compression="gzip")
    data.id.write_direct_chunk((0,), zlib.compress(b"abcd"))


@hdf5("damaged gzip", "'a' has a damaged chunk: ")
def _(made):
    data = made.create_dataset("a", (10,), "f4", chunks=(10,), compression="gzip")
    data.id.write_direct_chunk((0,), b"garbage")


@hdf5("other checksum", "'a' has a damaged chunk: .*filter returned failure")
def _(made):
    data = made.create_dataset("a", (10,), "f4", chunks=(10,), fletcher32=True)
    data.id.write_direct_chunk((0,), b"x" * 44)


@hdf5("no checksum", "'a' has a chunk that unpacks to 0 bytes, not 40")
def _(made):
    data = made.create_dataset("a", (10,), "f4", chunks=(10,), fletcher32=True)
    data.id.write_direct_chunk((0,), b"x" * 3)


LZF = {
    "a reference to nothing": (b"\x20\x05" * 13 + b"\0", "'a' has a damaged chunk: "),
    "a bomb": (b"\x00\x00" + b"\xe0\xff\x00" * 5000, "does not end after 40 bytes"),
    "too little": (b"\x03abcd", "unpacks to 4 bytes, not 40"),
    "cut off": (b"\x00\x00\xe0", "'a' has a damaged chunk: "),
}
for key, (content, said) in LZF.items():

    @hdf5(f"lzf with {key}", said)
    def _(made, content=content):
        data = made.create_dataset("a", (10,), "f4", chunks=(10,), compression="lzf")
        data.id.write_direct_chunk((0,), content)


@hdf5("something after the end of a chunk", "'a' has a damaged chunk: it ends early, or something")
def _(made):
    data = made.create_dataset("a", (10,), "f4", chunks=(10,), compression="gzip")
    data.id.write_direct_chunk((0,), zlib.compress(bytes(40)) * 2)


@hdf5("unknown filter", r"'a' has filter 32015 \(.*\): only gzip, lzf, shuffle and fletcher32")
def _(made):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((10,))
    plist.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (1,))
    space = h5py.h5s.create_simple((10,))
    h5py.h5d.create(made.id, b"a", h5py.h5t.IEEE_F32LE, space, plist)


@hdf5("text", "'a' has dtype object, which in HDF5 is no plain type of real numbers")
def _(made):
    made["a"] = ["text"]


@hdf5("records", "'a' has dtype .* is no plain type")
def _(made):
    made["a"] = np.zeros(3, "f4,i4")


@hdf5("a type", "'a' is not a dataset")
def _(made):
    made["a"] = np.dtype("f4")


@hdf5("scalar", "'a' is a scalar")
def _(made):
    made["a"] = 1.0


@hdf5("no shape", "'a' is empty: it has no shape")
def _(made):
    made["a"] = h5py.Empty("f4")
