"""Minimise the model numerically: many starts, the best one kept and examined."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial as bind
from typing import Any, TypeVar

import numpy as np

from ..system.processes import processes
from . import seeds
from .chain import check_size, pad
from .closed.bounds import lower_bound
from .descent import Trajectory, gradient_descent, lbfgs
from .network import Variables
from .problem import Problem
from .reductions import canonical, from_canonical
from .solution import Solution, Start

R = TypeVar("R")

SearchTask = tuple[str, np.random.SeedSequence]
"""The kind of a start and its stream of random numbers."""

HOMOTOPY = (0.05, 0.3, 1.0)  # fractions of the decay: a weak one first keeps descent from zero
SMOOTHING = (0.1, 0.03, 0.01, 0.003, 1e-3, 3e-4, 1e-4, 3e-5, 0.0)  # of the ReLU while polishing
POLISHED = 3  # the best starts that are polished at least; half of them if that is more
SAME = 1e-7  # relative difference of losses below which two starts count as one minimum
MOST_RESTARTS = 1_000_000
REACHED = 1e-12  # relative distance from the lower bound where there is nothing left to polish


def solve(
    problem: Problem,
    method: str = "lbfgs",
    restarts: int | None = None,
    rng: np.random.Generator | int = 0,
    jobs: int = 1,
    progress: bool = False,
    *,
    structured: int | None = None,
    steps: int | None = None,
    learning_rate: float = 0.5,
) -> Solution:
    """Minimise the model from many starts and keep the best point.

    "lbfgs" solves the equivalent problem with one sample per class and one decay,
    raising the decay in stages, from random starts and from low-rank structures,
    and polishes the best. "gd" descends on all samples from random starts and
    records its path.

    Parameters
    ----------
    problem : DUFM
        The model.
    method : {"lbfgs", "gd"}
        The method.
    restarts : int, optional
        Random starts; 8 for "lbfgs" and 1 for "gd" by default.
    rng : numpy.random.Generator or int
        Source of randomness. The result does not depend on `jobs`.
    jobs : int
        Processes. With more than one, a script needs the usual
        ``if __name__ == "__main__"`` guard.
    progress : bool
        Whether to show a bar, if rich is installed.
    structured : int, optional
        Starts near known structures, for "lbfgs"; as many as `restarts` by default.
    steps : int, optional
        Iterations of one descent: 2000 for "lbfgs", 10000 for "gd" by default.
    learning_rate : float
        Step of "gd".

    Returns
    -------
    Solution
        The best point with its gaps, bounds and residuals. It is an optimum only as
        far as ``Solution.proven`` says.

    Raises
    ------
    ValueError
        If an option is out of range, or every run of gradient descent diverged.

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM
    >>> problem = DUFM(2, 10, 3, 8, feature_decay=0.01, weight_decay=0.01)
    >>> solution = solve(problem, restarts=2, rng=0)
    >>> abs(solution.gap) < 1e-6
    True
    """
    if method not in ("lbfgs", "gd"):
        raise ValueError(f"unknown method {method!r}: pass 'lbfgs' or 'gd'.")
    walks = method == "gd"
    restarts = (1 if walks else 8) if restarts is None else restarts
    steps = (10_000 if walks else 2000) if steps is None else steps
    check_search(restarts, jobs, steps=steps)
    check_size(problem)
    structured = 0 if walks else restarts if structured is None else structured
    starts = restarts + structured
    with nullcontext() if min(jobs, starts) == 1 else processes(min(jobs, starts)) as pool:
        search = _Search(rng, map if pool is None else pool.map, progress)
        if walks:
            runs, best = _walk(problem, search, restarts, steps, learning_rate)
        else:
            runs, best = _descend(canonical(problem), search, restarts, structured, steps)
    point = best.point if walks else from_canonical(problem, best.point)
    started = tuple(Start(run.kind, run.loss) for run in runs)
    return Solution(problem, best.loss, point, started, method, best.trajectory)


def check_search(restarts: int, jobs: int, seed: int = 0, steps: int = 1) -> None:
    """Refuse options of `solve` that are out of range."""
    for name, value in (("restarts", restarts), ("jobs", jobs), ("steps", steps)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}: pass a positive number.")
    if restarts > MOST_RESTARTS:
        raise ValueError(f"restarts must be at most {MOST_RESTARTS}, got {restarts}: pass fewer.")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}: pass 0 or more.")


@dataclass(frozen=True)
class _Search:
    """How starts are run: on which random numbers, by which map, and whether a bar is shown."""

    rng: np.random.Generator | int
    map: Callable[..., Iterable[Any]]
    progress: bool

    def run(self, work: Callable[[SearchTask], R], kinds: list[str]) -> list[R]:
        """Run a start of each kind, on a stream of its own, so that order does not matter."""
        entropy = np.random.default_rng(self.rng).integers(2**63, size=2).tolist()
        streams = np.random.SeedSequence(entropy).spawn(len(kinds))
        ended = self.map(work, zip(kinds, streams, strict=True))
        if self.progress:
            try:
                from rich.progress import track
            except ImportError:
                return list(ended)
            ended = track(ended, description="starts", total=len(kinds), transient=True)
        return list(ended)


@dataclass(frozen=True)
class Run:
    """One finished start: class-level in the canonical problem, or a walk at sample level."""

    kind: str
    loss: float
    point: Variables
    trajectory: Trajectory | None = None


def _descend(
    problem: Problem, search: _Search, restarts: int, structured: int, steps: int
) -> tuple[list[Run], Run]:
    """L-BFGS from all starts of a canonical problem, lowest first, and the best, polished."""
    kinds = start_kinds(problem, restarts, structured)
    ended = search.run(bind(run_start, problem, steps), kinds)
    runs = sorted((run for run in ended if run is not None), key=lambda run: run.loss)
    if runs[0].loss <= lower_bound(problem) * (1 + REACHED):
        return runs, runs[0]
    distinct = runs[:1]  # many starts end in the same minimum
    for run in runs[1:]:
        if run.loss > distinct[-1].loss * (1 + SAME):
            distinct.append(run)
    candidates = distinct[: max(POLISHED, len(runs) // 2)]
    polished: Iterable[Run] = search.map(bind(polish, problem, steps), candidates)
    return runs, min(polished, key=lambda run: run.loss)


def start_kinds(problem: Problem, restarts: int, structured: int) -> list[str]:
    """The kinds of start to make, keys of `STARTS`, random ones first."""
    kinds = ["random" if i % 2 == 0 else "random narrow" for i in range(restarts)]
    shapes = ["reference"]
    if problem.rectified and problem.depth >= 3 and problem.num_classes >= 3:
        shapes += ["graph", "graph", "graph" if problem.num_classes < 5 else "edges"]
    return kinds + [shapes[i % len(shapes)] for i in range(structured)]


STARTS: dict[str, Callable[[Problem, np.random.Generator], Variables | None]] = {
    "random": seeds.random_start,
    "reference": seeds.near_reference,
    "random narrow": seeds.random_start,
    "graph": seeds.graph_start,
    "edges": seeds.edge_start,
}


def run_start(problem: Problem, steps: int, task: SearchTask) -> Run | None:
    """One start, from seed to minimum. At top level, so that processes can run it."""
    kind, seed = task
    working = problem
    if kind not in ("random", "reference"):  # where descent finds low rank rather than collapse
        room = problem.num_classes + 4
        working = replace(problem, widths=tuple(min(room, d) for d in problem.layer_widths))
    point, loss = STARTS[kind](working, np.random.default_rng(seed)), np.inf
    if point is None:
        return None
    for scale in HOMOTOPY if kind.startswith("random") else (1.0,):
        point = seeds.equal_norms(seeds.equal_neurons(point))
        loss, point = lbfgs(working, point, steps, decay_scale=scale)
    return Run(kind.split()[0], loss, pad(problem, point))


def polish(problem: Problem, steps: int, run: Run) -> Run:
    """Descend with a smoothed ReLU, then the sharp one; keep the better point."""
    loss, point = run.loss, run.point
    for width in SMOOTHING if problem.rectified else (0.0,):
        loss, point = lbfgs(problem, point, steps, smoothing=width)
    return Run(run.kind, loss, point) if loss < run.loss else run


def _walk(
    problem: Problem, search: _Search, restarts: int, steps: int, learning_rate: float
) -> tuple[list[Run], Run]:
    """Gradient descent from all starts, and the best."""
    runs = search.run(bind(run_walk, problem, learning_rate, steps), ["random"] * restarts)
    best = min(runs, key=lambda run: run.loss)
    if best.loss == float("inf"):
        raise ValueError(
            f"gradient descent diverged from all {restarts} starts with "
            f"learning_rate={learning_rate}: pass a smaller one."
        )
    return runs, best


def run_walk(problem: Problem, rate: float, steps: int, task: SearchTask) -> Run:
    """One run of gradient descent. At top level, so that processes can run it."""
    kind, seed = task
    start = seeds.gaussian_start(problem, np.random.default_rng(seed))
    point, loss, trajectory = gradient_descent(problem, start, rate, steps)
    return Run(kind, loss, point, trajectory)
