"""Parse the header of a ``.npy`` array, without pickle; `activations.npy_format` checks what it claims."""

import io
import threading
import warnings
from typing import Any, Literal, NamedTuple

import numpy as np

MAX_HEADER = 10_000  # characters; NumPy's own limit for untrusted files
PREFIX = MAX_HEADER + 12  # bytes that hold any header, with the magic and its length

# A worker of Dask has several threads, which share the filters of warnings and the depth that Python
# 3.11 counts as it parses: it raises SystemError where another thread parses in between.
_PARSING = threading.Lock()


class NpyHeader(NamedTuple):
    """The fields of the header, unchecked, and where it ends."""

    shape: tuple[Any, ...]
    dtype: np.dtype[Any]
    order: Literal["C", "F"]
    offset: int


def read_npy_header(prefix: bytes) -> NpyHeader:
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
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(line[:200]) from error
    return NpyHeader(shape, dtype, "F" if fortran else "C", file.tell())
