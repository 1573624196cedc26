"""The metrics of one layer, as `measure` returns them."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..stats.undefined import REASONS
from ..system.suggest import did_you_mean
from .catalogue import METRICS


@dataclass(frozen=True, eq=False, repr=False)
class LayerReport(Mapping[str, float]):
    """The metrics of one layer: a mapping from name to float, NaN where `reason` says why.

    Metrics that do not exist for this layer (those of a head it does not have) are absent from the
    mapping, and `reason` says why for them too.

    Attributes
    ----------
    values_by_name : dict of str to float
    reasons : dict of str to str
        Code of every undefined or absent metric; `REASONS` has the sentence.
    flags : tuple of str
        Cautions that concern the whole layer, e.g. ``at_dtype_floor``, ``etf_infeasible``.
    per_class : dict of str to (C,) array
        ``count``, ``variance`` (v_c), ``mean_norm`` (of mu_c - m), ``worst_cosine`` (largest to another
        class), ``nearest_class`` (which one; -1 for none), ``ncc_accuracy``; NaN for absent classes.
    vectors : dict of str to array
        ``means_singular_values`` and ``means_singular_values_uncentred``; ``means_cosine_histogram``,
        the number of pairs of classes in each of 100 equal bins of their cosine over [-1, 1].
    matrices : dict of str to (C, C) array
        ``means_gram`` and ``means_gram_centred``: inner products of the class means, for `compare`;
        ``head_means_cosine``: cosines of the head's rows to the centred class means. Of present classes
        only, and of 200 at most; in `to_dict` on demand, as they would be the bulk.
    intervals : dict of str to (float, float)
        95 % intervals: of NC4 about all rows that the sample was drawn from (Wilson 1927), of the estimates and of
        ``ncc_accuracy_loo`` about the population that the rows came from. See docs/trust.md.
    provenance : dict
        Counts, convention, dtype and its floor, numerical cut: how the numbers came about.
    standard_errors : dict of str to float
        Of what was estimated from the sketch of a wide layer's scatter.
    estimates : dict of str to float
        What a metric would be without the noise in the class means, where a correction is justified; the mapping
        itself holds the plain values.
    no_estimate, no_interval : dict of str to str
        Code of every metric that has none; `REASONS` has the sentence.

    Examples
    --------
    >>> layer = LayerReport({"nc1_pinv": 0.5}, {"nc3_cosine": "no_head"})
    >>> layer["nc1_pinv"], layer.reason("nc3_cosine"), layer.reason("nc1_pinv")
    (0.5, 'no_head', None)
    """

    values_by_name: dict[str, float]
    reasons: dict[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    per_class: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    vectors: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    matrices: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    standard_errors: dict[str, float] = field(default_factory=dict)
    estimates: dict[str, float] = field(default_factory=dict)
    no_estimate: dict[str, str] = field(default_factory=dict)
    no_interval: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        try:
            return self.values_by_name[name]
        except KeyError:
            raise KeyError(self._absence(name)) from None

    def _absence(self, name: str) -> str:
        if name in self.reasons:
            return f"{name} is not measured for this layer: {REASONS[self.reasons[name]]}"
        if name in METRICS:
            return f"{name} was not measured"
        meant = did_you_mean(str(name), METRICS)
        return f"no metric is named {name!r}{meant}; measured: {', '.join(self.values_by_name)}"

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value:.4g}" for name, value in self.items())
        return f"LayerReport({shown})"

    def reason(self, name: str) -> str | None:
        """Return the code of why a metric is NaN or absent, or None where it has a value."""
        return self.reasons.get(name)

    def worst_classes(self, count: int = 3) -> list[int]:
        """Return the classes with the largest variance relative to their distance from the centre.

        Examples
        --------
        >>> spread, norms = np.array([1.0, 9.0, np.nan]), np.array([1.0, 1.0, np.nan])
        >>> LayerReport({}, per_class={"variance": spread, "mean_norm": norms}).worst_classes(1)
        [1]
        """
        if not {"variance", "mean_norm"} <= self.per_class.keys():
            return []
        spread, norms = self.per_class["variance"], self.per_class["mean_norm"]
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = spread / norms**2
        order = np.argsort(-np.where(np.isnan(relative), -np.inf, relative), kind="stable")
        return [int(c) for c in order[:count] if not math.isnan(relative[c])]

    def to_dict(self, matrices: bool = False) -> dict[str, Any]:
        """Return plain Python values, NaN as None, ready for JSON; the matrices if they are asked for."""
        parts = {
            "metrics": self.values_by_name,
            "reasons": self.reasons,
            "flags": self.flags,
            "intervals": self.intervals,
            "standard_errors": self.standard_errors,
            "estimates": self.estimates,
            "no_estimate": self.no_estimate,
            "no_interval": self.no_interval,
            "vectors": self.vectors,
            "per_class": self.per_class,
            "provenance": self.provenance,
        }
        if matrices:
            parts["matrices"] = self.matrices
        values: dict[str, Any] = to_json_value(parts)
        return values


def to_json_value(value: Any) -> Any:
    """Return a value made of dict, list, str, int, float and None; what is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(key): to_json_value(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return to_json_value(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json_value(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
