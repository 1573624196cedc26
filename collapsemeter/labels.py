"""Labels as people pass them, checked and made into one integer per row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

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
    array = np.asarray(labels)
    if is_one_hot(array, num_classes):
        return np.asarray(array.argmax(axis=-1), np.int64)
    if array.dtype.kind not in "iu":
        raise ValueError(
            f"labels have dtype {array.dtype} and shape {array.shape}: pass integer classes "
            f"0..{num_classes - 1}, or one-hot rows of {num_classes}"
        )
    array = np.asarray(array, np.int64)
    wrong = ((array < 0) | (array >= num_classes)) & (array != ignore_index)
    if wrong.any():
        where = tuple(int(axis) for axis in np.argwhere(wrong)[0])
        place = f"row {where[0]}" if len(where) == 1 else f"position {where}"
        raise ValueError(
            f"label {array[where]} at {place} is outside 0..{num_classes - 1} "
            f"(num_classes={num_classes}) and is not ignore_index={ignore_index}"
        )
    return array


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
