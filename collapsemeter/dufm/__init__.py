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

from collapsemeter.dufm.applies import DoesNotApply
from collapsemeter.dufm.blocks import (
    Block,
    best_blocks,
    blocks,
    srg,
)
from collapsemeter.dufm.bounds import lower_bound, nuclear_bound
from collapsemeter.dufm.certificates import Stationarity, stationarity
from collapsemeter.dufm.collapse import dnc, partial, zero
from collapsemeter.dufm.convex import certify, convex
from collapsemeter.dufm.deep_ce import linear_ce_dnc, linear_ce_pairs, linear_ce_polygon, pairs
from collapsemeter.dufm.descent import gradient_descent
from collapsemeter.dufm.frames import orthogonal_frame
from collapsemeter.dufm.identities import Identities, stationarity_identities
from collapsemeter.dufm.linear import gof, linear, minority_threshold
from collapsemeter.dufm.network import (
    Variables,
    class_columns,
    class_loss_and_gradient,
    forward,
    loss_and_gradient,
    sample_columns,
)
from collapsemeter.dufm.optimum import Optimum
from collapsemeter.dufm.problem import DUFM
from collapsemeter.dufm.reductions import (
    canonical,
    cheapest_samples,
    from_canonical,
    one_per_class,
    repeat_samples,
    to_canonical,
)
from collapsemeter.dufm.references import references
from collapsemeter.dufm.scalar import collapse_threshold, critical_strength, ell, ell_minimiser
from collapsemeter.dufm.shallow import seli, seli_grams, ufm_ce, ufm_mse
from collapsemeter.dufm.solution import Solution, Start, Trajectory
from collapsemeter.dufm.solver import solve
from collapsemeter.dufm.triangular import srg_effective_classes

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
