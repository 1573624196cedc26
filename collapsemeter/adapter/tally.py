"""The counts of one layer, copied to the host: its sums, and the rows kept for NC4."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..metrics.decisions import Decisions, decide
from ..stats.fields import Phase
from ..stats.head import Head
from ..stats.moments import ClassMoments
from ..stats.sums import COUNTERS, Sums

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Tally:
    """The counts of one layer, copied to the host.

    Attributes
    ----------
    sums : Sums
        NumPy arrays.
    feature_dtype : str
        The dtype the network computed in.
    rows : (K, d), labels : (K,), ids : (K,) arrays
        Rows kept for NC4, their labels and row numbers.
    decided : pair of (J,) arrays, or None
        Row numbers, and the classes that the network decided on for them.
    seed : int
        What the sketch was hashed with, where there is one.
    """

    sums: Sums
    feature_dtype: str
    rows: Array
    labels: Array
    ids: Array
    decided: tuple[Array, Array] | None = None
    seed: int = 0

    def seen(self, propagate: bool) -> int:
        """Label rows that came by; a propagated row that is not finite is among the counts."""
        causes = [cause for cause in COUNTERS if not (propagate and cause == "nonfinite")]
        left_out = sum(int(getattr(self.sums, cause)) for cause in causes)
        return int(np.asarray(self.sums.counts, np.int64).sum()) + left_out

    def moments(self, phase: Phase) -> ClassMoments:
        """Finalise in float64."""
        return ClassMoments.from_sums(self.sums, self.feature_dtype, phase, seed=self.seed)

    def decisions(self, moments: ClassMoments, head: Head | None = None) -> Decisions:
        """Decide on the rows kept; the network's own decisions, where there are any, come before the head's."""
        usable = (self.labels >= 0) & (self.labels < moments.num_classes)
        if self.decided is None or not len(self.decided[0]):
            return decide(moments, self.rows[usable], self.labels[usable], head=head)
        numbers, classes = self.decided
        usable &= np.isin(self.ids, numbers)
        order = np.argsort(numbers)
        places = order[np.searchsorted(numbers, self.ids[usable], sorter=order)]
        return decide(moments, self.rows[usable], self.labels[usable], predictions=classes[places])


def classifier(weight: Array, bias: Array | None) -> Head:
    """Return the head of a (C, d) weight; a weight of one row is a single logit between two classes."""
    if len(weight) == 1:
        return Head.from_single_logit(weight[0], 0.0 if bias is None else bias)
    return Head(weight, bias)
