"""Arrays as people pass them, made into plain NumPy arrays without counting what is not there."""

from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt


def plain(values: Any, what: str, dtype: Any = None) -> npt.NDArray[Any]:
    """Return values as a NumPy array; refuse masked entries, which `numpy.asarray` takes for data.

    With a ``dtype`` they must be real numbers. Tensors are read whether they need a gradient or not.
    """
    check_unmasked(values, what)
    array = _of_tensor(values) if is_tensor(values) else np.asarray(values)
    if dtype is None:
        return array
    check_real(array, what)
    return array.astype(dtype, copy=False)


def check_unmasked(values: Any, what: str) -> None:
    """Raise ValueError if an entry is masked; the message says how to leave it out. Tensors pass."""
    if isinstance(values, list | tuple):  # NumPy makes one array of them, and drops their masks
        for value in values:
            check_unmasked(value, what)
        return
    if not isinstance(values, np.ma.MaskedArray) or not np.ma.is_masked(values):
        return
    hidden = int(np.sum(values.mask))
    filled = "filled(np.nan)" if values.dtype.kind == "f" else "astype(float).filled(np.nan)"
    remedy = f"{what}.{filled} leaves them out and counts them"
    if what == "labels":
        remedy = "labels.filled(-100) leaves them out and counts them"
    elif what == "predictions":
        remedy = "give their rows the label -100, which leaves them out and counts them"
    raise ValueError(
        f"{what} of shape {values.shape} and dtype {values.dtype} are masked in {hidden} of "
        f"{values.size} entries: {remedy}"
    )


def is_tensor(values: Any) -> bool:
    """Whether values are a tensor of PyTorch, which NumPy reads neither with a gradient nor on a device."""
    return hasattr(values, "detach")


def _of_tensor(tensor: Any) -> npt.NDArray[Any]:
    tensor = tensor.detach().cpu()
    name = str(tensor.dtype).rpartition(".")[2]
    if not tensor.is_floating_point() or name in ("float16", "float32", "float64"):
        return np.asarray(tensor)
    array: npt.NDArray[Any] = np.asarray(tensor.float())
    with suppress(
        TypeError
    ):  # NumPy knows bfloat16 and the like once somebody has imported ml_dtypes
        array = array.astype(name)
    return array


def check_real(array: npt.NDArray[Any], what: str) -> None:
    """Raise ValueError unless an array holds real numbers, "V" being the kind of bfloat16 and the like."""
    if array.dtype.kind not in "fiubV" or array.dtype.type is np.void:
        raise ValueError(
            f"{what} have shape {array.shape} and dtype {array.dtype}: pass real numbers"
        )


def is_untyped(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype is of bytes that say no type of number, as NumPy reads back what it saved of bfloat16."""
    return dtype.type is np.void and dtype.names is None


def widened(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return bfloat16 and the like, which NumPy does not compute with by itself, as float32: exactly."""
    # By type: a float64 whose byte order is spelled out, as a file's is, is not "built in" to NumPy.
    numpys = issubclass(values.dtype.type, np.number | np.bool_)
    return values if numpys else values.astype(np.float32)
