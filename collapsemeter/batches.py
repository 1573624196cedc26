"""Batches as people keep them: shown while they pass, and taken apart into inputs and labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from typing import Any

from .plain import check_unmasked


def shown(batches: Iterable[Any], progress: bool) -> Iterable[Any]:
    """Return the batches, with a progress bar on standard error if asked for.

    Raises
    ------
    ValueError
        If they cannot be iterated over.

    Examples
    --------
    >>> list(shown([1, 2], progress=False))
    [1, 2]
    """
    if not isinstance(batches, Iterable) and not hasattr(batches, "__getitem__"):
        raise ValueError(
            f"observe got a {type(batches).__name__}: pass an iterable of (inputs, labels) pairs"
        )
    if not progress:
        return batches
    from rich.console import Console
    from rich.progress import track

    try:
        total = len(batches) if isinstance(batches, Sized) else None
    except TypeError:  # a loader over an iterable has no length
        total = None
    return track(batches, "observing", total=total, console=Console(stderr=True))


def split(item: Any) -> tuple[Any, Any, Any]:
    """Return inputs, labels and attention mask (or None) of a batch.

    Parameters
    ----------
    item : pair (inputs, labels), or mapping with "labels" and perhaps "attention_mask"

    Raises
    ------
    ValueError
        If it is neither.

    Examples
    --------
    >>> split(("x", "y")), split({"ids": 1, "labels": 2})
    (('x', 'y', None), ({'ids': 1}, 2, None))
    """
    if isinstance(item, Mapping) and "labels" in item:
        inputs = {name: value for name, value in item.items() if name != "labels"}
        return inputs, _unmasked(item["labels"]), item.get("attention_mask")
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], _unmasked(item[1]), None
    length = f" of length {len(item)}" if isinstance(item, tuple | list) else ""
    raise ValueError(
        f"observe got a {type(item).__name__}{length}: each batch is a pair (inputs, labels) or a "
        "dict with 'labels'"
    )


def _unmasked(labels: Any) -> Any:
    check_unmasked(labels, "labels")
    return labels


def check_phase(phase: str) -> None:
    """Raise ValueError unless a frozen pass may be called that.

    Examples
    --------
    >>> check_phase("live")
    Traceback (most recent call last):
        ...
    ValueError: phase='live': choose 'frozen-eval' or 'frozen-train'
    """
    if phase not in ("frozen-eval", "frozen-train"):
        raise ValueError(f"phase={phase!r}: choose 'frozen-eval' or 'frozen-train'")


def no_batch(batches: Any) -> ValueError:
    """Return the error for data that held no batch at all.

    Examples
    --------
    >>> no_batch([])
    ValueError('observe got no batch from list: pass (inputs, labels) pairs')
    """
    return ValueError(
        f"observe got no batch from {type(batches).__name__}: pass (inputs, labels) pairs"
    )
