"""A meter on one model: what was learnt of it, what is counted, and the wrappers that count it."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras

from collapsemeter.adapter.budget import Budget, Clock
from collapsemeter.adapter.memory import Holding, Memory, MemoryPlan, memory_plan
from collapsemeter.adapter.network import Scores
from collapsemeter.adapter.reduction import check_reduction
from collapsemeter.adapter.selection import MAX_LAYERS, Selection
from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.head import Head
from collapsemeter.system.terminal import say
from collapsemeter.system.warning import warn

from . import frozen
from .counting import BatchCounter
from .head import head_of
from .instrument import Instrument, renew_steps, synchronise
from .layers import HeadChoice, Layers, select
from .operations import BACKEND
from .outputs import OutputChoice
from .statistics import StreamSums, nbytes_of
from .study import output_names, study

_STREAMS = 2  # training and validation, which both have variables from the start


@dataclass(frozen=True)
class Choices:
    """What a user asks of a meter, before there is a model."""

    layers: Layers = "auto"
    head: HeadChoice = "auto"
    num_classes: int | None = None
    scores: Scores = "auto"
    labels: Any = None
    example: Any = None
    max_layers: int = MAX_LAYERS
    memory: Memory = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)  # of `Settings`
    strict: bool = False
    verbose: bool = True


class Attachment:
    """Wrappers and statistics on a model; what is watched is chosen once its inputs are known."""

    def __init__(
        self,
        model: keras.Model,
        choices: Choices,
        budget: Budget,
        clock: Clock,
        degraded: dict[str, str],
    ) -> None:
        self.choices, self.budget, self.clock, self.degraded = choices, budget, clock, degraded
        self.selection: Selection | None = None
        self.streams: dict[str, StreamSums] = {}
        self.probing: tuple[StreamSums, frozen.Step] | None = None
        self.attached = True
        self.holdings: dict[str, Holding] = {}
        self.plan: MemoryPlan | None = None
        self._said = False
        self._model = weakref.ref(model)
        self.outputs = OutputChoice(choices.scores, choices.labels, output_names(model))
        self.instrument = Instrument(model, self._begin, self._count, self.learn)
        try:
            self.learn()
        except Exception:
            self.leave()
            raise
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
        if model.built and not self.streams["train"].layers:
            self._find_shapes(model)
        if self.choices.verbose and not self._said:
            self._said = True
            say(self.describe())

    def _specs(self, model: keras.Model, inputs: Any) -> list[Any]:
        """Return what the model takes, in its likeliest dtype first; nothing where that is not known yet."""
        given = self.choices.example if inputs is None else inputs
        if given is not None:
            specs = frozen.specs_of(given)
            if not model.built:
                frozen.build(model, specs)
            return [specs]
        return frozen.input_specs(model) if model.built else []

    def _choose(self, model: keras.Model, guesses: list[Any]) -> None:
        choices = self.choices
        learnt = None
        for specs in guesses:
            learnt = study(model, specs, self.outputs, choices.num_classes)
            if learnt.network.width is not None:
                break
        if learnt is None:
            return
        selection = select(model, learnt, choices.layers, choices.head, choices.max_layers)
        check_reduction(choices.options["reduction"], selection.watched)
        self.settings = Settings(selection.classes(choices.num_classes), **choices.options)
        train = StreamSums("collapsemeter_train", self.settings, self.holdings, self.budget)
        validation = StreamSums("collapsemeter_validation", self.settings, self.holdings)
        self.selection = selection
        self.streams |= {"train": train, "validation": validation}
        self.counter = self._counter(self.streams, self.degraded, choices.strict, self.clock)
        self.instrument.watch(selection)
        model._metrics.extend([train, validation])

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

    def _find_shapes(self, model: keras.Model) -> None:
        error: Exception | None = None
        for specs in self._specs(model, None):
            try:
                self._allocate([*self.streams.values()], specs)
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

    def _allocate(self, streams: Sequence[StreamSums], specs: Any) -> None:
        """Make the variables of streams, within what all layers together may take."""
        model = self._model()
        assert model is not None
        shapes = frozen.find_shapes(
            model, self.instrument.stash, streams[0], specs, self.counter.rows
        )
        widths = {name: width for (name, _), (width, _) in shapes.items()}
        if self.plan is None and widths and self.selection is not None:
            self.plan = memory_plan(
                {name: widths[name] for name in self.selection.watched if name in widths},
                self.settings,
                parameter_bytes=nbytes_of(model.weights),
                memory=self.choices.memory,
                copies=_STREAMS,
            )
            self.holdings.update(self.plan.holdings)
        for key, (width, dtype) in shapes.items():
            for stream in streams:
                stream.allocate(key, width, dtype)

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
            return None
        return self.counter.begin(stream)

    def give_up(self, error: Exception) -> None:
        """Measure nothing of a model that cannot be learnt, and say so once."""
        if self.choices.strict:
            raise error
        self.degraded["learning"] = str(error)
        warn(
            f"collapsemeter could not learn what the model computes and measures nothing; training goes on: {error}"
        )

    def _count(self, stream: StreamSums, outputs: dict[Any, Any], step: dict[str, Any]) -> None:
        self.counter.count(stream, outputs, step)

    def frozen_pass(self, model: keras.Model) -> tuple[StreamSums, frozen.Step]:
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
                lambda stream, specs: self._allocate([stream], specs),
            )
            self.probing = sums, step
            self.probe_counter = counter
        self.probing[0].clear()
        return self.probing

    # What a report needs

    def head(self) -> Head | None:
        """Return the head's weights on the host."""
        assert self.selection is not None
        asked = self.choices.head
        weights = asked[1] if isinstance(asked, tuple) else None
        return head_of(self.selection.head_module, self.selection.width, weights)

    def describe(self, full: bool = False) -> str:
        """Return what is watched and, for every other layer, why it is not."""
        if self.selection is None:
            return (
                "collapsemeter has not seen what the model takes: it chooses layers at the first batch, or "
                "pass example="
            )
        notes = [] if self.plan is None else [str(self.plan)]
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
        if model is not None:
            streams = [*self.streams.values()]
            model._metrics[:] = [
                metric for metric in model._metrics if not any(metric is sums for sums in streams)
            ]
            renew_steps(model)
