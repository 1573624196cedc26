"""From what a step computed to a stream's sums: labels, decisions and one row per label."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Any

import keras
from keras import ops
from keras.src.backend.common.masking import get_keras_mask

from collapsemeter.adapter.budget import Clock
from collapsemeter.adapter.reduction import BatchError, Layout, feature_rows, reduction_of
from collapsemeter.adapter.selection import Selection
from collapsemeter.adapter.settings import Settings
from collapsemeter.system.warning import warn

from .labels import class_labels, decided_classes, given_labels, without_masked
from .operations import BACKEND, Key, Tensor
from .outputs import Output, OutputChoice, of_output
from .reduction import OPERATIONS
from .selection import layout_of
from .state import StreamSums
from .stateless import NO_PLACE

NO_STEP = (
    "no step ran since it began; run fit or evaluate with the meter among callbacks=, or forwards of a loop of your own "
    "in `with meter.batch(labels):`"
)
_CHANNELS_LAST = Layout(channels_first=False, width=None)  # as Keras has them unless told otherwise


class BatchCounter:
    """Adds batches to the streams of a model; a failure of ours marks a layer and never stops a step."""

    def __init__(
        self,
        selection: Selection,
        settings: Settings,
        outputs: OutputChoice,
        streams: Mapping[str, StreamSums],
        degraded: dict[str, str],
        strict: bool,
        clock: Clock,
    ) -> None:
        self.selection, self.settings, self.outputs = selection, settings, outputs
        self.streams, self.degraded, self.strict, self.clock = streams, degraded, strict, clock
        self.without_loss: set[str] = set()  # streams whose last step had no loss yet
        self.lost: dict[str, str] = {}  # why what a stream's steps counted did not come back
        self.unpaired: dict[str, str] = {}  # layers whose output no rule pairs with the labels
        self._layouts = {name: layout_of(parts) for name, parts in selection.before.items()}

    def begin(self, stream: str) -> StreamSums:
        """Return what a step counts to, and suspect it of having no loss until one is seen."""
        self.without_loss.add(stream)
        if stream == "train":
            self.clock.begin(perf_counter())
        return self.streams[stream]

    def count(self, stream: StreamSums, outputs: dict[Key, Any], step: dict[str, Any]) -> None:
        """Add one batch to a stream; nothing of ours reaches the step."""
        self.without_loss -= {name for name, sums in self.streams.items() if sums is stream}
        if self.degraded.keys() & {"shapes", "batch"}:
            return
        try:
            self.add(stream, outputs, step)
        except Exception as error:
            self.degrade("batch", error)

    def add(self, stream: StreamSums, outputs: dict[Key, Any], step: dict[str, Any]) -> None:
        """Add one batch to a stream, or raise ValueError where labels and scores do not fit."""
        started = perf_counter()
        stream.within_budget(lambda: self._add(stream, outputs, step))
        if stream is self.streams.get("train"):
            self.clock.spend_since(started)

    def _add(self, stream: StreamSums, outputs: dict[Key, Any], step: dict[str, Any]) -> None:
        output = self._output(step.get("y_pred"))
        y = given_labels(step.get("x"), step.get("y"), self.outputs.labels, output.key)
        labels = class_labels(y, output.scores, self.settings)
        weight = of_output(step.get("sample_weight"), output.key)
        labels = without_masked(labels, output.scores, weight, self.settings.ignore_index)
        rows = self.rows(outputs, step.get("y_pred"), tuple(labels.shape))
        decided = decided_classes(output.scores, self.selection.threshold)
        stream.count(rows, ops.reshape(labels, (-1,)), decided)

    def rows(
        self, outputs: dict[Key, Any], y_pred: Any, labels: tuple[int | None, ...] | None = None
    ) -> dict[Key, Tensor]:
        """Reduce what the layers gave to one row per label; a layer that fails is left out."""
        scores = self._output(y_pred).scores
        shape = tuple(scores.shape[:-1]) if labels is None else labels
        rows = {}
        for (name, call), output in outputs.items():
            if name in self.degraded or name in self.unpaired:
                continue
            reduction = reduction_of(self.settings.reduction, name)
            try:
                if name in self.selection.turned and len(shape) == 1 and not callable(reduction):
                    output = _samples_first(output)
                rows[name, call] = feature_rows(
                    output,
                    shape,
                    _mask_of(output, scores),
                    OPERATIONS,
                    layer=name,
                    layout=self._layouts.get(name) or _CHANNELS_LAST,
                    reduction=reduction,
                )
            except BatchError as error:
                if _is_of_batch(error):
                    raise
                self.unpaired[name] = str(error)
            except Exception as error:
                self.degrade(name, error)
        return rows

    def _output(self, y_pred: Any) -> Output:
        """Return the scores, (..., C) or (..., 1), of a step."""
        classes = self.settings.num_classes
        output = self.outputs.find(y_pred, classes)
        if len(output.scores.shape) == 1:
            output = output._replace(scores=ops.expand_dims(output.scores, -1))
        width = output.scores.shape[-1]
        if width != classes and (classes, width) != (2, 1):
            raise ValueError(
                f"{output.place} holds scores of width {width} and there are {classes} classes: pass "
                "num_classes=, or scores= to name other scores"
            )
        return output

    def degrade(self, part: str, error: Exception) -> None:
        """Leave a layer (or the whole batch) out from here on, and warn once; raise if strict."""
        if self.strict:
            raise error
        if part in self.degraded:
            return
        self.degraded[part] = f"{type(error).__name__}: {error}"
        what = f"layer {part!r}" if part in self.selection.watched else "anything"
        warn(
            f"collapsemeter could not measure {what} and leaves it out from here on; training "
            f"goes on ({type(error).__name__}: {error})"
        )


def _samples_first(output: Any) -> Any:
    """Return (T, B, d) as (B, T, d)."""
    is_sequence = OPERATIONS.is_tensor(output) and len(output.shape) == 3
    return ops.swapaxes(output, 0, 1) if is_sequence else output


def _is_of_batch(error: BatchError) -> bool:
    """Whether labels and batch differ in size, so that no layer may count."""
    return str(error.args[-1]).startswith("the layer ran on a batch")


def _mask_of(output: Any, scores: Tensor) -> Any:
    """Return the mask of a sequence: its own, or that of the scores."""
    mask = get_keras_mask(output) if OPERATIONS.is_tensor(output) else None
    return get_keras_mask(scores) if mask is None else mask


def why_nothing(model: keras.Model, counter: BatchCounter, stream: str) -> str:
    """Return the likely cause of a stream in which nothing was counted."""
    step = "train_step" if stream == "train" else "test_step"
    for part in ("learning", "shapes", "batch"):
        if part in counter.degraded:
            return counter.degraded[part]
    name = type(model).__name__
    if BACKEND == "jax" and not any(isinstance(metric, StreamSums) for metric in model.metrics):
        return NO_PLACE.format(model=name)
    if stream in counter.lost:
        return counter.lost[stream]
    if stream in counter.without_loss:
        return (
            f"{name}.{step} does not call `self.compute_loss(x=, y=, "
            "y_pred=)`, which is where labels and features meet: call it there, put the forward into "
            "`with meter.batch(labels):`, or measure with probe= or observe()"
        )
    return NO_STEP
