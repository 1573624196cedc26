"""A meter on one model: what was learnt of it, what is counted, and the wrappers that count it."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

import keras
from keras import tree

from collapsemeter.adapter.budget import Budget, Clock
from collapsemeter.adapter.reduction import check_reduction
from collapsemeter.adapter.selection import Selection
from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.head import Head
from collapsemeter.system.terminal import say
from collapsemeter.system.warning import warn

from . import frozen
from .head import head_of
from .instrument import Instrument, Run, renew_steps, synchronise
from .memory import Plan, plan_of
from .operations import BACKEND, is_traced
from .outputs import OutputChoice
from .positions import with_position
from .selection import Request, select
from .state import Holdings, StreamSums
from .stateless import DROPPED, drops, with_deferred
from .study import output_names, study
from .updating import BatchCounter
from .variables import nbytes_of


class Attachment:
    """Wrappers and statistics on a model; what is watched is chosen once its inputs are known."""

    def __init__(
        self,
        model: keras.Model,
        request: Request,
        budget: Budget,
        clock: Clock,
        degraded: dict[str, str],
        *,
        observing: bool = False,
    ) -> None:
        self.observing = observing  # frozen passes are all that it is for
        self.request, self.budget, self.clock, self.degraded = request, budget, clock, degraded
        self.selection: Selection | None = None
        self.streams: dict[str, StreamSums] = {}
        self.probing: tuple[StreamSums, frozen.Step] | None = None
        self.attached = True
        self.holdings = Holdings()
        self.plan: Plan | None = None
        self._forward = 0, 1  # operations for a row of the input, and its rows of scores
        self._said = False
        self.in_the_dark = False  # a step ran of which nothing is known
        self._model = weakref.ref(model)
        self.outputs = OutputChoice(request.scores, request.labels, output_names(model))
        self.instrument = Instrument(
            model,
            self._begin,
            self._count,
            self.prepare,
            self._settle,
            in_steps=not observing,
        )
        self._layers: tuple[Any, ...] = ()
        try:
            self.learn()
        except Exception:
            self.leave()
            raise
        if not observing:
            renew_steps(model)

    # Learning

    def learn(self, inputs: Any = None) -> None:
        """Choose what is watched, and make room for it, where the model's inputs are known by now."""
        model = self._model()
        if model is None or not self.attached:
            return
        if self.selection is None:
            self._choose(model, self._specs(model, inputs))
        if self.selection is None:
            return
        if model.built and not self.observing and not self.streams["train"].layers:
            self._find_shapes(model, "train")
        if self.request.verbose and not self._said:
            self._said = True
            say(self.describe())

    def prepare(self, stream: str) -> None:
        """Have what a step writes to among the model's metrics, before the step is made.

        Statistics of validation are there only while it runs: `fit` without validation data holds none.
        """
        self.learn()
        model, sums = self._model(), self.streams.get("validation")
        if model is None or sums is None or not self.attached:
            return
        if stream == "train":
            self.end_validation()
            return
        if not any(metric is sums for metric in model._metrics):
            model._metrics.append(sums)
        if model.built and not sums.layers:
            self._find_shapes(model, "validation")

    def end_validation(self) -> None:
        """Leave the statistics of validation out of the steps that train."""
        model = self._model()
        if model is not None:
            synchronise(model)  # while its list of metrics is that of the step's state
            _remove(model, [sums for name, sums in self.streams.items() if name == "validation"])

    def _specs(self, model: keras.Model, inputs: Any) -> list[Any]:
        """Return what the model takes, in its likeliest dtype first; nothing where that is not known yet."""
        example = self.request.example if inputs is None else inputs
        if example is not None:
            specs = frozen.specs_of(example)
            if not model.built:
                frozen.build(model, specs)
            return [specs]
        return frozen.input_specs(model) if model.built else []

    def _choose(self, model: keras.Model, guesses: list[Any]) -> None:
        request = self.request
        learnt = None
        for specs in guesses:
            learnt = study(model, specs, self.outputs, request.num_classes)
            if learnt.network.width is not None:
                break
        if learnt is None:
            return
        self._forward = learnt.operations, learnt.labels
        selection = select(model, learnt, request.layers, request.head, request.max_layers)
        check_reduction(request.options["reduction"], selection.watched)
        options = dict(request.options)
        if learnt.position is not None and selection.head == learnt.network.head:
            options["reduction"] = with_position(
                options["reduction"], str(selection.head), learnt.position
            )
        self.settings = Settings(selection.classes(request.num_classes), **options)
        self.selection = selection
        if not self.observing:
            train = StreamSums("collapsemeter_train", self.settings, self.holdings, self.budget)
            validation = StreamSums("collapsemeter_validation", self.settings, self.holdings)
            self.streams |= {"train": train, "validation": validation}
            model._metrics.append(train)
        self.counter = self._counter(self.streams, self.degraded, request.strict, self.clock)
        self.instrument.watch(selection)

    def _counter(
        self,
        streams: Mapping[str, StreamSums],
        degraded: dict[str, str],
        strict: bool,
        clock: Clock,
    ) -> BatchCounter:
        assert self.selection is not None
        return BatchCounter(
            self.selection, self.settings, self.outputs, streams, degraded, strict, clock
        )

    def _find_shapes(self, model: keras.Model, stream: str) -> None:
        error: Exception | None = None
        for specs in self._specs(model, None):
            try:
                self._allocate(self.streams[stream], specs)
            except frozen.ShapesUnknown as unknown:  # a model that looks its inputs up in a table
                error = unknown
                continue
            except Exception as failure:
                error = failure
            else:
                return
            break
        if (
            BACKEND == "jax" and error is not None
        ):  # the others make variables when a step is traced
            of_shapes = isinstance(error, frozen.ShapesUnknown)
            self.counter.degrade("shapes" if of_shapes else "batch", error)

    def _allocate(self, stream: StreamSums, specs: Any) -> None:
        """Make the variables of a stream, within what all layers together may take."""
        model = self._model()
        assert model is not None
        shapes = frozen.find_shapes(model, self.instrument.stash, stream, specs, self.counter.rows)
        if self.plan is None and shapes and self.selection is not None:
            self.plan = plan_of(
                shapes,
                self.selection.watched,
                self.settings,
                nbytes_of(model.weights),
                self.request.memory,
            )
            self.holdings.layers = self.plan.memory.holdings
            self.holdings.waiting_rows = self.plan.memory.waiting_rows
        for key, (width, dtype) in shapes.items():
            stream.allocate(key, width, dtype)
        stream.let_wait()

    # Steps

    def _begin(self, stream: str, data: Any) -> StreamSums | None:
        """Return what a step counts to; of a model that its first step builds, learn what it is first."""
        if self.selection is None and data is not None and "learning" not in self.degraded:
            try:
                x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
                self.learn(x)
            except frozen.NotRunnable as error:  # what the user asked for in vain is an error
                self.give_up(error)
        if self.selection is None:
            self.in_the_dark = True
            return None
        return self.counter.begin(stream)

    def give_up(self, error: Exception) -> None:
        """Measure nothing of a model that cannot be learnt, and say so once."""
        if self.request.strict:
            raise error
        self.degraded["learning"] = str(error)
        warn(
            f"collapsemeter could not learn what the model computes and measures nothing; training goes on: {error}"
        )

    def _count(self, stream: StreamSums, outputs: dict[Any, Any], step: dict[str, Any]) -> None:
        self.counter.count(stream, outputs, step)

    def _settle(self, stream: str, arguments: tuple[Any, ...], result: Any) -> Any:
        """Return what a step of JAX gave, with what was counted outside of Keras' own scope."""
        model, sums = self._model(), self.streams[stream]
        assert model is not None
        deferred = self.instrument.stash.deferred
        try:
            if deferred:
                return with_deferred(model, sums, result, lambda: self._count_all(sums, deferred))
            if stream not in self.counter.without_loss and drops(model, sums, arguments[0], result):
                step = "train_step" if stream == "train" else "test_step"
                self.counter.lost[stream] = DROPPED.format(model=type(model).__name__, step=step)
        except Exception as error:
            self.counter.degrade("batch", error)
        return result

    def _count_all(self, sums: StreamSums, deferred: Sequence[tuple[Any, Any]]) -> None:
        for outputs, step in deferred:
            self._count(sums, outputs, step)

    # Blocks of loops that the user wrote

    def enter(self, run: Run, stream: str | None) -> str:
        """Wait for the forward of a block; return what it counts to."""
        under_way = self.instrument.stash.stream
        running = next((name for name, sums in self.streams.items() if sums is under_way), None)
        self.instrument.enter(run)
        if running is None and stream in (None, "train"):
            self.clock.begin(perf_counter())
        return stream or running or "train"

    def sums_of(self, stream: str, inputs: Any) -> StreamSums:
        """Return what a forward counts to; of the first one of a model, learn what the model is."""
        model = self._model()
        assert model is not None
        sums = self.streams.get(stream)
        if sums is None or not sums.layers:
            if any(map(is_traced, tree.flatten(inputs))):
                raise ValueError(
                    f"{type(model).__name__} is not known yet, and JAX makes no variables in a step that it traces: "
                    "run the model once before the first step, or pass example=, a batch of inputs; then take "
                    "meter.statistics()"
                )
            self.learn(inputs)
            if model.built:
                return self.allocated(stream)
        return self.streams[stream]

    def allocated(self, stream: str) -> StreamSums:
        """Return the statistics of a stream, with variables for every layer."""
        model, sums = self._model(), self.streams[stream]
        assert model is not None
        if not sums.layers:
            self._find_shapes(model, stream)
        return sums

    # Passes with frozen weights

    def frozen_pass(self, model: keras.Model, x: Any) -> tuple[StreamSums, frozen.Step]:
        """Return empty sums and the step that fills them; the next pass finds it compiled."""
        if self.probing is None:
            sums = StreamSums("collapsemeter_probe", self.settings, self.holdings)
            # Asked for by name: a failure is an error.
            counter = self._counter({}, {}, True, Clock())
            step = frozen.frozen_step(
                model,
                self.instrument.stash,
                sums,
                counter.count,
                self._allocate,
            )
            self.probing = sums, step
            self.probe_counter = counter
            if self.plan is None:  # elsewhere it is made for the streams of `fit`
                with suppress(Exception):  # the step says it better
                    self._allocate(sums, frozen.specs_of(x))
        self.probing[0].clear()
        return self.probing

    def may_resume(self, model: keras.Model) -> bool:
        """Whether this is the model that was observed before, unchanged."""
        same = self._model() is model and self._layers == _identities(model)
        return same and self.selection is not None and self.instrument.fits()

    def resume(self) -> None:
        """Put the wrappers back for another pass."""
        if not self.attached:
            self.attached = True
            self.instrument.restore()

    def pause(self) -> None:
        """Leave the model as it was until `resume`; what was compiled is kept."""
        self.attached = False
        self.instrument.remove()
        model = self._model()
        if model is not None:
            self._layers = _identities(model)

    # What a report needs

    def head(self) -> Head | None:
        """Return the head's weights on the host."""
        assert self.selection is not None
        asked = self.request.head
        weights = asked[1] if isinstance(asked, tuple) else None
        return head_of(self.selection.head_module, self.selection.width, weights)

    def describe(self, full: bool = False) -> str:
        """Return what is watched and, for every other layer, why it is not."""
        if self.selection is None:
            return (
                "collapsemeter has not seen what the model takes: it chooses layers at the first batch, or "
                "pass example="
            )
        notes = [] if self.plan is None else self.plan.notes(*self._forward)
        return self.selection.describe(self.settings.num_classes, full=full, notes=notes)

    def leave(self) -> None:
        """Leave the model as it was."""
        if not self.attached:
            return
        self.attached = False
        self.probing = None
        model = self._model()
        if model is not None:
            synchronise(model)  # while its list of metrics is that of the step's state
        self.instrument.remove()
        if model is not None and not self.observing:
            _remove(model, [*self.streams.values()])
            renew_steps(model)


def _identities(model: keras.Model) -> tuple[Any, ...]:
    """Return what tells whether a model still has the layers and variables that it had."""
    layers = model._flatten_layers(include_self=False)
    policies = tuple((id(layer), layer.dtype_policy.name) for layer in layers)
    return (*policies, *map(id, model.variables))


def _remove(model: keras.Model, streams: Sequence[StreamSums]) -> None:
    """Take streams from a model's metrics."""
    model._metrics[:] = [
        metric for metric in model._metrics if not any(metric is sums for sums in streams)
    ]
