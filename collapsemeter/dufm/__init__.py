"""The deep unconstrained features model: what a network looks like at the optimum.

======================================  ===============================================
`DUFM`                                  the problem; ``.references()``, ``.optimum()``
`loss_and_gradient`, `Variables`        the actual network
`one_per_class`, `canonical`            the two exact reductions
`stationarity_identities`               what holds at every stationary point
`ell`, `collapse_threshold`             the scalar problem behind every symmetric optimum
`lower_bound`                           what no network can beat
`zero`, `partial`, `dnc`, `pairs`       nothing, some, or all classes collapsed
`srg`, `blocks`                         low rank, below collapse
`ufm_mse`, `ufm_ce`, `seli`, `convex`   one layer
`linear`, `gof`, `linear_ce_*`          deep linear models
`orthogonal_frame`                      class means after a ReLU, at collapse
`solve`                                 numerical minimisation; returns a `Solution`
======================================  ===============================================

SciPy is imported only here, and this package only when it is asked for.
"""

from .applies import DoesNotApply
from .certificates import Stationarity, stationarity
from .closed.blocks import Block, best_blocks, blocks, srg
from .closed.bounds import lower_bound, nuclear_bound
from .closed.collapse import dnc, partial, zero
from .closed.convex import certify, convex
from .closed.cross_entropy import linear_ce_dnc, linear_ce_pairs, linear_ce_polygon, pairs
from .closed.linear import gof, linear, minority_threshold
from .closed.one_layer import seli, seli_grams, ufm_ce, ufm_mse
from .closed.references import references
from .closed.triangular import srg_effective_classes
from .descent import gradient_descent
from .frames import orthogonal_frame
from .identities import Identities, stationarity_identities
from .network import (
    Variables,
    class_columns,
    class_loss_and_gradient,
    forward,
    loss_and_gradient,
    sample_columns,
)
from .optimum import Optimum
from .problem import DUFM
from .reductions import (
    canonical,
    cheapest_samples,
    from_canonical,
    one_per_class,
    repeat_samples,
    to_canonical,
)
from .scalar import collapse_threshold, critical_strength, ell, ell_minimiser
from .solution import Solution, Start, Trajectory
from .solver import solve

__all__ = [
    "DUFM",
    "Block",
    "DoesNotApply",
    "Identities",
    "Optimum",
    "Solution",
    "Start",
    "Stationarity",
    "Trajectory",
    "Variables",
    "best_blocks",
    "blocks",
    "canonical",
    "certify",
    "cheapest_samples",
    "class_columns",
    "class_loss_and_gradient",
    "collapse_threshold",
    "convex",
    "critical_strength",
    "dnc",
    "ell",
    "ell_minimiser",
    "forward",
    "from_canonical",
    "gof",
    "gradient_descent",
    "linear",
    "linear_ce_dnc",
    "linear_ce_pairs",
    "linear_ce_polygon",
    "loss_and_gradient",
    "lower_bound",
    "minority_threshold",
    "nuclear_bound",
    "one_per_class",
    "orthogonal_frame",
    "pairs",
    "partial",
    "references",
    "repeat_samples",
    "sample_columns",
    "seli",
    "seli_grams",
    "solve",
    "srg",
    "srg_effective_classes",
    "stationarity",
    "stationarity_identities",
    "to_canonical",
    "ufm_ce",
    "ufm_mse",
    "zero",
]
