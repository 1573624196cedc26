"""Numbers and codes as words of the report."""

from __future__ import annotations

import math

from ..metrics.catalogue import METRICS
from ..stats.undefined import FLAGS, REASONS

_SHARES = ("nc4_agreement", "nc4_mismatch", "ncc_accuracy")


def number(value: float) -> str:
    """Return a number of three significant digits, an en dash for NaN.

    Examples
    --------
    >>> number(0.000411), number(1234.0), number(math.nan), number(7)
    ('0.000411', '1.23e+03', '–', '7')
    """
    if isinstance(value, int):
        return str(value)
    return "–" if math.isnan(value) else f"{value:.3g}"


def metric_value(name: str, value: float) -> str:
    """Return the value of a metric, shares in percent.

    Examples
    --------
    >>> metric_value("nc4_mismatch", 0.0213), metric_value("nc1_pinv", 0.0213)
    ('2.13 %', '0.0213')
    """
    return f"{value:.2%}".replace("%", " %") if name in _SHARES else number(value)


def target(name: str) -> str:
    """Return the value of a metric at collapse, empty where none is implied.

    Examples
    --------
    >>> target("nc4_agreement"), target("nc3_bias")
    ('100 %', '')
    """
    due = METRICS[name].at_collapse
    if due is None:
        return ""
    return f"{due:.0%}".replace("%", " %") if name in _SHARES else number(due)


def flag(code: str) -> str:
    """Return what a flag of a layer cautions about.

    Examples
    --------
    >>> flag("absent_classes"), flag("never_fired")
    ('classes without a row are left out of every mean over classes', 'the layer never ran on a labelled batch')
    """
    return FLAGS.get(code) or REASONS.get(code, code)


def times(factor: float) -> str:
    """Return a factor of at least 1 in words.

    Examples
    --------
    >>> times(5647.3), times(3.14), times(1.25)
    ('5647 times', '3.1 times', '1.25 times')
    """
    if factor >= 10:
        return f"{factor:.0f} times" if factor < 1e6 else f"{factor:.2g} times"
    return f"{factor:.1f} times" if factor >= 2 else f"{factor:.3g} times"
