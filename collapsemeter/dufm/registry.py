"""The list of closed forms: how each registers itself, what it solves, and which apply to a problem."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from .optimum import Optimum
from .problem import Problem
from .refusals import DoesNotApply

Kind = Literal["collapsed", "low rank", "other", "last resort"]
"""The kind of a closed form; one of last resort is tried only where no other is proven optimal."""


@dataclass(frozen=True)
class ClosedForm:
    """A registered construction: of one optimum, or of several."""

    name: str
    kind: Kind
    place: int
    build: Callable[[Problem], Optimum | list[Optimum]]


CLOSED_FORMS: list[ClosedForm] = []
"""All closed forms in the order of their places, filled by the modules of `closed`."""
C = TypeVar("C", bound="Callable[[Problem], Optimum | list[Optimum]]")


def closed_form(kind: Kind, place: int) -> Callable[[C], C]:
    """Register a construction; of forms of one loss and status the lower place is listed first."""

    def register(build: C) -> C:
        CLOSED_FORMS.append(ClosedForm(build.__name__, kind, place, build))
        CLOSED_FORMS.sort(key=lambda form: form.place)
        return build

    return register


@dataclass(frozen=True, eq=False)
class Survey:
    """The closed forms of a problem, lowest loss first, and what kept the others away."""

    optima: tuple[Optimum, ...]
    refused: dict[str, DoesNotApply]

    @property
    def collapsed(self) -> Optimum | None:
        """The collapsed network among the closed forms; None where there is none."""
        return next((o for o in self.optima if o.name in names_of("collapsed")), None)

    @property
    def low_rank(self) -> Optimum | None:
        """The lowest closed form that learns every class with fewer than K - 1 directions."""
        for optimum in self.optima:
            least = optimum.problem.num_classes - 1
            if optimum.name in names_of("low rank") and min([least, *optimum.ranks[:-1]]) < least:
                return optimum
        return None


def names_of(kind: Kind) -> set[str]:
    """Names of the closed forms of a kind."""
    return {form.name for form in CLOSED_FORMS if form.kind == kind}


def survey(problem: Problem, *kinds: Kind) -> Survey:
    """Try every closed form on a problem, or those of some kinds."""
    optima: list[Optimum] = []
    refused = {}
    for form in CLOSED_FORMS:
        last_resort = form.kind == "last resort"
        proven = last_resort and any(optimum.status == "theorem" for optimum in optima)
        if proven or (kinds and form.kind not in kinds):
            continue
        try:
            built = form.build(problem)
        except DoesNotApply as reason:
            refused[form.name] = reason
            continue
        built = built if isinstance(built, list) else [built]
        if last_resort:
            lowest = min((optimum.loss for optimum in optima), default=math.inf)
            built = [o for o in built if o.status == "theorem" or o.loss < lowest]
        optima += built
    trust = ("theorem", "best known", "upper bound")
    optima.sort(key=lambda optimum: (round(optimum.loss, 13), trust.index(optimum.status)))
    return Survey(tuple(optima), refused)


def references(problem: Problem) -> tuple[Optimum, ...]:
    """All closed-form solutions that apply to a problem, lowest loss first.

    Where none of them is proven optimal, closed forms of the same problem without a
    bias, or with equal classes, are among them if they are lower: they are feasible
    here, so their losses are upper bounds. Each fits the widths and survives the decays.
    The first one is optimal only if its status is "theorem"; `solve` looks for a lower loss.

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM
    >>> problem = DUFM(3, 5, 2, feature_decay=0.02, weight_decay=0.02)
    >>> [reference.name for reference in references(problem)]
    ['dnc', 'partial(2)', 'partial(1)', 'zero']
    """
    return survey(problem).optima
