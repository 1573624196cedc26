"""Files that are not read: what each is, by its content rather than its name, and the line that converts it.

Nothing of a file is unpacked or unpickled to find out.
"""

import codecs
import itertools
import json
import os
import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

_HEAD = 2**13  # bytes at the start of a file that tell what it is
_SHOWN = 4  # names in a sentence


class Foreign(NamedTuple):
    """A kind of file: what it is, what to do about it, and how its name ends and its content begins."""

    what: str
    remedy: str  # with {file} and {stem} for the name
    endings: tuple[str, ...] = ()
    begins: tuple[bytes, ...] = ()
    offsets: tuple[int, ...] = (0,)
    read_as: tuple[str, ...] = ()  # endings under which it would be read


def _line(imports: str, code: str, more: str = "") -> str:
    return f"convert it, {more}with: import {imports}; {code}"


def _unpacking(module: str) -> str:
    code = f'pathlib.Path("{{stem}}").write_bytes({module}.decompress(pathlib.Path("{{file}}").read_bytes()))'
    return _line(f"{module}, pathlib", code)


_NPY, _NPZ = 'np.save("{stem}.npy", %s)', 'np.savez("{stem}.npz", **%s)'
_OF_DICT = _NPZ + "  # of a dict of arrays"
_TRUSTED = "if you trust it, "
_PANDAS = "numpy as np, pandas as pd"
_TABLE = _NPY % 'pd.read_%s("{file}").to_numpy("float32")'
_DATASET = _NPY % 'datasets.%s("{file}").with_format("numpy")["features"]'
_AS_JSON = 'json.loads(pathlib.Path("{file}").read_text())'
_PICTURES = "the audit reads activations: run the network on the pictures, and write its layers with collapsemeter.activations.Writer"
_WEIGHTS = "run the model, and write its layers with collapsemeter.activations.Writer"
_UNPACK = "unpack it, and pass what is in it"

_TORCH = Foreign(
    "a PyTorch checkpoint",
    _line(
        "torch, safetensors.torch as s",
        's.save_file({k: v.contiguous() for k, v in torch.load("{file}", map_location="cpu").items()}, '
        '"{stem}.safetensors")  # a tensor x alone: {"features": x}',
    ),
    (".pt", ".pth", ".ckpt", ".bin"),
    (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",),
)
_PICKLED = 'pickle.loads(pathlib.Path("{file}").read_bytes())'
_PICKLE = Foreign(
    "a pickle",
    _line("numpy as np, pathlib, pickle", _OF_DICT % _PICKLED, _TRUSTED),
    (".pkl", ".pickle"),
)
_JOBLIB = Foreign(
    "a pickle of joblib",
    _line("numpy as np, joblib", _OF_DICT % 'joblib.load("{file}")', _TRUSTED),
    (".joblib",),
)
_RECORDS = (
    '[tf.io.parse_single_example(r, {"features": tf.io.FixedLenFeature([d], tf.float32)})["features"] '
    'for r in tf.data.TFRecordDataset("{file}")]'
)
_TFRECORD = Foreign(
    "a TFRecord file",
    _line("numpy as np, tensorflow as tf", _NPY % _RECORDS),
    (".tfrecord", ".tfrecords"),
)
_KERAS = Foreign("a Keras model", _WEIGHTS, (".keras",))
_MATLAB_5 = '{k: v for k, v in scipy.io.loadmat("{file}").items() if k[0] != "_"}'
_MATLAB_7 = 'f = h5py.File("{file}"); ' + _NPZ % '{k: f[k][()].T for k in f if k[0] != "#"}'

# The first kind whose beginning a file has is the file's kind.
_KINDS = (
    Foreign("a .npy array", "name it {stem}.npy", begins=(b"\x93NUMPY",), read_as=(".npy",)),
    Foreign(
        "a MATLAB file of version 5",
        _line("numpy as np, scipy.io", _NPZ % _MATLAB_5),
        (".mat",),
        (b"MATLAB 5.0",),
    ),
    Foreign(
        "a MATLAB file of version 7.3, whose arrays are transposed in HDF5",
        _line("h5py, numpy as np", _MATLAB_7),
        begins=(b"MATLAB 7.3",),
    ),
    Foreign(
        "an HDF5 file",
        "name it {stem}.h5",
        begins=(b"\x89HDF\r\n\x1a\n",),
        offsets=(0, 512, 1024, 2048, 4096),
        read_as=(".h5", ".hdf5"),
    ),
    Foreign("a Parquet table", _line(_PANDAS, _TABLE % "parquet"), (".parquet", ".pq"), (b"PAR1",)),
    Foreign(
        "an Arrow table (Feather)",
        _line(_PANDAS, _TABLE % "feather"),
        (".feather",),
        (b"ARROW1", b"FEA1"),
    ),
    Foreign(
        "an Arrow stream, as datasets are cached in",
        _line("datasets, numpy as np", _DATASET % "Dataset.from_file"),
        (".arrow",),
        (b"\xff\xff\xff\xff",),
    ),
    _TORCH,
    _PICKLE,
    _JOBLIB,
    _TFRECORD,
    _KERAS,
    Foreign("an ONNX model", _WEIGHTS, (".onnx",)),
    Foreign("compressed by gzip", _unpacking("gzip"), (".gz",), (b"\x1f\x8b",)),
    Foreign("compressed by bzip2", _unpacking("bz2"), (".bz2",), (b"BZh",)),
    Foreign("compressed by xz", _unpacking("lzma"), (".xz",), (b"\xfd7zXZ\0",)),
    Foreign("compressed by zstd", "unpack it with: zstd -d {file}", (), (b"\x28\xb5\x2f\xfd",)),
    Foreign("a 7z archive", _UNPACK, (), (b"7z\xbc\xaf\x27\x1c",)),
    Foreign("a tar archive", _UNPACK, (), (b"ustar",), (257,)),
    Foreign("an archive", _UNPACK, (".zip", ".tar", ".tgz", ".7z")),
    Foreign("a picture (PNG)", _PICTURES, (), (b"\x89PNG",)),
    Foreign("a picture (JPEG)", _PICTURES, (), (b"\xff\xd8\xff",)),
    Foreign("a picture (GIF)", _PICTURES, (), (b"GIF8",)),
    Foreign("a picture (TIFF)", _PICTURES, (), (b"II*\0", b"MM\0*")),
    Foreign("a picture (WebP)", _PICTURES, (), (b"WEBP",), (8,)),
    Foreign(
        "a picture",
        _PICTURES,
        (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp"),
    ),
    Foreign("a GGUF file of weights", _WEIGHTS, (), (b"GGUF",)),
    Foreign("an SQLite database", "save its numbers as .npz", (), (b"SQLite format 3\0",)),
    Foreign("a PDF document", "pass a file of arrays", (), (b"%PDF",)),
    Foreign(
        "a pointer of Git LFS, not the file itself",
        "fetch the file with: git lfs pull",
        begins=(b"version https://git-lfs",),
    ),
)
_BY_CONTENT = (".csv", ".tsv", ".txt", ".dat", ".json", ".jsonl", ".yaml", ".yml", ".xlsx", ".h5ad")
ENDINGS = dict.fromkeys(_BY_CONTENT) | {ending: kind for kind in _KINDS for ending in kind.endings}


def is_foreign_name(name: str) -> bool:
    """Whether a name ends as a known format does that is not read."""
    return os.path.splitext(name)[1].lower() in ENDINGS


def explained(path: str | os.PathLike[str], called: str | None = None) -> str | None:
    """Return a sentence on what a file or folder is and how it is converted; None if that is unknown."""
    name = os.fspath(path) if called is None else called
    ending = os.path.splitext(name.rstrip("/"))[1].lower()
    kind = _folder(Path(path)) if os.path.isdir(path) else _by_content(path, ending)
    kind = kind or ENDINGS.get(ending)
    return None if kind is None or ending in kind.read_as else sentence(name, kind)


def sentence(name: str, kind: Foreign) -> str:
    """Say what a file is, with its name in the line that converts it."""
    last = PurePath(re.split(r"[?#]|::", name)[0].rstrip("/")).name
    stem, ending = os.path.splitext(last)
    if ending and "{stem}" + ending in kind.remedy:  # no line may write over what it reads
        stem += "-converted"
    quoted = {key: json.dumps(text)[1:-1] for key, text in {"file": last, "stem": stem}.items()}
    remedy = kind.remedy.replace("{file}", quoted["file"]).replace("{stem}", quoted["stem"])
    return f"{name} is {kind.what}: {remedy}"


def _by_content(path: str | os.PathLike[str], ending: str) -> Foreign | None:
    if not os.path.isfile(path):  # a pipe would be waited for
        return None
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return None
    if not head:
        return Foreign("empty (0 bytes)", "write it again")
    for kind in _KINDS:
        if any(head.startswith(kind.begins, offset) for offset in kind.offsets):
            return kind
    if head.startswith(b"PK\3\4"):  # the reader of .npz has said what is wrong with one
        return _archive(path) if ending != ".npz" else None
    if re.match(rb"\x80[\x02-\x05]", head):
        return _JOBLIB if b"joblib" in head else _PICKLE
    if _begins_record(head):
        return _TFRECORD
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < os.path.getsize(path):
        return Foreign(
            "a safetensors file", "name it {stem}.safetensors", read_as=(".safetensors",)
        )
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)
    except UnicodeDecodeError:
        return None
    if not all(c.isprintable() or c in "\t\r\n" for c in text):
        return None
    return _of_text(text, path, ending)


def _begins_record(head: bytes) -> bool:
    """Whether the first eight bytes, a length, are followed by their checksum, as in a TFRecord file."""
    try:
        from google_crc32c import value
    except ImportError:  # then the ending tells
        return False
    crc = value(head[:8])
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return len(head) >= 12 and int.from_bytes(head[8:12], "little") == masked


def _archive(path: str | os.PathLike[str]) -> Foreign:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return Foreign("a damaged zip archive", "copy or write it again", read_as=(".npz",))
    lasts = {PurePath(name).name for name in names}
    if "data.pkl" in lasts:
        return _TORCH
    if {"zarr.json", ".zgroup", ".zarray"} & lasts:
        return Foreign("a Zarr folder in a zip archive", "unzip it to {stem}.zarr")
    if "model.weights.h5" in lasts:
        return _KERAS
    if "[Content_Types].xml" in lasts:
        return Foreign("an Excel workbook", _line(_PANDAS, _TABLE % "excel"))
    if any(name.endswith(".npy") for name in names):
        return Foreign("an .npz archive", "name it {stem}.npz", read_as=(".npz",))
    return Foreign("a zip archive", _UNPACK, read_as=(".npz",))


def _of_text(text: str, path: str | os.PathLike[str], ending: str) -> Foreign:
    start = text.lstrip()
    if start[:1] == "{" or (start[:1] == "[" and ending == ".json"):
        return _json(path, ending)
    if re.match(r"<(!doctype|html|\?xml)", start, re.IGNORECASE):
        return Foreign(
            "a web page (HTML or XML), perhaps the error of a download", "fetch the file itself"
        )
    lines = start.splitlines()[:2] or [""]
    separator = next((c for c in "\t,;" if c in lines[0]), None)
    numbers = [_is_number((line.split(separator) or [""])[0]) for line in lines]
    given = '"{file}"' + (f", delimiter={json.dumps(separator)}" if separator else "")
    values = f"np.loadtxt({given})" if numbers[0] else f"np.loadtxt({given}, skiprows=1)"
    if len(lines) == 2 and not any(numbers):  # names of classes, one a line
        values = f"np.unique(np.loadtxt({given}, dtype=str), return_inverse=True)[1]"
    what = f"text, which begins {lines[0][:40]!r}"
    return Foreign(what, _line("numpy as np", _NPY % values))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _json(path: str | os.PathLike[str], ending: str) -> Foreign:
    try:
        if os.path.getsize(path) <= 2**26:
            content = json.loads(Path(path).read_bytes())
            if isinstance(content, dict):
                return json_object(content)
    except (OSError, ValueError, RecursionError):
        pass
    if ending in (".jsonl", ".ndjson"):
        lines = '{k: np.stack(v) for k, v in pd.read_json("{file}", lines=True).items()}'
        return Foreign("JSON lines", _line(_PANDAS, _NPZ % lines))
    code = _NPY % f"np.asarray({_AS_JSON})"
    return Foreign("a JSON file", _line("json, numpy as np, pathlib", code))


def json_object(content: Mapping[str, Any]) -> Foreign:
    """Return the kind of a JSON object that is no manifest of activations."""
    shards = content.get("weight_map")
    if isinstance(shards, Mapping):
        files = list(dict.fromkeys(str(file)[:60] for file in shards.values()))
        places = [f"{str(k)[:60]!r} in {str(v)[:60]}" for k, v in shards.items()] or ["of nothing"]
        names = " ".join(files[:_SHOWN]) + (" ..." if len(files) > _SHOWN else "")
        return Foreign(
            _printable(f"the index of a sharded checkpoint, {places[-1]}"),
            _printable(f"pass the files that it names instead, {names}"),
        )
    keys = ", ".join(repr(str(key)[:40]) for key in list(content)[:_SHOWN]) or "nothing in it"
    code = _NPZ % ("{k: np.asarray(v) for k, v in " + _AS_JSON + ".items()}")
    return Foreign(
        _printable(f"not a manifest of activations, but a JSON object with {keys}"),
        _line("json, numpy as np, pathlib", code, "if these are arrays, "),
    )


def _printable(text: str) -> str:
    """Return text of a file as one line."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _folder(folder: Path) -> Foreign | None:
    names = {entry.name for entry in os.scandir(folder)}
    if {"zarr.json", ".zgroup", ".zarray"} & names:
        return Foreign("a Zarr folder", "name it {stem}.zarr", read_as=(".zarr",))
    if "saved_model.pb" in names:
        return Foreign("a model saved by TensorFlow", _WEIGHTS)
    if "dataset_info.json" in names:
        line = _line("datasets, numpy as np", _DATASET % "load_from_disk")
        return Foreign("a data set of Hugging Face", line)
    endings = Counter(
        os.path.splitext(name)[1].lower()
        for _, _, files in itertools.islice(os.walk(folder), 100)
        for name in files
    )
    for ending, count in endings.most_common():
        kind = ENDINGS.get(ending)
        if kind is None:
            continue
        what = _printable(f"a folder of {count} files {ending}")
        if kind.remedy == _PICTURES:
            return Foreign(f"{what}, pictures", _PICTURES)
        return Foreign(f"{what}, each {kind.what}", "convert each, or pass one to be told how")
    return None
