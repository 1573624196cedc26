"""Where descent starts: at random, or near a structure of low rank."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np

from .chain import Chain, balance, pad
from .graphs import best_subset_size, read_by_signs, subset_signs, triangular_incidence
from .network import Variables, zero_variables
from .problem import FloatArray, Problem
from .registry import references


def equal_norms(point: Variables) -> Variables:
    """Rescale features and weights to one Frobenius norm; the outputs stay."""
    chain = (point.features, *point.weights)
    norms = [max(float(np.linalg.norm(factor)), 1e-300) for factor in chain]
    features, *weights = balance(chain, math.exp(np.mean(np.log(norms))))
    return Variables(features, tuple(weights), point.bias)


def equal_neurons(point: Variables) -> Variables:
    """Give every hidden neuron incoming and outgoing weights of one norm."""
    weights = tuple(weight.copy() for weight in point.weights)
    for incoming, outgoing in pairwise(weights):
        norms = np.linalg.norm(incoming, axis=1), np.linalg.norm(outgoing, axis=0)
        alive = (norms[0] > 0) & (norms[1] > 0)
        scale = np.ones(alive.size)
        scale[alive] = np.sqrt(norms[1][alive] / norms[0][alive])
        incoming *= scale[:, None]
        outgoing /= scale
    return replace(point, weights=weights)


def random_start(problem: Problem, rng: np.random.Generator) -> Variables:
    """He weights and normal features, rescaled to equal norms."""
    return equal_norms(_normal(problem, problem.num_classes, 2.0, rng))


def near_reference(problem: Problem, rng: np.random.Generator) -> Variables:
    """A shaken copy of the best closed form."""
    return jitter(references(problem)[0].canonical_variables, 0.02, rng)


def gaussian_start(problem: Problem, rng: np.random.Generator) -> Variables:
    """Sample-level start of gradient descent; with the factor two of He, step 0.5 diverges."""
    return _normal(problem, problem.num_samples, 1.0, rng)


def _normal(problem: Problem, columns: int, gain: float, rng: np.random.Generator) -> Variables:
    """Normal features, and normal weights of variance gain / fan-in."""
    start = zero_variables(problem, columns)
    start.features[:] = rng.standard_normal(start.features.shape)
    for weight in start.weights:
        weight[:] = math.sqrt(gain / weight.shape[1]) * rng.standard_normal(weight.shape)
    return start


def least_order(num_classes: int) -> int:
    """The fewest vertices of a graph with loops that has an edge for every class."""
    return (math.isqrt(8 * num_classes - 7) + 1) // 2


def loop_graph(num_classes: int, order: int, rng: np.random.Generator) -> FloatArray:
    """Classes as random edges and loops of a graph, as in what descent finds: e_i or e_i + e_j."""
    axes = np.eye(order)
    columns = [*axes, *(axes[i] + axes[j] for i in range(order) for j in range(i))]
    while True:
        chosen = rng.permutation(len(columns))[:num_classes]
        incidence = np.array([columns[i] for i in chosen]).T
        if np.linalg.matrix_rank(incidence) == order or len(columns) == num_classes:
            return incidence


def graph_start(problem: Problem, rng: np.random.Generator) -> Variables | None:
    """A start near a graph with loops of few vertices, read by random signs."""
    least, room = least_order(problem.num_classes), problem.layer_widths[-1]
    most = min(problem.num_classes - 1, least + 2, *problem.layer_widths)
    if problem.depth < 3 or least > most:
        return None
    order = int(rng.integers(least, most + 1))
    incidence = loop_graph(problem.num_classes, order, rng)
    for _ in range(20):
        signs = np.where(rng.random((room, order)) < 0.5, -0.5, 0.5)
        if _tells_apart(incidence, signs):
            return _near(problem, read_by_signs(incidence, signs, problem.depth), rng)
    return None


def edge_start(problem: Problem, rng: np.random.Generator) -> Variables | None:
    """A start near random edges of the smallest complete graph, read by subsets as in `srg`."""
    classes, order = problem.num_classes, max(3, least_order(problem.num_classes) + 1)
    if problem.depth < 3 or order >= classes:
        return None
    size = best_subset_size(order, problem.depth, problem.layer_widths[-1])
    if max(order, math.comb(order, size)) > min(problem.layer_widths):
        return None
    columns = rng.permutation(math.comb(order, 2))[:classes]
    incidence, signs = triangular_incidence(order)[:, columns], subset_signs(order, size)
    if not _tells_apart(incidence, signs):
        return None
    return _near(problem, read_by_signs(incidence, signs, problem.depth), rng)


def _tells_apart(incidence: FloatArray, signs: FloatArray) -> bool:
    """Whether the sign functionals, after a ReLU, tell the classes apart."""
    rank = np.linalg.matrix_rank(np.maximum(signs @ incidence, 0.0))
    return bool(rank == incidence.shape[1])


def _near(problem: Problem, chain: Chain, rng: np.random.Generator) -> Variables:
    """A shaken copy of a chain, with its outputs kept and its norms made equal."""
    point = equal_norms(Variables(chain[0], chain[1:]))
    return jitter(pad(problem, point), 0.03, rng)


def jitter(point: Variables, size: float, rng: np.random.Generator) -> Variables:
    """Add noise to features and weights, relative to the root mean square of each."""
    chain = (point.features, *point.weights)
    scales = [size * math.sqrt(float(np.mean(array**2))) for array in chain]
    features, *weights = (
        array + scale * rng.standard_normal(array.shape)
        for array, scale in zip(chain, scales, strict=True)
    )
    return Variables(features, tuple(weights), point.bias)
