"""A parser that says in one sentence what is wrong, and what may have been meant."""

import argparse
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from ..system.escaping import printable
from ..system.suggest import did_you_mean
from ..system.terminal import say
from .outputs import OutputFile, OutputKind, check_outputs


class Parser(argparse.ArgumentParser):
    """A parser for which an option has one name, a file comes once, and what is wrong is one sentence."""

    def __init__(self, **options: Any) -> None:
        as_written = argparse.RawDescriptionHelpFormatter
        super().__init__(**{"allow_abbrev": False, "formatter_class": as_written, **options})
        self.register("action", None, _Once)
        self._reads: list[str] = []
        self._writes: dict[str, OutputKind] = {}

    def reads(self, *arguments: str) -> None:
        """Declare arguments that name inputs."""
        self._reads += arguments

    def writes(self, **arguments: OutputKind) -> None:
        """Declare arguments that name outputs, and what each will be."""
        self._writes |= arguments

    def check_files(self, options: argparse.Namespace) -> None:
        """Refuse outputs that would overwrite something, see `check_outputs`."""
        names = {a.dest: max(a.option_strings, default="an input", key=len) for a in self._actions}
        values = vars(options)
        outputs = [
            OutputFile(names[dest], values[dest], kind)
            for dest, kind in self._writes.items()
            if values[dest] is not None
        ]
        inputs = {names[dest]: list(_paths(values[dest])) for dest in self._reads}
        check_outputs(outputs, inputs)

    def error(self, message: str) -> NoReturn:
        say(f"collapsemeter: {printable(message)} (see {self.prog} --help)", error=True)
        self.exit(2)

    def unknown(self, arguments: list[str]) -> NoReturn:
        """Refuse what no option or argument took."""
        option = arguments[0].partition("=")[0].lstrip("-")
        known = [name[2:] for name in self._option_string_actions if name.startswith("--")]
        meant = did_you_mean(option, known).replace("'", "'--", 1)
        self.error(f"unrecognized arguments: {' '.join(arguments)}{meant}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = list(action.choices)
            raise argparse.ArgumentError(
                action,
                f"invalid choice: {value!r} (choose from {', '.join(known)}{did_you_mean(str(value), known)})",
            )


def _paths(value: Any) -> Iterator[str]:
    """Yield the paths among an argument's values; ``STEP=FILE`` holds one."""
    if isinstance(value, str):
        yield value
        yield _STEP.sub("", value)
    for item in value if isinstance(value, list) else []:
        yield from _paths(item)


_STEP = re.compile("-?[0-9]+=")


class _Once(argparse._StoreAction):
    """Refuse a second file for one option: neither is overwritten or left out in silence."""

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        passed = vars(namespace).setdefault("given", set())
        if option_string is not None and self.dest in (*parser._reads, *parser._writes):
            if self.dest in passed:
                raise argparse.ArgumentError(self, "given twice: pass it once")
            passed.add(self.dest)
        super().__call__(parser, namespace, values, option_string)
