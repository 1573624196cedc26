"""`CollapseMeter`: a Keras callback that counts what the compiled step computes, and reports."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import keras
import numpy as np

from collapsemeter import ClassMoments, CollapseReport, Convention
from collapsemeter.adapter.batches import check_phase, each_batch
from collapsemeter.adapter.budget import Budget, Clock
from collapsemeter.adapter.network_report import network_report
from collapsemeter.adapter.reduction import Reduction, check_reduction
from collapsemeter.adapter.selection import Selection
from collapsemeter.adapter.settings import Settings
from collapsemeter.metrics.catalogue import METRICS
from collapsemeter.report.report import TABLE
from collapsemeter.stats.moments import Phase
from collapsemeter.stats.sketch import SKETCH_ROWS
from collapsemeter.stats.sums import IGNORE_INDEX, Nonfinite, ScatterKind
from collapsemeter.system.suggest import did_you_mean
from collapsemeter.system.terminal import say
from collapsemeter.system.warning import warn

from . import frozen, saving
from .counting import BatchCounter, why_nothing
from .instrument import Instrument, detach, renew_steps, synchronise
from .layers import Layers, head_of, select
from .operations import BACKEND
from .statistics import StreamSums
from .stream_sinks import STREAMS, close_sinks, open_sinks

_PHASES: dict[str, Phase] = {"train": "live", "validation": "frozen-eval", "probe": "frozen-train"}
_CAUSES = {
    "never_fired": "it was not called in the model's forward (its weights are used directly, or a branch left it out)",
    "rows_missing": "some forwards did not pass through it (a branch, or a step traced without it)",
    "rows_counted_twice": "it was called more than once for a batch",
}
_PREFIX = {"train": "", "validation": "val_", "probe": "probe_"}


class Entry(NamedTuple):
    """A report and the epoch it is of."""

    epoch: int
    report: CollapseReport


class CollapseMeter(keras.callbacks.Callback):
    r"""Measure NC1 to NC4 of a Keras model's layers inside ``fit`` and ``evaluate``.

    ``model.fit(..., callbacks=[CollapseMeter()])`` needs nothing else. The watched layers' outputs are
    reduced to class-shifted sums inside the compiled step that computes them anyway, for the training
    stream and for the validation data apart: there is no second pass, and the weights after training
    are those of a fit without the meter.

    Parameters
    ----------
    layers : "auto", str, iterable of str, or callable
        Names or shell patterns (``"encoder/*"``) of layers whose output is watched, or
        ``predicate(name, layer)``. ``auto`` takes the blocks a person would name. The head's input is
        watched besides, under the head's name.
    head : "auto", str, or None
        The final Dense layer; ``auto`` finds it.
    num_classes : int, optional
        C; by default the head's units.
    probe : (x, y) of arrays, or data set, optional
        Data for a pass with frozen weights at the end of every ``every`` epochs.
    every : int
        Report (and probe) at the end of epochs 0, every, 2 every, ...
    every_batch : int
        Within an epoch, count every k-th training batch only, from its first on; of the others no
        activation is reduced. Validation and probe count all. Of several replicas each counts its parts
        as batches.
    max_rows : int, optional
        Within an epoch, count no more training batches once so many label rows were counted; batches are
        counted whole.
    sinks : sequence, or mapping from "train", "validation", "probe" to sequences
        Where reports go: whatever `collapsemeter.sinks.to` takes. Of a sequence a path gets a part for
        each stream (``runs/events/train``, ``reports.train.jsonl``); a callable ``(step, report)`` or a
        sink gets every report; and a logger gets the training stream, since its curves must not mix.
    labels : str or callable, optional
        Where the labels are: a key of a dict of targets (or inputs), or ``labels(x, y)``.
    log_metrics : sequence of str, or "all"
        Which metrics go into Keras' ``logs``, and so into History, CSVLogger and the progress bar:
        ``nc1_pinv/fc``, ``val_nc1_pinv/fc``, ``probe_nc1_pinv/fc``.
    reduction, scatter, convention, ignore_index, nonfinite, sample_rows, seed, sketch_rows
        See `collapsemeter.adapter.settings.Settings`.
    strict : bool
        Re-raise a failure of the meter itself instead of marking the layer ``degraded``.
    verbose : bool
        Print what is watched, and why the rest is not.

    Attributes
    ----------
    reports : dict of str to list of (epoch, CollapseReport)
        Under ``train``, ``validation`` and ``probe``.

    Raises
    ------
    ValueError
        If a choice is unknown; when the model is there, if layers, head or classes do not fit it.

    References
    ----------
    Papyan, Han & Donoho 2020.

    Examples
    --------
    >>> keras.utils.set_random_seed(0)
    >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3, name="fc")])
    >>> net.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> x, y = np.random.default_rng(0).normal(size=(60, 4)).astype("float32"), np.arange(60) % 3
    >>> meter = CollapseMeter(verbose=False)
    >>> history = net.fit(x, y, epochs=2, verbose=0, validation_data=(x, y), callbacks=[meter])
    >>> epoch, report = meter.reports["train"][-1]
    >>> epoch, report.phase, report["fc"].provenance["rows"]
    (1, 'live', 60)
    >>> history.history["val_nc1_pinv/fc"][-1] == meter.reports["validation"][-1].report["fc"]["nc1_pinv"]
    True
    >>> meter.close()
    """

    def __init__(
        self,
        layers: Layers = "auto",
        head: str | None = "auto",
        *,
        num_classes: int | None = None,
        probe: Any = None,
        every: int = 1,
        every_batch: int = 1,
        max_rows: int | None = None,
        sinks: Sequence[Any] | Mapping[str, Sequence[Any]] = (),
        labels: Any = None,
        log_metrics: Sequence[str] | Literal["all"] = TABLE,
        reduction: Reduction | Mapping[str, Reduction] = "auto",
        scatter: ScatterKind | Literal["auto"] = "auto",
        convention: Convention | str = "papyan2020",
        ignore_index: int = IGNORE_INDEX,
        nonfinite: Nonfinite = "skip",
        sample_rows: int = 4096,
        seed: int = 0,
        sketch_rows: int = SKETCH_ROWS,
        strict: bool = False,
        verbose: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(layers, keras.Model):
            raise ValueError(
                f"layers is the model {layers.name!r}: the meter gets its model from fit, evaluate or observe; pass "
                "callbacks=[CollapseMeter()], or call collapsemeter.watch(model)"
            )
        self._asked = (layers, head, num_classes)
        self._options: dict[str, Any] = {
            "reduction": reduction,
            "scatter": scatter,
            "convention": convention,
            "ignore_index": ignore_index,
            "nonfinite": nonfinite,
            "sample_rows": sample_rows,
            "seed": seed,
            "sketch_rows": sketch_rows,
        }
        Settings(num_classes=2 if num_classes is None else num_classes, **self._options)
        if every < 1:
            raise ValueError(f"every={every}: report every epoch, or every second, third, ...")
        if labels is not None and not (callable(labels) or isinstance(labels, str)):
            raise ValueError(f"labels={labels!r}: pass a key or a callable (x, y) -> labels")
        self.budget = Budget(every_batch, max_rows, name="every_batch")
        self._clock = Clock()
        self.log_metrics = _checked(log_metrics)
        self.probe, self.every, self.labels = probe, every, labels
        self.strict, self.verbose = strict, verbose
        self._destinations = sinks
        self._close_sinks: weakref.finalize[..., Any] | None = None
        self._open_sinks()
        self.reports: dict[str, list[Entry]] = {stream: [] for stream in STREAMS}
        self.degraded: dict[str, str] = {}
        self._streams: dict[str, StreamSums] = {}
        self._instrument: Instrument | None = None
        self._validated: CollapseReport | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None
        self._probing: tuple[StreamSums, frozen.Step] | None = None
        self._in_fit = False
        self._epoch = 0

    # Attaching

    def set_model(self, model: keras.Model) -> None:
        """Attach to a model; Keras calls this before it compiles the step."""
        if self._instrument is not None and model is not self.model:
            self._leave()
        self._in_fit = False  # a fit that an exception ended did not say so
        super().set_model(model)
        self.attach()

    def attach(self) -> None:
        """Put wrappers and statistics on the model; where they are there already, nothing happens."""
        model = self.model
        if self._close_sinks is None or not self._close_sinks.alive:
            self._open_sinks()  # a meter that was closed may be used again
        if model is None:
            raise ValueError(
                "the meter has no model: pass it to fit(callbacks=[meter]), or set_model"
            )
        if self._instrument is None:
            self._choose(model)
            train = StreamSums("collapsemeter_train", self.settings, self.budget)
            validation = StreamSums("collapsemeter_validation", self.settings)
            self._streams = {"train": train, "validation": validation}
            self._counter = counter = BatchCounter(
                model,
                self.selection,
                self.settings,
                self.labels,
                self._streams,
                self.degraded,
                self.strict,
                self._clock,
            )
            self._instrument = Instrument(model, self.selection, counter.begin, counter.count)
            model._metrics.extend([train, validation])
            renew_steps(model)
            # A meter that is dropped without `close` leaves nothing on the model either.
            self._finalizer = weakref.finalize(
                self, detach, weakref.ref(model), self._instrument, [train, validation]
            )
        if not self._streams["train"].layers and model.built:
            self._find_shapes(model)

    def _choose(self, model: keras.Model) -> None:
        layers, head, num_classes = self._asked
        self.selection: Selection = select(model, layers, head, num_classes)
        check_reduction(self._options["reduction"], self.selection.watched)
        self.settings = Settings(num_classes=self.selection.classes(num_classes), **self._options)
        if self.verbose:
            say(self.describe())

    def _find_shapes(self, model: keras.Model) -> None:
        assert self._instrument is not None
        stash, streams = self._instrument.stash, [*self._streams.values()]

        def find(dtype: str) -> None:
            inputs = frozen.input_specs(model, dtype)
            frozen.find_shapes(model, stash, streams, inputs, self._counter.rows)

        try:
            try:
                find("float32")
            except frozen.ShapesUnknown:  # such as a model that looks its inputs up in a table
                find("int32")
        except Exception as error:  # other backends make variables when the step is traced
            if BACKEND == "jax":
                unknown = isinstance(error, frozen.ShapesUnknown)
                self._counter.degrade("shapes" if unknown else "batch", error)

    def close(self) -> None:
        """Leave the model as it was, and close what the sinks opened; what was reported stays."""
        self._leave()
        if self._close_sinks is not None:
            self._close_sinks()

    def _open_sinks(self) -> None:
        self._sinks = open_sinks(self._destinations, probed=self.probe is not None)
        # Also of a meter that is dropped without `close`.
        self._close_sinks = weakref.finalize(self, close_sinks, self._sinks)

    def _leave(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._finalizer = self._instrument = self._probing = None
        self._streams = {}

    def describe(self) -> str:
        """Return what is watched and, for every other layer, why it is not."""
        return self.selection.describe(self.settings.num_classes)

    # Epochs

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._in_fit, self._validated = True, None
        self._clear("train")

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch
        self._clear("train")
        self._validated = None

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._clear("validation")

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._instrument is None or (self._in_fit and self._epoch % self.every):
            return
        report = self._report_or_warn("validation")
        if self._in_fit:
            # The epoch's end publishes it. It is made now: an `evaluate` of other data may come before.
            self._validated = report
        elif report is not None:
            # Not into the logs: `loss, accuracy = model.evaluate(...)` must stay two values.
            self._publish("validation", report, None)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._instrument is None or epoch % self.every:
            return
        reports = {"train": self._report_or_warn("train"), "validation": self._validated}
        if self.probe is not None:
            reports["probe"] = self._report_or_warn("probe")
        for stream, report in reports.items():
            if report is not None:
                self._publish(stream, report, logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._in_fit = False

    def _clear(self, stream: str) -> None:
        # A callback that is closed in the midst of a fit is still called.
        if stream in self._streams:
            self._streams[stream].clear()
            if stream == "train":
                self._clock.clear()

    def _report_or_warn(self, stream: str) -> CollapseReport | None:
        """Return the report of a stream; training goes on whatever fails."""
        try:
            if stream == "probe":
                return self.observe(self.model, self.probe, _PHASES[stream], progress=False)
            return self._report(self._streams[stream], stream, _PHASES[stream])
        except Exception as error:
            if self.strict:
                raise
            warn(
                f"collapsemeter could not report the {stream} stream of epoch {self._epoch}: {error}"
            )
            return None

    def _publish(self, stream: str, report: CollapseReport, logs: dict[str, Any] | None) -> None:
        """Hand a report to `reports`, the sinks and Keras' logs."""
        self.reports[stream].append(Entry(self._epoch, report))
        self._sinks[stream].write(self._epoch, report)
        if logs is not None:
            for name, layer in report.items():
                logs |= {
                    f"{_PREFIX[stream]}{metric}/{name}": float(layer[metric])
                    for metric in self.log_metrics
                    if metric in layer
                }

    # On demand

    def compute(self, stream: str = "train") -> CollapseReport:
        """Return the report of what was counted since the stream began, or since `reset`.

        Parameters
        ----------
        stream : {"train", "validation"}

        Raises
        ------
        ValueError
            If nothing was counted, or a row is not finite under ``nonfinite="raise"``.
        """
        sums = self._stream(stream)
        if not sums.batches_seen():
            why = why_nothing(self.model, self._counter, stream)
            raise ValueError(f"no batch was counted: {why}")
        return self._report(sums, stream, _PHASES[stream])

    def moments(self, layer: str, stream: str = "train", call: int = 0) -> ClassMoments:
        """Return what a layer counted as moments, for merging over processes or saving.

        Parameters
        ----------
        layer : str
        stream : {"train", "validation"}
        call : int
            Which of its calls in one forward, for a layer that is called more than once.

        Raises
        ------
        ValueError
            If the layer counted nothing.
        """
        sums = self._stream(stream)
        if (layer, call) not in sums.layers or not sums.batches_seen():
            raise ValueError(
                f"layer {layer!r} has counted nothing (call {call}); watched are "
                f"{', '.join(self.selection.watched)}{did_you_mean(layer, self.selection.watched)}"
            )
        return sums.tally((layer, call)).moments(_PHASES[stream])

    def _stream(self, stream: str) -> StreamSums:
        if stream not in self._streams:
            raise ValueError(
                f"stream={stream!r}: choose 'train' or 'validation', of a meter that is attached"
            )
        synchronise(self.model)
        return self._streams[stream]

    def reset(self) -> None:
        """Forget what was counted, and count the next batch; for loops of ``train_on_batch``, which have no epochs."""
        synchronise(self.model)
        for stream in self._streams.values():
            stream.clear()
        self._clock.clear()

    def _report(self, sums: StreamSums, stream: str, phase: Phase) -> CollapseReport:
        batches, expected_rows = sums.batches_seen(), sums.expected_rows()
        warnings, cost = [], {}
        if not batches:
            why = why_nothing(self.model, self._counter, stream)
            warnings.append(f"no batch of the {stream} stream was counted: {why}")
        if stream == "train":
            cost = self.budget.provenance(sums.batches_left_out(), expected_rows)
            cost |= self._overhead(sums)
        return network_report(
            self.selection,
            {key: partial(sums.tally, key) for key in sums.layers},
            self.settings,
            phase=phase,
            framework=f"keras {keras.__version__} ({BACKEND})",
            expected_rows=expected_rows,
            batches=batches,
            head=head_of(self.selection),
            causes=_CAUSES,
            degraded={} if stream == "probe" else self.degraded,
            warnings=warnings,
            provenance={"stream": stream, "epoch": self._epoch, **cost},
        )

    def _overhead(self, sums: StreamSums) -> dict[str, Any]:
        # Elsewhere Python sees a step once, when it is compiled.
        self._clock.unseen = not (BACKEND == "torch" or self.model.run_eagerly)
        return self._clock.provenance(
            f"counting is part of the step that {BACKEND} compiles, into which no clock looks",
            asynchronous=BACKEND == "torch" and sums.given.value.device.type != "cpu",
        )

    def observe(
        self,
        model: keras.Model | None = None,
        dataset: Any = None,
        phase: Phase = "frozen-eval",
        *,
        batch_size: int = frozen.BATCH,
        progress: bool = True,
    ) -> CollapseReport:
        """Measure in one pass with frozen weights, without a fit.

        Parameters
        ----------
        model : keras.Model, optional
            By default the one that the meter is attached to.
        dataset : (x, y) of arrays, or an iterable of batches
            A PyDataset, tf.data.Dataset, DataLoader, or any iterable of batches. A tuple is the whole data, as
            in ``validation_data=``.
        phase : {"frozen-eval", "frozen-train"}
            What the report calls the data: held-out, or the training set.
        batch_size : int
            Of what is cut from whole arrays.
        progress : bool
            Show a progress bar on standard error.

        Raises
        ------
        ValueError
            If there is no batch, or a layer's output does not fit the labels.
        """
        check_phase(phase)
        attached = self._instrument is not None and model in (None, self.model)
        if not attached:
            if model is None:
                raise ValueError("observe needs a model: pass observe(model, dataset)")
            self.set_model(model)
        try:
            sums, step = self._frozen_pass()
            batches = frozen.batches_of(dataset, batch_size)
            for item in each_batch(batches, progress, source=dataset):
                x, y = frozen.inputs_and_labels(item, self.labels)
                step(frozen.tensors(x), frozen.tensors(y))
            return self._report(sums, "probe", phase)
        finally:
            if not attached:
                self._leave()

    def _frozen_pass(self) -> tuple[StreamSums, frozen.Step]:
        """Return empty sums and the step that fills them; the next pass finds it compiled."""
        assert self._instrument is not None
        if self._probing is None:
            sums = StreamSums("collapsemeter_probe", self.settings)
            # Asked for by name: a failure is an error.
            counter = BatchCounter(
                self.model, self.selection, self.settings, self.labels, {}, {}, True, Clock()
            )
            step = frozen.frozen_step(
                self.model, self._instrument.stash, sums, counter.count, counter.rows
            )
            self._probing = sums, step
        self._probing[0].clear()
        return self._probing

    # Saving

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return what was counted as arrays by name, for ``numpy.savez``."""
        return saving.state_dict(self.selection, self.settings, self._streams)

    def load_state_dict(self, state: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Continue from a `state_dict`.

        Raises
        ------
        ValueError
            If it is of other layers or classes.
        """
        saving.load_state_dict(self.selection, self.settings, self._streams, state)
        self._clock.clear()


def watch(model: keras.Model, **options: Any) -> CollapseMeter:
    """Return a `CollapseMeter` that is attached to a model, ready for ``fit`` or ``observe``.

    Examples
    --------
    >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="fc")])
    >>> meter = watch(net, verbose=False)
    >>> meter.selection.head
    'fc'
    >>> meter.close()
    """
    meter = CollapseMeter(**options)
    meter.set_model(model)
    return meter


def _checked(metrics: Sequence[str] | Literal["all"]) -> tuple[str, ...]:
    if metrics == "all":
        return tuple(METRICS)
    chosen = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    for name in chosen:
        if name not in METRICS:
            raise ValueError(
                f"log_metrics={name!r}: no metric has that name; choose of {', '.join(METRICS)}"
                f"{did_you_mean(name, METRICS)}"
            )
    return chosen
