"""The manifest of a dump: which files it has, their SHA-256, and what cannot be seen in them."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..stats.moments import Phase
from ..stats.sums import check_num_classes
from .array_file import ActivationsError
from .foreign import json_object, sentence

NAME = "manifest.json"
FORMAT = "collapsemeter.activations"
VERSION = 1
PHASES: tuple[Phase, ...] = (
    "live",
    "frozen-train",
    "frozen-eval",
)  # rows were seen in one of these
_MAX_BYTES = 2**26  # 64 MB: a hundred thousand files


RESERVED = ("labels", "predictions", "logits", "attention_mask")  # what is not a layer in a file


def stored_name(layer: str) -> str:
    """Return the name of a layer's array: the layer's own, unless something else is called so.

    Examples
    --------
    >>> stored_name("fc"), stored_name("logits"), layer_of(stored_name("logits"))
    ('fc', 'layer logits', 'logits')
    """
    return f"layer {layer}" if layer in RESERVED else layer


def layer_of(array: str) -> str:
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
    """What was dumped.

    Parameters
    ----------
    files : tuple of FileRecord
        Shards of activations, in order.
    layers : tuple of str
        In the order of the network.
    num_classes : int
    phase : str
        ``frozen-eval``, ``frozen-train`` or ``live``.
    ignore_index : int
        Label of rows to leave out.
    head : FileRecord or None
        The file with the classifier's ``weight`` (C, d) and ``bias`` (C,).
    head_layer : str or None
        The layer that the head reads.
    step : int or None
        The epoch or step of the dump.

    Examples
    --------
    >>> manifest = Manifest((FileRecord("a.safetensors", 3, sha256_of(b"abc")),), ("fc",), 10)
    >>> Manifest.parse(manifest.to_json(), "manifest.json") == manifest
    True
    """

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
        """Read a manifest.

        Raises
        ------
        ActivationsError
            If it is none, or names a file outside its folder.
        FileNotFoundError
            If it does not exist.
        """
        if os.path.getsize(path) > _MAX_BYTES:
            raise ActivationsError(f"{os.fspath(path)} is larger than any manifest")
        return cls.parse(Path(path).read_bytes(), os.fspath(path))

    @classmethod
    def parse(cls, text: str | bytes, path: str) -> Manifest:
        """Read a manifest from its text; ``path`` is for the error."""
        try:
            found = json.loads(text)
            if isinstance(found, dict) and "format" not in found:
                raise ActivationsError(sentence(path, json_object(found)))
            if found["format"] != FORMAT:
                raise ValueError(f"its format is {found['format']!r}")
            if _natural(found["version"]) > VERSION:
                raise ActivationsError(
                    f"{path} has manifest version {found['version']}, this collapsemeter reads up to "
                    f"{VERSION}: upgrade collapsemeter"
                )
            return cls(
                files=_records(found["files"]),
                layers=tuple(map(_text, _list(found["layers"]))),
                num_classes=check_num_classes(_natural(found["num_classes"], least=1)),
                phase=_phase(found["phase"]),
                ignore_index=_whole(found["ignore_index"]),
                head=None if found["head"] is None else _record(found["head"]),
                head_layer=None if found["head_layer"] is None else _text(found["head_layer"]),
                step=None if found["step"] is None else _whole(found["step"]),
            )
        except ActivationsError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            # The errors of a parser may hold the file's own text: keep to one line.
            what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ActivationsError(f"{path} is not a manifest of activations: {what}") from error


def _records(entries: Any) -> tuple[FileRecord, ...]:
    records = tuple(_record(entry) for entry in _list(entries))
    if not records:
        raise ValueError("it names no file")
    paths = [record.path for record in records]
    twice = (
        [path for path in paths if paths.count(path) > 1] if len(set(paths)) < len(paths) else []
    )
    if twice:
        raise ValueError(f"{twice[0]!r} is named twice")
    return records


def _record(entry: Any) -> FileRecord:
    path, digest = _text(entry["path"]), _text(entry["sha256"])
    parts = PurePosixPath(path).parts
    if (
        not parts
        or ".." in parts
        or PurePosixPath(path).is_absolute()
        or "\\" in path
        or ":" in path
        or not path.isprintable()
    ):
        raise ValueError(f"path {path!r} leads out of the folder, or is no path")
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ValueError(f"{digest!r} is not a SHA-256")
    return FileRecord(path, _natural(entry["bytes"]), digest)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not a whole number")
    return value


def _natural(value: Any, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise TypeError(f"{value!r} is not a natural number")
    return value


def _phase(value: Any) -> Phase:
    if value not in PHASES:
        raise ValueError(f"phase {value!r} is none of {', '.join(PHASES)}")
    found: Phase = value
    return found


def sha256_of(data: bytes) -> str:
    """Return the SHA-256 of bytes in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_path(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, or of a folder's file names and their SHA-256 in order.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a"
    >>> _ = path.write_bytes(b"abc")
    >>> sha256_of_path(path)[:8], sha256_of_path(path.parent) == sha256_of_path(path)
    ('ba7816bf', False)
    """
    target = Path(path)
    if not target.is_dir():
        with open(target, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    members = sorted(member for member in target.rglob("*") if member.is_file())
    lines = [f"{sha256_of_path(m)}  {m.relative_to(target).as_posix()}\n" for m in members]
    return sha256_of("".join(lines).encode())
