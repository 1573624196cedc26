"""Arrays as people pass them, made into plain NumPy arrays without counting what is not there."""

from typing import Any

import numpy as np
import numpy.typing as npt


def plain(values: Any, what: str, dtype: Any = None) -> npt.NDArray[Any]:
    """Return values as a NumPy array; refuse masked entries, which `numpy.asarray` takes for data."""
    check_unmasked(values, what)
    return np.asarray(values, dtype)


def check_unmasked(values: Any, what: str) -> None:
    """Raise ValueError if an entry is masked; the message says how to leave it out. Tensors pass."""
    if isinstance(values, list | tuple):  # NumPy makes one array of them, and drops their masks
        for value in values:
            check_unmasked(value, what)
        return
    if not isinstance(values, np.ma.MaskedArray) or not np.ma.is_masked(values):
        return
    hidden, filled = int(np.sum(values.mask)), "filled(np.nan)"
    if what in ("labels", "predictions"):
        filled = "filled(-100)"
    elif values.dtype.kind != "f":
        filled = "astype(float).filled(np.nan)"
    raise ValueError(
        f"{what} of shape {values.shape} and dtype {values.dtype} are masked in {hidden} of "
        f"{values.size} entries: {what}.{filled} leaves them out and counts them"
    )


def is_untyped(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype is of bytes that say no type of number, as NumPy reads back what it saved of bfloat16."""
    return dtype.type is np.void and dtype.names is None


def widened(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return bfloat16 and the like, which NumPy does not compute with by itself, as float32: exactly."""
    # By type: a float64 whose byte order is spelled out, as a file's is, is not "built in" to NumPy.
    numpys = issubclass(values.dtype.type, np.number | np.bool_)
    return values if numpys else values.astype(np.float32)
