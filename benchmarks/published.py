"""The published tool `neural_collapse` (rhubarbwu), where it is installed: its passes and its measures.

It is no dependency: without it nothing is timed beside ours.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

Rows = list[tuple[Any, Any]]  # (features, labels), tensors


def is_there() -> bool:
    """Whether the tool can be imported."""
    return find_spec("neural_collapse") is not None


def passes(batches: Rows, num_classes: int, width: int, device: Any) -> tuple[Any, Any, Any, Any]:
    """Return its class means, their mean, variances and covariance, by two passes over the rows."""
    from neural_collapse.accumulate import CovarAccumulator, MeanAccumulator, VarNCAccumulator

    means = MeanAccumulator(num_classes, width, device)
    for rows, labels in batches:
        means.accumulate(rows, labels)
    mu, mu_g = means.compute()
    variances = VarNCAccumulator(num_classes, width, device, M=mu)
    covariance = CovarAccumulator(num_classes, width, device, M=mu)
    for rows, labels in batches:
        variances.accumulate(rows, labels)
        covariance.accumulate(rows, labels)
    return mu, mu_g, variances.compute()[0], covariance.compute()


def measures(mu: Any, mu_g: Any, variances: Any, covariance: Any, weight: Any) -> list[Callable]:
    """Return its measures of those, without NC4, as calls."""
    from neural_collapse import measure
    from neural_collapse.kernels import kernel_stats, log_kernel

    return [
        lambda: measure.covariance_ratio(covariance, mu, mu_g),
        lambda: measure.variability_cdnv(variances, mu, tile_size=64),
        lambda: measure.simplex_etf_error(mu, mu_g),
        lambda: kernel_stats(mu, mu_g, tile_size=64),
        lambda: kernel_stats(mu, mu_g, kernel=log_kernel, tile_size=64),
        lambda: measure.self_duality_error(weight, mu, mu_g),
    ]
