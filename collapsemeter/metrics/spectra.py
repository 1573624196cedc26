"""Singular values and factors of frames and scatters, by the eigenproblem of the smaller side where it keeps digits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..stats.linalg import EPS64, Floats, row_blocks

_SMALL = 64  # a side of which singular values take no longer than eigenvalues of inner products
_GRADED = 1e-6  # eigenvalues down to this share of the largest keep ten digits
_BLOCK = 64  # rows of a triangle that are solved for at a time


def singular_values(frame: Floats, most: int | None = None) -> Floats:
    """Return the singular values of a frame, largest first, (min(C, d),): the first ``most``, where others are round-off."""
    if min(frame.shape) > _SMALL:
        squares = np.linalg.eigvalsh(_smaller_gram(frame))[::-1][:most]
        if squares[-1] > _GRADED * squares[0]:
            return np.asarray(np.sqrt(squares))
    return np.asarray(np.linalg.svd(frame, compute_uv=False)[:most])


def _smaller_gram(frame: Floats) -> Floats:
    rows = len(frame) <= frame.shape[1]
    gram: Floats = frame @ frame.T if rows else frame.T @ frame
    return gram


class Factors(NamedTuple):
    r"""Singular values of F, largest first; A and B (r, d) with :math:`F^\top F = A^\top A` and :math:`(F^\top F)^+ = B^\top B`."""

    values: Floats
    root: Floats
    inverse: Floats


def factors(frame: Floats, cut: float) -> Factors:
    """Factor a frame one combination of whose rows is zero; values up to ``cut`` times the largest are round-off."""
    count, width = frame.shape
    most = min(count - 1, width)
    values, directions = _thin_svd(frame, most)
    rank = int((values[:most] > cut * values[0]).sum())
    kept, directions = values[:rank, None], directions[:rank]
    return Factors(values, kept * directions, directions / kept)


def _thin_svd(frame: Floats, most: int) -> tuple[Floats, Floats]:
    """Singular values, largest first, and as many right singular vectors in rows as there may be above zero."""
    if min(frame.shape) > _SMALL:
        squares, axes = np.linalg.eigh(_smaller_gram(frame))
        squares, axes = squares[::-1], axes[:, ::-1]
        if squares[most - 1] > _GRADED * squares[0]:
            values = np.zeros(len(squares))  # what is left of the null combination is round-off
            values[:most] = np.sqrt(squares[:most])
            directions = axes[:, :most].T
            if len(frame) <= frame.shape[1]:
                directions = (directions @ frame) / values[:most, None]
            return values, directions
    _, values, directions = np.linalg.svd(frame, full_matrices=False)
    return values, directions


class Cholesky(NamedTuple):
    r"""The features of a scatter S that vary, and L (k, k), lower triangular, with :math:`S = L L^\top` on them."""

    features: np.ndarray[tuple[int], np.dtype[np.int64]]
    triangle: Floats


def cholesky(scatter: Floats, rank: int) -> Cholesky | None:
    """Factor a scatter (d, d) that ``rank`` rows at most span; None where it may be singular on what varies."""
    variances = scatter.diagonal()
    features = np.flatnonzero(variances > negligible(len(variances)) * variances.max(initial=0.0))
    if not 0 < len(features) <= rank:
        return None
    part = scatter if len(features) == len(scatter) else scatter[np.ix_(features, features)]
    try:
        triangle: Floats = np.asarray(np.linalg.cholesky(part.T))  # LAPACK's order: faster to copy
    except np.linalg.LinAlgError:
        return None
    size = float(np.linalg.norm(part))
    # The estimate is seldom off by a factor of ten.
    regular = size * _inverse_norm(triangle) * 10 * negligible(len(part)) < 1
    return Cholesky(features, triangle) if regular else None


def _inverse_norm(triangle: Floats) -> float:
    r"""Estimate the norm of :math:`(L L^\top)^{-1}` from below, by powers of it on where its pivot is least."""
    vector = np.zeros(len(triangle))
    vector[triangle.diagonal().argmin()] = norm = 1.0
    inverses = _inverted_blocks(triangle)
    for _ in range(2):
        vector = _solved(triangle, inverses, vector / norm)
        norm = float(np.linalg.norm(vector))
    return norm


def solve_lower(triangle: Floats, right: Floats) -> Floats:
    r"""Return :math:`L^{-1} B` by blocks, as NumPy has no solver for triangles."""
    solved = np.array(right)
    for block in row_blocks(len(triangle), 1, _BLOCK):
        solved[block] -= triangle[block, : block.start] @ solved[: block.start]
        solved[block] = np.linalg.solve(triangle[block, block], solved[block])
    return solved


def is_outside(scatter: Floats, frame: Floats, least: float) -> bool:
    r"""Return whether more than ``least`` of a frame's rows is certainly outside of the range of a scatter.

    Powers of :math:`\delta (S + \delta I)^{-1}` keep that part; variances beyond round-off are :math:`16 \delta` or more.
    """
    vector = frame.T @ np.random.default_rng(0).standard_normal(len(frame))
    axis = np.ones(len(scatter))
    for _ in range(10):
        axis = scatter @ axis
        largest = float(np.linalg.norm(axis))
        if not largest > 0:
            return False
        axis /= largest
    shift = negligible(len(scatter)) * largest / 16
    try:
        triangle: Floats = np.asarray(np.linalg.cholesky(scatter + shift * np.eye(len(scatter))))
    except np.linalg.LinAlgError:
        return False
    inverses = _inverted_blocks(triangle)
    for _ in range(8):
        vector = shift * _solved(triangle, inverses, vector)
    return float(np.linalg.norm(vector)) > 10 * least


def _inverted_blocks(triangle: Floats) -> list[Floats]:
    """Return the inverses of the blocks on the diagonal of a triangle."""
    blocks = row_blocks(len(triangle), 1, _BLOCK)
    return [np.asarray(np.linalg.inv(triangle[block, block]), np.float64) for block in blocks]


def _solved(triangle: Floats, inverses: list[Floats], right: Floats) -> Floats:
    r"""Return :math:`(L L^\top)^{-1} b` for a vector, of which an estimate is made."""
    solved = np.array(right)
    blocks = list(zip(row_blocks(len(triangle), 1, _BLOCK), inverses, strict=True))
    for block, inverse in blocks:
        solved[block] = inverse @ (
            solved[block] - triangle[block, : block.start] @ solved[: block.start]
        )
    for block, inverse in blocks[::-1]:
        rest = slice(block.stop, None)
        solved[block] = (solved[block] - solved[rest] @ triangle[rest, block]) @ inverse
    return solved


def negligible(width: int) -> float:
    """Return the share of the largest variance below which a variance is round-off."""
    return width * EPS64
