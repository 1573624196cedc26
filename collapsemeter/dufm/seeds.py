"""Where descent starts: at random, or near a structure of low rank."""

import math

import numpy as np

from collapsemeter.dufm.arrays import FloatArray
from collapsemeter.dufm.factors import Chain, balance, pad, split_first
from collapsemeter.dufm.network import Variables
from collapsemeter.dufm.problem import DUFM


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
    """He weights and normal features, rescaled to equal norms.

    Examples
    --------
    >>> problem = DUFM(2, 1, 2, 8, feature_decay=0.1, weight_decay=0.1)
    >>> start = random_start(problem, np.random.default_rng(0))
    >>> bool(np.isclose(np.linalg.norm(start.features), np.linalg.norm(start.weights[1])))
    True
    """
    widths = (*problem.layer_widths, problem.num_classes)
    features = rng.standard_normal((widths[0], problem.num_classes))
    weights = tuple(
        rng.standard_normal((widths[i + 1], widths[i])) * math.sqrt(2 / widths[i])
        for i in range(problem.depth)
    )
    bias = np.zeros(problem.num_classes) if problem.bias else None
    return equal_norms(Variables(features, weights, bias))


def gaussian_start(problem: DUFM, rng: np.random.Generator) -> Variables:
    """Sample-level start of gradient descent: weights of variance 1/fan-in.

    The factor two of He is left out: with step 0.5 it makes descent diverge.
    """
    widths = (*problem.layer_widths, problem.num_classes)
    features = rng.standard_normal((widths[0], problem.num_samples))
    weights = tuple(
        rng.standard_normal((widths[i + 1], widths[i])) / math.sqrt(widths[i])
        for i in range(problem.depth)
    )
    return Variables(features, weights, np.zeros(problem.num_classes) if problem.bias else None)


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


def graph_chain(problem: DUFM, order: int, rng: np.random.Generator) -> Chain | None:
    """A chain through a random `loop_graph`, read by random sign functionals.

    None if no reading was found that tells the classes apart.
    """
    incidence = loop_graph(problem.num_classes, order, rng)
    room = problem.layer_widths[-1]
    for _ in range(20):
        signs = np.where(rng.random((room, order)) < 0.5, -0.5, 0.5)
        hidden = np.maximum(signs @ incidence, 0.0)
        if np.linalg.matrix_rank(hidden) == problem.num_classes:
            features, first = split_first(incidence)
            straight = (np.eye(order),) * (problem.depth - 3)
            return (features, first, *straight, signs, np.linalg.pinv(hidden))
    return None


def graph_start(problem: DUFM, rng: np.random.Generator) -> Variables | None:
    """A start near a graph with loops of few vertices, at a sensible scale."""
    least = least_order(problem.num_classes)
    most = min(problem.num_classes - 1, least + 2, min(problem.layer_widths))
    if problem.depth < 3 or least > most:
        return None
    chain = graph_chain(problem, int(rng.integers(least, most + 1)), rng)
    if chain is None:
        return None
    norms = [float(np.linalg.norm(factor)) for factor in chain]
    scale = math.exp(math.fsum(math.log(norm) for norm in norms) / len(norms))
    return jitter(pad(problem, balance(chain, scale)), 0.03, rng)


def jitter(point: Variables, size: float, rng: np.random.Generator) -> Variables:
    """Add noise, relative to the root mean square of each array."""

    def shaken(array: FloatArray) -> FloatArray:
        scale = size * math.sqrt(float(np.mean(array**2)))
        return array + scale * rng.standard_normal(array.shape)

    return Variables(shaken(point.features), tuple(shaken(w) for w in point.weights), point.bias)
