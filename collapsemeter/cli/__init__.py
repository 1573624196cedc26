"""The command line: one module for each family of commands, and what they share.

============  ====================================================
`audit`       ``collapsemeter audit``, ``audit map``, ``audit merge``; `audit_options`
`fail_if`     ``--fail-if``
`reference`   ``--dufm``
`show`        ``collapsemeter show`` and ``compare``
`demo`        ``collapsemeter demo``
`dufm`        ``collapsemeter dufm``
`parser`      arguments, and what is wrong with them
`outputs`     where a command may write
`text`        reports as text
============  ====================================================
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from .. import __version__
from ..system.escaping import printable
from ..system.terminal import say
from . import audit, demo, dufm, show
from .parser import Parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 2 bad input, 3 beyond a threshold that was given."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["audit"] and words[1:2] in (["map"], ["merge"]):  # commands of two words
        words[:2] = [" ".join(words[:2])]
    options, unknown = _parser().parse_known_args(words)
    if unknown:
        options.parser.unknown(unknown)
    try:
        with _ended_by_signals():
            options.parser.check_files(options)
            status: int = options.run(options) or 0
        sys.stdout.flush()
    except BrokenPipeError:  # who reads the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as error:
        return _failed(str(error) or "interrupted")
    except MemoryError as error:
        return _failed(f"there is not enough memory: {error}")
    except (ValueError, ImportError, OSError) as error:
        return _failed(_words(error))
    return status


def _failed(words: str) -> int:
    say(f"collapsemeter: {printable(words)}", error=True)
    return 2


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
    for module in (demo, dufm, audit, show):
        module.add(commands)
    for command in commands.choices.values():
        command.set_defaults(parser=command)
    return parser


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt here, so that what is open is closed and cleaned up."""
    before: dict[int, Any] = {}

    def end(number: int, frame: FrameType | None) -> NoReturn:
        for handled in before:  # what cleans up is not interrupted again
            signal.signal(handled, signal.SIG_IGN)
        raise KeyboardInterrupt(f"ended by {signal.Signals(number).name}")

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
