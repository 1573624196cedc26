"""What every format of saved activations is to the audit: named arrays, read in chunks of rows."""

from __future__ import annotations

import abc
import math
import os
import stat
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from ..stats.plain import is_untyped
from ..system.suggest import did_you_mean

MAX_EXPANSION = 200  # an honest array of floats does not shrink this much
SMALL = 2**20  # bytes; labels in order do shrink that much, and so little memory harms nobody
MAX_DIRECTORY = 2**19  # bytes; names, shapes and places of some thousand arrays
MAX_CHUNK = 2**26  # bytes; a compressed chunk must fit in memory whole
MAX_DIMENSIONS = 32
KINDS = "fiubV"  # real numbers; "V" is how NumPy calls bfloat16 and other floats of ml_dtypes


AS_SAFETENSORS = (
    "save it as safetensors, safetensors.numpy.save_file({'x': x}, 'x.safetensors'), or as float32, "
    "x.astype('float32')"
)
_CLASSES = "np.unique(labels, return_inverse=True)[1]"
NUMBER_LABELS = f"; if these are labels, {_CLASSES} numbers the classes"
_REMEDIES = {
    "T": NUMBER_LABELS,
    "O": f"; of labels, {_CLASSES} numbers the classes, and of rows of features np.stack(rows) is an array",
    "c": "; save x.real and x.imag side by side, or abs(x)",
}


class ActivationsError(ValueError):
    """A file of activations is not what it says it is; the message names it and says what was found."""


class Refused(Exception):
    """Why one array of a file is not read; the others are."""


class Array(NamedTuple):
    """What a file says of one of its arrays, checked against the size of the file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row in memory."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.shape} {self.dtype.name}"


class ArrayFile(Protocol):
    """An open file of named arrays.

    Opening reads headers only. A file whose structure is damaged cannot be opened. What is wrong
    with one array alone costs that array alone: it is in ``refused``, with the reason.

    Attributes
    ----------
    arrays : mapping of str to Array
        What can be read, in the order of the file.
    refused : mapping of str to str
        What is there and is not read: no real numbers (text, pickled objects, bytes without a
        type), a scalar, a claim that does not fit the bytes stored, a codec that is not known.
    """

    arrays: Mapping[str, Array]
    refused: Mapping[str, str]

    def read(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows ``start`` to ``stop`` (along the first axis, like a slice) as the file has them.

        The array may be a read-only view of the file; what is allocated is a small multiple of it
        at most.

        Raises
        ------
        ActivationsError
            If there is no such array, it was refused, or the file turns out to be damaged there.
        """

    def check(self) -> None:
        """Compare the contents with the checksums that the format has, if any.

        Raises
        ------
        ActivationsError
            If they differ.
        """

    def close(self) -> None:
        """Let go of the file; views that were read stay valid."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Reader(abc.ABC):
    """What the readers of all formats share; a format adds `_rows`, and fills the two mappings."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.arrays: dict[str, Array] = {}
        self.refused: dict[str, str] = {}

    def read(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows ``start`` to ``stop``, clipped as NumPy clips a slice."""
        if name in self.refused:
            raise ActivationsError(f"{self.path}: array {name!r} {self.refused[name]}")
        if name not in self.arrays:
            raise ActivationsError(
                f"{self.path} has no array {name!r}; arrays found: {self._found()}"
                + did_you_mean(name, self.arrays)
            )
        start, stop, _ = slice(start, stop).indices(self.arrays[name].shape[0])
        try:
            return self._rows(name, start, max(start, stop))
        except Refused as reason:
            raise ActivationsError(f"{self.path}: array {name!r} {reason}") from reason

    def _found(self) -> str:
        names = [f"{name!r} {array}" for name, array in list(self.arrays.items())[:20]]
        if len(self.arrays) > len(names):
            names.append(f"and {len(self.arrays) - len(names)} more")
        return ", ".join(names) or "none"

    @abc.abstractmethod
    def _rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows of an array that is there, for 0 <= start <= stop <= all."""

    def check(self) -> None:  # noqa: B027  # most formats have nothing to add
        """Do nothing, unless the format has checksums."""

    def close(self) -> None:  # noqa: B027
        """Do nothing, unless something stays open between reads."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def file_size(path: str | os.PathLike[str]) -> int:
    """Return the size of a regular file: a pipe would be waited for, and a folder is none.

    Raises
    ------
    ActivationsError
        If there is something else under that name.
    FileNotFoundError
        If there is nothing.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ActivationsError(f"{os.fspath(path)} is not a regular file")
    return found.st_size


def check_array(shape: tuple[Any, ...], dtype: np.dtype[Any]) -> Array:
    """Return what a header says of an array, if it is an array of real numbers with rows.

    Raises
    ------
    Refused
        If a length is not a natural number, or the dtype is not one of real numbers.

    Examples
    --------
    >>> check_array((10, 3), np.dtype("float32"))
    Array(shape=(10, 3), dtype=dtype('float32'))
    >>> check_array((10, 3), np.dtype(object))
    Traceback (most recent call last):
        ...
    collapsemeter.activations.array_file.Refused: has dtype object: only real numbers are read, and pickle never; of labels, np.unique(labels, return_inverse=True)[1] numbers the classes, and of rows of features np.stack(rows) is an array
    """
    if len(shape) > MAX_DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
        raise Refused(f"has shape {str(shape)[:200]}: not a shape")
    if dtype.kind not in KINDS or dtype.fields is not None or dtype.subdtype is not None:
        remedy = _REMEDIES.get("T" if dtype.kind in "SU" else dtype.kind, "")
        raise Refused(
            f"has dtype {str(dtype)[:200]}: only real numbers are read, and pickle never{remedy}"
        )
    if is_untyped(dtype):
        raise Refused(
            f"has dtype {dtype}: only real numbers are read, and these bytes say no type of number, as "
            f"NumPy saves bfloat16 and float8: {AS_SAFETENSORS}"
        )
    # NumPy multiplies the lengths that are not 0, too, and so must a shape without elements pass.
    if math.prod(max(n, 1) for n in shape) * dtype.itemsize >= 2**63:
        raise Refused(f"has shape {str(shape)[:200]}: more than any memory holds")
    if not shape:
        raise Refused("is a scalar: it has no rows")
    return Array(shape, dtype)


def check_expansion(array: Array, stored: int) -> Array:
    """Return the array, if the bytes it is stored in are enough to be believed.

    Raises
    ------
    Refused
        If it expands more than `MAX_EXPANSION` times.

    Examples
    --------
    >>> check_expansion(Array((10**9,), np.dtype("u1")), 1000)
    Traceback (most recent call last):
        ...
    collapsemeter.activations.array_file.Refused: expands 1000000 times, from 1000 bytes to 1000000000: at most 200 times is read; if it is meant, save it uncompressed
    """
    if array.nbytes > max(SMALL, MAX_EXPANSION * stored):
        raise Refused(
            f"expands {array.nbytes // max(stored, 1)} times, from {stored} bytes to "
            f"{array.nbytes}: at most {MAX_EXPANSION} times is read; if it is meant, save it "
            "uncompressed"
        )
    return array


def check_chunk(nbytes: int, stored: int) -> None:
    """Refuse a chunk that takes much more memory than the file.

    Raises
    ------
    Refused
        If it is above `MAX_CHUNK` and above twice the bytes stored.

    Examples
    --------
    >>> check_chunk(2**30, 2**28)
    Traceback (most recent call last):
        ...
    collapsemeter.activations.array_file.Refused: has chunks of 1073741824 bytes, which must be in memory whole: at most 536870912 are read
    """
    most = max(MAX_CHUNK, 2 * stored)
    if nbytes > most:
        raise Refused(
            f"has chunks of {nbytes} bytes, which must be in memory whole: at most {most} are read"
        )


def map_array(
    path: str | os.PathLike[str], array: Array, offset: int, order: Literal["C", "F"] = "C"
) -> npt.NDArray[Any]:
    """Return an array as a read-only view of a file, which was seen to hold all of it."""
    if array.nbytes == 0:  # nothing cannot be mapped
        return np.empty(array.shape, array.dtype)
    return np.memmap(path, array.dtype, "r", offset, array.shape, order).view(np.ndarray)


def first_line(error: BaseException) -> str:
    """Return the first line of an error, at most 200 characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
