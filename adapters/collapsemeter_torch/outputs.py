"""Which of a model's outputs are the scores, and on which axis they have the classes."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from collapsemeter.adapter.network import Scores, find_scores

from .trace import Call


def scores_of(output: Any, asked: Scores, num_classes: int | None) -> tuple[Tensor, str]:
    """Return the scores among what a model returned, and their place in words.

    Some models return a tuple in training and the scores alone in eval mode: then no key is needed.
    """
    alone = not callable(asked) and is_float(output)
    return find_scores(
        output, "auto" if alone else asked, is_tensor=is_float, num_classes=num_classes
    )


def is_float(value: Any) -> bool:
    """Whether something is a tensor of floats."""
    return isinstance(value, Tensor) and value.is_floating_point()


def class_axis(scores: Tensor, calls: Sequence[Call], num_classes: int | None) -> int:
    """Return which axis of scores has one entry a class: the second of maps, else the last."""
    if scores.ndim < 3:
        return -1
    last, second = scores.shape[-1], scores.shape[1]
    if scores.ndim > 3 or (num_classes == second != last):
        return 1
    modules = [call.module for call in calls if call.tensor is scores]
    return 1 if modules and isinstance(modules[0], nn.Conv1d) else -1
