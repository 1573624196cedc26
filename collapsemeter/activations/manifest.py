"""The manifest of a dump: which files it has, their SHA-256, and what cannot be seen in them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ..stats.sums import check_num_classes
from .array_file import ActivationsError
from .foreign import json_object, sentence

if TYPE_CHECKING:
    from ..stats.fields import Phase

NAME = "manifest.json"
FORMAT = "collapsemeter.activations"
VERSION = 1
PHASES: tuple[Phase, ...] = ("live", "frozen-train", "frozen-eval")
_MAX_BYTES = 2**26  # 64 MB: a hundred thousand files
RESERVED = ("labels", "predictions", "logits", "attention_mask")  # what is not a layer in a file


def stored_name(layer: str) -> str:
    """Return the name of a layer's array: the layer's own, unless something else is called so."""
    return f"layer {layer}" if layer in RESERVED else layer


def layer_stored_as(array: str) -> str:
    """Return the layer whose array is called so, the inverse of `stored_name`."""
    name = array.removeprefix("layer ")
    return name if name in RESERVED else array


@dataclass(frozen=True)
class FileRecord:
    """One file of a dump: its path below the manifest, bytes, and SHA-256 in hexadecimal digits."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of a dump: shards in order, layers in the order of the network, how rows were seen, and the file of the head."""

    files: tuple[FileRecord, ...]
    layers: tuple[str, ...]
    num_classes: int
    phase: Phase = "frozen-eval"
    ignore_index: int = -100
    head: FileRecord | None = None
    head_layer: str | None = None
    step: int | None = None

    def to_json(self) -> str:
        """Return the manifest as JSON."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Manifest:
        """Read a manifest; refuse one that names a file outside its folder."""
        if os.path.getsize(path) > _MAX_BYTES:
            raise ActivationsError(f"{os.fspath(path)} is larger than any manifest")
        return cls.parse(Path(path).read_bytes(), os.fspath(path))

    @classmethod
    def parse(cls, text: str | bytes, path: str) -> Manifest:
        """Read a manifest from its text; ``path`` is for errors."""
        try:
            content = json.loads(text)
            if isinstance(content, dict) and "format" not in content:
                raise ActivationsError(sentence(path, json_object(content)))
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']!r}")
            if _whole(content["version"], least=0) > VERSION:
                raise ActivationsError(
                    f"{path} has manifest version {content['version']}, this collapsemeter reads up to "
                    f"{VERSION}: upgrade collapsemeter"
                )
            if content["phase"] not in PHASES:
                raise ValueError(f"phase {content['phase']!r} is none of {', '.join(PHASES)}")
            return cls(
                files=_records(content["files"]),
                layers=tuple(map(_text, _list(content["layers"]))),
                num_classes=check_num_classes(_whole(content["num_classes"], least=1)),
                phase=content["phase"],
                ignore_index=_whole(content["ignore_index"]),
                head=None if content["head"] is None else _record(content["head"]),
                head_layer=None if content["head_layer"] is None else _text(content["head_layer"]),
                step=None if content["step"] is None else _whole(content["step"]),
            )
        except ActivationsError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            # A parser's error may hold the file's own text, which must not break the line.
            what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ActivationsError(f"{path} is not a manifest of activations: {what}") from error


def _records(entries: Any) -> tuple[FileRecord, ...]:
    records = tuple(_record(entry) for entry in _list(entries))
    if not records:
        raise ValueError("it names no file")
    for path, times in Counter(record.path for record in records).items():
        if times > 1:
            raise ValueError(f"{path!r} is named twice")
    return records


def _record(entry: Any) -> FileRecord:
    path, digest = _text(entry["path"]), _text(entry["sha256"])
    parts = PurePosixPath(path).parts
    leads_out = not parts or ".." in parts or path.startswith("/") or "\\" in path or ":" in path
    if leads_out or not path.isprintable():
        raise ValueError(f"path {path!r} leads out of the folder, or is no path")
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError(f"{digest!r} is not a SHA-256")
    return FileRecord(path, _whole(entry["bytes"], least=0), digest)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return value


def _whole(value: Any, least: int | None = None) -> int:
    if type(value) is not int or (least is not None and value < least):
        raise TypeError(f"{value!r} is not a {'whole' if least is None else 'natural'} number")
    return value


def sha256_of(data: bytes) -> str:
    """Return the SHA-256 of bytes in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_path(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, or of a folder's file names and their SHA-256 in order."""
    target = Path(path)
    if not target.is_dir():
        with open(target, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    members = sorted(member for member in target.rglob("*") if member.is_file())
    lines = [f"{sha256_of_path(m)}  {m.relative_to(target).as_posix()}\n" for m in members]
    return sha256_of("".join(lines).encode())
