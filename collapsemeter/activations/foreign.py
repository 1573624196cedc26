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
from typing import Any

from . import foreign_kinds as kinds
from .foreign_kinds import Foreign, converting

_HEAD = 2**13  # bytes at the start of a file that tell what it is
_SHOWN = 4  # names in a sentence


def is_foreign_name(name: str) -> bool:
    """Whether a name ends as a known format does that is not read."""
    return os.path.splitext(name)[1].lower() in kinds.ENDINGS


def explained(path: str | os.PathLike[str], called: str | None = None) -> str | None:
    """Return a sentence on what a file or folder is and how it is converted; None if that is unknown."""
    name = os.fspath(path) if called is None else called
    ending = os.path.splitext(name.rstrip("/"))[1].lower()
    kind = _folder(Path(path)) if os.path.isdir(path) else _by_content(path, ending)
    kind = kind or kinds.ENDINGS.get(ending)
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
    for kind in kinds.KINDS:
        if any(head.startswith(kind.begins, offset) for offset in kind.offsets):
            return kind
    if head.startswith(b"PK\3\4"):  # the reader of .npz has said what is wrong with one
        return _archive(path) if ending != ".npz" else None
    if re.match(rb"\x80[\x02-\x05]", head):
        return kinds.JOBLIB if b"joblib" in head else kinds.PICKLE
    if _begins_record(head):
        return kinds.TFRECORD
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
        return kinds.TORCH
    if {"zarr.json", ".zgroup", ".zarray"} & lasts:
        return Foreign("a Zarr folder in a zip archive", "unzip it to {stem}.zarr")
    if "model.weights.h5" in lasts:
        return kinds.KERAS
    if "[Content_Types].xml" in lasts:
        return Foreign("an Excel workbook", converting(kinds.PANDAS, kinds.TABLE % "excel"))
    if any(name.endswith(".npy") for name in names):
        return Foreign("an .npz archive", "name it {stem}.npz", read_as=(".npz",))
    return Foreign("a zip archive", kinds.UNPACK, read_as=(".npz",))


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
    arguments = '"{file}"' + (f", delimiter={json.dumps(separator)}" if separator else "")
    values = f"np.loadtxt({arguments})" if numbers[0] else f"np.loadtxt({arguments}, skiprows=1)"
    if len(lines) == 2 and not any(numbers):  # names of classes, one a line
        values = f"np.unique(np.loadtxt({arguments}, dtype=str), return_inverse=True)[1]"
    what = f"text, which begins {lines[0][:40]!r}"
    return Foreign(what, converting("numpy as np", kinds.NPY % values))


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
        return Foreign("JSON lines", converting(kinds.PANDAS, kinds.NPZ % lines))
    code = kinds.NPY % f"np.asarray({kinds.AS_JSON})"
    return Foreign("a JSON file", converting("json, numpy as np, pathlib", code))


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
    code = kinds.NPZ % ("{k: np.asarray(v) for k, v in " + kinds.AS_JSON + ".items()}")
    return Foreign(
        _printable(f"not a manifest of activations, but a JSON object with {keys}"),
        converting("json, numpy as np, pathlib", code, "if these are arrays, "),
    )


def _printable(text: str) -> str:
    """Return text of a file as one line."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _folder(folder: Path) -> Foreign | None:
    names = {entry.name for entry in os.scandir(folder)}
    if {"zarr.json", ".zgroup", ".zarray"} & names:
        return Foreign("a Zarr folder", "name it {stem}.zarr", read_as=(".zarr",))
    if "saved_model.pb" in names:
        return Foreign("a model saved by TensorFlow", kinds.WEIGHTS)
    if "dataset_info.json" in names:
        line = converting("datasets, numpy as np", kinds.DATASET % "load_from_disk")
        return Foreign("a data set of Hugging Face", line)
    endings = Counter(
        os.path.splitext(name)[1].lower()
        for _, _, files in itertools.islice(os.walk(folder), 100)
        for name in files
    )
    for ending, count in endings.most_common():
        kind = kinds.ENDINGS.get(ending)
        if kind is None:
            continue
        what = _printable(f"a folder of {count} files {ending}")
        if kind.remedy == kinds.PICTURES:
            return Foreign(f"{what}, pictures", kinds.PICTURES)
        return Foreign(f"{what}, each {kind.what}", "convert each, or pass one to be told how")
    return None
