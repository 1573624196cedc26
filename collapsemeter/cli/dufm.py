"""``collapsemeter dufm``: the optimum of a problem as text, JSON and a figure."""

from __future__ import annotations

import argparse
import math
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ..metrics.layer import to_json_value
from ..system.memory import check_memory
from ..system.processes import check_jobs
from ..system.terminal import say, say_json

if TYPE_CHECKING:  # SciPy takes its time: what runs imports it
    from ..dufm.model import DUFM
    from ..dufm.overview import Overview, SweptPoint
    from ..dufm.problem import Problem
    from ..dufm.solution import Solution

WIDTH = 80
SHOWN = 3  # partial solutions listed by themselves; more are summed up in one row
ROW = "{:<{room}}{:>12}{:>9}  {:<15}  {:<11}  {}"
REFERENCE = ("name", "loss", "ranks", "status", "holds_for", "source", "parameters", "free_layers")

_EXAMPLES = """\
examples:
  the optimum of a four-layer head on ten classes of fifty samples
    collapsemeter dufm --classes 10 --depth 4 --per-class 50 --weight-decay 4e-3
  the same, minimised from 16 starts in two processes, with a figure
    collapsemeter dufm --classes 10 --depth 4 --weight-decay 2e-3 \\
      --solve --restarts 16 --jobs 2 --plot optimum.png
  where collapse ends: sweep the decay of all layers over eleven values
    collapsemeter dufm --classes 2 --depth 3 --feature-decay 1e-2 \\
      --weight-decay 1e-2 --sweep weight_decay=1e-3:1:11
  unequal classes, and figures for a program
    collapsemeter dufm --classes 3 --per-class 20 5 2 --depth 1 --loss ce \\
      --weight-decay 1e-4 --json
"""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "dufm",
        help="print the optimum that theory predicts for the last layers of a network",
        description="The deep unconstrained features model: thresholds, every closed form with its\n"
        "loss and ranks, the best of them, and the best known point. They are one unless\n"
        "--solve finds a lower loss numerically.",
        epilog=_EXAMPLES,
    )
    command.set_defaults(run=_run)
    add = command.add_argument_group("problem").add_argument
    add("--classes", type=int, required=True, help="number of classes, K")
    add("--depth", type=int, required=True, help="number of weight matrices, L")
    add("--weight-decay", type=float, nargs="+", required=True, metavar="LAMBDA",
        help="decay of the weights: one, or one per layer")  # fmt: skip
    add("--feature-decay", type=float, metavar="LAMBDA_H",
        help="decay of the features (default: the first weight decay)")  # fmt: skip
    add("--per-class", type=int, nargs="+", default=[1], metavar="N",
        help="samples per class: one, or one per class (default: 1)")  # fmt: skip
    add("--width", type=int, nargs="+", metavar="D",
        help="width: one, or one per layer (default: the larger of 32 and 4 K)")  # fmt: skip
    add("--loss", default="mse", choices=("mse", "ce"), help="halved squared loss or cross-entropy")
    add("--bias", action="store_true", help="give the last layer a bias")
    add("--bias-decay", type=float, default=0.0, metavar="LAMBDA_B", help="0 (default): free")
    add("--activation", default="relu", choices=("relu", "linear"), help="default: relu")
    add = command.add_argument_group("what to do").add_argument
    add("--solve", action="store_true", help="minimise numerically too")
    add("--restarts", type=int, default=8, help="random starts (default: 8)")
    add("--seed", type=int, default=0, help="of the starts (default: 0)")
    add("--jobs", type=int, default=1, help="processes (default: 1)")
    add("--sweep", metavar="NAME=LOW:HIGH:COUNT",
        help="repeat for values of weight_decay, feature_decay, classes or depth")  # fmt: skip
    add("--plot", metavar="FILE", help="write a figure, .svg or .png (extra: report)")
    command.writes(plot="figure")
    add = command.add_mutually_exclusive_group().add_argument
    add("--json", action="store_true", help="print JSON and nothing else")
    add("--quiet", action="store_true", help="print the best known in one line")


def _run(options: argparse.Namespace) -> None:
    from ..dufm.chain import check_size
    from ..dufm.overview import overview
    from ..dufm.plots import plot_problem
    from ..dufm.solver import check_search, solve
    from ..report.drawing import check_ending

    _check_sizes(options)
    problem = _problem(options)
    if options.plot is not None:
        check_ending(options.plot)
    check_search(options.restarts, options.jobs, options.seed)

    def solver(problem: Problem) -> Solution:
        shown = not (options.json or options.quiet) and sys.stdout.isatty()
        return solve(problem, "lbfgs", options.restarts, options.seed, options.jobs, shown)

    if options.sweep is not None:
        _sweep(problem, options, solver if options.solve else None)
        return
    if options.solve or options.plot is not None:
        check_size(problem)
    known = overview(problem)
    if not (options.json or options.quiet):
        say(table(known))
    solution = solver(problem) if options.solve else None
    if options.json:
        say_json(to_json_value(record(known, solution)), indent=2)
    elif options.quiet:
        say(known.words() if solution is None else solution.verdict)
    else:
        if solution is not None:
            lines = [_paragraph(line, WIDTH - 8) for line in solution.summary().splitlines()]
            say("\nsolved: " + "\n".join(lines))
        say(_paragraph(known.words(solution)))
    if options.plot is not None:
        plot_problem(known, solution, options.plot)


def _check_sizes(options: argparse.Namespace) -> None:
    """Refuse what cannot be computed before it is tried."""
    for name, most in (("depth", 1000), ("restarts", 10**6)):
        if vars(options)[name] > most:
            raise ValueError(f"--{name} {vars(options)[name]}: pass {most} or less")
    check_jobs(max(options.jobs, 1))
    classes, width = options.classes, max(options.width or [0])
    widest = max(classes, width)
    check_memory(f"--classes {classes} of width {widest}", 8.0 * 3 * max(classes, 1) * widest)


def _problem(options: argparse.Namespace) -> DUFM:
    from ..dufm.model import DUFM

    features = options.weight_decay[0] if options.feature_decay is None else options.feature_decay
    several = (options.per_class, options.width, options.weight_decay)
    per_class, width, decay = (x[0] if x is not None and len(x) == 1 else x for x in several)
    more = {name: vars(options)[name] for name in ("loss", "bias", "bias_decay", "activation")}
    return DUFM(
        options.classes, per_class, options.depth, width, feature_decay=features,
        weight_decay=decay, **more,
    )  # fmt: skip


def _sweep(
    problem: DUFM, options: argparse.Namespace, solver: Callable[[Problem], Solution] | None
) -> None:
    from ..dufm.overview import parse_sweep, run_sweep
    from ..dufm.plots import plot_sweep

    sweep = parse_sweep(options.sweep)
    name, points = sweep.name, run_sweep(problem, sweep, solver)
    if options.json:
        swept = [{"value": p.value, **record(p.known, p.solution)} for p in points]
        values = {"format": "collapsemeter.DUFMSweep", "version": 1, "name": name, "points": swept}
        say_json(to_json_value(values), indent=2)
    elif options.quiet:
        for point in points:
            best, last = point.known.best_known(point.solution), point.known.best_closed_form.loss
            structure, loss = best or ("no closed form below zero", last)
            say(f"{name} = {point.value:.6g}: {structure}, loss {loss:.10g}")
    else:
        say(sweep_table(name, points))
    if options.plot is not None:
        plot_sweep(sweep, points, options.plot)


def table(known: Overview) -> str:
    """Return the problem, its thresholds, every closed form and the best of them, in 80 columns."""
    sources = list(dict.fromkeys(reference.source for reference in known.references))
    partial = [reference for reference in known.references if "learned" in reference.parameters]
    summed = partial[1:] if len(partial) > SHOWN else []
    shown = [reference for reference in known.references if reference not in summed]
    room = max([12, *(len(reference.name) for reference in shown)]) + 2
    head = ROW.format("name", "loss", "ratio", "rank of H_2 ...", "status", "source", room=room)
    lines = [_described(known.problem)]
    lines += [_paragraph(f"{threshold.name}: {threshold.words}") for threshold in known.thresholds]
    lines += ["", head, "-" * len(head)]
    for reference in shown:
        loss, ratio = f"{reference.loss:.10f}", _ratio(known.ratio(reference.loss))
        trust = (rank_words(reference.ranks), reference.status)
        source = f"[{sources.index(reference.source) + 1}]"
        lines.append(ROW.format(reference.name, loss, ratio, *trust, source, room=room))
    if summed:
        low, high = summed[0], summed[-1]
        lines.append(f"  and {low.name} to {high.name}: losses {low.loss:.6g} to {high.loss:.6g}")
    lines.append("")
    lines += [_paragraph(f"[{number}] {text}") for number, text in enumerate(sources, start=1)]
    over = "loss over that of collapse" if known.collapsed else "none, since there is no collapse"
    lines.append(_paragraph(f"ratio: {over}; ranks: layers 2 to L + 1 before the ReLU"))
    best = known.best_closed_form
    words = f"best closed form: {best.name}, loss {best.loss:.10g}; {best.holds_for}"
    return "\n".join([*lines, "", _paragraph(words)])


def _described(problem: Problem) -> str:
    from ..dufm.chain import shortened

    bias = f"bias with decay {problem.bias_decay:g}" if problem.bias else "no bias"
    return _paragraph(
        f"K = {problem.num_classes} classes of n = {shortened(problem.counts.tolist())}, "
        f"L = {problem.depth} layer{'s' if problem.depth > 1 else ''} of width {shortened(problem.layer_widths)}, "
        f"{problem.activation}, loss {problem.loss}, {bias}, "
        f"lambda_H = {problem.feature_decay:g}, lambda = {shortened(problem.decays)}"
    )


def _paragraph(text: str, width: int = WIDTH) -> str:
    return "\n".join(textwrap.wrap(text, width, subsequent_indent="  "))


def _ratio(ratio: float) -> str:
    if math.isnan(ratio):
        return "-"
    return f"{ratio:.4f}" if ratio < 1000 else f"{ratio:.2e}"


def rank_words(values: Sequence[int]) -> str:
    """Return ranks with repetitions counted, such as ``5x3 10``."""
    runs = [(value, len(list(run))) for value, run in groupby(values)]
    return " ".join(f"{value}x{count}" if count > 1 else f"{value}" for value, count in runs)


def sweep_table(name: str, points: list[SweptPoint]) -> str:
    """Return the best closed form at every swept value, and what was found there, in 80 columns."""
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
    """Return what is known, and what was found, as plain values ready for JSON."""
    best, problem = known.best_known(solution), known.problem
    return {
        "format": "collapsemeter.DUFM",
        "version": 1,
        "problem": {**asdict(problem), "canonical_decay": problem.canonical_decay},
        "thresholds": {t.name: _plain(t, "value", "threshold", "words") for t in known.thresholds},
        "lower_bound": known.lower_bound,
        "collapsed": None if known.collapsed is None else known.collapsed.name,
        "best_closed_form": known.best_closed_form.name,
        "best_known": None if best is None else {"name": best[0], "loss": best[1]},
        "words": known.words(solution),
        "references": [
            _plain(reference, *REFERENCE) | {"ratio_to_collapse": known.ratio(reference.loss)}
            for reference in known.references
        ],
        "solution": None if solution is None else _solution_record(solution),
    }


def _solution_record(solution: Solution) -> dict[str, Any]:
    layers, residual = range(1, solution.problem.depth + 2), solution.residual
    return _plain(solution, "loss", "gap", "proven", "verdict", "ranks") | {
        "reference": solution.reference.name,
        "singular_values": {layer: solution.singular_values(layer) for layer in layers},
        "residual": {"gradient": residual.plain, "generalised": residual.generalised},
        "starts": [asdict(start) for start in solution.starts],
    }


def _plain(source: object, *names: str) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names}
