"""Chunks that were never written: refused, or rows of NaN, which are left out and counted; never made up."""

from __future__ import annotations

import json
import warnings

import h5py
import numpy as np
import pytest
import zarr

from collapsemeter.activations import ActivationsError, open_arrays
from collapsemeter.audit import audit
from collapsemeter.cli import main

ROWS = np.random.default_rng(0).normal(size=(40, 6)) + 3 * np.eye(4, 6).repeat(10, axis=0)
LABELS = np.arange(4).repeat(10)
ARRAYS = {"fc": ROWS, "labels": LABELS}

ZARR = {
    "2": {"zarr_format": 2},
    "2, columns apart": {"zarr_format": 2, "chunks": (10, 3)},
    "2, plain": {"zarr_format": 2, "compressors": None},
    "3": {},
    "3, columns apart": {"chunks": (10, 2)},
    "3, sharded": {"chunks": (5, 6), "shards": (20, 6)},
    "3, half of a shard": {"chunks": (10, 6), "shards": (40, 6)},
}
HDF5 = {
    "chunked": {"chunks": (10, 6)},
    "gzip": {"chunks": (10, 6), "compression": "gzip"},
    "columns apart": {"chunks": (10, 2)},
    "grows": {"chunks": (10, 6), "maxshape": (None, 6)},
    "one chunk": {"chunks": (40, 6)},
    "contiguous": {},
}
FORMATS = [("zarr", name) for name in ZARR] + [("hdf5", name) for name in HDF5]


def write(folder, kind, layout, name, rows, fill=0, arrays=ARRAYS):
    """Write a file of arrays, of which one got its first rows only."""
    path = folder / f"acts.{'h5' if kind == 'hdf5' else kind}"
    options = (ZARR if kind == "zarr" else HDF5)[layout]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "zarr":
            group = zarr.open_group(path, mode="w", zarr_format=options.get("zarr_format", 3))
        else:
            group = h5py.File(path, "w")
        for key, array in arrays.items():
            given = {"chunks": (10, 6), **options}
            if kind == "hdf5":
                given = dict(options)
            given.pop("zarr_format", None)
            for what in ("chunks", "shards", "maxshape"):
                if what in given:
                    given[what] = given[what][: array.ndim]
            if kind == "zarr":
                built = group.create_array(
                    key, shape=array.shape, dtype=array.dtype, fill_value=fill if key == name else 0,
                    config={"write_empty_chunks": True}, **given,
                )  # fmt: skip
            else:
                given |= {"fillvalue": fill} if key == name else {}
                built = group.create_dataset(key, array.shape, array.dtype, **given)
            part = array[:rows] if key == name else array
            if len(part):
                built[: len(part)] = part
        if kind == "hdf5":
            group.close()
    return path


@pytest.mark.parametrize(("kind", "layout"), FORMATS)
@pytest.mark.parametrize("name", ["fc", "labels"])
def test_what_was_never_written_is_refused(tmp_path, kind, layout, name, capsys):
    # What is allocated as a whole does not tell what of it was written.
    rows = 0 if layout in ("contiguous", "one chunk") else 20
    path = write(tmp_path, kind, layout, name, rows)
    text = rf"array '{name}' has no stored values in rows {rows} to \d+.*never written"
    with open_arrays(path) as file, pytest.raises(ActivationsError, match=text) as caught:
        file.read(name, 0, len(LABELS))
    assert str(path) in str(caught.value)
    assert main(["audit", str(path), "--num-classes", "4", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "has no stored values in rows" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(("kind", "layout"), FORMATS)
def test_every_row_that_was_written_is_read(tmp_path, kind, layout):
    """Zeros too: a dead block of features, and labels whose first chunk is of class 0 alone."""
    dead = ROWS.copy()
    dead[:, 2:] = 0
    dead[:10] = 0
    path = write(tmp_path, kind, layout, "fc", 40, arrays={"fc": dead, "labels": LABELS})
    with open_arrays(path) as file:
        assert file.refused == {}
        np.testing.assert_array_equal(file.read("fc", 0, 40), dead)
        np.testing.assert_array_equal(file.read("labels", 0, 40), LABELS)


@pytest.mark.parametrize(("kind", "layout"), FORMATS)
def test_rows_of_nan_are_left_out_and_counted(tmp_path, kind, layout):
    """The fill value that says of itself that there is nothing."""
    rows = 0 if layout in ("contiguous", "one chunk") else 20
    path = write(tmp_path, kind, layout, "fc", rows, fill=np.nan)
    with open_arrays(path) as file:
        actual = file.read("fc", 0, 40)
    np.testing.assert_array_equal(actual[:rows], ROWS[:rows])
    assert np.isnan(actual[rows:]).all()
    if rows:
        layer = audit(str(path))["fc"]
        assert layer.provenance["nonfinite_rows"] == 20
        assert layer.per_class["count"].tolist() == [10, 10, 0, 0]


@pytest.mark.parametrize("version", [2, 3])
def test_zeros_that_zarr_left_out_are_told_apart_from_nothing_by_whoever_writes(tmp_path, version):
    """By default Zarr does not store a chunk of zeros: the sentence says how it does."""
    dead = ROWS.copy()
    dead[:10] = 0
    path = tmp_path / "a.zarr"
    zarr.create_array(path, data=dead, chunks=(10, 6), zarr_format=version)
    with open_arrays(path) as file:
        assert '"write_empty_chunks": True' in file.refused["a"]
        assert "rows 0 to 10" in file.refused["a"]
    zarr.create_array(
        path, data=dead, chunks=(10, 6), zarr_format=version, overwrite=True,
        config={"write_empty_chunks": True},
    )  # fmt: skip
    with open_arrays(path) as file:
        np.testing.assert_array_equal(file.read("a", 0, 40), dead)


@pytest.mark.parametrize(("kind", "layout"), [("zarr", "3"), ("hdf5", "gzip")])
def test_a_head_that_was_never_written(tmp_path, kind, layout, capsys):
    np.savez(tmp_path / "acts.npz", **ARRAYS)
    arrays = {"weight": np.eye(40, 6), "bias": np.ones(40)}
    path = write(tmp_path, kind, layout, "weight", 0, arrays=arrays)
    given = ["audit", str(tmp_path / "acts.npz"), "--head", str(path), "--quiet"]
    assert main(given) == 2
    said = capsys.readouterr().err
    assert "'weight' has no stored values in rows 0 to" in said


def test_one_layer_that_was_never_written_costs_no_other(tmp_path, capsys):
    arrays = {"conv": ROWS, "fc": ROWS, "labels": LABELS}
    path = write(tmp_path, "hdf5", "chunked", "conv", 20, arrays=arrays)
    assert main(["audit", str(path), "--num-classes", "4", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["layers"]) == ["fc"]
    assert "has no stored values in rows 20 to 30" in json.dumps(report)
