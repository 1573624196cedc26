"""``collapsemeter dufm``: the optimum of a problem as text, JSON and a figure."""

import math
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ..dufm.chain import check_memory, shortened
from ..dufm.optimum import Optimum
from ..dufm.overview import (
    Overview,
    SweptPoint,
    overview,
    parse_sweep,
    reference_record,
    run_sweep,
)
from ..dufm.problem import DUFM
from ..dufm.solution import Solution
from ..dufm.solver import check_search, solve
from ..metrics.layer import to_json_value
from ..system.terminal import say, say_json

WIDTH = 80
SHOWN = 3
"""Partial solutions listed by themselves; more are summed up in one row."""


@dataclass(frozen=True)
class Wish:
    """What to do besides listing the closed forms.

    Parameters
    ----------
    solve : bool
        Whether to minimise numerically, from `restarts` starts with `seed` in `jobs`
        processes.
    plot : str, optional
        Where to write a figure.
    sweep : str, optional
        See `parse_sweep`.
    json, quiet : bool
        Print JSON and nothing else; print one line.
    """

    solve: bool = False
    restarts: int = 8
    seed: int = 0
    jobs: int = 1
    plot: str | None = None
    sweep: str | None = None
    json: bool = False
    quiet: bool = False

    def solution(self, problem: DUFM) -> Solution:
        """The best point that descent finds."""
        shown = not (self.json or self.quiet) and sys.stdout.isatty()
        return solve(problem, restarts=self.restarts, rng=self.seed, jobs=self.jobs, progress=shown)


def run(problem: DUFM, wish: Wish) -> None:
    """Print what is known about a problem, and do what else is wished for.

    Parameters
    ----------
    problem : DUFM
        Any problem.
    wish : Wish
        What to do.

    Raises
    ------
    ValueError
        If the sweep does not read, an option is out of range, the problem is too large to be
        solved or drawn, or a figure has another ending than .svg or .png.
    ImportError
        If a figure is asked for and matplotlib is missing.

    Examples
    --------
    >>> run(DUFM(2, 10, 3, feature_decay=0.01, weight_decay=0.01), Wish(quiet=True))
    best known: dnc, loss 0.07048705429; theorem: global optimum for two classes
    """
    from ..dufm.plots import plot_problem, plot_sweep
    from ..report.drawing import check_ending

    if wish.plot is not None:
        check_ending(wish.plot)
    check_search(wish.restarts, wish.jobs, wish.seed)
    if wish.sweep is not None:
        sweep = parse_sweep(wish.sweep)
        points = run_sweep(problem, sweep, wish.solution if wish.solve else None)
        _print_sweep(sweep.name, points, wish)
        if wish.plot is not None:
            plot_sweep(sweep, points, wish.plot)
        return
    if wish.solve or wish.plot is not None:
        check_memory(problem)
    known = overview(problem)
    if not (wish.json or wish.quiet):
        say(table(known))
    solution = wish.solution(problem) if wish.solve else None
    if wish.json:
        say_json(to_json_value(record(known, solution)), indent=2)
    elif wish.quiet:
        say(known.words() if solution is None else solution.verdict)
    else:
        if solution is not None:
            say("\nsolved: " + _wrapped(solution.summary()))
        say(_paragraph(known.words(solution)))
    if wish.plot is not None:
        plot_problem(known, solution, wish.plot)


def _wrapped(text: str) -> str:
    lines = [textwrap.wrap(line, WIDTH - 8, subsequent_indent="  ") for line in text.splitlines()]
    return "\n".join(line for part in lines for line in part)


def describe(problem: DUFM) -> str:
    """The problem in one sentence.

    Examples
    --------
    >>> describe(DUFM(2, 10, 3, feature_decay=0.01, weight_decay=0.02))
    'K = 2 classes of n = 10, L = 3 layers of width 32, relu, loss mse, no bias, lambda_H = 0.01, lambda = 0.02'
    """
    bias = f"bias with decay {problem.bias_decay:g}" if problem.bias else "no bias"
    return (
        f"K = {problem.num_classes} classes of n = {shortened(problem.counts.tolist())}, "
        f"L = {problem.depth} layer{'s' if problem.depth > 1 else ''} of width {shortened(problem.layer_widths)}, "
        f"{problem.activation}, loss {problem.loss}, {bias}, "
        f"lambda_H = {problem.feature_decay:g}, lambda = {shortened(problem.decays)}"
    )


def table(known: Overview) -> str:
    """The problem, its thresholds, every closed form and the best of them, in 80 columns.

    Examples
    --------
    >>> print(table(overview(DUFM(2, 10, 3, feature_decay=0.01, weight_decay=0.01))))
    K = 2 classes of n = 10, L = 3 layers of width 32, relu, loss mse, no bias,
      lambda_H = 0.01, lambda = 0.01
    collapse: n lambda_H prod lambda_l = 1e-07, below the collapse threshold
      0.000342936: collapse exists and beats the zero network
    low rank: no closed form of low rank learns every class here; in wide layers
      strongly regular graphs do, below collapse from K = 10 at L = 3 and from K = 6
      at L = 4 and deeper
    <BLANKLINE>
    name                  loss    ratio  rank of H_2 ...  status       source
    -------------------------------------------------------------------------
    dnc           0.0704870543   1.0000  2x3              theorem      [1]
    partial(1)    0.2852435271   4.0468  1x3              upper bound  [2]
    zero          0.5000000000   7.0935  0x3              upper bound  [1]
    <BLANKLINE>
    [1] Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165
    [2] Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165, for the model
    ratio: loss over that of collapse; ranks: layers 2 to L + 1 before the ReLU
    <BLANKLINE>
    best closed form: dnc, loss 0.07048705429; theorem: global optimum for two
      classes
    """
    sources = list(dict.fromkeys(reference.source for reference in known.references))
    paragraphs = [describe(known.problem)]
    paragraphs += [f"{threshold.name}: {threshold.words}" for threshold in known.thresholds]
    shown, summed = _split_partial(known.references)
    room = max([12, *(len(reference.name) for reference in shown)]) + 2
    head = _cells(room, "name", "loss", "ratio", "rank of H_2 ...", "status", "source")
    lines = [_paragraph(text) for text in paragraphs]
    lines += ["", head, "-" * len(head)]
    lines += [_row(room, known, reference, sources) for reference in shown]
    if summed:
        low, high = summed[0], summed[-1]
        lines.append(f"  and {low.name} to {high.name}: losses {low.loss:.6g} to {high.loss:.6g}")
    lines.append("")
    lines += [_paragraph(f"[{number}] {text}") for number, text in enumerate(sources, start=1)]
    over = "loss over that of collapse" if known.collapsed else "none, since there is no collapse"
    lines.append(_paragraph(f"ratio: {over}; ranks: layers 2 to L + 1 before the ReLU"))
    lines += ["", _paragraph(known.closed_form_words)]
    return "\n".join(lines)


def _paragraph(text: str) -> str:
    return "\n".join(textwrap.wrap(text, WIDTH, subsequent_indent="  "))


def _split_partial(references: tuple[Optimum, ...]) -> tuple[list[Optimum], list[Optimum]]:
    partial = [reference for reference in references if "learned" in reference.parameters]
    summed = partial[1:] if len(partial) > SHOWN else []
    return [reference for reference in references if reference not in summed], summed


def _row(room: int, known: Overview, reference: Optimum, sources: list[str]) -> str:
    number = sources.index(reference.source) + 1
    ratio = _ratio(known.ratio(reference.loss))
    return _cells(
        room, reference.name, f"{reference.loss:.10f}", ratio, rank_words(reference.ranks),
        reference.status, f"[{number}]",
    )  # fmt: skip


def _cells(
    room: int, name: str, loss: str, ratio: str, ranks: str, status: str, source: str
) -> str:
    return f"{name:<{room}}{loss:>12}{ratio:>9}  {ranks:<15}  {status:<11}  {source}"


def _ratio(ratio: float) -> str:
    if math.isnan(ratio):
        return "-"
    return f"{ratio:.4f}" if ratio < 1000 else f"{ratio:.2e}"


def rank_words(values: Sequence[int]) -> str:
    """Ranks with repetitions counted.

    Examples
    --------
    >>> rank_words([5, 5, 5, 10]), rank_words([2])
    ('5x3 10', '2')
    """
    runs = [(value, len(list(run))) for value, run in groupby(values)]
    return " ".join(f"{value}x{count}" if count > 1 else f"{value}" for value, count in runs)


def _print_sweep(name: str, points: list[SweptPoint], wish: Wish) -> None:
    if wish.json:
        sweep = {
            "format": "collapsemeter.DUFMSweep",
            "version": 1,
            "name": name,
            "points": [{"value": p.value, **record(p.known, p.solution)} for p in points],
        }
        say_json(to_json_value(sweep), indent=2)
    elif wish.quiet:
        for point in points:
            say(f"{name} = {point.value:.6g}: {_swept_best(point)}")
    else:
        say(sweep_table(name, points))


def _swept_best(point: SweptPoint) -> str:
    best = point.known.best_known(point.solution)
    if best is None:
        return f"no closed form below zero, loss {point.known.best_closed_form.loss:.10g}"
    return f"{best[0]}, loss {best[1]:.10g}"


def sweep_table(name: str, points: list[SweptPoint]) -> str:
    """The best closed form at every swept value, and what was found there, in 80 columns.

    Examples
    --------
    >>> from collapsemeter.dufm.overview import Sweep
    >>> problem = DUFM(2, 1, 2, feature_decay=0.05, weight_decay=0.05)
    >>> print(sweep_table("depth", run_sweep(problem, Sweep("depth", (2.0, 3.0)))))
            depth  closed form           loss    ratio  ranks            status
    -------------------------------------------------------------------------------
                2  dnc           0.1448188192   1.0000  2x2              theorem
                3  dnc           0.1947211165   1.0000  2x3              theorem
    """
    solved = any(point.solution is not None for point in points)
    last = "solved" if solved else "status"
    head = f"{name:>13}  {'closed form':<13}{'loss':>13}{'ratio':>9}  {'ranks':<15}  {last}"
    lines = [head, "-" * (WIDTH - 1)]
    for point in points:
        best = point.known.best_closed_form
        end = best.status if point.solution is None else f"{point.solution.loss:.10f}"
        lines.append(
            f"{point.value:>13.6g}  {best.name:<13}{best.loss:>13.10f}"
            f"{_ratio(point.known.ratio(best.loss)):>9}  {rank_words(best.ranks):<15}  {end}"
        )
    return "\n".join(lines)


def record(known: Overview, solution: Solution | None = None) -> dict[str, Any]:
    """What is known, and what was found, as plain values ready for JSON.

    Examples
    --------
    >>> known = overview(DUFM(2, 10, 3, feature_decay=0.01, weight_decay=0.01))
    >>> record(known)["best_closed_form"], record(known)["references"][0]["ranks"]
    ('dnc', (2, 2, 2))
    """
    problem = known.problem
    found = None if solution is None else _solution_record(solution)
    best = known.best_known(solution)
    return {
        "format": "collapsemeter.DUFM",
        "version": 1,
        "problem": {
            "num_classes": problem.num_classes,
            "per_class": problem.per_class,
            "depth": problem.depth,
            "widths": problem.layer_widths,
            "feature_decay": problem.feature_decay,
            "weight_decay": problem.decays,
            "loss": problem.loss,
            "bias": problem.bias,
            "bias_decay": problem.bias_decay,
            "activation": problem.activation,
            "canonical_decay": problem.canonical_decay,
        },
        "thresholds": {
            t.name: {"value": t.value, "threshold": t.threshold, "words": t.words}
            for t in known.thresholds
        },
        "lower_bound": known.lower_bound,
        "collapsed": None if known.collapsed is None else known.collapsed.name,
        "best_closed_form": known.best_closed_form.name,
        "best_known": None if best is None else {"name": best[0], "loss": best[1]},
        "words": known.words(solution),
        "references": [reference_record(known, reference) for reference in known.references],
        "solution": found,
    }


def _solution_record(solution: Solution) -> dict[str, Any]:
    layers = range(1, solution.problem.depth + 2)
    return {
        "loss": solution.loss,
        "gap": solution.gap,
        "reference": solution.reference.name,
        "proven": solution.proven,
        "verdict": solution.verdict,
        "ranks": solution.ranks,
        "singular_values": {layer: solution.singular_values(layer) for layer in layers},
        "residual": {
            "gradient": solution.residual.plain,
            "generalised": solution.residual.generalised,
        },
        "starts": [{"kind": start.kind, "loss": start.loss} for start in solution.starts],
    }
