"""The one-dimensional problems to which every symmetric optimum reduces."""

import math
from collections.abc import Callable

import numpy as np

from ._scipy import root


def _check_depth(depth: int) -> None:
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}: count the weight matrices.")


def critical_strength(depth: int) -> float:
    r"""The regularisation strength at which the collapsed solution disappears.

    .. math:: g_\mathrm{crit}(L) = \frac1L \Big(\frac{L-1}{L}\Big)^{(L-1)/(L+1)}

    Parameters
    ----------
    depth : int
        Number of weight matrices, L.

    Returns
    -------
    float
        `ell` has a non-zero minimiser exactly below this strength.

    Raises
    ------
    ValueError
        If `depth` is below 1.

    References
    ----------
    Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165.

    Examples
    --------
    >>> round(critical_strength(3), 7)
    0.2721655
    """
    _check_depth(depth)
    return float(((depth - 1) / depth) ** ((depth - 1) / (depth + 1)) / depth)


def ell_minimiser(strength: float, depth: int) -> float:
    r"""The fit `t` in [0, 1) at which `ell` is attained.

    It is the largest root of :math:`(1-t)\,t^{(L-1)/(L+1)} = g`, or 0 beyond
    `critical_strength`, where it jumps down from :math:`(L-1)/L`.

    Parameters
    ----------
    strength : float
        The regularisation strength g, not negative.
    depth : int
        Number of weight matrices, L.

    Returns
    -------
    float
        The minimiser; the output of the network is `t` times the one-hot target.

    Raises
    ------
    ValueError
        If `strength` is negative or NaN, or `depth` is below 1.

    References
    ----------
    Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165.

    Examples
    --------
    >>> ell_minimiser(0.25, 1)
    0.75
    >>> ell_minimiser(0.3, 3)
    0.0
    """
    return 1.0 - _miss(strength, depth)


def _miss(strength: float, depth: int) -> float:
    """What the fit falls short of one, u = 1 - t: it stays accurate when the decay is tiny."""
    _check_depth(depth)
    if not strength >= 0:
        raise ValueError(f"strength must not be negative, got {strength}: pass decays above 0.")
    if strength >= critical_strength(depth):
        return 1.0
    if depth == 1:
        return strength
    power = (depth - 1) / (depth + 1)
    return root(lambda u: u * (1 - u) ** power - strength, 0.0, (depth + 1) / (2 * depth))


def ell(strength: float, depth: int) -> float:
    r"""The least loss of one class fitted through `depth` balanced layers.

    .. math:: \ell(g, L) = \min_{t \ge 0} \tfrac12 (1-t)^2 + \tfrac{L+1}{2}\, g\, t^{2/(L+1)}

    Parameters
    ----------
    strength : float
        The regularisation strength g, not negative.
    depth : int
        Number of weight matrices, L.

    Returns
    -------
    float
        The minimum, at most 1/2.

    Raises
    ------
    ValueError
        If `strength` is negative or NaN, or `depth` is below 1.

    References
    ----------
    Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165.

    Examples
    --------
    >>> ell(0.25, 1)
    0.21875
    >>> ell(5.0, 4)
    0.5
    """
    miss = _miss(strength, depth)
    return miss * (1 + depth * (1 - miss)) / 2


def collapse_threshold(num_classes: int, depth: int) -> float:
    r"""The product of the decays below which neural collapse beats the zero network.

    .. math:: n\,\lambda_H \prod_l \lambda_l < \frac{(L-1)^{L-1}}{K^{L+1} L^{2L}}

    Above it the collapsed solution no longer exists; for two classes, and for
    one layer, only the zero network is then optimal.

    Parameters
    ----------
    num_classes : int
        Number of classes, K, at least 2.
    depth : int
        Number of weight matrices, L.

    Returns
    -------
    float
        The threshold on the product, for balanced classes and squared loss.

    Raises
    ------
    ValueError
        If `num_classes` is below 2 or `depth` is below 1.

    References
    ----------
    Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165 (two classes).

    Examples
    --------
    >>> collapse_threshold(2, 1)
    0.25
    """
    _check_depth(depth)
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}: pass more classes.")
    power = depth - 1
    # One division of whole numbers: its parts may be beyond the range of floats.
    return float(power**power / (num_classes ** (depth + 1) * depth ** (2 * depth)))


def least_margin_loss(
    fit: Callable[[float], float],
    slope: Callable[[float], float],
    strength: float,
    depth: int,
) -> tuple[float, float]:
    r"""Minimise a decreasing convex fit plus a root-like penalty over a margin.

    .. math:: \min_{x \ge 0} \phi(x) + \tfrac{L+1}{2}\, g\, x^{2/(L+1)}

    Parameters
    ----------
    fit, slope : callable
        :math:`\phi` and its derivative, which must be negative.
    strength : float
        The strength g, positive.
    depth : int
        Number of weight matrices, L.

    Returns
    -------
    tuple of float
        The minimiser and the minimum.

    References
    ----------
    Garrod & Keating 2024, arXiv 2410.23169, use it for cross-entropy.

    Examples
    --------
    >>> import math
    >>> margin, loss = least_margin_loss(lambda x: math.exp(-x), lambda x: -math.exp(-x), 0.5, 1)
    >>> round(margin, 6), round(loss, 6)
    (0.693147, 0.846574)
    """
    power = (depth - 1) / (depth + 1)

    def pull(margin: float) -> float:
        return -slope(margin) * math.pow(margin, power)

    # The pull rises from zero and falls again: its last crossing is the minimum.
    margins = np.concatenate([[0.0], np.geomspace(1e-6, 700.0, 600)])
    pulls = np.array([pull(float(m)) for m in margins])
    above = np.flatnonzero(pulls > strength)
    at_zero = fit(0.0)
    if above.size == 0 or above[-1] == margins.size - 1:
        return 0.0, at_zero
    low, high = float(margins[above[-1]]), float(margins[above[-1] + 1])
    margin = root(lambda x: pull(x) - strength, low, high)
    loss: float = fit(margin) + (depth + 1) / 2 * strength * margin ** (2 / (depth + 1))
    return (margin, loss) if loss < at_zero else (0.0, at_zero)


def softmax_margin(
    offsets: tuple[tuple[float, float], ...],
) -> tuple[Callable[[float], float], Callable[[float], float]]:
    r"""The cross-entropy of a pattern of logits, as a function of its scale.

    .. math:: \phi(x) = \log\Big(1 + \sum_i m_i e^{-\delta_i x}\Big)

    Parameters
    ----------
    offsets : tuple of (float, float)
        Pairs (multiplicity :math:`m_i`, distance :math:`\delta_i` below the label).

    Returns
    -------
    tuple of callable
        :math:`\phi` and its derivative.

    References
    ----------
    Garrod & Keating 2024, arXiv 2410.23169.

    Examples
    --------
    >>> fit, slope = softmax_margin(((9.0, 1.0),))
    >>> round(fit(0.0), 6), slope(0.0)
    (2.302585, -0.9)
    """

    def fit(scale: float) -> float:
        return math.log1p(sum(m * math.exp(-d * scale) for m, d in offsets))

    def slope(scale: float) -> float:
        parts = [(m * math.exp(-d * scale), d) for m, d in offsets]
        return -sum(p * d for p, d in parts) / (1.0 + sum(p for p, _ in parts))

    return fit, slope
