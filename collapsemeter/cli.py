"""The command line: ``collapsemeter demo``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import __version__, demo


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 2 bad input.

    Parameters
    ----------
    arguments : sequence of str, optional
        The process's own by default.

    Examples
    --------
    >>> main(["demo", "--epochs", "0"])
    2
    """
    options = _parser().parse_args(arguments)
    try:
        demo.run(options.framework, options.epochs, options.out, options.seed)
    except (ValueError, ImportError, OSError) as error:
        print(f"collapsemeter: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="collapsemeter", description="Measure neural collapse in every layer of a classifier."
    )
    parser.add_argument("--version", action="version", version=f"collapsemeter {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "demo",
        help="train on real images past zero error and watch every block collapse",
        description="Train a small convolutional network on scikit-learn's 1,797 digits past zero "
        "error, watch NC1 to NC4 of every block, and write TensorBoard events, JSON lines and a figure.",
        epilog="example: collapsemeter demo --epochs 40 --out runs/short",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("--framework", default="torch", choices=demo.TRAINERS, help="what trains")
    command.add_argument("--epochs", type=int, default=demo.EPOCHS, help="epochs to train")
    command.add_argument("--seed", type=int, default=0, help="of weights and batches")
    command.add_argument(
        "--out", default="runs/demo", help="folder to write to (never overwritten)"
    )
    return parser
