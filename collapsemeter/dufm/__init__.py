"""The deep unconstrained features model: what a network looks like at the optimum.

==============  ==================================================================
`model`         `DUFM`: the problem that people state, ``.references()``, ``.optimum()``
`problem`       the same as plain data, which all others take
`registry`      how closed forms register themselves; `references`
`refusals`      `DoesNotApply`: why a closed form does not solve a problem
`network`       the actual network: `Variables`, `forward`, `loss_and_gradient`
`reductions`    one sample per class, one decay for all: `one_per_class`, `canonical`
`scalar`        `ell`, `collapse_threshold`: the scalar problem of a symmetric optimum
`optimum`       `Optimum`: one closed form, with its class means, ranks and moments
`closed`        the closed forms themselves, a family a file
`certificates`  `stationarity`, `stationarity_identities`: how stationary a point is
`solver`        `solve`: numerical minimisation from many starts
`solution`      `Solution`: what it found, beside the closed forms and bounds
`descent`       `gradient_descent` and its `Trajectory`; L-BFGS and Newton steps
`seeds`         where descent starts
`graphs`        classes as edges of a graph, for `srg` and for starts near it
`chain`         balanced layers, split from a map or put side by side
`overview`      thresholds and closed forms of a problem in words, and sweeps
`plots`         their figures
==============  ==================================================================

A closed form takes a `DUFM` and returns an `Optimum` with its loss, status and source. It raises
`DoesNotApply` for a problem that it does not solve, too narrow layers or too strong decays:
`zero`, `partial`, `dnc`, `pairs` (nothing, some or all classes collapsed); `srg`, `blocks` (low
rank, below collapse); `ufm_mse`, `ufm_ce`, `seli`, `convex` (one layer); `linear`, `gof`,
`linear_ce_*` (deep linear). `lower_bound` is what no network can beat.
"""

from .certificates import Identities, Stationarity, stationarity, stationarity_identities
from .closed.blocks import Block, best_blocks, blocks, srg
from .closed.bounds import certify, lower_bound, nuclear_bound
from .closed.collapse import dnc, orthogonal_frame, partial
from .closed.cross_entropy import linear_ce_dnc, linear_ce_pairs, linear_ce_polygon, pairs
from .closed.feasible import zero
from .closed.linear import gof, linear, minority_threshold
from .closed.one_layer import convex, seli, seli_grams, ufm_ce, ufm_mse
from .descent import Trajectory, gradient_descent
from .graphs import srg_effective_classes
from .model import DUFM
from .network import (
    Variables,
    class_columns,
    class_loss_and_gradient,
    forward,
    loss_and_gradient,
    sample_columns,
)
from .optimum import Optimum
from .reductions import (
    canonical,
    cheapest_samples,
    from_canonical,
    one_per_class,
    repeat_samples,
    to_canonical,
)
from .refusals import DoesNotApply
from .registry import references
from .scalar import collapse_threshold, critical_strength, ell, ell_minimiser
from .solution import Solution, Start
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
