"""Where descent starts: at random, or near a structure of low rank."""

import math

import numpy as np

from .chain import Chain, balance, pad
from .closed.graph import best_subset_size, read_by_signs, subset_signs, triangular_incidence
from .network import Variables, array_shapes
from .problem import DUFM, FloatArray


def equal_norms(point: Variables) -> Variables:
    """Rescale features and weights to one Frobenius norm; the outputs stay."""
    arrays = [point.features, *point.weights]
    norms = np.array([max(float(np.linalg.norm(a)), 1e-300) for a in arrays])
    scales = np.exp(np.mean(np.log(norms))) / norms
    features, *weights = (s * a for s, a in zip(scales, arrays, strict=True))
    return Variables(features, tuple(weights), point.bias)


def equal_neurons(point: Variables) -> Variables:
    """Give every hidden neuron incoming and outgoing weights of one norm."""
    weights = [weight.copy() for weight in point.weights]
    for index in range(len(weights) - 1):
        incoming = np.linalg.norm(weights[index], axis=1)
        outgoing = np.linalg.norm(weights[index + 1], axis=0)
        alive = (incoming > 0) & (outgoing > 0)
        scale = np.ones_like(incoming)
        scale[alive] = np.sqrt(outgoing[alive] / incoming[alive])
        weights[index] *= scale[:, None]
        weights[index + 1] /= scale
    return Variables(point.features, tuple(weights), point.bias)


def random_start(problem: DUFM, rng: np.random.Generator) -> Variables:
    """He weights and normal features, rescaled to equal norms."""
    return equal_norms(_normal(problem, problem.num_classes, 2.0, rng))


def gaussian_start(problem: DUFM, rng: np.random.Generator) -> Variables:
    """Sample-level start of gradient descent: weights of variance 1/fan-in.

    The factor two of He is left out: with step 0.5 it makes descent diverge.
    """
    return _normal(problem, problem.num_samples, 1.0, rng)


def _normal(problem: DUFM, columns: int, gain: float, rng: np.random.Generator) -> Variables:
    """Normal features, and normal weights of variance gain / fan-in."""
    features, *weights = (rng.standard_normal(shape) for shape in array_shapes(problem, columns))
    scaled = tuple(weight * math.sqrt(gain / weight.shape[1]) for weight in weights)
    bias = np.zeros(problem.num_classes) if problem.bias else None
    return Variables(features, scaled, bias)


def least_order(num_classes: int) -> int:
    """The fewest vertices of a graph with loops that has an edge for every class."""
    order = 1
    while order * (order + 1) // 2 < num_classes:
        order += 1
    return order


def loop_graph(num_classes: int, order: int, rng: np.random.Generator) -> FloatArray:
    """Classes as random edges and loops of a graph: columns e_i or e_i + e_j.

    Solutions found by descent look like this in their middle layers.
    """
    columns = [np.eye(order)[i] for i in range(order)]
    columns += [np.eye(order)[i] + np.eye(order)[j] for i in range(order) for j in range(i)]
    while True:
        chosen = rng.permutation(len(columns))[:num_classes]
        incidence = np.array([columns[i] for i in chosen]).T
        if np.linalg.matrix_rank(incidence) == order or len(columns) == num_classes:
            return incidence


def _tells_apart(incidence: FloatArray, signs: FloatArray) -> bool:
    """Whether the sign functionals, after a ReLU, tell the classes apart."""
    rank = np.linalg.matrix_rank(np.maximum(signs @ incidence, 0.0))
    return bool(rank == incidence.shape[1])


def _near(problem: DUFM, chain: Chain, rng: np.random.Generator) -> Variables:
    """A shaken copy of a chain, with its outputs kept and its norms made equal."""
    norms = [float(np.linalg.norm(factor)) for factor in chain]
    scale = math.exp(math.fsum(math.log(norm) for norm in norms) / len(norms))
    return jitter(pad(problem, balance(chain, scale)), 0.03, rng)


def graph_start(problem: DUFM, rng: np.random.Generator) -> Variables | None:
    """A start near a graph with loops of few vertices, read by random signs."""
    least, room = least_order(problem.num_classes), problem.layer_widths[-1]
    most = min(problem.num_classes - 1, least + 2, min(problem.layer_widths))
    if problem.depth < 3 or least > most:
        return None
    order = int(rng.integers(least, most + 1))
    incidence = loop_graph(problem.num_classes, order, rng)
    for _ in range(20):
        signs = np.where(rng.random((room, order)) < 0.5, -0.5, 0.5)
        if _tells_apart(incidence, signs):
            return _near(problem, read_by_signs(incidence, signs, problem.depth), rng)
    return None


def edge_start(problem: DUFM, rng: np.random.Generator) -> Variables | None:
    """A start near random edges of the smallest complete graph with enough of them.

    It is read by vertex subsets of one size, as in the strongly regular graph solution.
    """
    classes, order = problem.num_classes, 3
    while order * (order - 1) // 2 < classes:
        order += 1
    if problem.depth < 3 or order >= classes:
        return None
    size = best_subset_size(order, problem.depth, problem.layer_widths[-1])
    if max(order, math.comb(order, size)) > min(problem.layer_widths):
        return None
    columns = rng.permutation(order * (order - 1) // 2)[:classes]
    incidence = triangular_incidence(order)[:, columns]
    signs = subset_signs(order, size)
    if not _tells_apart(incidence, signs):
        return None
    return _near(problem, read_by_signs(incidence, signs, problem.depth), rng)


def jitter(point: Variables, size: float, rng: np.random.Generator) -> Variables:
    """Add noise, relative to the root mean square of each array."""

    def shaken(array: FloatArray) -> FloatArray:
        scale = size * math.sqrt(float(np.mean(array**2)))
        return array + scale * rng.standard_normal(array.shape)

    return Variables(shaken(point.features), tuple(shaken(w) for w in point.weights), point.bias)
