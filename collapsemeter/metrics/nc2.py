r"""NC2, the class means become a simplex equiangular tight frame, and so do the rows of the head (``_head``)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..stats.undefined import Undefined, require
from .frames import gram_distance, opposite_rows

if TYPE_CHECKING:
    from ..stats.linalg import Floats
    from .geometry import ClassGeometry
    from .layer_inputs import HeadRows, LayerInputs
    from .pairs import PairStatistics


def nc2_equinorm(layer: LayerInputs) -> float:
    r""":math:`\operatorname{std}_c |\mu_c - m| \,/\, \operatorname{mean}_c |\mu_c - m|`, ddof = 1 (Papyan, Han & Donoho 2020, figure 2)."""
    return _equinorm(_means(layer).norms)


def nc2_equiangular(layer: LayerInputs) -> float:
    r"""Population standard deviation over pairs of :math:`\cos(\mu_a - m, \mu_b - m)` (Papyan, Han & Donoho 2020, figure 3)."""
    return _means(layer).pairs.cos_std


def nc2_max_angle(layer: LayerInputs) -> float:
    r"""Mean over pairs of :math:`|\cos(\mu_a - m, \mu_b - m) + 1/(C-1)|` (Papyan, Han & Donoho 2020, figure 4)."""
    return _means(layer).pairs.cos_deviation


def nc2_etf_error(layer: LayerInputs) -> float:
    r"""Distance to a simplex ETF: :math:`\big| G/|G| - P \big|`, :math:`G = M M^\top` (Zhu et al. 2021; Kothapalli 2023)."""
    geometry = _means(layer)
    return gram_distance(geometry.centred, geometry.centred, "simplex", geometry.products)


def nc2_of_error(layer: LayerInputs) -> float:
    r"""Distance of the uncentred class means to an orthogonal frame: :math:`\big| G/|G| - I/\sqrt C \big|`.

    The target after a ReLU in deep neural collapse (Súkeník, Mondelli & Lampert 2023).
    """
    _ = layer.geometry.centred  # undefined where the means do not differ
    means = layer.geometry.finite_means
    error = gram_distance(means, means, "orthogonal", layer.geometry.uncentred_products)
    require(not math.isnan(error), "zero_class_mean")
    return error


def gnc2_log_mean(layer: LayerInputs) -> float:
    r"""Mean over pairs of :math:`-\log|u_a - u_b|`, u the unit rows of M: hyperspherical uniformity (Liu et al. 2023)."""
    return _distinct(layer).log_mean


def gnc2_log_var(layer: LayerInputs) -> float:
    r"""Population variance over pairs of :math:`-\log|u_a - u_b|` (Liu et al. 2023)."""
    return _distinct(layer).log_variance


def nc2_equinorm_head(layer: LayerInputs) -> float:
    """`nc2_equinorm` of the head's rows."""
    return _equinorm(_head(layer).norms)


def nc2_equiangular_head(layer: LayerInputs) -> float:
    """`nc2_equiangular` of the head's rows."""
    spread = _head(layer).pairs
    require(layer.geometry.num_present > 2, "two_classes_trivial")  # one pair
    return spread.cos_std


def nc2_max_angle_head(layer: LayerInputs) -> float:
    """`nc2_max_angle` of the head's rows."""
    return _head(layer).pairs.cos_deviation


def nc2_etf_error_head(layer: LayerInputs) -> float:
    """`nc2_etf_error` of the head's rows."""
    head = _head(layer)
    return gram_distance(head.rows, head.rows, "simplex", head.products)


def _equinorm(norms: Floats) -> float:
    return float(norms.std(ddof=1) / norms.mean())


def _means(layer: LayerInputs) -> ClassGeometry:
    _ = layer.geometry.centred
    require(layer.geometry.num_present > 2, "two_classes_trivial")
    return layer.geometry


def _distinct(layer: LayerInputs) -> PairStatistics:
    pairs = _means(layer).pairs
    require(math.isfinite(pairs.log_mean), "coincident_directions")
    return pairs


def _head(layer: LayerInputs) -> HeadRows:
    assert layer.head is not None
    _ = layer.head.norms
    if opposite_rows(layer.head.rows):
        raise Undefined("two_classes_trivial")
    return layer.head
