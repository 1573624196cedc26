"""Neural collapse as papers describe it: three passes over the data, then their formulas one by one.

The first pass sums the class means, the second the covariances about them, the third compares the
network's decisions with the nearest class mean. The passes run in PyTorch, on the network's device and in its
float32, with one product for each batch. The formulas are in NumPy and float64, in the notation of
the papers: S_B as a d x d matrix and its pseudo-inverse, C x C grids of cosines and distances. Plain, and not
slowed down: nothing is computed twice for the metrics, and pseudo-inverses know that they are symmetric.
All classes must be present and of one size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

Batches = Iterable[tuple[Tensor, Tensor]]
Forward = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]  # features of each layer, logits
Inverse = Literal["svds", "pinv"]


@dataclass
class Layer:
    """What three passes find of one layer."""

    n: Tensor  # (C,) rows of each class
    mu: Tensor  # (C, d) class means
    S_W: Tensor  # (d, d) within-class covariance
    v: Tensor  # (C,) mean |h - mu_c|^2
    nearest_is_label: int = 0
    nearest_is_decision: int = 0


def hooked(model: nn.Module, layers: list[str]) -> Forward:
    """Return the forward that also gives each layer's features, and the input of the head ``fc``."""
    seen: dict[str, Tensor] = {}

    def pooled(h: Tensor) -> Tensor:  # maps (B, d, H, W) and tokens (B, T, d) by their mean
        return h.mean((2, 3)) if h.ndim == 4 else h.mean(1) if h.ndim == 3 else h

    for name in layers:
        model.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: seen.update({name: pooled(output)})
        )
    model.get_submodule("fc").register_forward_pre_hook(
        lambda _, given: seen.update({"fc": given[0]})
    )

    def forward(x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        logits = model(x)
        return dict(seen), logits

    return forward


def class_means(batches: Batches, forward: Forward, C: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Pass 1: n_c, and mu_c of every layer."""
    n, sums = torch.tensor(0), {}
    for x, y in batches:
        n = n + torch.bincount(y, minlength=C)
        for name, h in forward(x)[0].items():
            if name not in sums:
                sums[name] = h.new_zeros(C, h.shape[1])
            sums[name].index_add_(0, y, h)
    return n, {name: total / n[:, None] for name, total in sums.items()}


def covariances(
    batches: Batches, forward: Forward, n: Tensor, mu: dict[str, Tensor]
) -> dict[str, Layer]:
    """Pass 2: S_W, and v_c of every layer."""
    layers = {
        name: Layer(n, m, m.new_zeros(m.shape[1], m.shape[1]), m.new_zeros(len(m)))
        for name, m in mu.items()
    }
    for x, y in batches:
        for name, h in forward(x)[0].items():
            layer = layers[name]
            z = h - layer.mu[y]
            layer.S_W += z.T @ z
            layer.v.index_add_(0, y, (z * z).sum(1))
    for layer in layers.values():
        layer.S_W /= n.sum()
        layer.v /= n
    return layers


def decisions(batches: Batches, forward: Forward, layers: dict[str, Layer]) -> None:
    """Pass 3: how often the nearest class mean is the label, and the network's decision."""
    for x, y in batches:
        features, logits = forward(x)
        decided = logits.argmax(1)
        for name, h in features.items():
            nearest = torch.cdist(h, layers[name].mu).argmin(1)
            layers[name].nearest_is_label += int((nearest == y).sum())
            layers[name].nearest_is_decision += int((nearest == decided).sum())


def three_passes(batches: Batches, forward: Forward, C: int) -> dict[str, Layer]:
    """Make all passes over the same batches."""
    n, mu = class_means(batches, forward, C)
    layers = covariances(batches, forward, n, mu)
    decisions(batches, forward, layers)
    return layers


def metrics(
    layer: Layer,
    W: np.ndarray | None = None,
    b: np.ndarray | None = None,
    inverse: Inverse = "svds",
) -> dict[str, float]:
    """Return every metric of a layer, and those of the head (W, b) if it reads the layer."""
    n, mu, S_W, v = (t.double().cpu().numpy() for t in (layer.n, layer.mu, layer.S_W, layer.v))
    mu_G = mu.mean(0)  # the sample mean, too: classes are of one size
    M = mu - mu_G
    found = _variability(M, S_W, v, inverse) | _frame(M, mu) | _ranks(M, mu, S_W)
    found["ncc_accuracy"] = layer.nearest_is_label / n.sum()
    found["nc4_agreement"] = layer.nearest_is_decision / n.sum()
    found["nc4_mismatch"] = 1 - found["nc4_agreement"]
    if n.sum() - len(n) < len(S_W):  # it would be 0 whatever the data
        found["nc1_vci"] = np.nan
    if W is not None and b is not None:
        found |= _duality(W, b, M, mu_G, mu)
    return found


def _variability(
    M: np.ndarray, S_W: np.ndarray, v: np.ndarray, inverse: Inverse
) -> dict[str, float]:
    C = len(M)
    S_B = M.T @ M / C
    if inverse == "svds":
        from scipy.sparse.linalg import svds

        U, s, _ = svds(S_B, k=C - 1)
        S_B_inv = U @ np.diag(1 / s) @ U.T
    else:
        S_B_inv = np.linalg.pinv(S_B, rcond=1e-12, hermitian=True)
    trace = np.trace(S_W @ S_B_inv)
    total_inv = np.linalg.pinv(S_B + S_W, rcond=1e-12, hermitian=True)
    a, b = np.triu_indices(C, 1)
    squares = (M * M).sum(1)
    distances = (squares[:, None] + squares - 2 * M @ M.T)[a, b]
    return {
        "nc1_pinv": trace / C,
        "nc1_trace_ratio": np.trace(S_W) / np.trace(S_B),
        "nc1_cdnv": ((v[a] + v[b]) / (2 * distances)).mean(),
        "nc1_fuzziness": trace,
        "nc1_vci": 1 - np.trace(total_inv @ S_B) / (C - 1),
    }


def _angles(M: np.ndarray) -> dict[str, float]:
    """NC2 of rows, with the C x C grid of cosines."""
    C = len(M)
    norms = np.linalg.norm(M, axis=1)
    unit = M / norms[:, None]
    a, b = np.triu_indices(C, 1)
    cosines = (unit @ unit.T)[a, b]
    return {
        "nc2_equinorm": norms.std(ddof=1) / norms.mean(),
        "nc2_equiangular": cosines.std(),
        "nc2_max_angle": np.abs(cosines + 1 / (C - 1)).mean(),
        "nc2_etf_error": _gram_error(M @ M.T, _simplex(C)),
        "cosines": cosines,
    }


def _simplex(C: int) -> np.ndarray:
    return (np.eye(C) - np.ones((C, C)) / C) / np.sqrt(C - 1)


def _gram_error(G: np.ndarray, P: np.ndarray) -> float:
    return float(np.linalg.norm(G / np.linalg.norm(G) - P))


def _frame(M: np.ndarray, mu: np.ndarray) -> dict[str, float]:
    C = len(M)
    found = _angles(M)
    log_distances = -np.log(np.sqrt(2 - 2 * found.pop("cosines")))
    found["gnc2_log_mean"], found["gnc2_log_var"] = log_distances.mean(), log_distances.var()
    found["nc2_of_error"] = _gram_error(mu @ mu.T, np.eye(C) / np.sqrt(C))
    return found


def _ranks(M: np.ndarray, mu: np.ndarray, S_W: np.ndarray) -> dict[str, float]:
    def effective(values: np.ndarray) -> float:
        share = values[values > 1e-15 * values.max()] / values.sum()
        return float(np.exp(-(share * np.log(share)).sum()))

    s, uncentred = (np.linalg.svd(rows, compute_uv=False) for rows in (M, mu))
    return {
        "means_effective_rank": effective(s),
        "means_stable_rank": (s**2).sum() / s[0] ** 2,
        "features_effective_rank": effective(np.linalg.eigvalsh(S_W + M.T @ M / len(M))),
        "means_condition": uncentred[0] / uncentred[-1],
    }


def _duality(
    W: np.ndarray, b: np.ndarray, M: np.ndarray, mu_G: np.ndarray, mu: np.ndarray
) -> dict[str, float]:
    head = {f"{name}_head": value for name, value in _angles(W).items()}
    del head["cosines_head"]
    cosines = (W * M).sum(1) / np.linalg.norm(W, axis=1) / np.linalg.norm(M, axis=1)
    to_means = W @ mu.T / np.outer(np.linalg.norm(W, axis=1), np.linalg.norm(mu, axis=1))
    closest = np.clip(to_means.max(1), 0, 1)
    return head | {
        "nc3_self_duality": ((W / np.linalg.norm(W) - M / np.linalg.norm(M)) ** 2).sum(),
        "nc3_etf_error": _gram_error(W @ M.T, _simplex(len(M))),
        "nc3_cosine": cosines.mean(),
        "nc3_uniform": cosines.var(ddof=1),
        "nc3_bias": np.linalg.norm(W @ mu_G + b),
        "dnc3_sine": np.average(np.sqrt(1 - closest**2), weights=np.linalg.norm(W, axis=1)),
    }


def disagreement(
    ours: dict[str, float], theirs: dict[str, float], tolerance: float, share: float
) -> list[str]:
    """Name metrics that differ: by `tolerance` relative to 1 or the value, or by `share` in shares of rows.

    Raises
    ------
    AssertionError
        If one of the two has a metric that the other lacks.
    """
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    differing = []
    for name, value in ours.items():
        of_rows = name.startswith("nc4") or name == "ncc_accuracy"
        limit = share if of_rows else tolerance * max(1.0, abs(value))
        if not (abs(value - theirs[name]) <= limit or np.isnan([value, theirs[name]]).all()):
            differing.append(f"{name}: {value:.7g} and the textbook's {theirs[name]:.7g}")
    return differing
