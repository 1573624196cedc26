"""Labels as people pass them, checked and made into one integer per row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .plain import is_untyped, plain
from .sums import IGNORE_INDEX


def class_labels(
    labels: npt.ArrayLike, num_classes: int, *, ignore_index: int = IGNORE_INDEX
) -> npt.NDArray[np.int64]:
    """Return labels as int64, one-hot rows as the class they name.

    Parameters
    ----------
    labels : array_like of int, any shape; or one-hot of shape (..., num_classes)
        A floating or boolean array is accepted only if it is one-hot.
    num_classes : int
    ignore_index : int
        The label of rows to leave out.

    Returns
    -------
    int64 array
        The labels, with the shape they came in (less the one-hot axis).

    Raises
    ------
    ValueError
        If a label is not an integer, or is outside 0..num_classes-1 and not ``ignore_index``.

    Examples
    --------
    >>> class_labels([[0, 1, 0], [1, 0, 0]], num_classes=3)
    array([1, 0])
    >>> class_labels([0, 3], num_classes=3)
    Traceback (most recent call last):
        ...
    ValueError: label 3 at row 1 is outside 0..2 (num_classes=3) and is not ignore_index=-100
    """
    array = plain(labels, "labels")
    if is_one_hot(array, num_classes):
        return np.asarray(array.argmax(axis=-1), np.int64)
    if array.dtype.kind not in "iu" and array.size:  # an empty list has no integers to show
        raise ValueError(
            f"labels have dtype {array.dtype} and shape {array.shape}: pass integer classes "
            f"0..{num_classes - 1}, or one-hot rows of {num_classes}"
        )
    # Compared before the cast: a large unsigned label would wrap to a negative one.
    wrong = ((array < 0) | (array >= num_classes)) & (array != ignore_index)
    if wrong.any():
        where = tuple(int(axis) for axis in np.argwhere(wrong)[0])
        place = f"row {where[0]}" if len(where) == 1 else f"position {where}"
        raise ValueError(
            f"label {array[where]} at {place} is outside 0..{num_classes - 1} "
            f"(num_classes={num_classes}) and is not ignore_index={ignore_index}"
        )
    return array.astype(np.int64)


def labelled_rows(
    features: npt.ArrayLike,
    labels: npt.ArrayLike,
    num_classes: int,
    *,
    ignore_index: int = IGNORE_INDEX,
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return features as rows, in the dtype they came in, and one integer label for each.

    Parameters
    ----------
    features : (N, d) array_like of real numbers
    labels : (N,) or (N, 1) array_like of int, or (N, num_classes) one-hot
    num_classes, ignore_index
        See `class_labels`.

    Returns
    -------
    (N, d) array, (N,) int64 array

    Raises
    ------
    ValueError
        If they do not fit each other, or are not numbers of the right kind.

    Examples
    --------
    >>> labelled_rows([[0.5], [1.5]], [[0], [1]], num_classes=2)[1]
    array([0, 1])
    """
    rows = plain(features, "features")
    # "V" is the kind of bfloat16 and other narrow floats that NumPy does not know by itself.
    if rows.ndim != 2 or rows.dtype.kind not in "fiubV" or rows.dtype.names:
        raise ValueError(
            f"features have shape {rows.shape} and dtype {rows.dtype}: pass one row of real numbers "
            "per sample, shape (N, d)"
        )
    if is_untyped(rows.dtype):
        raise ValueError(
            f"features have shape {rows.shape} and dtype {rows.dtype}, bytes that say no type of number, as "
            "NumPy reads what it saved of bfloat16: pass features.view(ml_dtypes.bfloat16), or what they are"
        )
    bins = class_labels(labels, num_classes, ignore_index=ignore_index)
    if bins.shape == (len(rows), 1):
        bins = bins[:, 0]
    if bins.shape != rows.shape[:1]:
        raise ValueError(
            f"features have shape {rows.shape} and labels {bins.shape}: pass one label per row"
        )
    return rows, bins


def is_one_hot(array: npt.NDArray[Any], num_classes: int) -> bool:
    """Whether every entry of the last axis, of length ``num_classes``, is 0 but for a single 1.

    Examples
    --------
    >>> is_one_hot(np.eye(3), 3), is_one_hot(np.full((2, 2), 0.5), 2)
    (True, False)
    """
    if array.ndim < 2 or array.shape[-1] != num_classes or array.dtype.kind not in "biuf":
        return False
    return bool(((array == 0) | (array == 1)).all() and (array.sum(axis=-1) == 1).all())
