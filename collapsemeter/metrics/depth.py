r"""Rank and depth: how many directions the class means and features use, and what weights read of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..stats.linalg import EPS64, Floats, add_product, row_blocks, row_norms, spaced_zeros, taken
from ..stats.undefined import Undefined, require
from .frames import require_weight
from .pairs import closest_units

if TYPE_CHECKING:
    from .layer_inputs import LayerInputs


def means_effective_rank(layer: LayerInputs) -> float:
    """`effective_rank` of the singular values of M."""
    return effective_rank(layer.geometry.centred_values)


def means_stable_rank(layer: LayerInputs) -> float:
    r""":math:`|M|^2 / s_1^2` (Súkeník, Lampert & Mondelli 2024)."""
    values = layer.geometry.centred_values
    return float((values**2).sum() / values[0] ** 2)


def features_effective_rank(layer: LayerInputs) -> float:
    r"""`effective_rank` of the eigenvalues of :math:`S_W + S_B`, weighted by rows and by classes under every convention."""
    geometry, rows = layer.geometry, layer.geometry.residuals
    within = np.zeros((0, 0)) if rows is not None else geometry.within("sample")
    means = np.zeros((0, geometry.width))
    try:
        means = geometry.centred / np.sqrt(geometry.num_present)
    except Undefined as undefined:
        if undefined.code not in ("one_class", "no_between_class_scatter"):
            raise
    if rows is not None:  # the products of few rows have the eigenvalues of their scatter
        stacked = np.concatenate([rows / np.sqrt(geometry.rows), means])
        values = np.linalg.eigvalsh(stacked @ stacked.T)
    else:
        total = spaced_zeros(within.shape)
        add_product(total, means, fresh=True)
        total += within
        values = np.linalg.eigvalsh(total)
    # Eigenvalues below the round-off of the largest are noise, of either sign.
    values = values[values > values.max(initial=0.0) * geometry.width * EPS64]
    require(len(values) > 0, "no_between_class_scatter")
    return effective_rank(values)


def means_condition(layer: LayerInputs) -> float:
    r""":math:`s_1/s_C` of the uncentred class means: 1 at an orthogonal frame (Súkeník, Mondelli & Lampert 2023)."""
    values, count = layer.geometry.uncentred_values, layer.geometry.num_present
    regular = len(values) >= count and values[-1] > values[0] * count * EPS64
    require(regular, "rank_deficient_means")
    return float(values[0] / values[-1])


def dnc3_sine(layer: LayerInputs) -> float:
    """`mean_sine` of a weight that this layer feeds, the head's if no other was given, and the uncentred class means."""
    means = layer.geometry.finite_means
    assert layer.weight is not None
    require_weight(layer.weight)
    return mean_sine(layer.weight, means)


def weight_balance(layer: LayerInputs) -> float:
    r"""How far two consecutive weights are from balance (Dang et al. 2023; Súkeník, Mondelli & Lampert 2023).

    :math:`|A - B| / (|A| + |B|)` with :math:`A = \lambda_l W_l W_l^\top`, :math:`B = \lambda_{l+1} W_{l+1}^\top W_{l+1}`: zero at
    deep neural collapse, and at every stationary point where no activation is between them.
    """
    incoming, outgoing = layer.incoming, layer.weight
    assert incoming is not None
    assert outgoing is not None
    for matrix in (incoming, outgoing):
        require_weight(matrix)
    a = layer.decays[0] * (incoming @ incoming.T)
    b = layer.decays[1] * (outgoing.T @ outgoing)
    total = float(np.linalg.norm(a) + np.linalg.norm(b))
    require(total > 0, "zero_weights")
    return float(np.linalg.norm(a - b)) / total


def effective_rank(values: Floats) -> float:
    r"""Return :math:`\exp H(p)`, :math:`p_j = s_j / \sum_k s_k`, H the Shannon entropy (Roy & Vetterli 2007)."""
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def mean_sine(weight: Floats, means: Floats) -> float:
    r"""Return how far the rows of a weight point from the class means (Súkeník, Mondelli & Lampert 2023, DNC3).

    :math:`\sum_j |w_j| \sin\angle(w_j, \mu_{c(j)}) \,/\, \sum_j |w_j|` over the nonzero rows, :math:`\mu_{c(j)}` the uncentred class
    mean at the smallest angle; one beyond a right angle counts as a right one.
    """
    mean_norms, lengths = row_norms(means), row_norms(weight)
    require(bool((mean_norms > 0).all()), "zero_class_mean")
    directed = np.flatnonzero(lengths > 0)
    require(len(directed) > 0, "zero_head")
    lengths = taken(lengths, directed)
    directions, units = taken(weight, directed) / lengths[:, None], means / mean_norms[:, None]
    closest = closest_units(directions, units)
    sines = [
        _sines(directions[rows], units[closest[rows]]) for rows in row_blocks(*directions.shape)
    ]
    return float(np.average(np.concatenate(sines), weights=lengths))


def _sines(rows: Floats, closest: Floats) -> Floats:
    """Sines of the angles between unit vectors; 1 beyond a right angle."""
    cosine = np.vecdot(rows, closest)
    # From the difference vector: sqrt(1 - cos^2) has no digits left near collapse.
    across = np.multiply(closest, -cosine[:, None])
    across += rows
    return np.where(cosine > 0, row_norms(across), 1.0)
