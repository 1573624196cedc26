"""Minimise the model numerically: many starts, the best one kept and examined."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial as bind
from typing import Any, TypeVar

import numpy as np

from ..system.processes import processes
from . import seeds
from .chain import check_memory, pad
from .closed.bounds import lower_bound
from .descent import Trajectory, gradient_descent
from .minimise import lbfgs
from .network import FlatLayout, Variables, flat_objective
from .problem import DUFM
from .reductions import canonical, from_canonical
from .solution import Solution, Start

R = TypeVar("R")

Task = tuple[str, np.random.SeedSequence]
"""The kind of a start and its stream of random numbers."""

HOMOTOPY = (0.05, 0.3, 1.0)
"""Fractions of the decay: a weak one first keeps descent from the zero network."""

SMOOTHING = (0.1, 0.03, 0.01, 0.003, 1e-3, 3e-4, 1e-4, 3e-5, 0.0)
"""Widths of the smoothed ReLU corner while polishing."""

POLISHED = 3
"""How many of the best starts are polished at least; half of them if that is more."""

SAME = 1e-7
"""Relative difference of losses below which two starts count as one minimum."""

MOST_RESTARTS = 1_000_000
"""Random starts of one search."""

REACHED = 1e-12
"""Relative distance from the lower bound at which there is nothing left to polish."""


def solve(
    problem: DUFM,
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
    >>> problem = DUFM(2, 10, 3, 8, feature_decay=0.01, weight_decay=0.01)
    >>> solution = solve(problem, restarts=2, rng=0)
    >>> abs(solution.gap) < 1e-6
    True
    """
    defaults = (8, 2000) if method == "lbfgs" else (1, 10000)
    restarts = defaults[0] if restarts is None else restarts
    steps = defaults[1] if steps is None else steps
    if method not in ("lbfgs", "gd"):
        raise ValueError(f"unknown method {method!r}: pass 'lbfgs' or 'gd'.")
    check_search(restarts, jobs, steps=steps)
    check_memory(problem)
    structured = restarts if structured is None else structured
    starts = restarts + structured if method == "lbfgs" else restarts
    with nullcontext() if min(jobs, starts) == 1 else processes(min(jobs, starts)) as pool:
        search = _Search(rng, map if pool is None else pool.map, progress)
        if method == "lbfgs":
            return _solve_lbfgs(problem, search, restarts, structured, steps)
        return _solve_gd(problem, search, restarts, steps, learning_rate)


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

    def run(self, work: Callable[[Task], R], kinds: list[str]) -> list[R]:
        """Run a start of each kind, on a stream of its own, so that order does not matter."""
        entropy = np.random.default_rng(self.rng).integers(2**63, size=2).tolist()
        streams = np.random.SeedSequence(entropy).spawn(len(kinds))
        tasks = zip(kinds, streams, strict=True)
        with _bar(self.progress, len(kinds)) as shown:
            return list(shown(self.map(work, tasks)))


@contextmanager
def _bar(shown: bool, total: int) -> Iterator[Callable[[Iterable[R]], Iterable[R]]]:
    """Wrap an iterable in a progress bar of rich, if asked for and installed."""
    try:
        from rich.progress import Progress
    except ImportError:
        shown = False
    if not shown:
        yield lambda items: items
        return
    with Progress(transient=True) as progress:
        yield lambda items: progress.track(items, total=total, description="starts")


@dataclass(frozen=True)
class Run:
    """One finished start: class-level in the canonical problem, or a walk at sample level."""

    kind: str
    loss: float
    point: Variables
    trajectory: Trajectory | None = None


def _solve_lbfgs(
    problem: DUFM, search: _Search, restarts: int, structured: int, steps: int
) -> Solution:
    small = canonical(problem)
    kinds = start_kinds(small, restarts, structured)
    ended = search.run(bind(run_start, small, steps), kinds)
    runs = sorted((run for run in ended if run is not None), key=lambda run: run.loss)
    best = runs[0]
    if best.loss > lower_bound(small) * (1 + REACHED):
        candidates = _distinct(runs)[: max(POLISHED, len(runs) // 2)]
        polished: Iterable[Run] = search.map(bind(polish, small, steps), candidates)
        best = min(polished, key=lambda run: run.loss)
    return Solution(
        problem=problem,
        loss=best.loss,
        point=from_canonical(problem, best.point),
        starts=tuple(Start(run.kind, run.loss) for run in runs),
    )


def start_kinds(problem: DUFM, restarts: int, structured: int) -> list[str]:
    """The kinds of start to make, random ones first; see `start_of`."""
    kinds = ["random" if i % 2 == 0 else "random narrow" for i in range(restarts)]
    shapes = ["reference"]
    if problem.rectified and problem.depth >= 3 and problem.num_classes >= 3:
        shapes += ["graph", "graph", "graph" if problem.num_classes < 5 else "edges"]
    return kinds + [shapes[i % len(shapes)] for i in range(structured)]


def run_start(problem: DUFM, steps: int, task: Task) -> Run | None:
    """One start, from seed to minimum. At top level, so that processes can run it."""
    kind, seed = task
    begun = start_of(problem, kind, np.random.default_rng(seed))
    if begun is None:
        return None
    working, point = begun
    loss, point = descend(working, point, steps, homotopy=kind.startswith("random"))
    point = pad(problem, (point.features, *point.weights), point.bias)
    return Run(kind.split()[0], loss, point)


def start_of(problem: DUFM, kind: str, rng: np.random.Generator) -> tuple[DUFM, Variables] | None:
    """The working problem and first point of a start; None if the kind does not exist.

    Kinds are "random" (full widths), "random narrow", "graph" and "edges" (see
    `graph_start` and `edge_start`), and "reference", a shaken copy of the best closed form.
    """
    if kind == "random":
        return problem, seeds.random_start(problem, rng)
    if kind == "reference":
        return problem, seeds.jitter(problem.optimum().canonical_variables, 0.02, rng)
    small = narrow(problem)
    if kind == "random narrow":
        return small, seeds.random_start(small, rng)
    near = seeds.graph_start(small, rng) if kind == "graph" else seeds.edge_start(small, rng)
    return None if near is None else (small, near)


def narrow(problem: DUFM) -> DUFM:
    """Widths K + 4, where descent finds low rank rather than collapse."""
    room = problem.num_classes + 4
    return replace(problem, widths=tuple(min(room, width) for width in problem.layer_widths))


def descend(problem: DUFM, start: Variables, steps: int, homotopy: bool) -> tuple[float, Variables]:
    """L-BFGS from one start of a canonical problem, by increasing decay if asked."""
    layout, point = FlatLayout.of(problem), start
    loss = float("inf")
    for scale in HOMOTOPY if homotopy else (1.0,):
        point = seeds.equal_norms(seeds.equal_neurons(point))
        vector, loss = lbfgs(flat_objective(problem, scale), layout.pack(point), steps)
        point = layout.unpack(vector)
    return loss, point


def polish(problem: DUFM, steps: int, run: Run) -> Run:
    """Descend with a smoothed ReLU, then the sharp one; keep the better point."""
    layout = FlatLayout.of(problem)
    vector = layout.pack(run.point)
    loss = run.loss
    for width in SMOOTHING if problem.rectified else (0.0,):
        vector, loss = lbfgs(flat_objective(problem, smoothing=width), vector, steps)
    return Run(run.kind, loss, layout.unpack(vector)) if loss < run.loss else run


def _distinct(runs: list[Run]) -> list[Run]:
    """One run of each loss, lowest first: many starts end in the same minimum."""
    distinct = runs[:1]
    for run in runs[1:]:
        if run.loss > distinct[-1].loss * (1 + SAME):
            distinct.append(run)
    return distinct


def _solve_gd(
    problem: DUFM, search: _Search, restarts: int, steps: int, learning_rate: float
) -> Solution:
    runs = search.run(bind(run_walk, problem, learning_rate, steps), ["random"] * restarts)
    best = min(runs, key=lambda run: run.loss)
    if best.loss == float("inf"):
        raise ValueError(
            f"gradient descent diverged from all {restarts} starts with "
            f"learning_rate={learning_rate}: pass a smaller one."
        )
    return Solution(
        problem=problem,
        loss=best.loss,
        point=best.point,
        starts=tuple(Start(run.kind, run.loss) for run in runs),
        method="gd",
        trajectory=best.trajectory,
    )


def run_walk(problem: DUFM, rate: float, steps: int, task: Task) -> Run:
    """One run of gradient descent. At top level, so that processes can run it."""
    kind, seed = task
    start = seeds.gaussian_start(problem, np.random.default_rng(seed))
    point, loss, trajectory = gradient_descent(problem, start, rate, steps)
    return Run(kind, loss, point, trajectory)
