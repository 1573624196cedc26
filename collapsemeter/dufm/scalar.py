"""The one-dimensional problems to which every symmetric optimum reduces."""

import math
from collections.abc import Callable

import numpy as np
from scipy import optimize  # type: ignore[import-untyped, unused-ignore]


def critical_strength(depth: int) -> float:
    r"""The regularisation strength g below which `ell` has a non-zero minimiser: collapse exists.

    .. math:: g_\mathrm{crit}(L) = \frac1L \Big(\frac{L-1}{L}\Big)^{(L-1)/(L+1)}

    Examples
    --------
    >>> round(critical_strength(3), 7)
    0.2721655
    """
    _check_depth(depth)
    return float(((depth - 1) / depth) ** ((depth - 1) / (depth + 1)) / depth)


def ell(strength: float, depth: int) -> float:
    r"""The least loss of one class fitted through `depth` balanced layers, at most 1/2.

    .. math:: \ell(g, L) = \min_{t \ge 0} \tfrac12 (1-t)^2 + \tfrac{L+1}{2}\, g\, t^{2/(L+1)}

    Parameters
    ----------
    strength : float
        The regularisation strength g, not negative.
    depth : int
        Number of weight matrices, L, at least 1.

    Examples
    --------
    >>> ell(0.25, 1), ell(5.0, 4)
    (0.21875, 0.5)
    """
    miss = _miss(strength, depth)
    return miss * (1 + depth * (1 - miss)) / 2


def ell_minimiser(strength: float, depth: int) -> float:
    r"""The fit `t` in [0, 1) at which `ell` is attained: the output is `t` times the one-hot target.

    It is the largest root of :math:`(1-t)\,t^{(L-1)/(L+1)} = g`, or 0 beyond
    `critical_strength`, where it jumps down from :math:`(L-1)/L`.

    Examples
    --------
    >>> ell_minimiser(0.25, 1), ell_minimiser(0.3, 3)
    (0.75, 0.0)
    """
    return 1.0 - _miss(strength, depth)


def collapse_threshold(num_classes: int, depth: int) -> float:
    r"""The product of the decays below which neural collapse beats the zero network.

    .. math:: n\,\lambda_H \prod_l \lambda_l < \frac{(L-1)^{L-1}}{K^{L+1} L^{2L}}

    It holds for balanced classes and squared loss. Above it the collapsed solution no longer
    exists; for two classes, and for one layer, only the zero network is then optimal
    (Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165).

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


def _check_depth(depth: int) -> None:
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}: count the weight matrices.")


def _miss(strength: float, depth: int) -> float:
    """The gap between the fit and one, u = 1 - t: it stays accurate when the decay is tiny."""
    _check_depth(depth)
    if not strength >= 0:
        raise ValueError(f"strength must not be negative, got {strength}: pass decays above 0.")
    if strength >= critical_strength(depth):
        return 1.0
    if depth == 1:
        return strength
    power = (depth - 1) / (depth + 1)
    return _root(lambda u: u * (1 - u) ** power - strength, 0.0, (depth + 1) / (2 * depth))


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """The root of `function` between `low` and `high`, to the last bits of float64."""
    return float(optimize.brentq(function, low, high, xtol=1e-300, rtol=8.9e-16, maxiter=500))


def least_margin_loss(
    offsets: tuple[tuple[float, float], ...], strength: float, depth: int
) -> tuple[float, float]:
    """The scale x of logits, and the least ``log(1 + sum m_i exp(-d_i x)) + (L + 1)/2 g x^(2/(L + 1))`` that it reaches; offsets are (m_i, d_i)."""
    power = (depth - 1) / (depth + 1)

    def fit(scale: float) -> float:
        return math.log1p(sum(m * math.exp(-d * scale) for m, d in offsets))

    def pull(scale: float) -> float:
        """How strongly the fit pulls the scale up, over the slope of the penalty."""
        parts = [(m * math.exp(-d * scale), d) for m, d in offsets]
        slope = sum(p * d for p, d in parts) / (1.0 + sum(p for p, _ in parts))
        return slope * math.pow(scale, power)

    # The pull rises from zero and falls again: its last crossing is the minimum.
    scales = np.concatenate([[0.0], np.geomspace(1e-6, 700.0, 600)])
    above = np.flatnonzero([pull(float(scale)) > strength for scale in scales])
    at_zero = fit(0.0)
    if above.size == 0 or above[-1] == scales.size - 1:
        return 0.0, at_zero
    low, high = float(scales[above[-1]]), float(scales[above[-1] + 1])
    scale = _root(lambda x: pull(x) - strength, low, high)
    loss: float = fit(scale) + (depth + 1) / 2 * strength * scale ** (2 / (depth + 1))
    return (scale, loss) if loss < at_zero else (0.0, at_zero)
