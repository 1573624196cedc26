"""The fields of class moments, and what follows from them."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from .groups import Groups
from .linalg import Floats
from .rounding import Rounding
from .sums import ScatterKind

Phase = Literal["live", "frozen-train", "frozen-eval", "reference"]


@dataclass(frozen=True, eq=False)
class MomentFields:
    """Sufficient statistics of one layer as plain data, see `ClassMoments`."""

    counts: npt.NDArray[np.int64]
    means: Floats
    scatter: Floats | None
    traces: Floats
    feature_dtype: str = "float64"
    phase: Phase = "frozen-eval"
    shards: frozenset[str] = frozenset()
    ignored: int = 0
    nonfinite: int = 0
    means_low: Floats = None  # type: ignore[assignment]  # zeros, once made
    sketch: Floats | None = None
    signs: Floats | None = None
    seeds: frozenset[int] = frozenset()
    rounding: Rounding | None = None
    unlabelled: int = 0
    mixed: int = 0
    groups: Groups | None = None

    @property
    def num_classes(self) -> int:
        """Classes there are labels for, present or not."""
        return int(self.means.shape[0])

    @property
    def width(self) -> int:
        """Features d."""
        return int(self.means.shape[1])

    @property
    def rows(self) -> int:
        """Rows counted, N."""
        return int(self.counts.sum())

    @property
    def kind(self) -> ScatterKind:
        """Which scatter is kept: ``class``, ``pooled``, ``sketch`` or ``trace``."""
        if self.scatter is None:
            return "trace" if self.sketch is None else "sketch"
        return "class" if self.scatter.ndim == 3 else "pooled"
