"""``collapsemeter demo``: its arguments."""

from __future__ import annotations

import argparse
from typing import Any

from . import demo


def add(commands: Any) -> None:
    command = commands.add_parser(
        "demo",
        help="train on real images past zero error and watch every block collapse",
        description="Train a small convolutional network on scikit-learn's 1,797 digits past zero "
        "error, watch NC1 to NC4 of every block, and write TensorBoard events, JSON lines and a figure.",
        epilog="example: collapsemeter demo --epochs 40 --out runs/short",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.set_defaults(run=run)
    command.add_argument("--framework", default="torch", choices=demo.TRAINERS, help="what trains")
    command.add_argument("--epochs", type=int, default=demo.EPOCHS, help="epochs to train")
    command.add_argument("--seed", type=int, default=0, help="of weights and batches")
    command.add_argument(
        "-o", "--out", default="runs/demo", help="folder to write to (never overwritten)"
    )
    command.writes(out="folder")


def run(options: argparse.Namespace) -> None:
    demo.run(options.framework, options.epochs, options.out, options.seed)
