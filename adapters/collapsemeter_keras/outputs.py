"""Which of a model's outputs are the scores, and what belongs to them among targets and weights."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import keras

from collapsemeter.adapter.network import Scores, find_scores

from .operations import Tensor
from .reduction import OPERATIONS


class Output(NamedTuple):
    """The scores among what a model gives: their key or position (None for the only output), and place in words."""

    key: Hashable
    scores: Tensor
    place: str


class OutputChoice(NamedTuple):
    """The user's ``scores=`` and ``labels=``, either of which may name an output."""

    scores: Scores = "auto"
    labels: Any = None
    names: Sequence[str] = ()  # of the outputs, as Keras calls them

    def find(
        self,
        output: Any,
        num_classes: int | None,
        is_tensor: Callable[[Any], bool] = lambda value: is_float_tensor(value),
    ) -> Output:
        """Return the scores among what the model gave.

        Raises
        ------
        ValueError
            If there are none, or several may be.
        """
        listed = isinstance(output, tuple | list) and not hasattr(output, "_fields")
        asked = self._asked(output, listed)
        if listed and isinstance(asked, str) and asked in self.names:
            asked = list(self.names).index(asked)
        scores, place = find_scores(output, asked, is_tensor=is_tensor, num_classes=num_classes)
        keyed = (
            output.items() if isinstance(output, Mapping) else enumerate(output) if listed else ()
        )
        key = next((key for key, part in keyed if part is scores), None)
        return Output(key, scores, place)

    def _asked(self, output: Any, listed: bool) -> Scores:
        keys = output if isinstance(output, Mapping) else self.names if listed else ()
        if self.scores != "auto":
            alone = not isinstance(output, Mapping) and not listed and self.scores in self.names
            return "auto" if alone else self.scores
        return self.labels if isinstance(self.labels, str) and self.labels in keys else "auto"


def is_float_tensor(value: Any) -> bool:
    """Whether something is a tensor of floats, with values or without."""
    return OPERATIONS.is_tensor(value) and bool(
        keras.backend.is_float_dtype(keras.backend.standardize_dtype(value.dtype))
    )


def of_output(part: Any, key: Hashable) -> Any:
    """Return what belongs to an output: of several targets or weights that under its key."""
    if isinstance(part, Mapping):
        return part.get(key)
    if isinstance(part, list | tuple):
        return part[key] if isinstance(key, int) and key < len(part) else None
    return part
