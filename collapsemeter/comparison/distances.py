"""What of two layers is compared: ranks, gaps of metrics, distances of Gram matrices and spectra, scale."""

from __future__ import annotations

import math

import numpy as np

from ..metrics.depth import effective_rank
from ..metrics.layer import LayerReport
from ..stats.linalg import EPS64, Floats
from .matching import match_classes
from .result import Gap, Ranks
from .sides import Side


def ranks_of(
    layer: LayerReport, target: str, predicted: Side, before_activation: bool, tolerance: float
) -> Ranks:
    """Return the ranks of a layer beside those of a layer of the reference."""
    values, expected = singular_values(layer), singular_values(predicted.layers[target])
    low_rank = math.nan
    if predicted.low_rank is not None:
        structure = predicted.low_rank.singular_values(int(target), before_activation)
        low_rank = _effective_rank(structure)
    return Ranks(
        measured=_effective_rank(values),
        reference=math.nan if target in predicted.free else _effective_rank(expected),
        classes=_classes(predicted.layers[target]),
        low_rank=low_rank,
        counted=counted_rank(values, tolerance),
    )


def _classes(layer: LayerReport) -> int:
    return int((layer.per_class.get("count", np.zeros(0)) > 0).sum())


def singular_values(layer: LayerReport) -> Floats:
    return layer.vectors.get("means_singular_values_uncentred", np.zeros(0))


def why_impossible(layer: LayerReport, reference: LayerReport, name: str, halved: bool) -> str:
    """Say why the reference cannot exist in a layer; nothing if it can.

    In a free first layer pairs of classes may share a direction, with opposite signs.
    """
    classes, expected = _classes(layer), _classes(reference)
    if classes and classes != expected:
        return f"{classes} classes are present, {name} has {expected}"
    width = layer.provenance.get("width")
    rank = counted_rank(singular_values(reference), 1e-9)
    rank = (rank + 1) // 2 if halved else rank
    if width is not None and width < rank:
        return f"the class means of {name} have rank {rank}, this layer has {width} features"
    return ""


def gaps(layer: LayerReport, reference: LayerReport, only_nc1: bool) -> dict[str, Gap]:
    return {
        metric: Gap(layer[metric], reference[metric])
        for metric in layer
        if metric in reference and (metric.startswith("nc1_") or not only_nc1)
    }


def gram_distance(
    layer: LayerReport, reference: LayerReport, kind: str
) -> tuple[float, tuple[int, ...]]:
    if "means_gram" not in layer.matrices or "means_gram" not in reference.matrices:
        return math.nan, ()
    # No centred Gram matrix where all class means are equal: it is zero.
    zero = np.zeros_like(reference.matrices["means_gram"])
    match = match_classes(layer.matrices.get(kind, zero), reference.matrices.get(kind, zero))
    return match.distance, tuple(match.order.tolist())


def spectrum_distance(values: Floats, expected: Floats) -> float:
    if not (values.size and expected.size):
        return math.nan
    size = max(values.size, expected.size)
    padded = [np.pad(v, (0, size - v.size)) for v in (values, expected)]
    a, b = (v / (np.linalg.norm(v) or 1.0) for v in padded)
    return float(np.linalg.norm(a - b))


def norm(values: Floats) -> float:
    return float(np.linalg.norm(values)) if values.size else math.nan


def free_scale(layer: LayerReport, nuclear: bool) -> float:
    r"""Return what is fixed where the frame is not, weighted by class size.

    :math:`\sqrt{\sum_k n_k \|\mu_k\|^2 / N}` of the features, as :math:`\lambda_H \|H_1\|^2` is fixed;
    the nuclear norm :math:`\|M\,\mathrm{diag}(n_k/N)^{1/2}\|_*` of what the ReLU reads.
    """
    gram = layer.matrices.get("means_gram")
    if gram is None:
        return math.nan
    counts = layer.per_class["count"]
    roots = np.sqrt(counts[counts > 0] / counts.sum())
    squares = np.linalg.eigvalsh(roots[:, None] * gram * roots)
    squares = np.where(squares > len(gram) * EPS64 * squares.max(initial=0.0), squares, 0.0)
    return float(np.sqrt(squares).sum() if nuclear else np.sqrt(squares.sum()))


def _effective_rank(values: Floats) -> float:
    return effective_rank(values) if values.any() else 0.0


def counted_rank(values: Floats, tolerance: float) -> int:
    return int((values > tolerance * values.max(initial=0.0)).sum())
