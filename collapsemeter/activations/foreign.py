"""Files that are not read: what each is, by its content rather than its name, and the line that converts it.

Nothing of a file is unpacked or unpickled to find out.
"""

from __future__ import annotations

import codecs
import itertools
import json
import os
import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from .foreign_kinds import (
    ENDINGS,
    JOBLIB,
    PICKLE,
    PICTURES,
    SIGNATURES,
    TFRECORD,
    TORCH,
    UNPACK,
    WEIGHTS_ELSEWHERE,
    Foreign,
    python_line,
)

_HEAD = 2**13  # bytes at the start of a file that tell what it is
_SHOWN = 4  # names in a sentence


def is_foreign_name(name: str) -> bool:
    """Whether a name ends as a file does that is known and not read.

    Examples
    --------
    >>> is_foreign_name("labels.CSV"), is_foreign_name("labels"), is_foreign_name("labels.npy")
    (True, False, False)
    """
    return os.path.splitext(name)[1].lower() in ENDINGS


def explained(path: str | os.PathLike[str], called: str | None = None) -> str | None:
    """Return a sentence on what a file or folder is and how it is converted; None if that is not known.

    Parameters
    ----------
    path : str or path
    called : str, optional
        What to call it, such as the URL that it was copied from.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "acts.npy")
    >>> _ = path.write_bytes(b"PAR1")
    >>> print(explained(path, "acts.npy"))  # doctest: +ELLIPSIS
    acts.npy is a Parquet table: convert it, with: import numpy as np, pandas as pd; np.save("acts...
    """
    name = os.fspath(path) if called is None else called
    ending = os.path.splitext(name.rstrip("/"))[1].lower()
    found = _folder(Path(path)) if os.path.isdir(path) else _by_content(path, ending)
    found = found or ENDINGS.get(ending)
    if found is None or ending in found.endings:
        return None
    return sentence(name, found)


def sentence(name: str, found: Foreign) -> str:
    """Say of a file what was found, and fill its name in the line that converts it.

    Examples
    --------
    >>> sentence("acts/y.csv", Foreign("text", 'read "{file}", write "{stem}.npy"'))
    'acts/y.csv is text: read "y.csv", write "y.npy"'
    """
    last = PurePath(re.split(r"[?#]|::", name)[0].rstrip("/")).name
    stem, ending = os.path.splitext(last)
    if ending and "{stem}" + ending in found.remedy:  # no line may write over what it reads
        stem += "-converted"
    remedy = found.remedy.replace("{file}", _quoted(last)).replace("{stem}", _quoted(stem))
    return f"{name} is {found.what}: {remedy}"


def _quoted(name: str) -> str:
    """Return a name as it stands in a string of Python."""
    return json.dumps(name)[1:-1]


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
    for at, signature, found in SIGNATURES:
        if head.startswith(signature, at):
            return found
    if head.startswith(b"PK\3\4"):  # of an .npz the reader has said what is wrong with it
        return _archive(path) if ending != ".npz" else None
    if re.match(rb"\x80[\x02-\x05]", head):
        return JOBLIB if b"joblib" in head else PICKLE
    if _begins_record(head):
        return TFRECORD
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < os.path.getsize(path):
        return Foreign("a safetensors file", "name it {stem}.safetensors", (".safetensors",))
    text = _text(head)
    return None if text is None else _of_text(text, path, ending)


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
        return Foreign("a damaged zip archive", "copy or write it again", (".npz",))
    lasts = {PurePath(name).name for name in names}
    if "data.pkl" in lasts:
        return TORCH
    if {"zarr.json", ".zgroup", ".zarray"} & lasts:
        return Foreign("a Zarr folder in a zip archive", "unzip it to {stem}.zarr")
    if "model.weights.h5" in lasts:
        return Foreign("a Keras model", WEIGHTS_ELSEWHERE)
    if "[Content_Types].xml" in lasts:
        return Foreign("an Excel workbook", python_line(
            "numpy as np, pandas as pd", 'np.save("{stem}.npy", pd.read_excel("{file}").to_numpy("float32"))'
        ))  # fmt: skip
    if any(name.endswith(".npy") for name in names):
        return Foreign("an .npz archive", "name it {stem}.npz", (".npz",))
    return Foreign("a zip archive", UNPACK, (".npz",))


def _text(head: bytes) -> str | None:
    """Return the start of a file as text, if it is text."""
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)
    except UnicodeDecodeError:
        return None
    shown = sum(c.isprintable() or c in "\t\r\n" for c in text)
    return text if shown == len(text) else None


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
    given = f", delimiter={json.dumps(separator)}" if separator is not None else ""
    code = 'np.save("{stem}.npy", np.loadtxt("{file}"' + given
    if len(lines) == 2 and not any(numbers):  # names of classes, one a line
        code = (
            code.replace("np.loadtxt", "np.unique(np.loadtxt")
            + ", dtype=str), return_inverse=True)[1])"
        )
    else:
        code += "))" if numbers[0] else ", skiprows=1))"
    return Foreign(f"text, which begins {lines[0][:40]!r}", python_line("numpy as np", code))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _json(path: str | os.PathLike[str], ending: str) -> Foreign:
    try:
        if os.path.getsize(path) <= 2**26:
            found = json.loads(Path(path).read_bytes())
            if isinstance(found, dict):
                return json_object(found)
    except (OSError, ValueError, RecursionError):
        pass
    if ending in (".jsonl", ".ndjson"):
        code = 'np.savez("{stem}.npz", **{k: np.stack(v) for k, v in pd.read_json("{file}", lines=True).items()})'
        return Foreign("JSON lines", python_line("numpy as np, pandas as pd", code))
    code = 'np.save("{stem}.npy", np.asarray(json.loads(pathlib.Path("{file}").read_text())))'
    return Foreign("a JSON file", python_line("json, numpy as np, pathlib", code))


def json_object(found: Mapping[str, Any]) -> Foreign:
    """Return what a JSON object is that is no manifest of activations.

    Examples
    --------
    >>> json_object({"weight_map": {"fc.weight": "model-1.safetensors"}}).what
    "the index of a sharded checkpoint, 'fc.weight' in model-1.safetensors"
    """
    shards = found.get("weight_map")
    if isinstance(shards, Mapping):
        files = list(dict.fromkeys(str(file) for file in shards.values()))
        places = [f"{str(k)[:60]!r} in {str(v)[:60]}" for k, v in list(shards.items())[-1:]]
        return Foreign(
            _plain(f"the index of a sharded checkpoint, {places[0] if places else 'of nothing'}"),
            _plain(
                f"pass the files that it names instead, {' '.join(f[:60] for f in files[:_SHOWN])}"
            )
            + (" ..." if len(files) > _SHOWN else ""),
        )
    keys = ", ".join(repr(str(key)[:40]) for key in list(found)[:_SHOWN])
    code = 'np.savez("{stem}.npz", **{k: np.asarray(v) for k, v in json.loads(pathlib.Path("{file}").read_text()).items()})'
    return Foreign(
        _plain(f"not a manifest of activations, but a JSON object with {keys or 'nothing in it'}"),
        python_line("json, numpy as np, pathlib", code, "if these are arrays, "),
    )


def _plain(text: str) -> str:
    """Return text of a file as one line."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _folder(folder: Path) -> Foreign | None:
    names = sorted(entry.name for entry in os.scandir(folder))
    if {"zarr.json", ".zgroup", ".zarray"} & set(names):
        return Foreign("a Zarr folder", "name it {stem}.zarr", (".zarr",))
    if "saved_model.pb" in names:
        return Foreign("a model saved by TensorFlow", WEIGHTS_ELSEWHERE)
    if "dataset_info.json" in names:
        code = 'np.save("{stem}.npy", datasets.load_from_disk("{file}").with_format("numpy")["features"])'
        return Foreign("a data set of Hugging Face", python_line("datasets, numpy as np", code))
    endings = Counter(
        os.path.splitext(name)[1].lower()
        for _, _, files in itertools.islice(os.walk(folder), 100)
        for name in files
    )
    common = next((e for e, _ in endings.most_common() if ENDINGS.get(e)), None)
    if common is None:
        return None
    found = ENDINGS[common]
    assert found is not None
    what = _plain(f"a folder of {endings[common]} files {common}")
    if found.what == "a picture":
        return Foreign(f"{what}, pictures", PICTURES)
    return Foreign(f"{what}, each {found.what}", "convert each, or pass one to be told how")
