"""Which layers to watch: what every adapter's ``layers=``, ``head=`` and printed summary share."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import shorten, wrap
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from ..stats.undefined import REASONS
from ..system.escaping import printable
from ..system.patterns import matches
from ..system.suggest import did_you_mean
from ..system.suggest import listed as listed
from .cut_points import spread
from .network import Network

Layer = TypeVar("Layer")
Layers = Literal["auto"] | str | Iterable[str] | Callable[[str, Any], bool]

MAX_LAYERS = 16
_COLUMNS, _LINES = 100, 20  # of a message that people read at attaching
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Selection:
    """The layers to watch, in the order of the data, the head, and why every other one is not watched.

    Attributes
    ----------
    layers : tuple of str
        Without the head.
    head : str or None
        The map that makes the scores; its input is watched under its name.
    no_head : str
        Why there is none, a code of `REASONS`.
    width : int or None
        Of the scores' last axis; one column decides between two classes.
    threshold : float
        A single score above it decides for class 1.
    place : str
        Where the scores are in what the model returns.
    skipped : mapping from name to reason
    modules : mapping from name to object
        The framework's own objects, the head among them.
    before : mapping from name to objects
        What runs just before a layer and speaks for its channels.
    turned : frozenset of str
        Layers that give positions before samples, (T, B, d).
    note : str
        What else must be said of how the layers were chosen.
    head_kind : str
        What a head is in this framework, with its article.
    """

    layers: tuple[str, ...]
    head: str | None = None
    no_head: str = "no_head"
    width: int | None = None
    threshold: float = 0.0
    place: str = "the output"
    skipped: Mapping[str, str] = field(default_factory=dict, compare=False)
    modules: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    before: Mapping[str, Sequence[Any]] = field(default_factory=dict, compare=False, repr=False)
    turned: frozenset[str] = field(default=frozenset(), compare=False, repr=False)
    note: str = field(default="", compare=False)
    head_kind: str = "a linear layer"

    @property
    def watched(self) -> list[str]:
        """Names of the layers, and last of the head."""
        return [*self.layers, *([] if self.head is None else [self.head])]

    @property
    def head_module(self) -> Any:
        """The framework's own object of the head; None without one."""
        return None if self.head is None else self.modules.get(self.head)

    def classes(self, num_classes: int | None) -> int:
        """Return C: the width of the scores, two for a single score; what was asked for must agree."""
        if self.width is None:
            if num_classes is None:
                raise ValueError(
                    "the model has no scores to count classes by: pass num_classes=, or scores="
                )
            return num_classes
        if num_classes is None or num_classes == self.width or (num_classes, self.width) == (2, 1):
            return max(self.width, 2)
        raise ValueError(
            f"{self.place} holds scores of width {self.width} and num_classes={num_classes}: they must "
            "agree; pass scores= to name other scores"
        )

    def describe(self, num_classes: int, *, full: bool = False, notes: Iterable[str] = ()) -> str:
        """Return in words what is watched, and why every other layer is not.

        At most 20 lines of 100 characters, and by cause and count; ``full=True`` lists every layer.
        """
        names = [
            f"{printable(name)} (input of the head)" if name == self.head else printable(name)
            for name in self.watched
        ]
        said = [f"collapsemeter watches {num_classes} classes in: {', '.join(names)}"]
        if self.head is None:
            reason = REASONS[self.no_head]
            said.append(
                f"  no head: {reason}; NC3 is not measured; name {self.head_kind} with head="
            )
        if self.note:
            said.append(f"  {self.note}")
        said += [f"  {note}" for note in notes]
        if full:
            causes: dict[str, list[str]] = {}
            for name, why in self.skipped.items():
                causes.setdefault(printable(why), []).append(printable(name))
            return "\n".join(
                [*said, *(f"  not {', '.join(n)}: {why}" for why, n in causes.items())]
            )
        return _folded(said, self.skipped.values())


def _folded(said: Sequence[str], reasons: Iterable[str]) -> str:
    """Fold what is said into few short lines, and the reasons into counts."""
    counts = Counter(_kind_of_reason(reason) for reason in reasons)
    if counts:
        parts = ", ".join(f"{count} {printable(kind)}" for kind, count in counts.most_common())
        said = [*said, f"  not watched: {parts}; describe(full=True) lists them"]
    room = _LINES // max(len(said), 1)
    lines = []
    for text in said:
        indent = "  " if text.startswith("  ") else ""
        text = shorten(text, room * (_COLUMNS - 10), placeholder=" ... and more")
        lines += wrap(text, _COLUMNS, initial_indent=indent, subsequent_indent=indent + "  ")
    return "\n".join(lines[:_LINES])


def _kind_of_reason(reason: str) -> str:
    """Return a reason without the name of a layer in it."""
    for start, kind in _KINDS.items():
        if reason.startswith(start):
            return kind
    return reason


_KINDS = {
    "inside ": "inside of a watched layer",
    "its output is the input of": "whose output is the head's input",
    "is the cell of": "inside of a loop",
}


def select_layers(
    network: Network,
    named: Mapping[str, Layer],
    layers: Layers = "auto",
    head: str | None = "auto",
    *,
    max_layers: int = MAX_LAYERS,
    head_kind: str,
    model_name: str,
    parts: str = "modules",
    separator: str = ".",
    predicate_argument: Callable[[Layer], Any] = lambda layer: layer,
    unseen: Mapping[str, str] = _NOTHING,
) -> Selection:
    """Choose the layers to watch in a network that has run.

    Parameters
    ----------
    network : Network
        What the forward pass told.
    named : mapping from name to layer
        Every layer of the model.
    layers : "auto", str, iterable of str, or callable
        Names or patterns, or ``predicate(name, predicate_argument(layer)) -> bool``. ``auto`` takes
        the cut points of the network, at most ``max_layers`` with the head.
    head : "auto", name, or None
        ``auto`` takes the network's.
    head_kind : str
        What a head is in this framework, with its article.
    model_name, parts : str
        For the error: the model's class, and what its layers are called.
    separator : str
        Between the parts of a name: what is inside ``a`` is called ``a.b`` or ``a/b``.
    unseen : mapping from name to reason
        Layers that cannot be watched.

    Raises
    ------
    ValueError
        If a name or pattern matches nothing, nothing is selected, the head does not exist, or a layer
        cannot be watched.
    """
    if max_layers < 1:
        raise ValueError(f"max_layers={max_layers}: watch at least one layer")
    ran = [name for name in network.order if name in named]
    ordered = [*ran, *(name for name in named if name not in set(ran))]
    if head == "auto":
        head, no_head = network.head, network.no_head
    else:
        no_head = "no_head"
        if head is not None and head not in named:
            raise ValueError(
                f"head={head!r} is not a layer of the model; it has {listed(named)}"
                f"{did_you_mean(head, named)}"
            )
    automatic = isinstance(layers, str) and layers == "auto"
    if automatic:
        points = [name for name in network.points if name not in unseen and name != head]
        chosen = spread(points, max_layers - (head is not None))
        reasons = dict.fromkeys(points, f"one of {len(points)} like it, see max_layers=")
    else:
        reasons = {}
        if callable(layers):
            chosen = [name for name in ordered if layers(name, predicate_argument(named[name]))]
        else:
            patterns = [layers] if isinstance(layers, str) else list(layers)
            chosen = matching(ordered, patterns)
    chosen = [name for name in chosen if name != head]
    for name in [*chosen, *([] if head is None else [head])]:
        if name in unseen:
            raise ValueError(f"layer {name!r} {unseen[name]}")
    if not chosen and head is None:
        raise ValueError(
            f"layers={layers!r} selects nothing of {model_name}; its {parts}: {listed(named)}"
        )
    reasons |= dict(network.skipped) | dict(unseen)
    reasons |= {name: "it did not run" for name in ordered if name not in set(network.order)}
    skipped = {
        name: reasons.get(name) or _why(name, chosen, head, separator, automatic)
        for name in ordered
        if name != head and name not in set(chosen)
    }
    return Selection(
        tuple(chosen),
        head,
        no_head,
        network.width,
        network.threshold,
        network.place,
        skipped,
        note=network.note,
        head_kind=head_kind,
    )


def matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Return the names that a name or pattern selects, in the order of the names; ValueError where one selects nothing."""
    names = list(names)
    chosen: set[str] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ValueError(
                f"layers={list(patterns)!r}: {pattern!r} is a {type(pattern).__name__}, and names are strings; the "
                f"model has {listed(names)}"
            )
        selected = [name for name in names if matches(pattern, name)]
        if not selected:
            deep = pattern.replace("**", "*").replace("*", "**")
            more = any(matches(deep, name) for name in names)
            hint = (
                f"; `*` stays within one part of a name, and {deep!r} crosses parts" if more else ""
            )
            raise ValueError(
                f"layers={list(patterns)!r}: {pattern!r} matches no module; the model has "
                f"{listed(names)}{did_you_mean(pattern, names)}{hint}"
            )
        chosen.update(selected)
    return [name for name in names if name in chosen]


def nothing_counted(layer: str, call: int, watched: Sequence[str]) -> ValueError:
    """Return the error for a layer, or a call of it, that has no moments."""
    return ValueError(
        f"layer {layer!r} has counted nothing (call {call}); watched are "
        f"{', '.join(watched) or 'no layers yet'}{did_you_mean(layer, watched)}"
    )


def _why(
    name: str, chosen: Sequence[str], head: str | None, separator: str, automatic: bool
) -> str:
    """Return why a layer that ran is not watched, as its place among the others tells."""
    for parent in chosen:
        if name.startswith(parent + separator):
            return f"inside {parent}, which is watched"
    if any(layer.startswith(name + separator) for layer in chosen):
        return "its parts are watched"
    if head is not None and head.startswith(name + separator):
        return "it holds the head"
    if not automatic:
        return "not chosen by layers="
    return "not all of the signal passes it; name it in layers= to watch it"
