"""``--dufm NAME=VALUE ...``: a problem of the deep unconstrained features model to compare with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..system.suggest import did_you_mean

if TYPE_CHECKING:
    from ..dufm.model import DUFM

_ARGUMENTS: dict[str, tuple[str, Any]] = {
    "depth": ("depth", int),
    "weight_decay": ("weight_decay", float),
    "feature_decay": ("feature_decay", float),
    "per_class": ("per_class", int),
    "width": ("widths", int),
    "loss": ("loss", str),
    "activation": ("activation", str),
}
_DEEPEST = 1000


def parse_pairs(texts: Sequence[str]) -> dict[str, str]:
    """Read ``NAME=VALUE`` each."""
    pairs = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign:
            raise ValueError(f"--dufm {text!r}: write NAME=VALUE, such as weight_decay=5e-4")
        pairs[name] = value
    return pairs


def problem_of(pairs: Mapping[str, str], classes: int, per_class: int = 1) -> DUFM:
    """Return the problem that ``NAME=VALUE`` describe; raise ValueError if they describe none."""
    from ..dufm.model import DUFM  # SciPy takes its time

    numbers: dict[str, Any] = {"num_classes": classes, "per_class": per_class, "depth": 1}
    for name, text in pairs.items():
        if name not in _ARGUMENTS:
            raise ValueError(
                f"--dufm {name}={text}: choose among {', '.join(_ARGUMENTS)}{did_you_mean(name, _ARGUMENTS)}"
            )
        argument, kind = _ARGUMENTS[name]
        try:
            numbers[argument] = kind(text)
        except ValueError as error:
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"--dufm {name}={text}: {text!r} is not {what}") from error
    if "weight_decay" not in numbers:
        raise ValueError("--dufm needs weight_decay=NUMBER, and perhaps depth= and feature_decay=")
    if numbers["depth"] > _DEEPEST:
        raise ValueError(f"--dufm depth={pairs['depth']}: pass {_DEEPEST} or less")
    numbers.setdefault("feature_decay", numbers["weight_decay"])
    try:
        return DUFM(**numbers)
    except ValueError as error:
        raise ValueError(f"--dufm: {error}") from error
