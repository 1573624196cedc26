"""Closed forms. Importing this package registers them all, see `registry.closed_form`.

=================  ===============================================================
`collapse`         every class on neurons of its own, or some of the classes
`blocks`           blocks of low rank, below collapse: classes as edges of a complete graph
`cross_entropy`    deep networks with cross-entropy: pairs and polygons
`linear`           deep linear networks, and unequal classes
`one_layer`        the classical model of one layer
`feasible`         nothing learned; closed forms of a simpler problem
`bounds`           least losses as numbers: of theorems, certified, or beaten by nothing
=================  ===============================================================
"""

from . import blocks, collapse, cross_entropy, feasible, linear, one_layer

__all__ = ["blocks", "collapse", "cross_entropy", "feasible", "linear", "one_layer"]
