"""The solver's result: the best point found, and its proofs."""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from .certificates import Identities, Stationarity, stationarity, stationarity_identities
from .closed.bounds import lower_bound
from .descent import Trajectory
from .network import Variables
from .optimum import Geometry, Optimum
from .reductions import canonical, cheapest_samples, to_canonical
from .registry import references

PROOF_TOLERANCE = 1e-6  # relative distance from the lower bound up to which a loss is optimal
SAME = 1e-9  # relative difference of losses up to which they are said to be one
DISJOINT = 1e-3  # inner product over squared norm below which a class has its own neurons


@dataclass(frozen=True)
class Start:
    """One start: what kind it was and the loss that it led to."""

    kind: str
    loss: float


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
        Features (d_1, K) with L-BFGS, (d_1, N) with gradient descent.
    starts : tuple of Start
        Every start with the loss that it led to.
    method : {"lbfgs", "gd"}
        How it was found.
    trajectory : Trajectory, optional
        Of the best run of gradient descent.
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

    @cached_property
    def reference(self) -> Optimum:
        """The lowest closed form that applies."""
        return references(self.problem)[0]

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
        return stationarity_identities(self.problem, self.point, self.columns)

    @cached_property
    def free_layers(self) -> tuple[int, ...]:
        """Layers whose geometry is left open: the first, where a class has neurons of its own."""
        if not self.problem.rectified:
            return ()
        gram = self.gram(2)  # what the ReLU cut off may be anything of the same nuclear norm
        squared = np.diag(gram)
        largest = np.max(np.abs(gram - np.diag(squared)), axis=1)
        separate = (squared > 0) & (largest <= DISJOINT * squared)
        return (1,) if bool(np.any(separate)) else ()

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
        bound = f"the proven lower bound is {self.lower_bound:.9g}, so whether it is optimal is not known"
        return f"loss {self.loss:.9g}, ranks {self.ranks}: {beside}; {bound}"

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
