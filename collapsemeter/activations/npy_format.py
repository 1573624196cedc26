"""One array in a ``.npy`` file, memory-mapped."""

import os
import re
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ..stats.npy_header import PREFIX, read_npy_header
from .array_file import (
    AS_SAFETENSORS,
    ActivationsError,
    Array,
    ArrayFile,
    Mapped,
    Refused,
    check_array,
    file_size,
)

_FLOAT8 = re.compile(r"dtype descriptor: '[<>|=]?f1'")


class CheckedHeader(NamedTuple):
    """An array of real numbers, and where its values begin."""

    array: Array
    order: Literal["C", "F"]
    offset: int


class NpyFile(ArrayFile):
    """The array of a ``.npy`` file, under the file's name without its ending."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._add(Path(path).name.removesuffix(".npy"), self._locate)

    def _locate(self) -> tuple[Array, Mapped]:
        size = file_size(self.path)
        with open(self.path, "rb") as file:
            prefix = file.read(PREFIX)
        try:
            array, order, offset = read_header(prefix)
        except ValueError as error:
            named = prefix.startswith(np.lib.format.MAGIC_PREFIX)
            why = str(error) if named else _no_header(self.path)
            raise ActivationsError(f"{self.path} is not a .npy array: {why}") from error
        if size - offset != array.nbytes:
            raise ActivationsError(
                f"{self.path}: its header asks for {array.nbytes} bytes {array}, the file holds "
                f"{size - offset}: it is truncated or damaged"
            )
        return array, Mapped(self.path, array, offset, order)


def _no_header(path: str | os.PathLike[str]) -> str:
    last = Path(path).name
    return (
        "it has no header; if these are raw numbers, as np.memmap and tofile write them, give them one with "
        f'np.save("with-header-{last}", np.memmap("{last}", "float32", "r", shape=(N, d)))'
    )


def read_header(prefix: bytes) -> CheckedHeader:
    """Read and check the header in the first `PREFIX` bytes of an array; ValueError if there is none."""
    try:
        header = read_npy_header(prefix)
    except ValueError as error:
        if _FLOAT8.search(str(error)):
            raise Refused(
                "has dtype '<f1', as NumPy saves float8 of ml_dtypes, and does not say which: "
                + AS_SAFETENSORS
            ) from error
        raise
    return CheckedHeader(check_array(header.shape, header.dtype), header.order, header.offset)
