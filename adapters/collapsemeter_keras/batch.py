"""The block in which a forward of a loop that the user wrote is counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from keras import tree
from keras.src.backend.common.stateless_scope import get_stateless_scope

from collapsemeter.adapter.batches import require_labels
from collapsemeter.system.warning import warn

from .operations import BACKEND, Key, Tensor, detached, is_foreign, is_traced

if TYPE_CHECKING:
    from .attachment import Attachment

_COMPILED = (
    "the model ran inside a compiled function in a `with meter.batch(labels)` block that is outside of it: put the "
    "block into the function, around the forward"
)
_NOT_RUN = (
    "the model did not run inside `with meter.batch(labels)`: put the block around the forward; inside a function "
    "that is compiled, not around its call"
)
_STATELESS = (
    "JAX throws away what a compiled step writes: take `statistics = meter.statistics()`, pass it through the step "
    "as it passes the model's variables, and count in `with meter.batch(labels, statistics) as batch:`, whose "
    "`batch.statistics` the step returns"
)
_AGAIN = (
    "the model ran more than once in one `with meter.batch(labels)` block: only the first "
    "forward was counted; give every forward a block of its own"
)


class Batch:
    """A block around a forward; the first forward of the model in it belongs to the labels.

    Attributes
    ----------
    statistics : list of tensors, or None
        What was counted with this batch, of the statistics that the block was given.
    """

    def __init__(
        self,
        attachment: Attachment,
        labels: Any,
        stream: str | None,
        statistics: Sequence[Tensor] | None,
    ) -> None:
        require_labels(labels)
        if statistics is not None and BACKEND != "jax":
            raise ValueError(
                f"statistics= is for steps of JAX, which write to nothing: on {BACKEND} leave it out"
            )
        self.statistics: list[Tensor] | None = None if statistics is None else list(statistics)
        self._attachment, self._labels, self._named = attachment, labels, stream
        self._stream = "train"
        self._outputs: dict[Key, Any] | None = None
        self._inputs: Any = None
        self._scores: Any = None
        self._again = False

    def __enter__(self) -> Batch:
        self._stream = self._attachment.enter(self._run, self._named)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._attachment.instrument.leave()
        if kind is not None:
            return
        if self._outputs is None:
            raise ValueError(_NOT_RUN)
        self._count(self._outputs)
        if self._again:
            warn(_AGAIN)

    def _run(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a forward of the model; the first one is noted."""
        if self._outputs is not None:
            self._again = True
            return original(*args, **kwargs)
        self._inputs = args[0] if args else next(iter(kwargs.values()), None)
        attachment = self._attachment
        sums = attachment.sums_of(self._stream, self._inputs)
        with attachment.instrument.stash.open(sums):
            result = original(*args, **kwargs)
            outputs = attachment.instrument.stash.pop_outputs()
        # Out of the functions that gradients are taken of: their tensors are not known outside.
        self._outputs = {key: tree.map_structure(detached, part) for key, part in outputs.items()}
        self._scores = tree.map_structure(detached, result)
        return result

    def _count(self, outputs: dict[Key, Any]) -> None:
        attachment, stash = self._attachment, self._attachment.instrument.stash
        sums = attachment.streams[self._stream]
        step = {"x": self._inputs, "y": self._labels, "y_pred": self._scores}
        tensors = [*tree.flatten(self._scores), *tree.flatten(outputs)]
        if any(is_foreign(tensor) for tensor in tensors):
            raise ValueError(_COMPILED)
        if self.statistics is not None:
            self.statistics = sums.counted_in(
                self.statistics, lambda: attachment.counter.add(sums, outputs, step)
            )
        elif stash.stream is not None and BACKEND == "jax":
            stash.deferred.append((outputs, step))  # until the step of `fit` has its state
        elif get_stateless_scope() is None and any(map(is_traced, [*tensors, self._labels])):
            raise ValueError(_STATELESS)
        else:
            attachment.counter.add(sums, outputs, step)
