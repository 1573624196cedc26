r"""Classes of unequal size: what the class means and the head become then, and whether rare classes collapse.

Simplex-encoded-labels interpolation (SELI): with :math:`\hat Z` (C, N) the one-hot labels less 1/C, and its singular value decomposition
:math:`\hat Z = V \Lambda U^\top`, the optimum has :math:`W W^\top \propto V \Lambda V^\top` and, over rows, :math:`H H^\top \propto U \Lambda U^\top`.
As :math:`\hat Z \hat Z^\top = J D J` with :math:`D = \operatorname{diag}(n_c)`, these are :math:`(J D J)^{1/2}`, and
:math:`((J D J)^+)^{1/2}` over classes.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..stats.undefined import require
from .frames import opposite_rows
from .line_fit import Line, fit_line

if TYPE_CHECKING:
    from ..stats.linalg import Floats
    from .geometry import ClassGeometry
    from .layer_inputs import HeadRows, LayerInputs

MOST_CLASSES = 1024  # up to here the C x C reference is made: 8 MB
UNEQUAL = 0.05  # so far is SELI from a simplex ETF where sizes spread over a factor of 1.4


def nc2_worst_cosine(layer: LayerInputs) -> float:
    r"""Largest :math:`\cos(\mu_a - m, \mu_b - m)` of two classes: 1 in minority collapse (Fang et al. 2021)."""
    return float(_means(layer).pairs.worst_cosine.max())


def nc2_worst_cosine_head(layer: LayerInputs) -> float:
    r"""Largest :math:`\cos(w_a, w_b)` of two classes: 1 in minority collapse (Fang et al. 2021)."""
    return float(_head(layer).pairs.worst_cosine.max())


def means_norm_slope(layer: LayerInputs) -> float:
    r"""Slope of :math:`\log|\mu_c - m|` on :math:`\log n_c` by least squares over classes (after Fang et al. 2021)."""
    return norm_line(_balanced(layer)).slope


def means_norm_r(layer: LayerInputs) -> float:
    r"""Correlation coefficient of :math:`\log|\mu_c - m|` and :math:`\log n_c` (after Fang et al. 2021)."""
    r = norm_line(_balanced(layer)).r
    require(not math.isnan(r), "class_means_of_one_norm")
    return r


def nc2_seli_error(layer: LayerInputs) -> float:
    r"""Distance to SELI: :math:`\big| G/|G| - T/|T| \big|`, :math:`G = M M^\top`, :math:`T = ((J D J)^+)^{1/2}` (Thrampoulidis et al. 2022)."""
    geometry = _balanced(layer)
    return _distance(geometry.centred, geometry.products, geometry.counts, inverse=True)


def nc2_seli_error_head(layer: LayerInputs) -> float:
    r"""Distance to SELI: :math:`\big| G/|G| - T/|T| \big|`, :math:`G = W W^\top`, :math:`T = (J D J)^{1/2}` (Thrampoulidis et al. 2022)."""
    head = _head(layer)
    return _distance(head.rows, head.products, layer.geometry.counts, inverse=False)


def norm_line(geometry: ClassGeometry) -> Line:
    """Fit log|mu_c - m| to log n_c; Undefined where classes have one size or a class mean has no direction."""
    require(not geometry.balanced, "classes_of_one_size")
    _ = geometry.pairs  # undefined where a class mean is the centre
    return fit_line(np.log(geometry.counts), np.log(geometry.norms), correlated=False)


def seli_to_etf(counts: npt.NDArray[np.int64]) -> float:
    r"""Return how far the class means of SELI are from a simplex ETF, :math:`\big| T/|T| - P \big|`; NaN of too many classes."""
    classes = len(counts)
    if not 2 <= classes <= MOST_CLASSES:
        return math.nan
    target = _target(counts.astype(float).tobytes(), inverse=True)
    ideal = (np.eye(classes) - 1 / classes) / math.sqrt(classes - 1)
    return float(np.linalg.norm(target - ideal))


def unequal(counts: npt.NDArray[np.int64]) -> bool:
    """Return whether sizes move the optimum away from a simplex ETF, and differ more than those of random draws do."""
    classes = len(counts)
    if classes < 3:
        return False
    mean = counts.mean()
    excess = float(((counts - mean) ** 2).sum() / mean) - (classes - 1)
    return excess > 4 * math.sqrt(2 * (classes - 1)) and seli_to_etf(counts) > UNEQUAL


def root_of_laplacian(counts: npt.ArrayLike, inverse: bool = False) -> Floats:
    r"""Return :math:`(J D J)^{1/2}`, or that of its pseudo-inverse, (C, C).

    Classes of one size differ by eigenvectors of that eigenvalue. What is left acts on the means of such groups: as many
    eigenvalues as there are sizes.
    """
    sizes, group, members = np.unique(
        np.asarray(counts, float), return_inverse=True, return_counts=True
    )
    share = np.sqrt(members / members.sum())
    projection = np.eye(len(sizes)) - np.outer(share, share)
    values, vectors = np.linalg.eigh((projection * sizes) @ projection)
    values[0] = 0.0  # exactly, on the constant vector: its root would magnify the rounding
    power = -0.5 if inverse else 0.5
    roots, root = sizes**power, np.zeros_like(values)
    root[1:] = values[1:] ** power
    among = (vectors * root) @ vectors.T / np.sqrt(np.outer(members, members))
    among -= np.diag(roots / members)
    whole: Floats = among[np.ix_(group, group)]
    whole[np.diag_indices(len(group))] += roots[group]
    return whole


def _distance(
    frame: Floats, products: Floats | None, counts: npt.NDArray[np.int64], inverse: bool
) -> float:
    require(len(counts) <= MOST_CLASSES, "too_many_classes_for_seli")
    products = frame @ frame.T if products is None else products
    difference = products / products.max()
    difference /= np.linalg.norm(difference)
    difference -= _target(counts.astype(float).tobytes(), inverse)
    return float(np.linalg.norm(difference))


@lru_cache(maxsize=4)  # all layers of a report, and most reports of a run, have the same counts
def _target(counts: bytes, inverse: bool) -> Floats:
    """Return the Gram matrix of SELI at norm 1."""
    gram = root_of_laplacian(np.frombuffer(counts), inverse)
    gram /= np.linalg.norm(gram)
    gram.flags.writeable = False
    return gram


def _balanced(layer: LayerInputs) -> ClassGeometry:
    """Return the class means about their own mean, whatever the convention: about it the reference is centred."""
    geometry = layer.geometry.about("class")
    _ = geometry.centred
    require(geometry.num_present > 2, "two_classes_trivial")
    return geometry


def _means(layer: LayerInputs) -> ClassGeometry:
    _ = layer.geometry.centred
    require(layer.geometry.num_present > 2, "two_classes_trivial")
    return layer.geometry


def _head(layer: LayerInputs) -> HeadRows:
    assert layer.head is not None
    _ = layer.head.norms
    require(not opposite_rows(layer.head.rows), "two_classes_trivial")
    return layer.head
