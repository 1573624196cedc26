"""What the solver found, and what is known about it."""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from .arrays import FloatArray
from .certificates import Stationarity, stationarity
from .closed.bounds import lower_bound
from .identities import Identities, stationarity_identities
from .network import Variables, class_columns, forward, sample_columns
from .optimum import Geometry, Optimum
from .reductions import canonical, cheapest_samples, to_canonical

if TYPE_CHECKING:
    from ..stats.moments import ClassMoments

PROOF_TOLERANCE = 1e-6
"""Relative distance from the lower bound up to which a loss is called optimal."""

SAME = 1e-9
"""Relative difference of losses up to which they are said to be one."""

DISJOINT = 1e-3
"""Inner product, relative to its squared norm, below which a class has its own neurons."""


@dataclass(frozen=True)
class Start:
    """One start: what kind it was and the loss that it led to."""

    kind: str
    loss: float


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What gradient descent passed through, one row per record.

    Parameters
    ----------
    step : ndarray of int, shape (T,)
        Steps taken before the record.
    loss, fit, gradient_norm : ndarray, shape (T,)
        The objective, its data term and the norm of its gradient.
    singular_values : ndarray, shape (T, L + 1, K)
        Of the class means of layers 1 to L + 1, zeros where a layer is narrower.
    within : ndarray, shape (T, L + 1)
        Within-class over between-class trace of every layer.
    """

    step: np.ndarray[tuple[int], np.dtype[np.int64]]
    loss: FloatArray
    fit: FloatArray
    gradient_norm: FloatArray
    singular_values: FloatArray
    within: FloatArray


@dataclass(frozen=True, eq=False)
class Solution(Geometry):
    """The best point found by `solve`.

    Parameters
    ----------
    problem : DUFM
        The problem.
    loss : float
        Loss of the point.
    point : Variables
        Class-level with L-BFGS, features (d_1, K); sample-level with gradient
        descent, features (d_1, N).
    starts : tuple of Start
        Every start with the loss that it led to.
    method : {"lbfgs", "gd"}
        How it was found.
    trajectory : Trajectory, optional
        Of the best run of gradient descent.

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM, solve
    >>> solution = solve(DUFM(2, 10, 2, 8, feature_decay=0.01, weight_decay=0.01), restarts=2)
    >>> solution.reference.name, solution.gap < 1e-6, solution.proven
    ('dnc', True, True)
    """

    loss: float
    point: Variables = field(repr=False)
    starts: tuple[Start, ...] = field(repr=False)
    method: str = "lbfgs"
    trajectory: Trajectory | None = field(default=None, repr=False)

    @cached_property
    def variables(self) -> Variables:
        """The point itself, one column per class or per sample."""
        return self.point

    @property
    def by_sample(self) -> bool:
        """Whether the point has one column per sample."""
        return self.method == "gd"

    def samples(self) -> Variables:
        """The point with one column per sample."""
        return self.point if self.by_sample else super().samples()

    @cached_property
    def reference(self) -> Optimum:
        """The lowest closed form that applies."""
        return self.problem.optimum()

    @property
    def gap(self) -> float:
        """Loss above the reference; negative if the reference was beaten."""
        return self.loss - self.reference.loss

    @cached_property
    def lower_bound(self) -> float:
        """A loss that no network can go below."""
        return lower_bound(self.problem)

    @property
    def proven(self) -> bool:
        """Whether the loss reaches the lower bound, to 1e-6 of it."""
        return self.loss - self.lower_bound <= PROOF_TOLERANCE * self.lower_bound

    @cached_property
    def residual(self) -> Stationarity:
        """Gradient norms in the canonical problem, at the cheapest sample of each class."""
        point = cheapest_samples(self.problem, self.point) if self.by_sample else self.point
        return stationarity(canonical(self.problem), to_canonical(self.problem, point))

    @cached_property
    def identities(self) -> Identities:
        """Residuals of the identities that hold at a stationary point."""
        columns = (sample_columns if self.by_sample else class_columns)(self.problem)
        return stationarity_identities(self.problem, self.point, columns)

    @cached_property
    def free_layers(self) -> tuple[int, ...]:
        """Layers whose geometry is left open: the first, where a class has neurons of its own.

        After the ReLU of layer 2 such a class is orthogonal to all others, here to 1e-3. What
        the ReLU cut off may then be anything of the same nuclear norm.
        """
        if not self.problem.rectified:
            return ()
        gram = self.gram(2)
        own = np.diag(gram)
        others = np.max(np.abs(gram - np.diag(own)), axis=1)
        return (1,) if bool(np.any((own > 0) & (others <= DISJOINT * own))) else ()

    def moments(self, before_activation: bool = False) -> "dict[int, ClassMoments]":
        """Class moments of every layer, with the scatter that descent left."""
        if not self.by_sample:
            return super().moments(before_activation)
        from ..stats.moments import ClassMoments

        labels = sample_columns(self.problem).labels
        moments = {}
        acts_of_layers = forward(self.problem, self.point)[0 if before_activation else 1]
        for layer, acts in enumerate(acts_of_layers, start=1):
            means = self.class_means(layer, before_activation)
            off = acts.T - means[labels]
            moments[layer] = ClassMoments(
                counts=self.problem.counts,
                means=means,
                scatter=off.T @ off,
                traces=np.bincount(labels, weights=np.sum(off**2, axis=1)).astype(np.float64),
                feature_dtype="float64",
                phase="reference",
            )
        return moments

    @property
    def verdict(self) -> str:
        """One sentence: the loss beside the best closed form, and what is proven."""
        name, loss = self.reference.name, self.reference.loss
        if self.proven:
            same = f" ({name})" if abs(self.gap) <= PROOF_TOLERANCE * loss else ""
            return f"loss {self.loss:.9g} is the proven optimum to {PROOF_TOLERANCE:g}{same}"
        beside = f"{abs(self.gap):.3g} {'below' if self.gap < 0 else 'above'} {name} ({loss:.9g})"
        if abs(self.gap) <= SAME * loss:
            beside = f"that of {name} to {SAME:g}"
        return (
            f"loss {self.loss:.9g}, ranks {self.ranks}: {beside}; "
            f"the proven lower bound is {self.lower_bound:.9g}, "
            "so whether it is optimal is not known"
        )

    def summary(self) -> str:
        """The verdict, the residuals, and how many starts of each kind came close."""
        near = Counter(s.kind for s in self.starts if s.loss <= self.loss * (1 + 1e-4))
        total = Counter(s.kind for s in self.starts)
        hits = ", ".join(f"{kind} {near[kind]}/{count}" for kind, count in sorted(total.items()))
        return (
            f"{self.verdict}\n"
            f"gradient {self.residual.plain:.2g}, generalised {self.residual.generalised:.2g}, "
            f"identities {self.identities.worst:.2g}\n"
            f"starts within 1e-4 of the best: {hits}"
        )
