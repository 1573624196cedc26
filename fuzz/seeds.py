"""Valid files of every format, small, for a fuzzer to start from."""

from __future__ import annotations

import io
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from collapsemeter import ClassMoments

_MARK = b"\n--\n"  # between names and contents of files of a folder
_ROWS = np.arange(30, dtype="<f4").reshape(10, 3)


def npy() -> Iterator[bytes]:
    """C and Fortran order, two versions, and what is refused."""
    void = np.zeros((3, 2), "V2")  # as bfloat16 is written
    for array in (
        _ROWS,
        np.asfortranarray(_ROWS),
        np.arange(5),
        np.float64(1),
        np.array(["a"]),
        void,
    ):
        for version in ((1, 0), (2, 0)):
            file = io.BytesIO()
            np.lib.format.write_array(file, np.asanyarray(array), version)
            yield file.getvalue()
    yield from foreign()


def foreign() -> Iterator[bytes]:
    """What is recognised by its first bytes, and text, JSON and archives."""
    yield from (
        b"PAR1",
        b"\x80\x04\x95joblib",
        b"\x1f\x8b",
        b"MATLAB 5.0 MAT-file",
        b"\x89PNG",
        b"",
    )
    yield from (
        b"a,b\n1,2\n",
        b"setosa\nvirginica\n",
        b'{"weight_map": {"a": "b.safetensors"}}',
        b"<html>",
    )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("acts/data.pkl", b"\x80\x02.")
    yield file.getvalue()


def npz() -> Iterator[bytes]:
    """Stored and compressed."""
    arrays: dict[str, Any] = {"a": _ROWS, "f": np.asfortranarray(_ROWS), "y": np.arange(5)}
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, **arrays)
        yield file.getvalue()


def safetensors() -> Iterator[bytes]:
    """Several dtypes."""
    from ml_dtypes import bfloat16
    from safetensors.numpy import save

    yield save({"a": _ROWS, "y": np.arange(5)}, metadata={"layer": "fc"})
    yield save({"b": _ROWS.astype(bfloat16), "e": np.empty((0, 4), np.float32)})


def hdf5() -> Iterator[bytes]:
    """Every layout and filter that is read, old and new versions of the format."""
    import h5py

    layouts: list[dict[str, Any]] = [
        {}, {"chunks": (4, 2)}, {"chunks": (4, 2), "compression": "gzip", "shuffle": True},
        {"chunks": (4, 2), "compression": "lzf", "fletcher32": True},
        {"chunks": (4, 2), "maxshape": (None, None)},
        {"chunks": (4, 2), "fillvalue": np.nan},
    ]  # fmt: skip
    for version in ("earliest", "latest"):
        for layout in layouts:
            file = io.BytesIO()
            with h5py.File(file, "w", libver=version) as archive:
                archive.create_dataset("a", data=_ROWS, **layout)
                archive["group/y"] = np.arange(5)
                archive.create_dataset("unwritten", (10, 3), "f4", **layout)
            yield file.getvalue()


def zarr() -> Iterator[bytes]:
    """Both versions, codecs, shards and groups; a folder as one input."""
    import zarr as library
    from zarr import codecs

    layouts: list[tuple[int, dict[str, Any]]] = [
        (2, {}), (2, {"order": "F", "compressors": None}), (3, {}),
        (3, {"shards": (8, 2)}), (3, {"fill_value": np.nan}),
        (3, {"compressors": [codecs.GzipCodec(), codecs.Crc32cCodec()]}),
        (3, {"filters": [codecs.TransposeCodec(order=(1, 0))], "compressors": codecs.BloscCodec()}),
    ]  # fmt: skip
    for version, layout in layouts:
        for inside in ("", "group/a"):
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                library.create_array(
                    folder, name=inside or None, data=_ROWS, chunks=(4, 2), zarr_format=version,
                    **layout,
                )  # fmt: skip
                yield pack_folder(Path(folder))


def pack_folder(folder: Path) -> bytes:
    """Return the files of a folder as one string of bytes."""
    parts = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            parts += [path.relative_to(folder).as_posix().encode(), path.read_bytes()]
    return _MARK.join(parts)


def unpack_folder(data: bytes, folder: Path) -> None:
    """Write such a string as files, but none outside of the folder."""
    parts = data.split(_MARK)
    for name, content in zip(parts[::2], parts[1::2], strict=False):
        path = Path(name.decode("ascii", "ignore").replace("\0", ""))
        if path.is_absolute() or ".." in path.parts or len(str(path)) > 200:
            continue
        try:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        except OSError:  # a file where a folder is due, or the other way round
            continue


def state() -> Iterator[bytes]:
    """State files without their checksum."""
    for kind in ("class", "pooled", "sketch", "trace"):
        moments = ClassMoments.from_batch(_ROWS, np.arange(10) % 3, 3, scatter=kind)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "state")
            moments.save(path)
            yield path.read_bytes()[:-64]


SEEDS = {
    "npy": npy, "npz": npz, "safetensors": safetensors, "hdf5": hdf5, "zarr": zarr, "state": state,
}  # fmt: skip
