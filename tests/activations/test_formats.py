"""Saved activations: every format gives back every array, bit for bit, in chunks of any size."""

from __future__ import annotations

import gc
import io
import math
import re
import struct
import sys
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import h5py
import ml_dtypes
import numcodecs
import numpy as np
import pytest
import zarr
from safetensors.numpy import save_file
from zarr import codecs

from collapsemeter.activations import ActivationsError, open_arrays
from collapsemeter.stats.npy_header import read_npy_header

PLAIN = (
    "bool", "i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8",
)  # fmt: skip
SWAPPED = (">i4", ">f2", ">f4", ">f8")
SMALL = (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
SHAPES = ((10, 3), (7,), (0, 4), (5, 0), (6, 2, 3), (1, 1))


def example(dtype, shape=(10, 3)) -> np.ndarray:
    """Return random bits, without the bytes that are no bool."""
    bits = np.random.default_rng(0).bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    if np.dtype(dtype) == bool:
        return (np.frombuffer(bits, np.uint8) % 2).astype(bool).reshape(shape)
    return np.frombuffer(bits, dtype).reshape(shape).copy()


def assert_same(path, expected: dict[str, np.ndarray]) -> None:
    """All arrays are there, with their dtype and bits, however they are cut."""
    with open_arrays(path) as file:
        file.check()
        assert set(file.arrays) == set(expected)
        assert file.refused == {}
        for name, array in expected.items():
            assert (file.arrays[name].shape, file.arrays[name].dtype) == (array.shape, array.dtype)
            rows = len(array)
            for step in (1, 3, rows + 5):
                cuts = [*range(0, rows, step), rows]
                parts = [file.read(name, a, b) for a, b in pairwise(cuts)]
                parts = parts or [file.read(name, 0, 5)]
                assert {part.dtype for part in parts} == {array.dtype}
                assert sum(part.shape[0] for part in parts) == rows
                assert b"".join(part.tobytes() for part in parts) == array.tobytes()
            for start, stop in ((0, 0), (rows + 1, rows + 9), (-2, rows), (2, 1), (1, -1)):
                actual = file.read(name, start, stop)
                assert actual.shape == array[start:stop].shape
                assert actual.tobytes() == array[start:stop].tobytes()


def everything(dtypes) -> dict[str, np.ndarray]:
    """Return an array of every dtype, and one of every shape."""
    arrays = {f"dtype {np.dtype(d).name} {np.dtype(d).str[0]}": example(d) for d in dtypes}
    return arrays | {f"shape {shape}": example("<f4", shape) for shape in SHAPES}


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", PLAIN + SWAPPED)
@pytest.mark.parametrize("shape", SHAPES)
def test_npy(tmp_path, dtype, shape, order):
    array = np.asarray(example(dtype, shape), order=order)
    np.save(tmp_path / "layer.npy", array)
    assert_same(tmp_path / "layer.npy", {"layer": array})


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save, order):
    arrays = everything(PLAIN + SWAPPED) | {"group/a": np.arange(3)}
    arrays = {name: np.asarray(array, order=order) for name, array in arrays.items()}
    save(tmp_path / "acts.npz", **arrays)
    assert_same(tmp_path / "acts.npz", arrays)


def test_headers_of_npy_are_read_in_several_threads():
    file = io.BytesIO()
    np.save(file, np.zeros((3, 2), np.float32))
    content = file.getvalue()

    def give_way(phase, info):  # to another thread, in the middle of parsing
        time.sleep(0)

    before, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.callbacks.append(give_way)
    gc.set_threshold(5)
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            actual = list(threads.map(lambda _: read_npy_header(content), range(2000)))
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*before)
        gc.callbacks.remove(give_way)
    assert {header.shape for header in actual} == {(3, 2)}


def test_safetensors(tmp_path):
    arrays = everything(PLAIN + SMALL)
    save_file(arrays, tmp_path / "acts.safetensors", metadata={"made": "by a test"})
    assert_same(tmp_path / "acts.safetensors", arrays)


HDF5 = {
    "contiguous": {},
    "chunked": {"chunks": True},
    "gzip": {"chunks": True, "compression": "gzip"},
    "gzip, shuffled": {"chunks": True, "compression": "gzip", "shuffle": True},
    "lzf, shuffled, checked": {
        "chunks": True, "compression": "lzf", "shuffle": True, "fletcher32": True
    },
    "checked": {"chunks": True, "fletcher32": True},
}  # fmt: skip


@pytest.mark.parametrize("userblock", [0, 512])
@pytest.mark.parametrize("version", ["earliest", "latest"])
@pytest.mark.parametrize("layout", HDF5)
def test_hdf5(tmp_path, layout, version, userblock):
    arrays = {f"group/{k}": a for k, a in everything(PLAIN + SWAPPED).items()}
    with h5py.File(tmp_path / "acts.h5", "w", libver=version, userblock_size=userblock) as file:
        for name, array in arrays.items():
            options = dict(HDF5[layout])
            if not array.size:  # HDF5 has no chunks of nothing
                options = {}
            if "chunks" in options:
                options["chunks"] = tuple(max(1, n - 1) for n in array.shape)
            file.create_dataset(name, data=array, **options)
    assert_same(tmp_path / "acts.h5", arrays)


def test_hdf5_small_datasets(tmp_path):
    compact = np.arange(6.0).reshape(3, 2)
    with h5py.File(tmp_path / "acts.hdf5", "w", userblock_size=512) as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((3, 2))
        h5py.h5d.create(file.id, b"compact", h5py.h5t.IEEE_F64LE, space, plist).write(
            h5py.h5s.ALL, h5py.h5s.ALL, compact
        )
    assert_same(tmp_path / "acts.hdf5", {"compact": compact})


def test_hdf5_compressible_runs_of_lzf(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "zeros": np.zeros((3000, 5)),
        "repeats": np.tile(rng.normal(size=(3, 5)), (500, 1)),
        "text": np.repeat(rng.integers(0, 9, 700), 13),
    }
    with h5py.File(tmp_path / "acts.h5", "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="lzf")
    assert_same(tmp_path / "acts.h5", arrays)


def test_hdf5_groups_may_hold_themselves(tmp_path):
    with h5py.File(tmp_path / "acts.h5", "w") as file:
        file["group/a"] = np.arange(3)
        file["group/self"] = file["group"]
        file["group/root"] = file["/"]
    with open_arrays(tmp_path / "acts.h5") as file:
        assert "group/a" in file.arrays
        assert len(file.arrays) <= 3


WHOLE = {"write_empty_chunks": True}
ZARR = {
    "2, blosc": (2, {}),
    "2, plain": (2, {"compressors": None}),
    "2, Fortran order, lz4": (2, {"order": "F", "compressors": numcodecs.LZ4()}),
    "2, shuffled, zlib": (
        2, {"filters": [numcodecs.Shuffle(4)], "compressors": numcodecs.Zlib()}
    ),
    "2, gzip": (2, {"compressors": numcodecs.GZip()}),
    "2, zstd": (2, {"compressors": numcodecs.Zstd()}),
    "2, bz2": (2, {"compressors": numcodecs.BZ2()}),
    "3, zstd": (3, {}),
    "3, plain": (3, {"compressors": None}),
    "3, big-endian": (3, {"serializer": codecs.BytesCodec(endian="big"), "filters": None}),
    "3, gzip, checked": (3, {"compressors": [codecs.GzipCodec(), codecs.Crc32cCodec()]}),
    "3, blosc": (3, {"compressors": codecs.BloscCodec()}),
    "3, keys of version 2": (3, {"chunk_key_encoding": {"name": "v2", "separator": "."}}),
}  # fmt: skip


@pytest.mark.parametrize("layout", ZARR)
def test_zarr(tmp_path, layout):
    version, options = ZARR[layout]
    least = 4 if "shuffled" in layout else 2 if "big" in layout else 1
    dtypes = PLAIN if "plain" in layout else ("u1", "<f2", "<i8", "<f8")
    dtypes = [d for d in dtypes if np.dtype(d).itemsize >= least]
    arrays = {f"group/{k.replace(' ', '_')}": a for k, a in everything(dtypes).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = zarr.open_group(tmp_path / "acts.zarr", mode="w", zarr_format=version)
        for name, array in arrays.items():
            chunks = tuple(max(1, n - 1) for n in array.shape)
            group.create_array(name, data=array, chunks=chunks, config=WHOLE, **options)
    assert_same(tmp_path / "acts.zarr", arrays)


@pytest.mark.parametrize("dtype", SWAPPED)
def test_zarr_2_knows_the_order_of_bytes(tmp_path, dtype):
    array = example(dtype)
    zarr.create_array(tmp_path / "a.zarr", data=array, chunks=(4, 2), zarr_format=2)
    assert_same(tmp_path / "a.zarr", {"a": array})


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0), (2, 1, 0)])
def test_zarr_transposed(tmp_path, order):
    array = example("f4", (9, 4, 5))
    filters = [codecs.TransposeCodec(order=order), codecs.TransposeCodec(order=(0, 2, 1))]
    zarr.create_array(tmp_path / "a.zarr", data=array, chunks=(4, 3, 2), filters=filters)
    assert_same(tmp_path / "a.zarr", {"a": array})


@pytest.mark.parametrize("location", ["start", "end"])
def test_zarr_shards(tmp_path, location):
    array = example("f4", (9, 4, 5))
    array[4:] = 0
    zarr.create_array(
        tmp_path / "a.zarr", data=array, chunks=(2, 2, 5), compressors=codecs.GzipCodec(), config=WHOLE,
        shards={"shape": (4, 4, 5), "index_location": location},
    )  # fmt: skip
    assert_same(tmp_path / "a.zarr", {"a": array})


@pytest.mark.parametrize("dtype", SMALL)
def test_zarr_of_what_its_library_does_not_know(tmp_path, dtype):
    array = example(dtype)
    bits = array.view(f"u{array.itemsize}")
    zarr.create_array(tmp_path / "a.zarr", data=bits, chunks=(4, 3))
    meta = tmp_path / "a.zarr" / "zarr.json"
    meta.write_text(meta.read_text().replace(bits.dtype.name, array.dtype.name))
    assert_same(tmp_path / "a.zarr", {"a": array})


def test_a_fill_value_may_be_bits(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", shape=(2,), chunks=(2,), dtype="f4", fill_value=1.5)
    meta = tmp_path / "a.zarr" / "zarr.json"
    text = meta.read_text()
    assert "1.5" in text
    meta.write_text(text.replace("1.5", '"0x7fc00001"'))
    with open_arrays(tmp_path / "a.zarr") as file:
        assert file.read("a", 0, 1).view("u4").tolist() == [0x7FC00001]


def test_compressed_arrays_are_read_in_one_pass(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", a=example("f4", (1000, 30)))
    rewinds = []
    seek = zipfile.ZipExtFile.seek
    monkeypatch.setattr(zipfile.ZipExtFile, "seek", lambda *a: (rewinds.append(a[1:]), seek(*a)))
    with open_arrays(tmp_path / "a.npz") as file:
        for start in range(0, 1000, 7):
            file.read("a", start, start + 7)
        assert rewinds == []
        file.read("a", 0, 1)
        assert rewinds == [(0,)]


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.safetensors", "a.h5"])
def test_views_outlive_the_file(tmp_path, name):
    array = example("f4")
    path = tmp_path / name
    if name.endswith("npy"):
        np.save(path, array)
    elif name.endswith("npz"):
        np.savez(path, a=array)
    elif name.endswith("h5"):
        with h5py.File(path, "w") as built:
            built["a"] = array
    else:
        save_file({"a": array}, path)
    with open_arrays(path) as file:
        rows = file.read("a", 2, 9)
    assert not rows.flags.writeable
    np.testing.assert_array_equal(rows.view("u4"), array[2:9].view("u4"))


def test_an_array_that_is_not_there(tmp_path):
    np.savez(tmp_path / "acts.npz", feats=np.zeros((5, 2), np.float32), y=np.zeros(5, np.int64))
    with open_arrays(tmp_path / "acts.npz") as file:
        expected = (
            "acts.npz has no array 'labels'; arrays found: 'feats' .5, 2. float32, 'y' .5,. int64"
        )
        with pytest.raises(ActivationsError, match=expected):
            file.read("labels", 0, 1)


def test_of_many_arrays_twenty_are_named(tmp_path):
    np.savez(tmp_path / "acts.npz", **{f"a{i}": np.zeros(1) for i in range(25)})
    with (
        open_arrays(tmp_path / "acts.npz") as file,
        pytest.raises(ActivationsError, match=r"and 5 more$"),
    ):
        file.read("labels", 0, 1)


def test_an_unknown_ending(tmp_path):
    (tmp_path / "acts.abc").write_bytes(bytes(range(1, 250)))
    with pytest.raises(
        ActivationsError, match=r"acts\.abc: only \.safetensors, \.npy, .* are read$"
    ):
        open_arrays(tmp_path / "acts.abc")


@pytest.mark.parametrize("ending", ["npy", "npz", "safetensors", "h5", "zarr", "pt"])
def test_a_missing_file(tmp_path, ending):
    with pytest.raises(FileNotFoundError, match=f"none.{ending}"):
        open_arrays(tmp_path / f"none.{ending}")


@pytest.mark.parametrize(
    ("ending", "module", "text"),
    [
        ("h5", "h5py", r"a\.h5 needs h5py: pip install 'collapsemeter\[hdf5\]'"),
        ("zarr", "zarr", r"a\.zarr needs zarr: pip install 'collapsemeter\[audit,zarr\]'"),
        ("safetensors", "ml_dtypes", r"needs ml_dtypes: pip install 'collapsemeter\[audit\]'"),
    ],
)
def test_a_library_that_is_not_installed(tmp_path, monkeypatch, ending, module, text):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=text):
        open_arrays(tmp_path / f"a.{ending}")


def test_archives_with_long_numbers(tmp_path):
    arrays = {"a": example("f4"), "b": example("f8")}
    np.savez(tmp_path / "plain.npz", **arrays)
    data = (tmp_path / "plain.npz").read_bytes()
    count, _, start = struct.unpack("<HLL", data[-12:-2])
    body, entries, at = data[:start], b"", start
    while data[at : at + 4] == b"PK\1\2":  # all sizes and places move to the extra field
        stored, size, names, extras = struct.unpack("<LLHH", data[at + 20 : at + 32])
        place = struct.unpack("<L", data[at + 42 : at + 46])[0]
        assert extras == 0
        entries += data[at : at + 20] + struct.pack("<LLHH", 2**32 - 1, 2**32 - 1, names, 34)
        entries += data[at + 32 : at + 42] + struct.pack("<L", 2**32 - 1)
        entries += data[at + 46 : at + 46 + names] + struct.pack("<2HH", 9, 2, 7)
        entries += struct.pack("<2H3Q", 1, 24, size, stored, place)
        at += 46 + names
    end = len(body) + len(entries)
    entries += struct.pack(
        "<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(entries), start
    )
    entries += struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    entries += struct.pack(
        "<4s4H2LH", b"PK\5\6", 0, 0, 2**16 - 1, 2**16 - 1, 2**32 - 1, 2**32 - 1, 0
    )
    (tmp_path / "long.npz").write_bytes(body + entries)
    with np.load(tmp_path / "long.npz") as expected:
        assert set(expected) == set(arrays)
    assert_same(tmp_path / "long.npz", arrays)


def test_an_archive_behind_a_prefix(tmp_path):
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", a=example("f4"))
        content = (tmp_path / "a.npz").read_bytes()
        (tmp_path / "a.npz").write_bytes(b"prefix" + content)
        assert_same(tmp_path / "a.npz", {"a": example("f4")})


# What netCDF and xarray say beside the numbers

PACKED = {
    "a scale": ({"scale_factor": 0.001}, "f4", "is packed, with scale_factor 0.001"),
    "an offset": ({"add_offset": [5.0]}, "f4", "is packed, with add_offset 5"),
    "a scale of integers": ({"scale_factor": 0.5}, "i2", "is packed, with scale_factor 0.5"),
    "a number for missing ones": ({"_FillValue": [-999.0]}, "f4", "for which -999 stands"),
    "an older name of it": ({"missing_value": 1e20}, "f8", r"for which 1e\+20 stands"),
    "bytes for missing ones": ({"_FillValue": "AAAAAAA4j8A="}, "f4", "for which -999 stands"),
    "NaN for missing ones": ({"_FillValue": [math.nan], "scale_factor": 1.0}, "f4", ""),
    "bytes of NaN": ({"_FillValue": "AAAAAAAA+H8=", "add_offset": 0}, "f4", ""),
    "a label for missing ones": ({"_FillValue": -1}, "i8", ""),
}


@pytest.mark.parametrize("ending", [".h5", "2.zarr", "3.zarr"])
@pytest.mark.parametrize("what", PACKED)
def test_packed_arrays_are_not_taken_for_what_they_mean(tmp_path, ending, what):
    attributes, dtype, reason = PACKED[what]
    path, values = tmp_path / f"x{ending}", np.arange(1, 13).reshape(4, 3).astype(dtype)
    if ending == ".h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=values).attrs.update(attributes)
    else:
        group = zarr.open_group(path, mode="w", zarr_format=int(ending[0]))
        group.create_array("x", data=values).attrs.update(attributes)
    with open_arrays(path) as arrays:
        if reason:
            assert re.search(reason, arrays.refused["x"])
        else:
            np.testing.assert_array_equal(arrays.read("x", 0, 4), values)
