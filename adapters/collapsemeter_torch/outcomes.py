"""Values or errors that ranks exchange, so that none waits for a rank that has failed."""

from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


def attempt(make: Callable[[], Result]) -> Result | Exception:
    try:
        return make()
    except Exception as error:
        return error


def result_of(part: Result | Exception) -> Result:
    if isinstance(part, Exception):
        raise part
    return part


def merged_tallies(a: Any, b: Any) -> Any:
    return _merged_parts(a, b, lambda: a.merge(b))


def merged_moments(a: Any, b: Any) -> Any:
    return _merged_parts(a, b, lambda: a.merge(b, numbered_apart=True))


def _merged_parts(a: Any, b: Any, merge: Callable[[], Any]) -> Any:
    for part in (a, b):
        if isinstance(part, Exception):
            return part
    if a is None or b is None:
        return b if a is None else a
    return attempt(merge)
