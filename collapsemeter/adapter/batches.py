"""Batches as people keep them: shown while they pass, and taken apart into inputs and labels."""

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

from ..stats.plain import check_unmasked

_LABELS = ("label", "target", "targets", "class", "y", "fine_label")  # as data sets call them


def each_batch(
    batches: Iterable[Any], progress: bool, source: Any = None, *, may_be_empty: bool = False
) -> Iterator[Any]:
    """Yield every batch of a frozen pass; ValueError where there is none and one must be. ``source`` is what the user passed."""
    source = batches if source is None else source
    if not isinstance(batches, Iterable) and not hasattr(batches, "__getitem__"):
        raise ValueError(
            f"observe got a {type(batches).__name__}: pass an iterable of (inputs, labels) pairs"
        )
    empty = not may_be_empty
    for batch in _with_bar(batches) if progress else batches:
        empty = False
        yield batch
    if empty:
        advice = (
            "what it held was taken before; make a new one, or pass a list or a loader"
            if isinstance(source, Iterator)
            else "pass (inputs, labels) pairs"
        )
        raise ValueError(f"observe got no batch from {type(source).__name__}: {advice}")


def _with_bar(batches: Iterable[Any]) -> Iterable[Any]:
    from rich.console import Console
    from rich.progress import track

    try:
        total = len(batches) if isinstance(batches, Sized) else None
    except TypeError:  # a loader over an iterable has no length
        total = None
    return track(batches, "observing", total=total, console=Console(stderr=True))


def split(item: Any) -> tuple[Any, Any, Any]:
    """Return inputs, labels and attention mask (or None) of a batch: a pair, or a mapping with "labels"."""
    if isinstance(item, Mapping) and "labels" in item:
        inputs = {name: value for name, value in item.items() if name != "labels"}
        return inputs, _unmasked(item["labels"]), item.get("attention_mask")
    if isinstance(item, tuple | list) and len(item) == 2 and not _is_sample(item[1]):
        return item[0], _unmasked(item[1]), None
    raise ValueError(f"observe got {_described(item)}")


def _is_sample(labels: Any) -> bool:
    """Whether these are no labels of a batch: one label, or none."""
    return labels is None or isinstance(labels, int) or getattr(labels, "shape", None) == ()


def _described(item: Any) -> str:
    """Say what a batch is that is not one, and what to pass in its place."""
    advice = "each batch is a pair (inputs, labels) or a dict with 'labels'"
    if isinstance(item, Mapping):
        return _dict_without_labels([str(name) for name in item])
    if not isinstance(item, tuple | list):
        return f"{_shaped(item)}, and {advice}"
    if len(item) > 2:
        advice += ": pass ((b[0], b[1]) for b in loader)"
    elif len(item) == 2:
        advice = "labels are missing" if item[1] is None else "that is one sample and not a batch"
        advice += ": pass a loader that gives batches (inputs, labels)"
    parts = ", ".join(map(_shaped, item))
    return f"a {type(item).__name__} of {len(item)} ({parts}), and {advice}"


def _dict_without_labels(names: list[str]) -> str:
    labels = next((name for name in names if name.lower() in _LABELS), None)
    inputs = [name for name in names if name != labels]
    if labels is None:
        example = "a pair (inputs, labels) for each batch"
    elif len(inputs) == 1:
        example = f"((b[{inputs[0]!r}], b[{labels!r}]) for b in loader)"
    else:
        inputs_alone = f"{{k: v for k, v in b.items() if k != {labels!r}}}"
        example = f"(({inputs_alone}, b[{labels!r}]) for b in loader)"
    return f"a dict with the keys {', '.join(map(repr, names)) or 'none'} and no 'labels': pass {example}"


def _shaped(part: Any) -> str:
    shape = getattr(part, "shape", None)
    return f"a {type(part).__name__}" + ("" if shape is None else f" of shape {tuple(shape)}")


def require_labels(labels: Any) -> None:
    """Raise ValueError where labels were forgotten, or are still in the batch that they came in."""
    if labels is None:
        raise ValueError(
            "labels are None: pass those of this batch, one integer class for each row"
        )
    if isinstance(labels, Mapping):
        names = [str(name) for name in labels]
        near = [name for name in names if name.lower() in ("labels", *_LABELS)]
        raise ValueError(
            f"labels are a {type(labels).__name__} with the keys {', '.join(map(repr, names)) or 'none'}: pass the "
            f"labels alone, batch[{near[0] if near else 'KEY'!r}]"
        )


def _unmasked(labels: Any) -> Any:
    check_unmasked(labels, "labels")
    return labels


def check_frozen_phase(phase: str) -> None:
    """Raise ValueError unless a frozen pass may be called that."""
    if phase not in ("frozen-eval", "frozen-train"):
        raise ValueError(f"phase={phase!r}: choose 'frozen-eval' or 'frozen-train'")
