"""Closed forms. Importing this package registers them all, see `problem.closed_form`.

=================  ===============================================================
`collapse`         every class on neurons of its own, or some of the classes
`zero`             nothing learned
`blocks`           blocks of low rank, below collapse
`graph`            their part: classes as edges of a complete graph
`cross_entropy`    deep networks with cross-entropy: pairs and polygons
`linear`           deep linear networks, and unequal classes
`one_layer`        the classical model of one layer
`simpler`          closed forms of a simpler problem that are feasible here too
`bounds`           least losses as numbers, which nothing can beat
`dual`             the certified optimum of one layer, as a number
=================  ===============================================================
"""

from . import blocks, collapse, cross_entropy, linear, one_layer, simpler, zero

__all__ = ["blocks", "collapse", "cross_entropy", "linear", "one_layer", "simpler", "zero"]
