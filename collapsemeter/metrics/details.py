"""What a report keeps beside its scalars: values per class, singular values, Gram matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from ..stats.blas import gram, product
from ..stats.head import Head
from ..stats.linalg import Floats
from ..stats.undefined import Undefined
from .frames import centred_rows, unit_rows
from .geometry import ClassGeometry
from .nc4 import Decisions

GRAM_CLASSES = 200  # up to here a layer's report keeps its C x C matrices: 1 MB at most


def vectors(geometry: ClassGeometry) -> dict[str, npt.NDArray[Any]]:
    """Return singular values of the class means, and how many pairs have which cosine.

    What is undefined is left out: the scalar metrics of the same values carry the reason.

    Parameters
    ----------
    geometry : ClassGeometry

    Returns
    -------
    dict of str to array
        ``means_singular_values`` and ``means_singular_values_uncentred``, float64, descending;
        ``means_cosine_histogram`` (100,) int64, pairs a < b in bins of equal width over [-1, 1].

    Examples
    --------
    >>> from collapsemeter import ClassMoments
    >>> found = vectors(ClassGeometry(ClassMoments.from_batch(np.eye(3), [0, 1, 2], 3)))
    >>> found["means_singular_values"].round(12), int(found["means_cosine_histogram"].sum())
    (array([1., 1., 0.]), 3)
    """
    found: dict[str, npt.NDArray[Any]] = {}
    with suppress(Undefined):
        found["means_singular_values"] = geometry.centred_values
    with suppress(Undefined):
        found["means_singular_values_uncentred"] = geometry.uncentred_values
    with suppress(Undefined):
        found["means_cosine_histogram"] = geometry.pairs.histogram
    return found


def matrices(
    geometry: ClassGeometry, head: Head | None = None, center_head: bool = False
) -> dict[str, Floats]:
    r"""Return the C x C matrices of up to 200 present classes; what is undefined is left out.

    Parameters
    ----------
    geometry : ClassGeometry
    head : Head, optional
    center_head : bool
        Whether its rows are centred over classes.

    Returns
    -------
    dict of str to (C, C) float64
        ``means_gram`` and ``means_gram_centred``, inner products of the class means;
        ``head_means_cosine``, :math:`\cos(w_a, \mu_b - m)`, a the row, b the column.

    Examples
    --------
    >>> from collapsemeter import ClassMoments
    >>> geometry = ClassGeometry(ClassMoments.from_batch(np.eye(3), [0, 1, 2], 3))
    >>> matrices(geometry, Head(np.eye(3)))["head_means_cosine"][0].round(3)
    array([ 0.816, -0.408, -0.408])
    """
    found: dict[str, Floats] = {}
    if geometry.num_present > GRAM_CLASSES:
        return found
    with suppress(Undefined):
        means = geometry.finite_means
        found["means_gram"] = gram(means)
    with suppress(Undefined):
        found["means_gram_centred"] = gram(geometry.centred)
    if head is not None and head.finite:
        with suppress(Undefined):
            units = geometry.units
            rows = head.weight[geometry.present]
            rows = centred_rows(rows) if center_head else rows
            directions = unit_rows(rows, "head_row_without_direction")
            found["head_means_cosine"] = product(directions, units.T).clip(-1, 1)
    return found


def per_class(geometry: ClassGeometry, decisions: Decisions | None) -> dict[str, npt.NDArray[Any]]:
    r"""Return what is known of every class, (C,) each with absent classes.

    Parameters
    ----------
    geometry : ClassGeometry
    decisions : Decisions, optional

    Returns
    -------
    dict of str to (C,) array
        ``count`` int64; float64, NaN where undefined: ``variance`` :math:`v_c`, ``mean_norm``
        :math:`|\mu_c - m|`, ``worst_cosine`` the largest to another class; ``nearest_class`` int64,
        the class of that cosine, -1 for none; ``ncc_accuracy`` float64, where there are decisions.

    Examples
    --------
    >>> from collapsemeter import ClassMoments
    >>> rows = [[0.0, 1.0], [1.0, 1.0], [-3.0, 0.0]]
    >>> columns = per_class(ClassGeometry(ClassMoments.from_batch(rows, [0, 1, 3], 4)), None)
    >>> columns["nearest_class"], columns["count"]
    (array([ 1,  0, -1,  0]), array([1, 1, 0, 1]))
    """

    def spread(values: Floats | float) -> Floats:
        whole = np.full(geometry.moments.num_classes, math.nan)
        whole[geometry.present] = values
        return whole

    def unless_undefined(compute: Callable[[], Floats]) -> Floats:
        try:
            return spread(compute())
        except Undefined:
            return spread(math.nan)

    columns: dict[str, npt.NDArray[Any]] = {
        "count": geometry.moments.counts,
        "variance": spread(geometry.traces / geometry.counts),
        "mean_norm": unless_undefined(lambda: geometry.norms),
        "worst_cosine": unless_undefined(lambda: geometry.pairs.worst_cosine),
        "nearest_class": _nearest(geometry),
    }
    if decisions is not None:
        rows = np.where(decisions.rows > 0, decisions.rows, 1)
        accuracy = np.where(decisions.rows > 0, decisions.correct / rows, math.nan)
        columns["ncc_accuracy"] = accuracy
    return columns


def _nearest(geometry: ClassGeometry) -> npt.NDArray[np.int64]:
    nearest = np.full(geometry.moments.num_classes, -1, np.int64)
    with suppress(Undefined):
        nearest[geometry.present] = geometry.present[geometry.pairs.nearest]
    return nearest
