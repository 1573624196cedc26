"""The computed numbers: every metric of a layer from its moments, a head and decisions.

catalogue       every metric: formula, meaning, unit, range, needs, source
convention      the choices in which papers differ, and their presets
measure         from moments to a report: the entry
layer           the report of one layer
layer_inputs    what every metric is a function of
nc1 nc2 nc3 nc4 depth imbalance   the metrics, a function each, one file a property
steps           what leaving out a group of rows (the jackknife) moves, of class means and variances
noise           what the within-class scatter and groups of rows say of the noise in class means
estimates       metrics without that noise
uncertainty     which metrics have an estimate and an interval, and why others have none
class_intervals intervals of single classes
line_fit        a line through points, with an interval of its slope
random_means    how near random class means are to a simplex ETF
geometry        class means, scatters and their factors, which metrics share
pairs           statistics over pairs of classes, in tiles
frames          simplex ETFs, Gram distances, unit and centred rows
spectra         singular values, factors of scatters
class_centres   which class mean is nearest to a row
decisions       rows decided on, for NC4
rounding_errors what rounding may have taken from a metric
"""
