"""One array in a ``.npy`` file, memory-mapped."""

from __future__ import annotations

import io
import os
import re
import threading
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .array_file import (
    AS_SAFETENSORS,
    ActivationsError,
    Array,
    ArrayFile,
    Refused,
    check_array,
    file_size,
    first_line,
    map_array,
)

MAX_HEADER = 10_000  # characters; NumPy's own limit for untrusted files
PREFIX = MAX_HEADER + 12  # bytes that hold any header, with the magic and its length

_FLOAT8 = re.compile(r"dtype descriptor: '[<>|=]?f1'")

# A worker of Dask has several threads, which share the filters of warnings and the depth that Python
# 3.11 counts as it parses: it raises SystemError where another thread parses in between.
_PARSING = threading.Lock()


class NpyHeader(NamedTuple):
    """What the header says, and where it ends."""

    array: Array
    order: Literal["C", "F"]
    offset: int


class NpyFile(ArrayFile):
    """The array of a ``.npy`` file, under the file's name without its ending."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        size = file_size(path)
        name = Path(path).name.removesuffix(".npy")
        with open(path, "rb") as file:
            prefix = file.read(PREFIX)
        try:
            header = read_header(prefix)
        except Refused as reason:
            self.refused[name] = str(reason)
            return
        except ValueError as error:
            why = str(error) if prefix.startswith(np.lib.format.MAGIC_PREFIX) else _no_header(path)
            raise ActivationsError(f"{self.path} is not a .npy array: {why}") from error
        if size - header.offset != header.array.nbytes:
            raise ActivationsError(
                f"{self.path}: its header asks for {header.array.nbytes} bytes {header.array}, the "
                f"file holds {size - header.offset}: it is truncated or damaged"
            )
        self.arrays[name] = header.array
        self._mapped = map_array(path, header.array, header.offset, header.order)

    def _rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        return self._mapped[start:stop]


def _no_header(path: str | os.PathLike[str]) -> str:
    last = Path(path).name
    return (
        "it has no header; if these are raw numbers, as np.memmap and tofile write them, give them one with "
        f'np.save("with-header-{last}", np.memmap("{last}", "float32", "r", shape=(N, d)))'
    )


def read_header(prefix: bytes) -> NpyHeader:
    """Read the header in the first `PREFIX` bytes of an array; ValueError if there is none."""
    file = io.BytesIO(prefix)
    try:
        with _PARSING, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a header with bad syntax is an error or fine
            version = np.lib.format.read_magic(file)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }.get(version)
            if read is None:
                raise ValueError(f"version {version} is not read")
            shape, fortran, dtype = read(file, max_header_size=MAX_HEADER)
    except Exception as error:  # NumPy evaluates the header, and states no list of what that raises
        if _FLOAT8.search(str(error)):
            raise Refused(
                "has dtype '<f1', as NumPy saves float8 of ml_dtypes, and does not say which: "
                + AS_SAFETENSORS
            ) from error
        raise ValueError(first_line(error)) from error
    return NpyHeader(check_array(shape, dtype), "F" if fortran else "C", file.tell())
