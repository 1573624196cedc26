r"""NC3, self-duality: the head's rows W align with the centred class means M."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..stats.linalg import Floats, row_blocks
from ..stats.undefined import require
from .frames import gram_distance, largest_norm, norms_of_directions, opposite_rows

if TYPE_CHECKING:
    from .layer_inputs import LayerInputs


def nc3_self_duality(layer: LayerInputs) -> float:
    r""":math:`\big|\, W/|W| - M/|M| \,\big|^2`, squared (Papyan, Han & Donoho 2020, figure 5)."""
    weight, means = _dual(layer)
    length, size = float(np.linalg.norm(weight)), float(np.linalg.norm(means))
    require(length > 0, "zero_head")
    total = 0.0
    for rows in row_blocks(*weight.shape):
        difference = weight[rows] / length
        difference -= means[rows] / size
        total += float(np.vecdot(difference, difference).sum())
    return total


def nc3_etf_error(layer: LayerInputs) -> float:
    r""":math:`\big| W M^\top / |W M^\top| - P \big|` (Zhu et al. 2021).

    Undefined of two opposite rows, as those of two centred classes are: it is then 0 or 2, whichever the angle.
    """
    weight, means = _dual(layer)
    require(bool(weight.any()), "zero_head")
    require(not opposite_rows(weight), "two_classes_trivial")
    error = gram_distance(weight, means, "simplex")
    require(not math.isnan(error), "head_orthogonal_to_means")
    return error


def nc3_cosine(layer: LayerInputs) -> float:
    r"""Mean over classes of :math:`\cos(w_c, \mu_c - m)`: 1 at self-duality (Papyan, Han & Donoho 2020)."""
    return float(_cosines(*_dual(layer)).mean())


def nc3_uniform(layer: LayerInputs) -> float:
    r"""Variance over classes (ddof = 1) of :math:`\cos(w_c, \mu_c - m)`: uniform duality, UNC3 (Wu & Papyan 2024).

    Undefined of two opposite rows: both cosines are then the same.
    """
    weight, means = _dual(layer)
    cosines = _cosines(weight, means)
    require(not opposite_rows(weight), "two_classes_trivial")
    return float(cosines.var(ddof=1))


def nc3_bias(layer: LayerInputs) -> float:
    r"""Bias collapse :math:`|W g + b|`, in units of logits (Zhu et al. 2021)."""
    _ = layer.geometry.centred
    assert layer.head is not None
    require(layer.head.finite, "nonfinite_head")
    return largest_norm((layer.head.weight @ layer.geometry.sample_mean + layer.head.bias)[None])


def _dual(layer: LayerInputs) -> tuple[Floats, Floats]:
    """W and M of the classes that are present."""
    means = layer.geometry.centred
    assert layer.head is not None
    return layer.head.rows, means


def _cosines(weight: Floats, means: Floats) -> Floats:
    along: Floats = np.vecdot(weight, means)
    along /= norms_of_directions(weight, "head_row_without_direction")
    along /= norms_of_directions(means, "class_mean_at_centre")
    return along
