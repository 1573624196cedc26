"""Files that are not read: one sentence that says what each is, and a line of Python that converts it."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import re
import shutil
import struct
import sys
import tarfile
import zipfile
import zlib

import google_crc32c
import h5py
import ml_dtypes
import numpy as np
import pytest
import zarr
from safetensors.numpy import save_file

from collapsemeter.activations import ActivationsError, open_arrays
from collapsemeter.activations.foreign_kinds import ENDINGS
from collapsemeter.activations.remote import open_file
from collapsemeter.cli import main

ROWS = (np.random.default_rng(0).normal(size=(12, 4)) + 5 * np.eye(3, 4).repeat(4, 0)).astype("f4")
LABELS = np.arange(3).repeat(4)
ARRAYS = {"features": ROWS, "labels": LABELS}


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def archive(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as built:
        for name, content in members.items():
            built.writestr(name.replace("__", "/"), content)
    return file.getvalue()


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as built:
        built.addfile(tarfile.TarInfo("a"), io.BytesIO())
    return file.getvalue()


def csv(separator: str, header: str = "") -> bytes:
    lines = [separator.join(map(str, row)) for row in ROWS.tolist()]
    return "\n".join([*([header] if header else []), *lines]).encode()


def record() -> bytes:
    length = struct.pack("<Q", 5)
    crc = google_crc32c.value(length)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return length + struct.pack("<I", masked) + b"12345" + b"crc."


def hdf5(block: bytes = b"") -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w", userblock_size=512 if block else 0) as built:
        built["a"] = ROWS
    content = file.getvalue()
    return block + content[len(block) :]


PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 30
WHAT = {
    "a PyTorch checkpoint": lambda: archive(acts__data_pkl=b"", **{"acts/data.pkl": b"\x80\x02."}),
    "a PyTorch checkpoint ": lambda: b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + b"x" * 40,
    "a pickle": lambda: pickle.dumps(ARRAYS),
    "a pickle of joblib": lambda: b"\x80\x04\x95cjoblib.numpy_pickle\n",
    "text, which begins 'a,b,c,d'": lambda: csv(",", "a,b,c,d"),
    "text, which begins ": lambda: csv("\t"),
    "a Parquet table": lambda: b"PAR1" + b"\0" * 20 + b"PAR1",
    "an Arrow table (Feather)": lambda: b"ARROW1\0\0" + b"\0" * 20,
    "an Arrow stream": lambda: b"\xff\xff\xff\xff" + b"\0" * 20,
    "a MATLAB file of version 5": lambda: (
        b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(128) + b"\0" * 9
    ),
    "a MATLAB file of version 7.3": lambda: hdf5(b"MATLAB 7.3 MAT-file, Platform".ljust(512)),
    "a TFRecord file": record,
    "compressed by gzip": lambda: gzip.compress(npy(ROWS)),
    "compressed by bzip2": lambda: bz2.compress(npy(ROWS)),
    "compressed by xz": lambda: lzma.compress(npy(ROWS)),
    "compressed by zstd": lambda: b"\x28\xb5\x2f\xfd" + b"\0" * 9,
    "a tar archive": tar,
    "a 7z archive": lambda: b"7z\xbc\xaf\x27\x1c" + b"\0" * 9,
    "a picture (PNG)": lambda: PNG,
    "a picture (JPEG)": lambda: b"\xff\xd8\xff\xe0" + b"\0" * 30,
    "a GGUF file of weights": lambda: b"GGUF" + b"\0" * 30,
    "a Keras model": lambda: archive(**{"config.json": b"{}", "model.weights.h5": b""}),
    "an Excel workbook": lambda: archive(**{"[Content_Types].xml": b""}),
    "a Zarr folder in a zip archive": lambda: archive(**{"acts/zarr.json": b"{}"}),
    "a pointer of Git LFS": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    "a web page": lambda: b"<!DOCTYPE html><html>404</html>",
    "the index of a sharded checkpoint": lambda: json.dumps(
        {"metadata": {}, "weight_map": {"fc.weight": "model-00001-of-00002.safetensors"}}
    ).encode(),
    "not a manifest of activations, but a JSON object with 'features'": lambda: json.dumps(
        {"features": ROWS.tolist()}
    ).encode(),
    "empty (0 bytes)": lambda: b"",
    "an SQLite database": lambda: b"SQLite format 3\0" + b"\0" * 20,
}
NAMED = (".npy", ".npz", ".safetensors", ".h5", ".pt", ".bin", "")


@pytest.mark.parametrize("ending", NAMED)
@pytest.mark.parametrize("what", WHAT)
def test_the_content_tells_whatever_the_ending_says(tmp_path, what, ending):
    path = tmp_path / f"acts{ending}"
    path.write_bytes(WHAT[what]())
    if ending == ".h5" and "7.3" in what:  # it is HDF5 as well
        return
    if ending == ".npz" and path.read_bytes()[:2] == b"PK":  # its members are none of arrays
        return
    with pytest.raises(ActivationsError) as caught:
        open_arrays(path)
    said = str(caught.value)
    assert f"{path} is {what.strip()}" in said
    assert len(said.splitlines()) == 1
    assert len(said) < 500 + len(str(path))


@pytest.mark.parametrize(
    ("content", "what", "right"),
    [
        (npy(ROWS), "a .npy array", "name it acts.npy"),
        (hdf5(), "an HDF5 file", "name it acts.h5"),
        (archive(**{"a.npy": npy(ROWS)}), "an .npz archive", "name it acts.npz"),
        (struct.pack("<Q", 2) + b"{}", "a safetensors file", "name it acts.safetensors"),
    ],
)
@pytest.mark.parametrize("ending", [".dat", ".zip", ".bin", ".npy", ".h5", ".safetensors"])
def test_what_is_read_under_another_name(tmp_path, content, what, right, ending):
    path = tmp_path / f"acts{ending}"
    path.write_bytes(content)
    try:
        with open_arrays(path):
            assert right.endswith(ending)
    except ActivationsError as error:
        assert str(error) == f"{path} is {what}: {right}"  # noqa: PT017


@pytest.mark.parametrize("ending", sorted(ENDINGS))
def test_files_that_look_like_nothing(tmp_path, ending):
    path = tmp_path / f"acts{ending}"
    path.write_bytes(bytes(range(1, 250)))
    with pytest.raises(ActivationsError, match=rf"acts\{ending}( is |: only )") as caught:
        open_arrays(path)
    assert len(str(caught.value).splitlines()) == 1


def converted(said: str) -> None:
    """Run the line that a message names, as somebody would who pasted it."""
    line = re.search(r"(?:with|convert it): (import .*)$", said)[1]
    exec(line, {})


def write(folder, ending) -> None:
    """Write features and labels as a user of another library would."""
    path = folder / f"acts{ending}"
    if ending in (".pt", ".pth"):
        import torch

        torch.save({k: torch.from_numpy(v) for k, v in ARRAYS.items()}, path)
    elif ending == ".pkl":
        path.write_bytes(pickle.dumps(ARRAYS))
    elif ending == ".json":
        path.write_text(json.dumps({k: v.tolist() for k, v in ARRAYS.items()}))
    elif ending in (".csv", ".tsv", ".txt"):
        separator = {".csv": ",", ".tsv": "\t", ".txt": " "}[ending]
        path.write_bytes(csv(separator, separator.join("abcd")))
    elif ending == ".npy.gz":
        path.write_bytes(gzip.compress(npy(ROWS)))
    elif ending == ".mat":
        import scipy.io

        scipy.io.savemat(path, {"features": ROWS, "labels": LABELS[:, None]})
    elif ending == ".7.mat":
        content = io.BytesIO()
        with h5py.File(content, "w", userblock_size=512) as built:
            built["features"], built["labels"] = ROWS.T, LABELS[None]
        path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(512) + content.getvalue()[512:])


@pytest.mark.parametrize(
    "ending",
    [".pt", ".pth", ".pkl", ".json", ".csv", ".tsv", ".txt", ".npy.gz", ".mat", ".7.mat"],
)
def test_the_line_converts_the_file(tmp_path, monkeypatch, capsys, ending):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, ending)
    np.save("y.npy", LABELS)
    before = (tmp_path / f"acts{ending}").read_bytes()
    assert main(["audit", f"acts{ending}", "--labels", "y.npy"]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    converted(said)
    assert (tmp_path / f"acts{ending}").read_bytes() == before
    built = [p.name for p in tmp_path.iterdir() if p.name not in (f"acts{ending}", "y.npy")]
    assert len(built) == 1, built
    assert main(["audit", *built, "--labels", "y.npy", "--quiet"]) == 0, capsys.readouterr().err
    with open_arrays(built[0]) as file:
        name = "features" if "features" in file.arrays else "acts"
        np.testing.assert_allclose(file.read(name, 0, 99), ROWS, rtol=1e-6)


@pytest.mark.parametrize("names", [["setosa", "versicolor", "virginica"], ["7", "8", "9"]])
@pytest.mark.parametrize("ending", [".csv", ".txt"])
def test_the_line_numbers_classes(tmp_path, monkeypatch, capsys, names, ending):
    monkeypatch.chdir(tmp_path)
    np.save("acts.npy", ROWS)
    (tmp_path / f"y{ending}").write_text("\n".join(names[c] for c in LABELS))
    assert main(["audit", "acts.npy", "--labels", f"y{ending}"]) == 2
    converted(capsys.readouterr().err.strip())
    actual = np.load("y.npy")
    assert actual.tolist() == (LABELS if names[0] == "setosa" else LABELS + 7).tolist()


@pytest.mark.parametrize("role", ["FILE", "--labels", "--head", "--predictions", "--logits"])
@pytest.mark.parametrize("ending", [".pt", ".csv", ".parquet", ".pkl", ".mat", ".npy"])
def test_in_whatever_role_it_is_given(tmp_path, capsys, role, ending):
    np.savez(tmp_path / "acts.npz", fc=ROWS, labels=LABELS)
    (tmp_path / f"other{ending}").write_bytes(PNG)
    another = str(tmp_path / f"other{ending}")
    given = [another] if role == "FILE" else [str(tmp_path / "acts.npz"), role, another]
    assert main(["audit", *given, "--num-classes", "3", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert f"{another} is a picture (PNG): the audit reads activations" in said
    assert len(said.splitlines()) == 1


def test_the_index_of_a_sharded_checkpoint(tmp_path, capsys):
    save_file(ARRAYS, tmp_path / "model-00001-of-00001.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    places = dict.fromkeys(ARRAYS, "model-00001-of-00001.safetensors")
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    acts = str(tmp_path / "model-00001-of-00001.safetensors")
    for given in ([str(index)], [acts, "--head", str(index)], [acts, "--labels", str(index)]):
        assert main(["audit", *given, "--quiet"]) == 2
        said = capsys.readouterr().err
        assert f"{index} is the index of a sharded checkpoint, 'labels' in model-0" in said
        assert "pass the files that it names instead, model-00001-of-00001.safetensors" in said
    assert main(["audit", acts, "--quiet"]) == 0


@pytest.mark.parametrize("fill", [{}, {"weight_map": 3}, {"weight_map": {}}, {"{file}": "{0}"}])
def test_json_that_is_no_manifest(tmp_path, capsys, fill):
    (tmp_path / "a.json").write_text(json.dumps(fill))
    assert main(["audit", str(tmp_path / "a.json")]) == 2
    said = capsys.readouterr().err
    assert "a.json is " in said
    assert "KeyError" not in said
    assert len(said.splitlines()) == 1


def test_urls_are_refused_before_they_are_copied(tmp_path):
    for url in (
        "memory://acts.pt",
        "https://example.invalid/labels.csv?x=1",
        "s3://bucket/a.parquet",
    ):
        with pytest.raises(ActivationsError, match=re.escape(url) + " is "):
            open_file(url, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_copy_of_a_url_is_named_as_the_url(tmp_path):
    import fsspec

    with fsspec.open("memory://acts.npy", "wb") as file:
        file.write(PNG)
    with pytest.raises(ActivationsError, match=r"^memory://acts\.npy is a picture"):
        open_file("memory://acts.npy", tmp_path)


def test_folders(tmp_path, capsys):
    for i in range(3):
        (tmp_path / "pictures" / str(i)).mkdir(parents=True)
        (tmp_path / "pictures" / str(i) / "a.png").write_bytes(PNG)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "a.csv").write_bytes(csv(","))
    (tmp_path / "tables" / "b.parquet").write_bytes(b"PAR1")
    zarr.create_array(tmp_path / "store", data=ROWS)
    (tmp_path / "tf").mkdir()
    (tmp_path / "tf" / "saved_model.pb").write_bytes(b"x")
    for name, text in {
        "pictures": "is a folder of 3 files .png, pictures: the audit reads activations",
        "tables": "is a folder of 1 files .parquet, each a Parquet table: convert each",
        "store": "is a Zarr folder: name it store.zarr",
        "tf": "is a model saved by TensorFlow",
    }.items():
        assert main(["audit", str(tmp_path / name)]) == 2
        assert f"{tmp_path / name} {text}" in capsys.readouterr().err


BY_FORMAT = ("npy", "npz", "safetensors", "zarr", "h5")


def saved(folder, ending, array):
    """Save features and labels in a format; return the arguments of the audit."""
    path = folder / f"acts.{ending}"
    both = {"fc": array, "labels": LABELS}
    if ending == "npy":
        np.save(path, array)
        np.save(folder / "y.npy", LABELS)
        return [str(path), "--labels", str(folder / "y.npy")]
    if ending == "npz":
        np.savez(path, **both)
    elif ending == "safetensors":
        save_file(both, path)
    elif ending == "zarr":
        group = zarr.open_group(path, mode="w")
        for name, value in both.items():
            group.create_array(name, data=value, config={"write_empty_chunks": True})
    else:
        with h5py.File(path, "w") as file:
            for name, value in both.items():
                file[name] = value
    return [str(path)]


@pytest.mark.parametrize("ending", BY_FORMAT)
@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int32", "int64"])
def test_features_of_integers_are_refused_in_every_format(tmp_path, capsys, ending, dtype):
    given = saved(tmp_path, ending, (3 * ROWS).astype(dtype))
    assert main(["audit", *given, "--quiet"]) == 2
    said = capsys.readouterr().err
    assert f"acts.{ending}" in said
    assert dtype in said
    assert "save them as floats, x.astype('float32')" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("ending", ["npy", "npz", "zarr", "h5"])
@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_features_are_refused_in_every_format(tmp_path, capsys, ending, dtype):
    given = saved(tmp_path, ending, ROWS.astype(dtype))
    assert main(["audit", *given, "--quiet"]) == 2
    said = capsys.readouterr().err
    assert f"acts.{ending}" in said
    assert dtype in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("ending", ["npy", "npz"])
@pytest.mark.parametrize(
    "dtype",
    [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3b11fnuz],
)  # fmt: skip
def test_narrow_floats_that_numpy_saved_say_no_type(tmp_path, capsys, ending, dtype):
    given = saved(tmp_path, ending, ROWS.astype(dtype))
    assert main(["audit", *given, "--quiet"]) == 2
    said = capsys.readouterr().err
    assert f"acts.{ending}" in said
    assert re.search(r"has dtype ('<f1'|\|V[12]).*safetensors\.numpy\.save_file", said)
    assert "not a .npy" not in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("ending", BY_FORMAT)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f2", "longdouble", "bfloat16", "float8_e4m3fn"])
def test_floats_are_measured_as_a_batch_is(tmp_path, capsys, ending, order, dtype):
    if (ending, dtype) not in {(e, d) for e in BY_FORMAT for d in (">f4", ">f8", "<f2")} | {
        ("npy", "longdouble"), ("npz", "longdouble"),
        ("safetensors", "bfloat16"), ("safetensors", "float8_e4m3fn"),
    } - {("safetensors", ">f4"), ("safetensors", ">f8")}:  # fmt: skip
        return  # the format has no such numbers
    from collapsemeter import ClassMoments, measure

    rows = np.asarray(ROWS.astype(dtype), order=order)
    if ending == "safetensors":  # its library forgets the order
        rows = np.ascontiguousarray(rows)
    given = saved(tmp_path, ending, rows)
    assert main(["audit", *given, "--json"]) == 0, capsys.readouterr().err
    layer = next(iter(json.loads(capsys.readouterr().out)["layers"].values()))
    expected = measure(ClassMoments.from_batch(rows, LABELS, 3))["nc1_pinv"]
    assert layer["metrics"]["nc1_pinv"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("ending", ["npy", "npz", "h5"])
@pytest.mark.parametrize("labels", ["texts", "bytes", "objects"])
def test_labels_of_texts_are_told_how_to_be_numbered(tmp_path, capsys, ending, labels):
    names = np.array(["setosa", "versicolor", "virginica"])[LABELS]
    built = {"texts": names, "bytes": names.astype("S"), "objects": names.astype(object)}[labels]
    if ending == "h5":
        path = tmp_path / "acts.h5"
        with h5py.File(path, "w") as file:
            file["fc"], file["labels"] = ROWS, built.astype("S").astype(object)
        given = [str(path)]
    elif ending == "npz":
        np.savez(tmp_path / "acts.npz", fc=ROWS, labels=built)
        given = [str(tmp_path / "acts.npz")]
    else:
        np.save(tmp_path / "acts.npy", ROWS)
        np.save(tmp_path / "y.npy", built, allow_pickle=True)
        given = [str(tmp_path / "acts.npy"), "--labels", str(tmp_path / "y.npy")]
    assert main(["audit", *given, "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "has dtype " in said
    assert "np.unique(labels, return_inverse=True)[1]" in said
    assert len(said.splitlines()) == 1


def test_raw_numbers_that_are_called_npy(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ROWS.tofile("x.npy")
    np.save("y.npy", LABELS)
    before = (tmp_path / "x.npy").read_bytes()
    assert main(["audit", "x.npy", "--labels", "y.npy"]) == 2
    said = capsys.readouterr().err.strip()
    assert "x.npy is not a .npy array: it has no header; if these are raw numbers" in said
    line = re.search(r"np\.save\(.*\)$", said)[0]
    exec(line, {"np": np, "N": 12, "d": 4})
    assert (tmp_path / "x.npy").read_bytes() == before
    assert main(["audit", "with-header-x.npy", "--labels", "y.npy", "--quiet"]) == 0


@pytest.mark.parametrize(
    ("option", "name", "meant"),
    [("--labels", "targts", "targets"), ("--predictions", "desisions", "decisions"),
     ("--head-name", "clasifier", "classifier")],
)  # fmt: skip
def test_a_misspelt_name_is_told_the_one_that_is_close(tmp_path, capsys, option, name, meant):
    weights = {"classifier.weight": np.eye(3, 4), "other.weight": np.eye(3, 4)}
    save_file(weights, tmp_path / "head.safetensors")
    np.savez(tmp_path / "acts.npz", fc=ROWS, labels=LABELS, targets=LABELS, decisions=LABELS)
    given = {
        "--head": str(tmp_path / "head.safetensors"),
        "--head-name": "classifier",
        option: name,
    }
    pairs = [text for pair in given.items() for text in pair]
    assert main(["audit", str(tmp_path / "acts.npz"), *pairs]) == 2
    assert f"did you mean {meant!r}?" in capsys.readouterr().err


def test_a_misspelt_array_of_an_open_file(tmp_path):
    np.savez(tmp_path / "acts.npz", feats=ROWS)
    with (
        open_arrays(tmp_path / "acts.npz") as file,
        pytest.raises(ActivationsError, match=r"no array 'feet'.*; did you mean 'feats'\?$"),
    ):
        file.read("feet", 0, 1)


def test_matlab_arrays_of_version_7_3_under_another_name(tmp_path):
    """MATLAB lays arrays out the other way round: read as they are, rows and columns would change places."""
    with h5py.File(tmp_path / "acts.h5", "w") as file:
        file["features"] = ROWS.T
        file["features"].attrs["MATLAB_class"] = np.bytes_(b"single")
    with open_arrays(tmp_path / "acts.h5") as file:
        assert re.search(r"was written by MATLAB.*\.T", file.refused["features"])


def test_nothing_is_unpickled_or_unpacked_to_find_out(tmp_path):
    class Trap:
        def __reduce__(self):
            return shutil.rmtree, (str(tmp_path),)

    for name, content in {
        "a.npy": pickle.dumps(Trap()),
        "b.pt": archive(**{"acts/data.pkl": pickle.dumps(Trap())}),
        "c.npy": gzip.compress(pickle.dumps(Trap())),
        "d.npy": zlib.compress(b"\0" * 10**7),
        "e.bin": b"{" + b"[" * 10**6,
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ActivationsError, match=name):
            open_arrays(tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 5
    assert sys.getrecursionlimit() >= 1000


@pytest.mark.parametrize("content", [b"x\n   \nx", b" \n \n", b"\n\n1", b",\n,"])
def test_text_of_blank_lines_is_told_as_text(tmp_path, capsys, content):
    (tmp_path / "a.npy").write_bytes(content)
    assert main(["audit", str(tmp_path / "a.npy")]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"collapsemeter: {tmp_path / 'a.npy'} ")
    assert err.count("\n") == 1
