"""Check that a saved state is one of this meter's: an error names both sides, before anything is loaded."""

from collections.abc import Iterable, Mapping
from typing import Any

from ..system.warning import warn
from .selection import listed


def not_a_state(state: Any) -> ValueError:
    """Return the error for what no meter's ``state_dict`` returned."""
    keys = f" with {listed(map(repr, state), 3)}" if isinstance(state, Mapping) else ""
    return ValueError(
        f"this is a {type(state).__name__}{keys} and no state of a meter: pass what the meter's state_dict() returned"
    )


def check_same(state: Mapping[str, Any], meter: Mapping[str, Any]) -> None:
    """Raise unless a saved state and the meter agree in all that both know, by what it is called."""
    differ = [name for name in meter if name in state and state[name] != meter[name]]
    if differ:
        said = "; ".join(
            f"{name} {_shown(state[name])}, this meter {_shown(meter[name])}" for name in differ
        )
        raise ValueError(f"the state is of another meter, and nothing was loaded: it has {said}")


def check_widths(state: Mapping[str, int], meter: Mapping[str, int]) -> None:
    """Raise unless layers that both know have one width."""
    check_same(
        *(
            {f"layer {layer!r} of width": width for layer, width in side.items()}
            for side in (state, meter)
        )
    )


def say_without_groups(layers: Iterable[str], until: str) -> None:
    """Warn of layers whose state was saved without groups of rows, if there are any."""
    if names := list(dict.fromkeys(layers)):
        warn(
            f"the state was saved without groups of rows, as older versions do: until {until} there are "
            f"no intervals for {listed(names)}"
        )


def saved_layers(
    saved: Iterable[str] | None, counted: Iterable[str], watched: Iterable[str]
) -> list[str]:
    """Return what a state watched: older states name only the layers that had counted something."""
    if saved is not None:
        return list(saved)
    return list(watched if set(counted) <= set(watched) else counted)


def _shown(value: Any) -> str:
    return (
        listed(value) if isinstance(value, Iterable) and not isinstance(value, str) else str(value)
    )
