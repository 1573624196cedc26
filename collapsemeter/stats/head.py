"""The linear classifier on top of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .linalg import TILE, Floats, bounded, row_blocks
from .plain import plain

_SINGLE_LOGIT = "of a single logit pass Head.from_single_logit(weight, bias)"


@dataclass(frozen=True, eq=False)
class Head:
    r"""The linear classifier on top of a layer: logits :math:`W h + b`.

    Parameters
    ----------
    weight : (C, d) array_like of float
        One row per class (PyTorch's layout; a Keras or Flax kernel is its transpose).
    bias : (C,) array_like of float, optional
        Zeros if left out.

    Raises
    ------
    ValueError
        If the shapes are not (C, d) and (C,).

    Examples
    --------
    >>> Head(np.eye(2), [0.5, -0.5]).logits(np.array([[1.0, 2.0]]))
    array([[1.5, 1.5]])
    """

    weight: Floats
    bias: Floats

    def __init__(self, weight: npt.ArrayLike, bias: npt.ArrayLike | None = None) -> None:
        rows = plain(weight, "weights", np.float64)
        offset = np.zeros(rows.shape[:1]) if bias is None else plain(bias, "biases", np.float64)
        if rows.ndim != 2 or offset.shape != rows.shape[:1]:
            single = f"; {_SINGLE_LOGIT}" if rows.ndim == 1 else ""
            raise ValueError(
                f"head weight has shape {rows.shape} and bias {offset.shape}: expected (C, d) with "
                f"one row per class, and (C,){single}"
            )
        object.__setattr__(self, "weight", rows)
        object.__setattr__(self, "bias", offset)

    @classmethod
    def from_single_logit(cls, weight: npt.ArrayLike, bias: npt.ArrayLike = 0.0) -> Head:
        """Return the two-class head that decides as one logit z does: rows -w/2 and +w/2.

        Examples
        --------
        >>> Head.from_single_logit([2.0, 4.0]).weight
        array([[-1., -2.],
               [ 1.,  2.]])
        """
        half = np.ravel(plain(weight, "weights", np.float64)) / 2
        shift = float(np.ravel(plain(bias, "biases", np.float64))[0]) / 2
        return cls(np.stack([-half, half]), [-shift, shift])

    @classmethod
    def of(cls, head: HeadLike) -> Head:
        """Return a head as it is, and one of a weight, or of the pair of weight and bias.

        Raises
        ------
        ValueError
            If it is none of these.

        Examples
        --------
        >>> Head.of((np.eye(2), [0.5, -0.5])).bias
        array([ 0.5, -0.5])
        """
        if isinstance(head, Head):
            return head
        weight: Any = head
        bias: npt.ArrayLike | None = None
        try:
            if isinstance(head, tuple) and len(head) == 2 and np.ndim(head[0]) > 1:
                weight, bias = head
            rows = plain(weight, "weights", np.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"head is of type {type(head).__name__} ({error}): pass Head(weight, bias), a weight (C, d) "
                "or the pair (weight, bias), as arrays"
            ) from None
        return cls(rows, bias)

    def check_fit(self, num_classes: int, width: int) -> None:
        """Raise ValueError unless there is a row for each class, of that width."""
        shape, expected = self.weight.shape, (num_classes, width)
        if shape == expected:
            return
        hint = ""
        if shape == expected[::-1]:
            hint = ": pass its transpose"
        elif num_classes == 2 and shape in ((1, width), (width, 1)):
            hint = f": {_SINGLE_LOGIT}"
        raise ValueError(f"head weight has shape {shape}, the class means {expected}{hint}")

    @property
    def finite(self) -> bool:
        """Whether no value is NaN, Inf or so large that its square overflows."""
        return bounded(self.weight) and bounded(self.bias)

    def logits(self, features: npt.ArrayLike) -> Floats:
        """Return W h + b for every row, (N, C)."""
        logits = plain(features, "features", np.float64) @ self.weight.T
        return logits + self.bias

    def decide(self, features: npt.ArrayLike) -> npt.NDArray[np.int64]:
        r"""Return :math:`\arg\max_c (W h + b)_c` for every row, (N,), in bounded memory.

        It is -1, no class, where a score is NaN.

        Examples
        --------
        >>> Head(np.eye(2)).decide([[1.0, 2.0], [np.nan, 0.0]])
        array([ 1, -1])
        """
        rows = plain(features, "features")
        decided = np.empty(len(rows), np.int64)
        with np.errstate(invalid="ignore", over="ignore"):
            for part in row_blocks(len(rows), len(self.weight), TILE * TILE):
                decided[part] = argmax_or_none(self.logits(rows[part]))
        return decided


HeadLike: TypeAlias = Head | npt.ArrayLike | tuple[npt.ArrayLike, npt.ArrayLike | None]


def argmax_or_none(scores: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the column of the largest score of every row; -1 where a score is NaN."""
    return np.where(np.isnan(scores).any(axis=1), -1, scores.argmax(axis=1))
