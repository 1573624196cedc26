"""One layer beside the reference: gaps, distances, status and verdict."""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ..metrics.layer import to_json_value
from ..report.criteria import Band

Status: TypeAlias = (
    Band
    | Literal[
        "below DNC rank", "other geometry", "free", "infeasible", "nothing learned", "unmeasured"
    ]
)
Interval: TypeAlias = tuple[float, float]


class Gap(NamedTuple):
    """One metric: measured, at the reference, and their difference; NaN where one is undefined."""

    measured: float
    reference: float
    interval: Interval | None = None
    """95 % interval of what was measured."""
    reference_interval: Interval | None = None
    """That of the reference, which is a point where it is an optimum."""

    @property
    def gap(self) -> float:
        """Measured less reference."""
        with np.errstate(invalid="ignore"):
            return float(np.subtract(self.measured, self.reference))

    @property
    def beyond_noise(self) -> bool | None:
        """Whether the intervals do not meet, so that there is a gap; None where one is not known."""
        if self.interval is None or self.reference_interval is None:
            return None
        (low, high), (reference_low, reference_high) = self.interval, self.reference_interval
        if not all(map(math.isfinite, (low, high, reference_low, reference_high))):
            return None
        return low > reference_high or high < reference_low

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by name, and whether the gap is beyond noise."""
        return {**self._asdict(), "gap": self.gap, "beyond_noise": self.beyond_noise}


class EffectiveRanks(NamedTuple):
    """Effective ranks of the uncentred class means, beside the number of classes and the best low-rank structure known."""

    measured: float
    reference: float
    classes: int
    low_rank: float
    counted: int


@dataclass(frozen=True, eq=False)
class LayerComparison:
    r"""One layer beside the reference.

    Attributes
    ----------
    layer, reference_layer : str
        Names; the layers of a reference optimum are numbered 1 (features) to L + 1 (output).
    metrics : dict of str to Gap
        Metrics that both sides have and that the theory fixes here; see `compare`.
    gram_distance, gram_distance_centred : float
        Of the uncentred and centred class means, see `match_classes`; between 0 and 2.
    order : tuple of int
        Class of the reference that stands for each present class (uncentred Gram matrices).
    singular_values : Gap of arrays as a pair
        Of the uncentred class means, measured and predicted, in descending order.
    spectrum_distance : float
        :math:`\| s/\|s\| - s'/\|s'\| \|`: without scale.
    scale : Gap
        What the theory fixes of the scale. Ordinarily :math:`\|s\|` and :math:`\|s'\|`; in a free layer
        the root mean square norm of the class means, before the activation the nuclear norm.
    ranks : EffectiveRanks
    status : str
        ``collapsed``, ``nearly collapsed`` or ``partly collapsed`` to the reference, the worse of NC1
        and geometry; ``not collapsed`` or ``not judged`` within classes; ``below DNC rank``; ``other
        geometry``; ``free``; ``infeasible``; ``nothing learned``; ``unmeasured``.
    verdict : str
        The same in one sentence, with the figures it rests on.
    """

    layer: str
    reference_layer: str
    metrics: dict[str, Gap]
    gram_distance: float
    gram_distance_centred: float
    order: tuple[int, ...]
    singular_values: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
    spectrum_distance: float
    scale: Gap
    ranks: EffectiveRanks
    status: Status
    verdict: str

    @property
    def worst_gap(self) -> float:
        """The largest of all gaps and distances, scale relative to the reference; NaNs and what noise explains left out."""
        values = [gap.gap for gap in self.metrics.values() if gap.beyond_noise is not False]
        values += [self.gram_distance, self.gram_distance_centred, self.spectrum_distance]
        values.append(self.scale.gap / (self.scale.reference or 1.0))
        return max((abs(value) for value in values if math.isfinite(value)), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values, NaN as None, ready for JSON."""
        measured, predicted = self.singular_values
        parts: dict[str, Any] = to_json_value(
            {
                "reference_layer": self.reference_layer,
                "status": self.status,
                "verdict": self.verdict,
                "metrics": {name: gap.to_dict() for name, gap in self.metrics.items()},
                "gram_distance": self.gram_distance,
                "gram_distance_centred": self.gram_distance_centred,
                "class_order": self.order,
                "singular_values": {"measured": measured, "reference": predicted},
                "spectrum_distance": self.spectrum_distance,
                "scale": self.scale.to_dict(),
                "effective_rank": self.ranks._asdict(),
            }
        )
        return parts
