"""Which layers to watch, by name: what every adapter's ``layers=`` and printed summary share."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence


def matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Return the names that a name or shell pattern selects, in the order of the model.

    Raises
    ------
    ValueError
        If a pattern selects nothing.

    Examples
    --------
    >>> matching(["conv1", "conv2", "fc"], ["conv*"])
    ['conv1', 'conv2']
    """
    names = list(names)
    chosen: set[str] = set()
    for pattern in patterns:
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise ValueError(
                f"layers={list(patterns)!r}: {pattern!r} matches no module; the model has "
                f"{listed(names)}"
            )
        chosen.update(matched)
    return [name for name in names if name in chosen]


def listed(named: Iterable[str], most: int = 12) -> str:
    """Return names as words, a dozen at most.

    Examples
    --------
    >>> listed("abc", most=2)
    'a, b and 1 more'
    """
    names = list(named)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"


def description(
    watched: Iterable[str],
    head: str | None,
    skipped: Mapping[str, str],
    num_classes: int,
    head_kind: str,
) -> str:
    """Return in words what is watched, and why every other layer is not.

    Parameters
    ----------
    watched : iterable of str
    head : str or None
        The watched name under which the head's input goes.
    skipped : mapping from name to reason
    num_classes : int
    head_kind : str
        What a head would be in this framework, with its article.

    Examples
    --------
    >>> print(description(["fc"], "fc", {"drop": "passes its input on"}, 10, "an nn.Linear"))
    collapsemeter watches 10 classes in: fc (input of the head)
      not drop: passes its input on
    """
    names = [f"{name} (input of the head)" if name == head else name for name in watched]
    lines = [f"collapsemeter watches {num_classes} classes in: {', '.join(names)}"]
    if head is None:
        lines.append(
            f"  no head, which would be {head_kind} with {num_classes} outputs: NC3 and NC4 are not "
            "measured; name it with head="
        )
    by_reason: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        by_reason.setdefault(reason, []).append(name)
    lines += [f"  not {', '.join(names)}: {reason}" for reason, names in by_reason.items()]
    return "\n".join(lines)
