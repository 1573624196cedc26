"""Singular values and factors of frames and scatters, by the eigenproblem of the smaller side where it keeps digits."""

from typing import NamedTuple

import numpy as np

from ..stats.linalg import EPS64, Floats, row_blocks

_SMALL = 64  # a side of which singular values take no longer than eigenvalues of inner products
_GRADED = 1e-6  # eigenvalues down to this share of the largest keep ten digits
_BLOCK = 64  # rows of a triangle that are factored and solved for at a time


def singular_values(
    frame: Floats, most: int | None = None, products: Floats | None = None
) -> Floats:
    """Return the singular values of a frame, largest first, (min(C, d),): the first ``most``, where others are round-off.

    ``products`` are the inner products of its rows, where they are known.
    """
    if min(frame.shape) > _SMALL:
        squares = np.linalg.eigvalsh(_smaller_gram(frame, products))[::-1][:most]
        if squares[-1] > _GRADED * squares[0]:
            return np.asarray(np.sqrt(squares))
    return np.asarray(np.linalg.svd(frame, compute_uv=False)[:most])


def _smaller_gram(frame: Floats, products: Floats | None) -> Floats:
    if len(frame) > frame.shape[1]:
        gram: Floats = frame.T @ frame
        return gram
    return frame @ frame.T if products is None else products


class Factors(NamedTuple):
    r"""Singular values of F, largest first; A and B (r, d) with :math:`F^\top F = A^\top A` and :math:`(F^\top F)^+ = B^\top B`."""

    values: Floats
    root: Floats
    inverse: Floats


def factors(frame: Floats, cut: float, products: Floats | None = None) -> Factors:
    """Factor a frame one combination of whose rows is zero; values up to ``cut`` times the largest are round-off."""
    count, width = frame.shape
    most = min(count - 1, width)
    values, directions = _thin_svd(frame, most, products)
    rank = int((values[:most] > cut * values[0]).sum())
    above_cut, directions = values[:rank, None], directions[:rank]
    return Factors(values, above_cut * directions, directions / above_cut)


def _thin_svd(frame: Floats, most: int, products: Floats | None) -> tuple[Floats, Floats]:
    """Singular values, largest first, and as many right singular vectors in rows as there may be above zero."""
    if min(frame.shape) > _SMALL:
        squares, axes = np.linalg.eigh(_smaller_gram(frame, products))
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


class Triangle(NamedTuple):
    """L (d, d), lower triangular, and the inverses of the blocks on its diagonal."""

    lower: Floats
    inverses: list[Floats]

    def solved(self, right: Floats) -> Floats:
        r"""Return :math:`L^{-1} B`."""
        solved = np.array(right)
        for block, inverse in self._blocks():
            left = solved[block] - self.lower[block, : block.start] @ solved[: block.start]
            solved[block] = _divided(left, self.lower[block, block], inverse)
        return solved

    def solved_twice(self, right: Floats) -> Floats:
        r"""Return :math:`(L L^\top)^{-1} b` for a vector."""
        solved = self.solved(right)
        for block, inverse in reversed(self._blocks()):
            below = slice(block.stop, None)
            left = solved[block] - solved[below] @ self.lower[below, block]
            solved[block] = _divided(left, self.lower[block, block].T, inverse.T)
        return solved

    def _blocks(self) -> list[tuple[slice, Floats]]:
        return list(zip(row_blocks(len(self.lower), 1, _BLOCK), self.inverses, strict=True))


def triangle_of(scatter: Floats) -> Triangle:
    r"""Factor :math:`S = L L^\top` by blocks, which NumPy's products do faster than its factorisation; LinAlgError unless S is positive definite."""
    triangle = Triangle(np.zeros(scatter.shape), [])
    lower = triangle.lower
    for block in row_blocks(len(scatter), 1, _BLOCK):
        before, below = slice(block.start), slice(block.stop, None)
        panel = (
            scatter[block.start :, block] - lower[block.start :, before] @ lower[block, before].T
        )
        size = block.stop - block.start
        head = lower[block, block] = np.linalg.cholesky(panel[:size])
        inverse: Floats = np.asarray(np.linalg.inv(head), np.float64)
        triangle.inverses.append(inverse)
        divided = panel[size:] @ inverse.T
        divided += (panel[size:] - divided @ head.T) @ inverse.T  # the residual is then a solver's
        lower[below, block] = divided
    return triangle


def _divided(right: Floats, block: Floats, inverse: Floats) -> Floats:
    """Return the product of a block's inverse with ``right``, refined once, as `triangle_of` does."""
    solved: Floats = inverse @ right
    solved += inverse @ (right - block @ solved)
    return solved


class Cholesky(NamedTuple):
    """The features of a scatter that vary, and its triangle on them."""

    features: np.ndarray[tuple[int], np.dtype[np.int64]]
    triangle: Triangle


def cholesky(scatter: Floats, rank: int) -> Cholesky | None:
    """Factor a scatter (d, d) that ``rank`` rows at most span; None where it may be singular on what varies."""
    variances = scatter.diagonal()
    features = np.flatnonzero(variances > negligible(len(variances)) * variances.max(initial=0.0))
    if not 0 < len(features) <= rank:
        return None
    part = scatter if len(features) == len(scatter) else scatter[np.ix_(features, features)]
    try:
        triangle = triangle_of(part)
    except np.linalg.LinAlgError:
        return None
    size = float(np.linalg.norm(part))
    # The estimate is seldom off by a factor of ten.
    regular = size * _inverse_norm(triangle) * 10 * negligible(len(part)) < 1
    return Cholesky(features, triangle) if regular else None


def _inverse_norm(triangle: Triangle) -> float:
    r"""Estimate the norm of :math:`(L L^\top)^{-1}` from below, by powers of it on where its pivot is least."""
    vector = np.zeros(len(triangle.lower))
    vector[triangle.lower.diagonal().argmin()] = norm = 1.0
    for _ in range(2):
        vector = triangle.solved_twice(vector / norm)
        norm = float(np.linalg.norm(vector))
    return norm


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
        triangle = triangle_of(scatter + shift * np.eye(len(scatter)))
    except np.linalg.LinAlgError:
        return False
    for _ in range(8):
        vector = shift * triangle.solved_twice(vector)
    return float(np.linalg.norm(vector)) > 10 * least


def negligible(width: int) -> float:
    """Return the share of the largest variance below which a variance is round-off."""
    return width * EPS64
