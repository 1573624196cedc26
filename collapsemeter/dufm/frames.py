"""Frames: an orthogonal one, its rows the classes, and incidence matrices of graphs whose edges are classes."""

from itertools import combinations

import numpy as np

from .arrays import FloatArray


def orthogonal_frame(
    num_classes: int, width: int, rng: np.random.Generator | None = None
) -> FloatArray:
    r"""An orthogonal frame: K orthonormal rows, :math:`M M^T = I`.

    Parameters
    ----------
    num_classes : int
        Number of classes, K, at least 2.
    width : int
        Dimension d, at least K.
    rng : numpy.random.Generator, optional
        Draws a random rotation; by default the first K axes, so that the frame is
        non-negative and passes through a ReLU unchanged.

    Returns
    -------
    ndarray, shape (K, d)
        A row per class, as `collapsemeter.simplex_etf` has it.

    Raises
    ------
    ValueError
        If there are fewer than two classes or the width is too small.

    References
    ----------
    Tirer & Bruna 2022; Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165.

    Examples
    --------
    >>> frame = orthogonal_frame(3, 5)
    >>> (frame @ frame.T).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}: pass more classes.")
    if width < num_classes:
        raise ValueError(
            f"an orthogonal frame of {num_classes} classes needs width {num_classes}, got {width}: "
            "widen the layer."
        )
    if rng is None:
        return np.eye(num_classes, width)
    axes = np.linalg.qr(rng.standard_normal((width, num_classes)))[0]
    return np.asarray(axes.T, dtype=np.float64)


def edges(order: int) -> list[tuple[int, int]]:
    """The edges of the complete graph on `order` vertices, in a fixed order.

    Parameters
    ----------
    order : int
        Number of vertices, r.

    Returns
    -------
    list of (int, int)
        ``r (r - 1) / 2`` pairs.

    References
    ----------
    Sukenik, Lampert & Mondelli 2024, arXiv 2405.14468.

    Examples
    --------
    >>> edges(3)
    [(0, 1), (0, 2), (1, 2)]
    """
    return list(combinations(range(order), 2))


def triangular_incidence(order: int) -> FloatArray:
    """The vertex-edge incidence matrix of a complete graph: classes are its edges.

    ``T.T @ T = 2 I + A`` with A the adjacency of the triangular graph, which is
    strongly regular. Its rank is r although it holds r (r - 1) / 2 classes.

    Parameters
    ----------
    order : int
        Number of vertices, r.

    Returns
    -------
    ndarray, shape (r, r (r - 1) / 2)

    References
    ----------
    Sukenik, Lampert & Mondelli 2024, arXiv 2405.14468.

    Examples
    --------
    >>> triangular_incidence(3).tolist()
    [[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]
    """
    pairs = edges(order)
    incidence = np.zeros((order, len(pairs)))
    for column, pair in enumerate(pairs):
        incidence[list(pair), column] = 1.0
    return incidence


def subset_signs(order: int, size: int) -> FloatArray:
    """One row per vertex subset of the given size: +1/2 inside, -1/2 outside.

    Applied to an edge it gives +1 inside the subset, 0 across, -1 outside, so a
    ReLU leaves exactly the inclusion matrix of edges in subsets.

    Parameters
    ----------
    order : int
        Number of vertices, r.
    size : int
        Size of the subsets, s.

    Returns
    -------
    ndarray, shape (binomial(r, s), r)

    References
    ----------
    Sukenik, Lampert & Mondelli 2024, arXiv 2405.14468.

    Examples
    --------
    >>> subset_signs(3, 2).tolist()
    [[0.5, 0.5, -0.5], [0.5, -0.5, 0.5], [-0.5, 0.5, 0.5]]
    """
    subsets = list(combinations(range(order), size))
    signs = np.full((len(subsets), order), -0.5)
    for row, subset in enumerate(subsets):
        signs[row, list(subset)] = 0.5
    return signs
