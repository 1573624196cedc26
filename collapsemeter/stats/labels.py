"""Labels as people pass them, checked and made into one integer per row."""

from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from .plain import is_tensor, is_untyped, plain
from .sums import EPS, IGNORE_INDEX, MIXED, UNLABELLED, Nonfinite

Array = Any  # of the framework that the operations speak for
# Rows of several classes: left out, or of the class of their largest part.
Mixed = Literal["skip", "hardest"]


class LabelOperations(Protocol):
    """The operations that `coded` needs of a framework."""

    def integers(self, x: Array) -> Array:
        """Cast to the signed integers that labels are kept in; what does not fit may become anything."""

    def keeps(self, x: Array) -> bool:
        """Whether that cast keeps every number of the dtype."""

    def same(self, whole: Array, x: Array) -> Array:
        """Whether the integers are what they were cast from."""

    def is_float(self, x: Array) -> bool: ...
    def where(self, condition: Array, a: Array | int, b: Array | int) -> Array: ...
    def count_last(self, flags: Array) -> Array:
        """(..., C) bool -> (...) integers: how many are set."""

    def place_last(self, flags: Array) -> Array:
        """(..., C) bool -> (...) integers: the place of the one that is set; any where several are."""

    def max_last(self, x: Array) -> Array:
        """(..., C) -> (..., 1): the largest entry."""


def coded(
    values: Array,
    num_classes: int,
    ignore_index: int,
    ops: LabelOperations,
    *,
    one_hot: bool,
    mixed: Mixed = "skip",
) -> Array:
    """Return one integer a row, on any device: nothing is read back, and no shape depends on a value.

    Parameters
    ----------
    values : array of class numbers of any dtype, or of one-hot rows (..., num_classes)
    num_classes, ignore_index : int
    ops : LabelOperations
    one_hot : bool
        Whether the values are one-hot rows.
    mixed : {"skip", "hardest"}
        ``hardest`` takes the class of the largest part for a row of several; it is `MIXED` where the largest
        parts are equal, or a part is none of 0 to 1.

    Returns
    -------
    integer array
        Whole numbers as they are; `UNLABELLED` for a row of zeros; `MIXED` for a row of several classes or of
        parts of them, and for a part between two classes; and ``num_classes``, or one more where that is
        ``ignore_index``, for any other number that is not whole.

    Examples
    --------
    >>> coded(np.array([[0, 1, 0], [0, 0, 0], [1, 1, 0]]), 3, -100, NUMPY_LABELS, one_hot=True).tolist()
    [1, -1073741824, -1073741825]
    >>> coded(np.array([1.0, -100.0, 0.5]), 3, -100, NUMPY_LABELS, one_hot=False).tolist()
    [1, -100, 3]
    """
    if one_hot:
        ones, zeros = values == 1, values == 0
        set_, clear = ops.count_last(ones), ops.count_last(zeros)
        pure = (set_ == 1) & (clear == num_classes - 1)
        none = ops.where(clear == num_classes, ops.integers(clear) * 0 + UNLABELLED, MIXED)
        if mixed == "hardest" and not ops.keeps(values):
            largest = values == ops.max_last(values)
            parts = ops.count_last((values >= 0) & (values <= 1)) == num_classes
            single = (ops.count_last(largest) == 1) & parts
            none = ops.where(single, ops.place_last(largest), none)
        return ops.where(pure, ops.place_last(ones), none)
    whole = ops.integers(values)
    if ops.keeps(values):
        return whole
    stray = num_classes + (ignore_index == num_classes)
    left = whole * 0 + stray
    if num_classes == 2 and ops.is_float(values):
        part = MIXED
        if mixed == "hardest":
            part = ops.where(values == 0.5, MIXED, ops.integers(values > 0.5))
        left = ops.where((values > 0) & (values < 1), part, left)
    return ops.where(ops.same(whole, values), whole, left)


class ArrayLabels:
    """The operations of NumPy, and of `jax.numpy`, which has the same names."""

    def __init__(self, xp: ModuleType, integers: type[np.signedinteger[Any]]) -> None:
        self.xp, self.dtype = xp, integers

    def integers(self, x: Array) -> Array:
        with np.errstate(invalid="ignore"):  # NaN, and numbers beyond the integers
            return x.astype(self.dtype)

    def keeps(self, x: Array) -> bool:
        narrow = x.dtype.itemsize + (x.dtype.kind == "u") <= self.xp.dtype(self.dtype).itemsize
        return x.dtype.kind == "b" or (x.dtype.kind in "iu" and narrow)

    def same(self, whole: Array, x: Array) -> Array:
        # Compared in the dtype they came in: a large unsigned number wraps to a negative one.
        return (whole.astype(x.dtype) == x) & ((whole < 0) == (x < 0))

    def is_float(self, x: Array) -> bool:
        return x.dtype.kind in "fV"

    def where(self, condition: Array, a: Array | int, b: Array | int) -> Array:
        return self.xp.where(condition, a, b)

    def count_last(self, flags: Array) -> Array:
        return flags.sum(axis=-1)

    def place_last(self, flags: Array) -> Array:
        return flags.argmax(axis=-1).astype(self.dtype)

    def max_last(self, x: Array) -> Array:
        return x.max(axis=-1, keepdims=True)


NUMPY_LABELS = ArrayLabels(np, np.int64)


def class_labels(
    labels: npt.ArrayLike,
    num_classes: int,
    *,
    ignore_index: int = IGNORE_INDEX,
    tokens: bool | None = None,
    mixed: Mixed = "skip",
) -> npt.NDArray[np.int64]:
    """Return labels as int64, one-hot rows as the class they name.

    Rows that name no single class have a code, and are left out and counted by whatever takes the result:
    `sums.UNLABELLED` for a one-hot row of zeros, `sums.MIXED` for one of several classes or of parts of them.

    Parameters
    ----------
    labels : array_like of class numbers, any shape; or one-hot of shape (..., num_classes)
        Whole numbers of any dtype; boolean ones only of two classes. Tensors of other frameworks, too.
    num_classes : int
    ignore_index : int
        The label of rows to leave out.
    tokens : bool, optional
        Whether integers whose last axis has the length ``num_classes`` are one label for each token, if the
        features tell. Otherwise they are one-hot if they are all 0 and 1 and most rows name one class.
    mixed : {"skip", "hardest"}
        What becomes of rows of parts of several classes: they are left out, or have the class of their
        largest part (left out where the largest parts are equal).

    Returns
    -------
    int64 array
        The labels, with the shape they came in (less the one-hot axis).

    Raises
    ------
    ValueError
        If a label is no whole number, or is outside 0..num_classes-1 and not ``ignore_index``; or if most
        rows name several classes or parts of them.

    Examples
    --------
    >>> class_labels([[0, 1, 0], [1, 0, 0]], num_classes=3)
    array([1, 0])
    >>> class_labels([[0.3, 0.7], [0.5, 0.5], [1.0, 0.0]], num_classes=2, mixed="hardest").tolist()
    [1, -1073741825, 0]
    >>> class_labels([[0.0], [1.0]], num_classes=2).tolist()
    [[0], [1]]
    >>> class_labels([0, 3], num_classes=3)
    Traceback (most recent call last):
        ...
    ValueError: label 3 at row 1 is outside 0..2 (num_classes=3) and is not ignore_index=-100
    """
    array = host_array(labels)
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"labels have dtype {array.dtype} and shape {array.shape}: pass integer classes "
            f"0..{num_classes - 1}, or one-hot rows of {num_classes}"
        )
    one_hot = is_one_hot(array, num_classes, tokens)
    if not one_hot:
        check_dtype(dtype_name(getattr(labels, "dtype", array.dtype)), array.shape, num_classes)
    codes = coded(array, num_classes, ignore_index, NUMPY_LABELS, one_hot=one_hot, mixed=mixed)
    if one_hot:
        _check_entries(array, num_classes)
    else:
        _check_numbers(array, codes, num_classes, ignore_index)
    if one_hot or array.dtype.kind == "f":  # integers may be codes, of a sample for instance
        _check_mixed(array, codes, ignore_index)
    return np.asarray(codes, np.int64)


def labelled_rows(
    features: npt.ArrayLike,
    labels: npt.ArrayLike,
    num_classes: int,
    *,
    ignore_index: int = IGNORE_INDEX,
    nonfinite: Nonfinite = "skip",
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return features as rows, in the dtype they came in, and one integer label for each."""
    check_nonfinite(nonfinite)
    rows = plain(features, "features")
    # "V" is the kind of bfloat16 and other narrow floats that NumPy does not know by itself.
    if rows.ndim != 2 or rows.dtype.kind not in "fiubV" or rows.dtype.names:
        raise ValueError(
            f"features have shape {rows.shape} and dtype {rows.dtype}: pass one row of real numbers "
            "per sample, shape (N, d)"
        )
    if not rows.shape[1]:
        raise ValueError(
            f"features have shape {rows.shape}: there is not one feature: pass rows of shape (N, d)"
        )
    if is_untyped(rows.dtype):
        raise ValueError(
            f"features have shape {rows.shape} and dtype {rows.dtype}, bytes that say no type of number, as "
            "NumPy reads what it saved of bfloat16: pass features.view(ml_dtypes.bfloat16), or what they are"
        )
    bins = class_labels(labels, num_classes, ignore_index=ignore_index, tokens=False)
    if bins.shape == (len(rows), 1):
        bins = bins[:, 0]
    if bins.shape != rows.shape[:1]:
        raise ValueError(
            f"features have shape {rows.shape} and labels {bins.shape}: pass one label per row"
        )
    if nonfinite == "raise":
        stray = ~np.isfinite(rows).all(axis=1) & (bins >= 0) & (bins != ignore_index)
        if stray.any():
            first = int(stray.argmax())
            raise ValueError(
                f"row {first} of the features (label {bins[first]}) holds NaN or Inf: "
                "pass nonfinite='skip' to leave such rows out"
            )
    return rows, bins


def class_rows(
    labels: npt.NDArray[np.int64], num_classes: int, ignore_index: int
) -> npt.NDArray[np.bool_]:
    """Return which of the labels that `class_labels` returned name a class to count."""
    rows: npt.NDArray[np.bool_] = (labels >= 0) & (labels < num_classes) & (labels != ignore_index)
    return rows


def check_predictions(
    predictions: npt.NDArray[Any],
    num_classes: int,
    usable: npt.NDArray[np.bool_] | Literal[True] = True,
) -> None:
    """Raise ValueError unless each of the usable predictions is a class, or -1 where the network decided on none."""
    if predictions.dtype.kind not in "biuf":
        raise ValueError(
            f"predictions have dtype {predictions.dtype} and shape {predictions.shape}: pass the class that the "
            f"network decides on, 0..{num_classes - 1}, for each row"
        )
    classes = (predictions >= -1) & (predictions < num_classes)
    wrong = np.argwhere(~(classes & (predictions == np.floor(predictions))) & usable)
    if len(wrong):
        where, place = _place(wrong)
        raise ValueError(
            f"prediction {predictions[where]} at {place} is outside 0..{num_classes - 1} (num_classes="
            f"{num_classes}) and not -1, for none: pass the class that the network decides on for each row"
        )


def check_mixed(mixed: Mixed) -> None:
    """Raise ValueError unless it says what to do with a row of several classes."""
    if mixed not in get_args(Mixed):
        raise ValueError(f"mixed={mixed!r}: choose 'skip' or 'hardest'")


def check_nonfinite(nonfinite: Nonfinite) -> None:
    """Raise ValueError unless it says what to do with a row that holds NaN or Inf."""
    if nonfinite not in get_args(Nonfinite):
        raise ValueError(f"nonfinite={nonfinite!r}: choose 'skip', 'raise' or 'propagate'")


def are_tokens(labels: Sequence[int], features: Iterable[Sequence[int]]) -> bool:
    """Whether labels may be one for each token: every layer gave a row of features for each of them."""
    tokens = tuple(labels[1:])
    return len(labels) > 1 and all(tuple(shape[1:-1]) == tokens for shape in features)


def host_array(labels: Any) -> npt.NDArray[Any]:
    """Return labels in NumPy; those of narrow floats, which it does not compute with, as float32."""
    array = plain(labels, "labels")
    narrow = array.dtype.kind == "V" and array.dtype.type is not np.void
    return array.astype(np.float32) if narrow else array


def feature_dtype_of(features: Any, rows: npt.NDArray[Any]) -> str:
    """Return the name of the dtype that features have; ``rows`` are what `labelled_rows` made of them."""
    return dtype_name(features.dtype) if is_tensor(features) else rows.dtype.name


def dtype_name(dtype: Any) -> str:
    """Return the name of a dtype of any framework."""
    return getattr(dtype, "name", None) or str(dtype).rpartition(".")[2]


def is_one_hot(array: npt.NDArray[Any], num_classes: int, tokens: bool | None = None) -> bool:
    """Whether labels are one-hot rows and not class numbers, see `class_labels`."""
    if array.ndim < 2 or array.shape[-1] != num_classes or num_classes < 2:
        return False
    if array.dtype.kind in "bf":
        return True
    if tokens is not None:
        return not tokens
    if not ((array == 0) | (array == 1)).all():
        return False
    return not array.size or 2 * int((array.sum(axis=-1) == 1).sum()) > array.size // num_classes


def check_dtype(dtype: str, shape: tuple[int | None, ...], num_classes: int) -> None:
    """Raise ValueError unless a dtype can hold the numbers of so many classes."""
    if dtype == "bool" and num_classes > 2:
        raise ValueError(
            f"labels have dtype {dtype} and shape {shape}: pass integer classes 0..{num_classes - 1}, "
            f"or one-hot rows of {num_classes}"
        )
    largest = int(2 / EPS.get(dtype, EPS["float64"]))
    if num_classes > largest + 1:
        raise ValueError(
            f"labels have dtype {dtype} and shape {shape}, and num_classes={num_classes}: {dtype} does "
            f"not tell whole numbers above {largest} apart; pass integers"
        )


def _place(where: npt.NDArray[np.intp]) -> tuple[tuple[int, ...], str]:
    first = tuple(int(axis) for axis in where[0])
    return first, f"row {first[0]}" if len(first) == 1 else f"position {first}"


def _check_numbers(
    array: npt.NDArray[Any], codes: npt.NDArray[Any], num_classes: int, ignore_index: int
) -> None:
    wrong = (codes < 0) | (codes >= num_classes)
    if wrong.any():
        wrong &= (codes != ignore_index) & (codes != UNLABELLED) & (codes != MIXED)
    if not wrong.any():
        return
    if num_classes == 2 and np.isin(array, (-1, 1)).all():
        raise ValueError(
            "labels are -1 and 1, as a hinge loss takes them: pass (labels + 1) // 2, which are 0 and 1"
        )
    where, place = _place(np.argwhere(wrong))
    label = array[where]
    if array.dtype.kind == "f" and not label == np.floor(label):
        raise ValueError(
            f"label {label} at {place} is no whole number: labels of dtype {array.dtype} and shape "
            f"{array.shape} must be class numbers 0..{num_classes - 1} or ignore_index={ignore_index}, "
            f"or one-hot rows of {num_classes}"
        )
    raise ValueError(
        f"label {label} at {place} is outside 0..{num_classes - 1} "
        f"(num_classes={num_classes}) and is not ignore_index={ignore_index}"
    )


def _check_entries(array: npt.NDArray[Any], num_classes: int) -> None:
    wrong = np.argwhere(~((array >= 0) & (array <= 1)))
    if len(wrong):
        where, place = _place(wrong)
        raise ValueError(
            f"labels have dtype {array.dtype} and shape {array.shape}, so they are one-hot rows of "
            f"{num_classes}, and hold {array[where]} at {place}: pass rows of 0 and a single 1, or one "
            f"class 0..{num_classes - 1} for each row"
        )


def _check_mixed(array: npt.NDArray[Any], codes: npt.NDArray[Any], ignore_index: int) -> None:
    mixed = codes == MIXED
    count = int(mixed.sum())
    named = codes.size - int(((codes == UNLABELLED) | (codes == ignore_index)).sum())
    if 2 * count > named:
        where, place = _place(np.argwhere(mixed))
        raise ValueError(
            f"labels have dtype {array.dtype} and shape {array.shape}, and {count} of {codes.size} rows "
            f"name several classes or parts of them (multi-label, smoothed or mixed), such as "
            f"{np.array2string(array[where], threshold=8)} at {place}: neural collapse is about one class "
            "a row, so pass the class numbers from before they were smoothed or mixed (or mixed='hardest' to a meter, which "
            "counts each under its largest part)"
        )
