"""The command line: argument parsing only."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from .. import __version__
from ..system.escaping import printable
from ..system.terminal import say
from . import audit as audit_command
from . import demo_command, show_command
from . import dufm as dufm_command
from .parser import Parser
from .signals import ended_by_signals


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
    options, unknown = _parser().parse_known_args(given)
    if unknown:
        options.parser.unknown(unknown)
    try:
        with ended_by_signals():
            options.parser.check_files(options)
            status: int = options.run(options) or 0
        sys.stdout.flush()
    except BrokenPipeError:  # who reads the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as error:
        say(f"collapsemeter: {printable(str(error)) or 'interrupted'}", error=True)
        return 2
    except MemoryError as error:
        say(f"collapsemeter: there is not enough memory: {printable(str(error))}", error=True)
        return 2
    except (ValueError, ImportError, OSError) as error:
        say(f"collapsemeter: {printable(_words(error))}", error=True)
        return 2
    return status


def _words(error: Exception) -> str:
    """Return what an error says; one of the system begins with the file, and has no number."""
    if not isinstance(error, OSError) or error.filename is None or not error.strerror:
        return str(error)
    path = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
    return f"{error.filename}: {error.strerror}{': check the path' if path else ''}"


def _parser() -> Parser:
    parser = Parser(
        prog="collapsemeter", description="Measure neural collapse in every layer of a classifier."
    )
    parser.add_argument("--version", action="version", version=f"collapsemeter {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo_command.add(commands)
    dufm_command.add(commands)
    audit_command.add(commands)
    show_command.add(commands)
    show_command.add_compare(commands)
    for command in commands.choices.values():
        command.set_defaults(parser=command)
    return parser
