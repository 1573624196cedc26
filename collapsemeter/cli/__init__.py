"""The command line: argument parsing only."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from .. import __version__
from . import audit_command, demo_command, dufm_command, show_command


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one sentence, as that of bad input is."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"collapsemeter: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 2 bad input, 3 beyond a threshold that was given.

    Parameters
    ----------
    arguments : sequence of str, optional
        The process's own by default.

    Examples
    --------
    >>> main(["demo", "--epochs", "0"])
    2
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["audit"] and given[1:2] in (["map"], ["merge"]):  # commands of two words
        given[:2] = [" ".join(given[:2])]
    options = _parser().parse_args(given)
    try:
        status: int = options.run(options) or 0
        sys.stdout.flush()
    except BrokenPipeError:  # who reads the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, ImportError, OSError) as error:
        print(f"collapsemeter: {error}", file=sys.stderr)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="collapsemeter", description="Measure neural collapse in every layer of a classifier."
    )
    parser.add_argument("--version", action="version", version=f"collapsemeter {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo_command.add(commands)
    dufm_command.add(commands)
    audit_command.add(commands)
    show_command.add(commands)
    show_command.add_compare(commands)
    return parser
