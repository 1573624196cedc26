"""A meter on one model: what was learnt of it, what is counted, and the wrappers that count it."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras

from collapsemeter.adapter.budget import Budget, Clock
from collapsemeter.adapter.costs import product_operations, products_note
from collapsemeter.adapter.memory import MIB, Memory, MemoryPlan, budget_of, memory_plan
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
from .namespaces import class_products
from .operations import BACKEND
from .outputs import OutputChoice
from .positions import with_position
from .statistics import Holdings, StreamSums
from .study import output_names, study
from .variables import nbytes_of
from .waiting import waiting_bytes

_STREAMS = 2  # training and validation


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
        self.holdings = Holdings()
        self.plan: MemoryPlan | None = None
        self._memory = self._time = ""  # that counting takes, in words
        self._forward = 0, 1  # operations for a row of the input, and its rows of scores
        self._said = False
        self._model = weakref.ref(model)
        self.outputs = OutputChoice(choices.scores, choices.labels, output_names(model))
        self.instrument = Instrument(model, self._begin, self._count, self.prepare)
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
            self._find_shapes(model, "train")
        if self.choices.verbose and not self._said:
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
        self._forward = learnt.operations, learnt.labels
        selection = select(model, learnt, choices.layers, choices.head, choices.max_layers)
        check_reduction(choices.options["reduction"], selection.watched)
        options = dict(choices.options)
        if learnt.position is not None and selection.head == learnt.network.head:
            options["reduction"] = with_position(
                options["reduction"], str(selection.head), learnt.position
            )
        self.settings = Settings(selection.classes(choices.num_classes), **options)
        train = StreamSums("collapsemeter_train", self.settings, self.holdings, self.budget)
        validation = StreamSums("collapsemeter_validation", self.settings, self.holdings)
        self.selection = selection
        self.streams |= {"train": train, "validation": validation}
        self.counter = self._counter(self.streams, self.degraded, choices.strict, self.clock)
        self.instrument.watch(selection)
        model._metrics.append(train)

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
        widths = {name: width for (name, _), (width, _) in shapes.items()}
        if self.plan is None and widths and self.selection is not None:
            self._plan({name: widths[name] for name in self.selection.watched if name in widths})
        for key, (width, dtype) in shapes.items():
            stream.allocate(key, width, dtype)
        stream.let_wait()

    def _plan(self, widths: Mapping[str, int]) -> None:
        model = self._model()
        assert model is not None
        parameter_bytes = nbytes_of(model.weights)
        memory = self.choices.memory
        plan = self.plan = memory_plan(
            widths,
            self.settings,
            parameter_bytes=parameter_bytes,
            memory=memory,
            copies=_STREAMS,
            class_products=class_products(self.settings.num_classes),
        )
        # Batches wait in what is left.
        left = max(0.0, budget_of(memory, parameter_bytes) - plan.nbytes) / _STREAMS
        waiting = _STREAMS * waiting_bytes(sum(widths.values()), left)
        self._memory = str(plan)
        if waiting:
            self._memory += f"; batches that wait take {waiting / MIB:.2g} MiB more"
        self.holdings.layers, self.holdings.waiting_bytes = plan.holdings, left
        forward, labels = self._forward
        products = product_operations(
            [(widths[name], held) for name, held in plan.holdings.items()],
            labels,
            class_products=class_products(self.settings.num_classes),
        )
        self._time = products_note(forward, products, "every_batch={}")

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
                self._allocate,
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
        notes = [note for note in (self._memory, self._time) if note]
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
            _remove(model, [*self.streams.values()])
            renew_steps(model)


def _remove(model: keras.Model, streams: Sequence[StreamSums]) -> None:
    """Take streams from a model's metrics."""
    model._metrics[:] = [
        metric for metric in model._metrics if not any(metric is sums for sums in streams)
    ]
