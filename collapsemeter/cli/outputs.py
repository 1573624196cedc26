"""Where a command may write: never over an input, another output, or a file of another kind."""

import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

OutputKind = Literal["report", "page", "state", "figure", "folder"]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::)")
_ZARR = ("zarr.json", ".zarray", ".zgroup")
_KINDS: dict[str, tuple[str, re.Pattern[bytes]]] = {
    "report": (
        "a report of collapsemeter",
        re.compile(rb'\s*\{\s*"format":\s*"collapsemeter\.CollapseReport"'),
    ),
    "page": (
        "an HTML report of collapsemeter",
        re.compile(rb'(?is)\s*<!doctype html>.*name="generator" content="collapsemeter'),
    ),
    "state": ("a state of collapsemeter", re.compile(rb"(?s)PK\x03\x04.{26}0\.counts\.npy")),
    "figure": ("a figure", re.compile(rb"\x89PNG|\s*<(\?xml|svg|!DOCTYPE svg)")),
}


class OutputFile(NamedTuple):
    """Something that a command writes: the option that names it, its path, and what it will be."""

    option: str
    path: str
    kind: OutputKind


def check_outputs(outputs: Sequence[OutputFile], inputs: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError, before anything is read, if an output would replace an input or a file of another kind."""
    for i, output in enumerate(outputs):
        named = f"{output.option} {output.path or repr(output.path)}"
        if _URL.match(output.path):
            raise ValueError(f"{named}: outputs are local files; name a path")
        for what, patterns in inputs.items():
            if any(_same(output.path, path) for path in _local(patterns)):
                raise ValueError(
                    f"{named} is {what}, too: it would be overwritten; name another file"
                )
        for earlier in outputs[:i]:
            if _same(output.path, earlier.path):
                raise ValueError(
                    f"{named} and {earlier.option} {earlier.path} are one file: name two"
                )
        _check_place(named, output)
        _check_kind(named, output)


def _local(patterns: Sequence[str]) -> Iterator[str]:
    for pattern in patterns:
        path = pattern.removeprefix("file://")
        if not _URL.match(path):
            yield path
            yield from glob.iglob(path, recursive=True)


def _same(first: str, second: str) -> bool:
    """Whether two paths are one file under any spelling, by a symbolic or a hard link."""
    if os.path.realpath(first) == os.path.realpath(second):
        return True
    try:
        return os.path.samefile(first, second)
    except (OSError, ValueError):  # one of them does not exist
        return False


def _check_place(named: str, output: OutputFile) -> None:
    """Raise unless the folder can be written to, and is no array that consists of files."""
    path = Path(os.path.abspath(output.path))
    if output.kind == "folder":
        if path.exists() and not path.is_dir():
            raise ValueError(f"{named} is a file: name a folder")
    elif path.is_dir():
        raise ValueError(f"{named} is a folder: name a file to write")
    for parent in (path, *path.parents):
        if any((parent / name).exists() for name in _ZARR):
            raise ValueError(f"{named} lies in the Zarr array {parent}: name a path outside of it")
    folder = next(p for p in (path, *path.parents) if p.exists() and (p != path or p.is_dir()))
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ValueError(f"{named} cannot be written: {folder} is not a folder to write to")


def _check_kind(named: str, output: OutputFile) -> None:
    """Raise if there is a file that is not what would be written."""
    path = Path(output.path)
    if output.kind == "folder" or not path.exists():
        return
    words, form = _KINDS[output.kind]
    if not path.is_file():
        raise ValueError(f"{named} is no regular file: name one")
    with open(path, "rb") as file:
        begin = file.read(4096)
    if begin and not form.match(begin):
        raise ValueError(
            f"{named} exists and is not {words}: it would be overwritten; name another file, or remove it"
        )
