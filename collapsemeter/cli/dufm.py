"""``collapsemeter dufm``: the optimum of a problem as text, JSON and a figure."""

from __future__ import annotations

import argparse
import math
import sys
import textwrap
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ..metrics.layer import to_json_value
from ..system.memory import check_memory
from ..system.processes import check_jobs
from ..system.terminal import say, say_json

if TYPE_CHECKING:  # SciPy takes its time: what runs imports it
    from ..dufm.optimum import Optimum
    from ..dufm.overview import Overview, SweptPoint
    from ..dufm.problem import DUFM
    from ..dufm.solution import Solution

WIDTH = 80
SHOWN = 3  # partial solutions listed by themselves; more are summed up in one row

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
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    from ..dufm.chain import check_memory as check_problem
    from ..dufm.overview import overview
    from ..dufm.plots import plot_problem
    from ..dufm.solver import check_search, solve
    from ..report.drawing import check_ending

    _check_sizes(options)
    problem = _problem(options)
    if options.plot is not None:
        check_ending(options.plot)
    check_search(options.restarts, options.jobs, options.seed)

    def solution_of(problem: DUFM) -> Solution:
        shown = not (options.json or options.quiet) and sys.stdout.isatty()
        return solve(
            problem,
            restarts=options.restarts,
            rng=options.seed,
            jobs=options.jobs,
            progress=shown,
        )

    if options.sweep is not None:
        _sweep(problem, options, solution_of if options.solve else None)
        return
    if options.solve or options.plot is not None:
        check_problem(problem)
    known = overview(problem)
    if not (options.json or options.quiet):
        say(table(known))
    solution = solution_of(problem) if options.solve else None
    if options.json:
        say_json(to_json_value(record(known, solution)), indent=2)
    elif options.quiet:
        say(known.words() if solution is None else solution.verdict)
    else:
        if solution is not None:
            say("\nsolved: " + _wrapped(solution.summary()))
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
    from ..dufm.problem import DUFM

    features = options.weight_decay[0] if options.feature_decay is None else options.feature_decay
    return DUFM(
        options.classes,
        _one_or_many(options.per_class),
        options.depth,
        None if options.width is None else _one_or_many(options.width),
        feature_decay=features,
        weight_decay=_one_or_many(options.weight_decay),
        loss=options.loss,
        bias=options.bias,
        bias_decay=options.bias_decay,
        activation=options.activation,
    )


def _one_or_many(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _sweep(
    problem: DUFM, options: argparse.Namespace, solution_of: Callable[[DUFM], Solution] | None
) -> None:
    from ..dufm.overview import parse_sweep, run_sweep
    from ..dufm.plots import plot_sweep

    sweep = parse_sweep(options.sweep)
    name, points = sweep.name, run_sweep(problem, sweep, solution_of)
    if options.json:
        values = {
            "format": "collapsemeter.DUFMSweep",
            "version": 1,
            "name": name,
            "points": [{"value": p.value, **record(p.known, p.solution)} for p in points],
        }
        say_json(to_json_value(values), indent=2)
    elif options.quiet:
        for point in points:
            say(f"{name} = {point.value:.6g}: {_swept_best(point)}")
    else:
        say(sweep_table(name, points))
    if options.plot is not None:
        plot_sweep(sweep, points, options.plot)


def _swept_best(point: SweptPoint) -> str:
    best = point.known.best_known(point.solution)
    if best is None:
        return f"no closed form below zero, loss {point.known.best_closed_form.loss:.10g}"
    return f"{best[0]}, loss {best[1]:.10g}"


def _wrapped(text: str) -> str:
    lines = [textwrap.wrap(line, WIDTH - 8, subsequent_indent="  ") for line in text.splitlines()]
    return "\n".join(line for part in lines for line in part)


def table(known: Overview) -> str:
    """Return the problem, its thresholds, every closed form and the best of them, in 80 columns."""
    sources = list(dict.fromkeys(reference.source for reference in known.references))
    paragraphs = [_described(known.problem)]
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


def _described(problem: DUFM) -> str:
    """Return the problem in one sentence."""
    from ..dufm.chain import shortened

    bias = f"bias with decay {problem.bias_decay:g}" if problem.bias else "no bias"
    return (
        f"K = {problem.num_classes} classes of n = {shortened(problem.counts.tolist())}, "
        f"L = {problem.depth} layer{'s' if problem.depth > 1 else ''} of width {shortened(problem.layer_widths)}, "
        f"{problem.activation}, loss {problem.loss}, {bias}, "
        f"lambda_H = {problem.feature_decay:g}, lambda = {shortened(problem.decays)}"
    )


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
    """Return ranks with repetitions counted.

    >>> rank_words([5, 5, 5, 10]), rank_words([2])
    ('5x3 10', '2')
    """
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
    from ..dufm.overview import reference_record

    problem = known.problem
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
        "solution": None if solution is None else _solution_record(solution),
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
