"""What every format of saved activations is to the audit: named arrays, read in chunks of rows."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

MAX_EXPANSION = 200  # an honest array of floats does not shrink this much
KINDS = "fiubV"  # real numbers; "V" is how NumPy calls bfloat16 and other floats of ml_dtypes


class ActivationsError(ValueError):
    """A file of activations is not what it says it is; the message names it and says what was found."""


class Array(NamedTuple):
    """What a file says of one of its arrays, checked against the size of the file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.shape} {self.dtype.name}"


class ArrayFile(Protocol):
    """An open file of named arrays.

    Opening reads headers only, and refuses a file whose headers do not fit its size: nothing is
    allocated for what is only claimed.

    Attributes
    ----------
    arrays : mapping of str to Array
        In the order of the file.
    """

    arrays: Mapping[str, Array]

    def read(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows ``start`` to ``stop`` (along the first axis) as the file has them.

        The array may be a read-only view of the file.

        Raises
        ------
        ActivationsError
            If the file turns out to be damaged there.
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


def checked_array(
    path: str | os.PathLike[str], name: str, shape: tuple[Any, ...], dtype: np.dtype[Any]
) -> Array:
    """Return what a header says of an array, if it is an array of real numbers.

    Raises
    ------
    ActivationsError
        If a length is not a natural number, or the dtype is not one of real numbers.

    Examples
    --------
    >>> checked_array("a.npy", "fc", (10, 3), np.dtype("float32"))
    Array(shape=(10, 3), dtype=dtype('float32'))
    >>> checked_array("a.npy", "fc", (10, 3), np.dtype(object))
    Traceback (most recent call last):
        ...
    collapsemeter.activations.array_file.ActivationsError: a.npy: array 'fc' has dtype object: only real numbers are read, and pickle never
    """
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape):
        raise ActivationsError(f"{os.fspath(path)}: array {name!r} has shape {shape}: not a shape")
    if dtype.kind not in KINDS or dtype.fields is not None or dtype.subdtype is not None:
        raise ActivationsError(
            f"{os.fspath(path)}: array {name!r} has dtype {dtype}: only real numbers are read, "
            "and pickle never"
        )
    if dtype.kind == "V" and not dtype.name.startswith(("bfloat16", "float")):
        raise ActivationsError(
            f"{os.fspath(path)}: array {name!r} has dtype {dtype}: only real numbers are read"
        )
    return Array(tuple(int(n) for n in shape), dtype)
