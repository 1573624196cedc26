"""One closed-form solution: its loss, its matrices, and how sure it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from .chain import Chain, pad
from .network import Columns, Variables, class_averages, class_columns, forward, sample_columns
from .problem import FloatArray, Problem
from .reductions import from_canonical, repeat_samples

if TYPE_CHECKING:
    from ..stats.moments import ClassMoments

Status = Literal["theorem", "best known", "upper bound"]

RANK_TOLERANCE = 1e-3  # of the largest singular value: lower ones are not counted in a rank


@dataclass(frozen=True, eq=False)
class Geometry:
    """The layers of a network: 1 is the free features, 2 to L are hidden, L + 1 is the output."""

    problem: Problem

    @property
    def variables(self) -> Variables:
        """Features and weights; one column per class, or per sample where `by_sample`."""
        raise NotImplementedError

    @property
    def by_sample(self) -> bool:
        """Whether the point has one column per sample."""
        return bool(self.variables.features.shape[1] == self.problem.num_samples)

    @property
    def weights(self) -> tuple[FloatArray, ...]:
        """The weights: ``weights[l - 1]`` is W_l, shape (d_{l+1}, d_l)."""
        return self.variables.weights

    @cached_property
    def columns(self) -> Columns:
        """The meaning of the features' columns."""
        return (sample_columns if self.by_sample else class_columns)(self.problem)

    @cached_property
    def _layers(self) -> tuple[list[FloatArray], list[FloatArray]]:
        """All layers before and after the activation."""
        return forward(self.problem, self.variables)

    def class_means(self, layer: int, before_activation: bool = False) -> FloatArray:
        """Class means of a layer, 1 to L + 1, shape (K, d_layer), before its ReLU if asked."""
        if not 1 <= layer <= self.problem.depth + 1:
            raise ValueError(
                f"layer must be 1 to {self.problem.depth + 1} (the output), got {layer}: "
                "layer 1 is the free features."
            )
        rows = self._layers[0 if before_activation else 1][layer - 1]
        return (class_averages(self.problem, rows) if self.by_sample else rows).T

    def gram(self, layer: int) -> FloatArray:
        """Inner products of the class means of a layer, shape (K, K)."""
        means = self.class_means(layer)
        return means @ means.T

    def singular_values(self, layer: int, before_activation: bool = False) -> FloatArray:
        """Singular values of the class means of a layer, in descending order."""
        means = self.class_means(layer, before_activation)
        return np.asarray(np.linalg.svd(means, compute_uv=False))

    def rank(
        self, layer: int, before_activation: bool = False, tolerance: float = RANK_TOLERANCE
    ) -> int:
        """How many singular values exceed `tolerance` times the largest."""
        return _count(self.singular_values(layer, before_activation), tolerance)

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """Ranks of the class means of layers 2 to L + 1, before the activation."""
        layers = range(2, self.problem.depth + 2)
        return tuple(self.rank(layer, before_activation=True) for layer in layers)

    def samples(self) -> Variables:
        """The same point with one column per sample, for `loss_and_gradient`."""
        return self.variables if self.by_sample else repeat_samples(self.problem, self.variables)

    def moments(self, before_activation: bool = False) -> "dict[int, ClassMoments]":
        """Class moments of layers 1 to L + 1, as if measured; only descent on samples leaves scatter."""
        from ..stats.moments import ClassMoments

        moments, labels = {}, self.columns.labels
        for layer, rows in enumerate(self._layers[0 if before_activation else 1], start=1):
            means = self.class_means(layer, before_activation)
            off = rows.T - means[labels]
            moments[layer] = ClassMoments(
                counts=self.problem.counts,
                means=means,
                scatter=off.T @ off,
                traces=np.bincount(labels, np.sum(off**2, axis=1)).astype(np.float64),
                feature_dtype="float64",
                phase="reference",
            )
        return moments


def _count(values: FloatArray, tolerance: float) -> int:
    return int(np.sum(values > tolerance * max(float(values[0]), 1e-300)))


@dataclass(frozen=True, eq=False)
class Optimum(Geometry):
    """A closed-form solution of a problem: an optimum only if its status is "theorem".

    Parameters
    ----------
    problem : DUFM
        The problem that it solves.
    name : str
        Short name: "dnc", "srg", "zero", ...
    loss : float
        The closed-form loss, computed without the matrices.
    chain : tuple of ndarray, or callable
        Canonical features and weights, without padding, or what builds them.
    status : {"theorem", "best known", "upper bound"}
        "theorem": no point has a lower loss. "best known": none has been found.
        "upper bound": a lower one exists or may.
    holds_for, source : str
        The status in words; the paper.
    bias : ndarray, shape (K,), optional
        Bias of the last layer.
    parameters : mapping
        Numbers of the closed form, such as the fit t.
    free_layers : tuple of int
        Layers whose geometry the optimum leaves open: other class means there have
        the same loss, so they must not be compared.

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM
    >>> best = DUFM(2, 10, 3, feature_decay=0.01, weight_decay=0.01).optimum()
    >>> best.name, round(best.loss, 12), best.status
    ('dnc', 0.070487054295, 'theorem')
    >>> best.singular_values(4).round(6).tolist()
    [0.963772, 0.963772]
    """

    name: str
    loss: float
    chain: Chain | Callable[[], Chain] = field(repr=False)
    status: Status
    holds_for: str
    source: str
    bias: FloatArray | None = field(default=None, repr=False)
    parameters: Mapping[str, float] = field(default_factory=dict)
    free_layers: tuple[int, ...] = ()

    @cached_property
    def variables(self) -> Variables:
        """Features (d_1, K), one column per class, and the weights."""
        return from_canonical(self.problem, self.canonical_variables)

    @cached_property
    def canonical_point(self) -> Variables:
        """The point in the equivalent problem with one decay, without padding."""
        features, *weights = self.chain() if callable(self.chain) else self.chain
        return Variables(features, tuple(weights), self.bias)

    @property
    def canonical_variables(self) -> Variables:
        """The point in the equivalent problem with one decay."""
        return pad(self.problem, self.canonical_point)

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """Ranks of the class means of layers 2 to L + 1, before the activation."""
        if "learned" in self.parameters and self.bias is None:
            return (int(self.parameters["learned"]),) * self.problem.depth  # a thousand of these
        layers = forward(self.problem, self.canonical_point)[0][1:]
        spectra = [np.asarray(np.linalg.svd(x, compute_uv=False)) for x in layers]
        return tuple(_count(values, RANK_TOLERANCE) for values in spectra)


def structure(
    problem: Problem, name: str, loss: float, chain: Chain | Callable[[], Chain], words: str,
    source: str, parameters: Mapping[str, float], bias: FloatArray | None = None,
    free_layers: tuple[int, ...] = (),
) -> Optimum:  # fmt: skip
    """An `Optimum` that holds for `words`, which begin with its status."""
    status = cast("Status", words.partition(":")[0])
    return Optimum(problem, name, loss, chain, status, words, source, bias, parameters, free_layers)
