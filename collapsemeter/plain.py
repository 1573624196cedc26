"""Arrays as people pass them, made into plain NumPy arrays without counting what is not there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def plain(values: Any, what: str) -> npt.NDArray[Any]:
    """Return values as a NumPy array; refuse masked entries, which `numpy.asarray` takes for data.

    Parameters
    ----------
    values : array_like
    what : str
        What they are, in the plural.

    Raises
    ------
    ValueError
        If an entry is masked; the message says how to leave it out.

    Examples
    --------
    >>> plain([1, 2], "labels")
    array([1, 2])
    >>> plain(np.ma.masked_equal([1, 2], 2), "labels")
    Traceback (most recent call last):
        ...
    ValueError: labels of shape (2,) and dtype int64 are masked in 1 of 2 entries: labels.filled(-100) leaves them out and counts them
    """
    if isinstance(values, list | tuple):  # NumPy makes one array of them, and drops every mask
        masked = any(isinstance(value, np.ma.MaskedArray) for value in values)
        values = np.ma.asarray(np.ma.stack(values)) if masked else values
    if isinstance(values, np.ma.MaskedArray):
        hidden = int(np.ma.count_masked(values))
        if hidden:
            filled = "filled(-100)" if what in ("labels", "predictions") else "filled(np.nan)"
            if values.dtype.kind != "f" and filled == "filled(np.nan)":
                filled = f"astype(float).{filled}"
            raise ValueError(
                f"{what} of shape {values.shape} and dtype {values.dtype} are masked in {hidden} of "
                f"{values.size} entries: {what}.{filled} leaves them out and counts them"
            )
        return np.asarray(values.data)
    return np.asarray(values)


def is_untyped(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype is of bytes that say no type of number, as NumPy reads back what it saved of bfloat16.

    Examples
    --------
    >>> is_untyped(np.dtype("V2")), is_untyped(np.dtype("float32"))
    (True, False)
    """
    return dtype.type is np.void and dtype.names is None
