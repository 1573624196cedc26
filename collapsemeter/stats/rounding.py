r"""Bounds on what rounding of running float32 sums may have taken from the statistics.

Where the first rows of a class lie far from the rest, the second moment about their mean, :math:`G_c`, is much larger
than the scatter :math:`S_c`, which keeps few digits. The error of a sum of n terms is within
:math:`\gamma = 4 \epsilon \sqrt n` of their size as a rule (Higham & Mary 2019), so that

.. math:: |\delta \operatorname{tr} S_c| \le \gamma \operatorname{tr} G_c, \quad
          |\delta S_{ab}| \le \gamma \sqrt{G_{aa} G_{bb}}, \quad
          |\delta \mu_c| \le \gamma \sqrt{\operatorname{tr} G_c / n_c} .
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from .linalg import Floats
    from .sums import Sums

EPS32 = float(np.finfo(np.float32).eps)


@dataclass(frozen=True, eq=False)
class Rounding:
    """Bounds of the rounding errors of class moments, absolute."""

    traces: Floats
    features: Floats
    means: Floats

    @classmethod
    def of(cls, sums: Sums) -> Rounding | None:
        """Return the bounds of sums that were kept in float32; None for others."""
        if np.asarray(sums.sums).dtype != np.float32:
            return None
        counts = np.maximum(np.asarray(sums.counts, np.float64), 1)
        squares = np.maximum(np.asarray(sums.squares, np.float64), 0)  # NaN stays
        share = 4 * EPS32 * np.sqrt(counts)
        width = sums.sums.shape[1]
        if sums.scatter is None:
            features = np.full(width, (share @ squares) / width)
        elif sums.scatter.ndim == 3:
            features = share @ np.einsum("caa->ca", sums.scatter).astype(np.float64)
        else:
            features = share.max() * np.asarray(sums.scatter.diagonal(), np.float64)
        return cls(share * squares, features, share * np.sqrt(squares / counts))

    @classmethod
    def among(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Rounding | None:
        """Return the bounds among the arrays of a state file; None where there are none."""
        named = [arrays.get(f"rounding_{part.name}") for part in fields(cls)]
        if all(array is None for array in named):
            return None
        classes, width = arrays["means"].shape
        if any(
            array is None or array.shape != (size,) or array.dtype.kind != "f" or (array < 0).any()
            for array, size in zip(named, (classes, width, classes), strict=True)
        ):
            raise ValueError("its bounds of rounding errors are not those of its means")
        return cls(*map(np.asarray, named))

    def arrays(self) -> dict[str, Floats]:
        """Return the bounds under the names that `among` looks for."""
        return {f"rounding_{part.name}": getattr(self, part.name) for part in fields(self)}


def merged_rounding(
    a: Rounding | None, b: Rounding | None, counts_a: npt.ArrayLike, counts_b: npt.ArrayLike
) -> Rounding | None:
    """Return the bounds of merged moments."""
    known = b if a is None else a
    if known is None:
        return None
    nothing = Rounding(*(np.zeros_like(getattr(known, part.name)) for part in fields(known)))
    a, b = a or nothing, b or nothing
    share = np.asarray(counts_b) / np.maximum(np.add(counts_a, counts_b), 1)
    means = a.means + (b.means - a.means) * share
    return Rounding(a.traces + b.traces, a.features + b.features, means)
