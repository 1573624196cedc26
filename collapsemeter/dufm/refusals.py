"""Why a closed form does not solve a problem."""

from collections.abc import Sequence

from .problem import Problem


class DoesNotApply(ValueError):
    """A closed form was asked for a problem that it does not solve."""


class TooNarrow(DoesNotApply):
    """The closed form solves the problem in wider layers only."""


class TooStrong(DoesNotApply):
    """The closed form solves the problem at weaker decays only."""


def require_problem(problem: Problem, name: str, **properties: object) -> None:
    """Refuse a problem that lacks a property, naming what it has instead."""
    for attribute, needed in properties.items():
        actual = getattr(problem, attribute)
        if actual != needed:
            raise DoesNotApply(
                f"{name} needs {attribute}={needed!r}, got {actual!r}: "
                "see problem.references() for what applies."
            )


def require_survival(name: str, fits: Sequence[float]) -> None:
    """Refuse a structure of which nothing survives the decay."""
    if not any(fit > 0 for fit in fits):
        raise TooStrong(
            f"{name} does not exist at these decays, they are too strong: "
            "lower them, only the zero network is left."
        )
