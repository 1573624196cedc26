"""One array in a ``.npy`` file, memory-mapped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .array_file import ActivationsError, Array, checked_array

MAX_HEADER = 10_000  # bytes; NumPy's own limit for untrusted files


class NpyFile:
    """The array of a ``.npy`` file, under the file's name without its ending."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.name = self.path.name.removesuffix(".npy")
        with open(self.path, "rb") as file:
            array, fortran = read_header(file, path, self.name)
            offset = file.tell()
        found = self.path.stat().st_size - offset
        if found != array.nbytes:
            raise ActivationsError(
                f"{path}: its header asks for {array.nbytes} bytes {array}, the file holds {found}: "
                "it is truncated or damaged"
            )
        self.arrays = {self.name: array}
        self._rows = _map(self.path, array, offset, "F" if fortran else "C")

    def read(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows as a view of the file."""
        return self._rows[start:stop]

    def check(self) -> None:
        """Do nothing: the format has no checksum."""

    def close(self) -> None:
        """Let go of the map."""
        del self._rows

    def __enter__(self) -> NpyFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _map(path: Path, array: Array, offset: int, order: Any) -> npt.NDArray[Any]:
    if array.nbytes == 0:  # an empty file cannot be mapped
        return np.empty(array.shape, array.dtype)
    return np.memmap(path, array.dtype, "r", offset, array.shape, order)


def read_header(file: IO[bytes], path: str | os.PathLike[str], name: str) -> tuple[Array, bool]:
    """Read the header at the start of a stream; return the array and whether it is in Fortran order.

    Raises
    ------
    ActivationsError
        If it is not the header of an array of real numbers.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ValueError(f"version {version} is not read")
        shape, fortran, dtype = read(file, max_header_size=MAX_HEADER)
    except (ValueError, EOFError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise ActivationsError(f"{os.fspath(path)} is not a .npy array: {_first(error)}") from error
    return checked_array(path, name, shape, dtype), fortran


def _first(error: BaseException) -> str:
    """Return the first line of an error, at most 200 characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
