"""A network as one forward pass shows it: its scores, its head, and its layers in the order of the data."""

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Literal

Tensor = Any  # of the framework
Shape = Sequence[int | None]  # None: not known
Scores = Literal["auto"] | Hashable | Callable[[Any], Tensor]


@dataclasses.dataclass(frozen=True)
class Network:
    """A network as one forward pass shows it, in the framework's own names of layers.

    Attributes
    ----------
    order : tuple of str
        Every layer that ran, in the order of first calls.
    points : tuple of str
        Layers whose output the whole signal passes, in the order of the data; one name for each tensor.
        Without the head, without what only passes its input on, and without what is the head's input.
    head : str or None
        The only parametric map whose output is the scores, or becomes them row by row in the same order.
    no_head : str
        Why there is no head, a code of `collapsemeter.stats.undefined.REASONS`.
    width : int or None
        Of the scores' last axis. None where the network has no scores.
    threshold : float
        A single score above it decides for class 1: 0 for a logit, 1/2 for a probability.
    place : str
        Where the scores are in what the model returns, in words.
    skipped : mapping from name to str
        Why a layer that ran is no such point, where more is known than that: "its output is the input
        of fc", "passes its input on".
    note : str
        What else must be said of how the layers were found.
    """

    order: tuple[str, ...]
    points: tuple[str, ...] = ()
    head: str | None = None
    no_head: str = "no_head"
    width: int | None = None
    threshold: float = 0.0
    place: str = "the output"
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    note: str = ""


def find_scores(
    output: Any,
    asked: Scores = "auto",
    *,
    is_tensor: Callable[[Any], bool],
    num_classes: int | None = None,
) -> tuple[Tensor, str]:
    """Return the scores among what a model returned, and their place in words.

    Parameters
    ----------
    output : object
        A tensor, or a tuple, list, mapping, dataclass or object with ``logits``.
    asked : "auto", key, index or callable
        ``auto`` takes a tensor as it is, what is called ``logits``, or the only member whose last axis
        fits the classes.
    is_tensor : callable
        Whether something is a tensor of floats.
    num_classes : int, optional
        C; without it any width fits.

    Raises
    ------
    ValueError
        If there is no such member, or several fit.
    """
    if callable(asked):
        return _checked(asked(output), "what scores= returns", is_tensor)
    if is_tensor(output):
        if asked != "auto":  # the first entry of a tensor is a row
            raise ValueError(
                f"scores={asked!r}: the model returned one tensor, which is the scores: leave scores= out"
            )
        return output, "the output"
    if asked != "auto":
        return _checked(_member(output, asked), _place(output, asked), is_tensor)
    members = dict(_members(output))
    if is_tensor(members.get("logits")):
        return members["logits"], _place(output, "logits")
    tensors = {
        key: value for key, value in members.items() if is_tensor(value) and len(value.shape) > 0
    }
    fitting = {key: value for key, value in tensors.items() if _fits(value, num_classes)}
    if len(fitting) == 1:
        key, value = next(iter(fitting.items()))
        return value, _place(output, key)
    shapes = ", ".join(f"{key!r} {tuple(value.shape)}" for key, value in tensors.items())
    kind = type(output).__name__
    if not tensors:
        raise ValueError(
            f"the model returned a {kind} without a tensor of scores: pass scores=, a callable from it to "
            "the scores"
        )
    classes = "the scores" if num_classes is None else f"the scores of {num_classes} classes"
    which = "none of which fits" if not fitting else "of which several may be"
    raise ValueError(
        f"the model returned a {kind} with {shapes}, {which} {classes}: pass scores=, one of these keys "
        "or a callable"
    )


def single_threshold(score: Callable[[float], float]) -> float:
    """Return above which a single score decides for class 1: what becomes of a logit of 0, and 0 where only shifts and factors act."""
    below, zero, above = (score(logit) for logit in (-1.0, 0.0, 8.0))  # no two of them mirrored
    shift, slope = zero - below, (above - zero) / 8.0
    return 0.0 if abs(shift - slope) <= 1e-4 * max(abs(shift), abs(slope)) else zero


def positions_first(scores: Shape, shapes: Mapping[str, Shape]) -> frozenset[str]:
    """Return the layers that give positions before samples, (T, B, d), by the shapes of what they give.

    Of scores (B,) or (B, C) the first axis holds samples.

    Examples
    --------
    >>> sorted(positions_first((2, 10), {"lstm": (7, 2, 16), "conv": (2, 7, 16)}))
    ['lstm']
    """
    if len(scores) not in (1, 2):
        return frozenset()
    return frozenset(
        layer
        for layer, shape in shapes.items()
        if len(shape) == 3 and shape[1] == scores[0] != shape[0]
    )


def _fits(value: Tensor, num_classes: int | None) -> bool:
    width = value.shape[-1]
    if num_classes is None:
        return len(value.shape) > 1
    return width == num_classes or (width == 1 and num_classes == 2)


def _members(output: Any) -> Iterator[tuple[Any, Any]]:
    """Yield what a container holds, by key or index; fields of a named tuple and a dataclass by name."""
    if isinstance(output, Mapping):
        yield from output.items()
    elif isinstance(output, tuple) and hasattr(output, "_fields"):
        yield from zip(output._fields, output, strict=True)
    elif isinstance(output, tuple | list):
        yield from enumerate(output)
    elif dataclasses.is_dataclass(output):
        for field in dataclasses.fields(output):
            yield field.name, getattr(output, field.name)
    elif hasattr(output, "logits"):
        yield "logits", output.logits


def _member(output: Any, key: Hashable) -> Any:
    if isinstance(key, str) and not isinstance(output, Mapping) and hasattr(output, key):
        return getattr(output, key)
    try:
        return output[key]
    except (KeyError, IndexError, TypeError):
        keys = ", ".join(repr(name) for name, _ in _members(output))
        has = f"with {keys}" if keys else "that has no members"
        raise ValueError(
            f"scores={key!r}: the model returned a {type(output).__name__} {has}"
        ) from None


def _place(output: Any, key: Hashable) -> str:
    named = isinstance(key, str) and not isinstance(output, Mapping)
    return f"output.{key}" if named else f"output[{key!r}]"


def _checked(value: Any, place: str, is_tensor: Callable[[Any], bool]) -> tuple[Tensor, str]:
    if not is_tensor(value):
        raise ValueError(
            f"{place} is a {type(value).__name__}: scores= must give a tensor of floats"
        )
    return value, place
