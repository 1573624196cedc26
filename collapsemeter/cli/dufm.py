"""``collapsemeter dufm``: its arguments."""

from __future__ import annotations

import argparse
from typing import Any

from ..system.memory import check_memory
from ..system.threads import check_jobs

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
    command = commands.add_parser(
        "dufm",
        help="print the optimum that theory predicts for the last layers of a network",
        description="The deep unconstrained features model: thresholds, every closed form with its\n"
        "loss and ranks, the best of them, and the best known point. They are one unless\n"
        "--solve finds a lower loss numerically.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
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


def run(options: argparse.Namespace) -> None:
    from ..dufm import DUFM  # SciPy takes its time
    from .dufm_run import Wish, run

    _check_sizes(options)
    features = options.weight_decay[0] if options.feature_decay is None else options.feature_decay
    problem = DUFM(
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
    wish = Wish(
        solve=options.solve,
        restarts=options.restarts,
        seed=options.seed,
        jobs=options.jobs,
        plot=options.plot,
        sweep=options.sweep,
        json=options.json,
        quiet=options.quiet,
    )
    run(problem, wish)


def _check_sizes(options: argparse.Namespace) -> None:
    """Refuse what cannot be computed before it is tried."""
    for name, most in (("depth", 1000), ("restarts", 10**6)):
        if vars(options)[name] > most:
            raise ValueError(f"--{name} {vars(options)[name]}: pass {most} or less")
    check_jobs(max(options.jobs, 1))
    classes, width = options.classes, max(options.width or [0])
    widest = max(classes, width)
    check_memory(f"--classes {classes} of width {widest}", 8.0 * 3 * max(classes, 1) * widest)


def _one_or_many(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values
