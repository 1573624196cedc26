"""The interface of every format of saved activations: named arrays, read in chunks of rows."""

import math
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from ..stats.plain import is_untyped
from ..system.suggest import did_you_mean, listed

MAX_EXPANSION = 200  # an honest array of floats does not shrink this much
SMALL = 2**20  # bytes; labels in order do shrink that much, and so little memory harms nobody
MAX_DIRECTORY = 2**19  # bytes; names, shapes and places of some thousand arrays
MAX_DIMENSIONS = 32
KINDS = "fiubV"  # real numbers; "V" is how NumPy calls bfloat16 and other floats of ml_dtypes

AS_SAFETENSORS = (
    "save it as safetensors, safetensors.numpy.save_file({'x': x}, 'x.safetensors'), or as float32, "
    "x.astype('float32')"
)
_CLASSES = "np.unique(labels, return_inverse=True)[1]"
NUMBER_LABELS = f"; if these are labels, {_CLASSES} numbers the classes"
_REMEDIES = {
    "S": NUMBER_LABELS,
    "U": NUMBER_LABELS,
    "O": f"; of labels, {_CLASSES} numbers the classes, and of rows of features np.stack(rows) is an array",
    "c": "; save x.real and x.imag side by side, or abs(x)",
}


class ActivationsError(ValueError):
    """A file of activations is not what it says it is; the message names the file and the fault."""


class Refused(Exception):
    """Why one array of a file is not read; the others are."""


class Array(NamedTuple):
    """One array of a file, as its header describes it, checked against the size of the file."""

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


class Rows(Protocol):
    """The rows of one array; both methods raise `Refused` where the file is damaged."""

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows, for 0 <= start <= stop <= number of rows."""

    def check(self) -> None:
        """Compare the contents with the checksums of the format, if it has any."""


class Mapped:
    """The rows of an array that lies in a file as it is; every read maps anew, so that pages read before take no memory."""

    def __init__(
        self, path: str, array: Array, offset: int, order: Literal["C", "F"] = "C"
    ) -> None:
        self._path, self._array, self._offset, self._order = path, array, offset, order

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        shape, dtype = self._array
        if self._array.nbytes == 0:  # an empty map is an error
            return np.empty((stop - start, *shape[1:]), dtype)
        values = np.memmap(self._path, dtype, "r", self._offset, shape, self._order)
        return values.view(np.ndarray)[start:stop]

    def check(self) -> None:
        pass


class ArrayFile:
    """An open file of named arrays; a format adds each array with its rows.

    Opening reads headers only. A file whose structure is damaged cannot be opened. A fault of one
    array costs that array alone: its name is in ``refused``, with the reason.

    Attributes
    ----------
    arrays : dict of str to Array
        The arrays that can be read, in the order of the file.
    refused : dict of str to str
        The arrays that are not read, each with the reason: no real numbers (text, pickled objects,
        bytes without a type), a scalar, a claim that does not fit the bytes stored, an unknown codec.
    """

    arrays: dict[str, Array]
    refused: dict[str, str]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.arrays, self.refused = {}, {}
        self._rows: dict[str, Rows] = {}
        self._open = ExitStack()

    def _add(
        self, name: str, locate: Callable[[], tuple[Array, Rows]], damaged: str | None = None
    ) -> None:
        """Add an array or the reason why it is refused; errors of a library are said to be ``damaged``."""
        try:
            self.arrays[name], self._rows[name] = locate()
        except Refused as reason:
            self.refused[name] = str(reason)
        except Exception as error:  # the errors of libraries have many types
            if damaged is None:
                raise
            self.refused[name] = f"{damaged}: {first_line(error)}"

    def read(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows ``start`` to ``stop``, clipped as NumPy clips a slice, as the file has them.

        The array may be a read-only view of the file. Reading allocates a small multiple of it at most.

        Raises
        ------
        ActivationsError
            If the file has no such array, the array was refused, or the file is damaged there.
        """
        if name not in self.arrays and name not in self.refused:
            names = listed((f"{known!r} {array}" for known, array in self.arrays.items()), 20)
            raise ActivationsError(
                f"{self.path} has no array {name!r}; arrays found: {names}"
                + did_you_mean(name, self.arrays)
            )
        with self._named(name):
            if name in self.refused:
                raise Refused(self.refused[name])
            start, stop, _ = slice(start, stop).indices(self.arrays[name].shape[0])
            return self._rows[name].read(start, max(start, stop))

    def check(self) -> None:
        """Compare the contents with the checksums of the format, if it has any.

        Raises
        ------
        ActivationsError
            If they differ.
        """
        for name, rows in self._rows.items():
            with self._named(name):
                rows.check()

    def close(self) -> None:
        """Close the file; views that were read stay valid."""
        self._open.close()

    @contextmanager
    def _whole(self, what: str, errors: type[Exception] = Exception) -> Iterator[None]:
        """Close a file that is damaged and say so; the errors of libraries have many types."""
        try:
            yield
        except ActivationsError:
            self.close()
            raise
        except errors as error:
            self.close()
            raise ActivationsError(
                f"{self.path} is not a whole {what}: {first_line(error)}"
            ) from error

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        try:
            yield
        except Refused as reason:
            raise ActivationsError(f"{self.path}: array {name!r} {reason}") from reason

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def file_size(path: str | os.PathLike[str]) -> int:
    """Return the size of a regular file; refuse pipes, which would be waited for, and folders."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ActivationsError(f"{os.fspath(path)} is not a regular file")
    return status.st_size


def check_array(shape: tuple[Any, ...], dtype: np.dtype[Any]) -> Array:
    """Return the array that a header describes; refuse what is no array of real numbers with rows."""
    if len(shape) > MAX_DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
        raise Refused(f"has shape {str(shape)[:200]}: not a shape")
    if dtype.kind not in KINDS or dtype.fields is not None or dtype.subdtype is not None:
        raise Refused(
            f"has dtype {str(dtype)[:200]}: only real numbers are read, and pickle never"
            + _REMEDIES.get(dtype.kind, "")
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
    """Return the array; refuse it if it expands more than `MAX_EXPANSION` times."""
    if array.nbytes > max(SMALL, MAX_EXPANSION * stored):
        raise Refused(
            f"expands {array.nbytes // max(stored, 1)} times, from {stored} bytes to "
            f"{array.nbytes}: at most {MAX_EXPANSION} times is read; if it is meant, save it "
            "uncompressed"
        )
    return array


def required(library: str, needed_by: str, extra: str, name: str = "") -> Any:
    """Import a library; ImportError says what needs it, and which extra brings it."""
    try:
        return import_module(library)
    except ImportError as error:
        raise ImportError(
            f"{needed_by} needs {name or library.partition('.')[0]}: pip install 'collapsemeter[{extra}]'"
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error, at most 200 characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
