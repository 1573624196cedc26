"""Which layers to watch, by name: what every adapter's ``layers=`` and printed summary share."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence

from ..system.escaping import printable
from ..system.suggest import did_you_mean
from ..system.warning import warn


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
        if not isinstance(pattern, str):
            raise ValueError(
                f"layers={list(patterns)!r}: {pattern!r} is a {type(pattern).__name__}, and names are strings; the "
                f"model has {listed(names)}"
            )
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise ValueError(
                f"layers={list(patterns)!r}: {pattern!r} matches no module; the model has "
                f"{listed(names)}{did_you_mean(pattern, names)}"
            )
        chosen.update(matched)
    return [name for name in names if name in chosen]


def unknown_head(head: str, names: Iterable[str]) -> ValueError:
    """Return the error for a head that the model does not have.

    Examples
    --------
    >>> unknown_head("fcc", ["conv", "fc"])
    ValueError("head='fcc' is not a layer of the model; it has conv, fc; did you mean 'fc'?")
    """
    names = list(names)
    return ValueError(
        f"head={head!r} is not a layer of the model; it has {listed(names)}{did_you_mean(head, names)}"
    )


def unfit_head(name: str, outputs: int, num_classes: int) -> str:
    """Warn that a model's last linear layer is no head for so many classes; return why it is not watched as one.

    Examples
    --------
    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     unfit_head("fc", 100, 10)
    'it has 100 outputs, which is no head of num_classes=10'
    """
    why = f"it has {outputs} outputs, which is no head of num_classes={num_classes}"
    warn(
        f"no head is watched, so NC3 is not measured: {name!r} is the model's last linear layer, and {why}; "
        f"pass num_classes={max(outputs, 2)}, name another layer with head=, or pass head=None",
        stacklevel=4,
    )
    return why


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


def why_skipped(
    name: str,
    chosen: Iterable[str],
    head: str | None,
    skipped: Mapping[str, str],
    *,
    separator: str,
    passes_on: bool,
    automatic: bool,
) -> str:
    """Return in words why a layer is not watched.

    Parameters
    ----------
    name : str
    chosen : iterable of str
        Names of the layers that are.
    head : str or None
    skipped : mapping from name to reason
        What is known already.
    separator : str
        Between the parts of a name: what is inside ``a`` is called ``a.b`` or ``a/b``.
    passes_on : bool
        Whether the layer gives what it is given.
    automatic : bool
        Whether ``layers="auto"`` chose.

    Examples
    --------
    >>> rest = {"separator": ".", "passes_on": False, "automatic": True}
    >>> why_skipped("block.conv", ["block"], "fc", {}, **rest)
    'inside block, which is watched'
    """
    chosen = list(chosen)
    for parent in chosen:
        if name.startswith(parent + separator):
            return f"inside {parent}, which is watched"
    for parent, reason in skipped.items():
        if name.startswith(parent + separator) and reason.startswith("its output"):
            return f"inside {parent}: {reason}"
    if any(layer.startswith(name + separator) for layer in chosen):
        return "its parts are watched"
    if head is not None and head.startswith(name + separator):
        return "it holds the head"
    if passes_on:
        return "passes its input on"
    if not automatic:
        return "not chosen by layers="
    return "not the end of a block; name it in layers= to watch it"


def classes_of(
    head: str | None, outputs: int | None, num_classes: int | None, head_kind: str
) -> int:
    """Return C: what was asked for, by default the head's outputs, two for a single logit.

    Parameters
    ----------
    head : str or None
    outputs : int or None
        The head's; None without one.
    num_classes : int, optional
        What was asked for.
    head_kind : str
        What a head is in this framework.

    Raises
    ------
    ValueError
        If there is neither, or they disagree.

    Examples
    --------
    >>> classes_of("fc", 1, None, "nn.Linear"), classes_of("fc", 10, 10, "nn.Linear")
    (2, 10)
    """
    if num_classes is None:
        if outputs is None:
            raise ValueError(
                f"the model has no final {head_kind} to count classes by: pass num_classes="
            )
        return max(outputs, 2)
    if outputs is not None and outputs not in ({1, 2} if num_classes == 2 else {num_classes}):
        raise ValueError(
            f"head {head!r} has {outputs} outputs and num_classes={num_classes}: they must agree; "
            "pass head=None to measure without a head"
        )
    return num_classes


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
    names = [
        f"{printable(name)} (input of the head)" if name == head else printable(name)
        for name in watched
    ]
    lines = [f"collapsemeter watches {num_classes} classes in: {', '.join(names)}"]
    if head is None:
        lines.append(
            f"  no head, which would be {head_kind} with {num_classes} outputs: NC3 and NC4 are not "
            "measured; name it with head="
        )
    by_reason: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        by_reason.setdefault(printable(reason), []).append(printable(name))
    lines += [f"  not {', '.join(names)}: {reason}" for reason, names in by_reason.items()]
    return "\n".join(lines)
