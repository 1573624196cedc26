"""NC4: the network decides by nearest class centre, on rows that `decide` has compared with the final class means."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..stats.undefined import require
from .catalogue import METRICS

FLATTERED = 0.01  # of rows

if TYPE_CHECKING:
    from .decisions import Decisions
    from .layer_inputs import LayerInputs


def nc4_agreement(layer: LayerInputs) -> float:
    r"""Share of rows decided as :math:`\arg\min_c |h - \mu_c|` (Papyan, Han & Donoho 2020)."""
    return _share(layer, _decisions(layer).agree)


def nc4_mismatch(layer: LayerInputs) -> float:
    """Share of rows not decided as the nearest class centre (Papyan, Han & Donoho 2020, figure 7)."""
    decisions = _decisions(layer)
    assert decisions.agree is not None
    return _share(layer, decisions.rows - decisions.agree)


def ncc_accuracy(layer: LayerInputs) -> float:
    """Share of rows whose nearest class centre is that of their label (Ben-Shaul & Dekel 2022)."""
    return _share(layer, _decisions(layer).correct)


def ncc_accuracy_loo(layer: LayerInputs) -> float:
    """Share of rows whose nearest class centre is that of their label, each centre made without the row (Ben-Shaul & Dekel 2022, left out).

    Distances are less what the noise of a mean adds to them. Rows that are alone in their class have no other mean to go by.
    """
    decisions, counts = _decisions(layer), layer.geometry.moments.counts
    require(decisions.alone is not None, "not_resubstitution")
    assert decisions.alone is not None
    require(layer.geometry.num_present != 1, "one_class")
    layer.geometry.require_range()
    several = counts > 1
    total = int(decisions.rows[several].sum())
    require(total > 0, "too_few_rows")
    return int(decisions.alone[several].sum()) / total


def _decisions(layer: LayerInputs) -> Decisions:
    assert layer.decisions is not None
    return layer.decisions


def _share(layer: LayerInputs, counts: npt.NDArray[np.int64] | None) -> float:
    assert counts is not None
    require(layer.geometry.num_present != 1, "one_class")
    layer.geometry.require_range()
    total = int(_decisions(layer).rows.sum())
    require(total > 0, "no_decisions")
    return int(counts.sum()) / total


def intervals(
    decisions: Decisions | None, measured: int, values: dict[str, float]
) -> dict[str, tuple[float, float]]:
    """Return 95 % intervals of shares of rows: of a sample about the rows measured, of `ncc_accuracy_loo` about their population."""
    if decisions is None:
        return {}
    rows = int(decisions.rows.sum())
    by_metric = {}
    for name, value in values.items():
        if METRICS[name].unit != "share of rows" or not math.isfinite(value):
            continue
        if name == "ncc_accuracy_loo":
            by_metric[name] = wilson_interval(value * rows, rows)
        elif decisions.sampled:
            by_metric[name] = _of_sample(value, rows, measured)
    return by_metric


def _of_sample(share: float, rows: int, measured: int) -> tuple[float, float]:
    """Return the interval of a share of the rows measured, of which these were drawn without replacement."""
    if rows >= measured:
        return share, share
    worth = rows * (measured - 1) / (measured - rows)  # as many drawn with replacement tell as much
    return wilson_interval(share * worth, worth)


def flatters(values: dict[str, float]) -> bool:
    """Say whether rows are nearer to the means that they made than they would be to others: by 1 % of them or more."""
    accuracy, alone = values.get("ncc_accuracy", math.nan), values.get("ncc_accuracy_loo", math.nan)
    return accuracy - alone >= FLATTERED


def wilson_interval(
    successes: float, rows: float, z: float = 1.959963984540054
) -> tuple[float, float]:
    """Return the score interval of a proportion, at 95 % by default (Wilson 1927)."""
    share = successes / rows
    centre = share + z**2 / (2 * rows)
    half = z * math.sqrt(share * (1 - share) / rows + (z / (2 * rows)) ** 2)
    scale = 1 + z**2 / rows
    # At 0 and 1 the ends are the share itself, which rounding may miss by a hair.
    low, high = min((centre - half) / scale, share), max((centre + half) / scale, share)
    return max(low, 0.0), min(high, 1.0)


def class_accuracy_intervals(decisions: Decisions) -> dict[str, npt.NDArray[np.float64]]:
    """Return the ends of Wilson's interval for the nearest-centre accuracy of every class, (C,); NaN for those without rows."""
    pairs = zip(decisions.correct.tolist(), decisions.rows.tolist(), strict=True)
    nothing = (math.nan, math.nan)
    ends = np.array([wilson_interval(right, rows) if rows else nothing for right, rows in pairs])
    low, high = ends.reshape(-1, 2).T
    return {"ncc_accuracy_low": low, "ncc_accuracy_high": high}
