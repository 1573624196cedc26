"""`CollapseMeter`: a Keras callback that counts what the compiled step computes, and reports."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
from keras import ops
from keras.src.backend.common.masking import get_keras_mask

from collapsemeter import ClassMoments, CollapseReport, Convention
from collapsemeter.adapter.batches import check_phase, no_batch, shown
from collapsemeter.adapter.budget import Budget, Clock
from collapsemeter.adapter.reduction import (
    Layout,
    Reduction,
    check_reduction,
    feature_rows,
    reduction_of,
)
from collapsemeter.adapter.selection import classes_of, description
from collapsemeter.adapter.settings import Settings
from collapsemeter.metrics.catalogue import METRICS
from collapsemeter.report.report import TABLE
from collapsemeter.stats.moments import Phase
from collapsemeter.stats.sketch import SKETCH_ROWS
from collapsemeter.stats.sums import IGNORE_INDEX, Nonfinite, ScatterKind
from collapsemeter.system.suggest import did_you_mean
from collapsemeter.system.terminal import say
from collapsemeter.system.warning import warn

from . import finalise, frozen
from .instrument import Instrument
from .labels import (
    Output,
    class_labels,
    decisions,
    given_labels,
    main_output,
    of_output,
    without_masked,
)
from .layers import Layers, Selection, select
from .operations import OPERATIONS, Tensor
from .reduction import layout_of
from .statistics import Key, Stream

_CHANNELS_LAST = Layout(channels_first=False, width=None)  # as Keras has them unless told otherwise
STREAMS = ("train", "validation", "probe")
_PHASES: dict[str, Phase] = {"train": "live", "validation": "frozen-eval"}
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
        self.log_metrics = _known(log_metrics)
        self.probe, self.every, self.labels = probe, every, labels
        self.strict, self.verbose = strict, verbose
        self._destinations = sinks
        self._close_sinks: weakref.finalize[..., Any] | None = None
        self._open_sinks()
        self.reports: dict[str, list[Entry]] = {stream: [] for stream in STREAMS}
        self.degraded: dict[str, str] = {}
        self._streams: dict[str, Stream] = {}
        self._bypassed: set[str] = set()
        self._instrument: Instrument | None = None
        self._validated: CollapseReport | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None
        self._probing: tuple[Stream, frozen.Step] | None = None
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
            self._streams = {
                name: Stream(f"collapsemeter_{name}", self.settings, budget)
                for name, budget in (("train", self.budget), ("validation", None))
            }
            self._instrument = Instrument(self, model, self.selection)
            model._metrics.extend(self._streams.values())
            _renew_steps(model)
            # A meter that is dropped without `close` leaves nothing on the model either.
            self._finalizer = weakref.finalize(
                self, _detach, weakref.ref(model), self._instrument, [*self._streams.values()]
            )
        if not self._streams["train"].layers and model.built:
            self._find_shapes(model)

    def _choose(self, model: keras.Model) -> None:
        layers, head, num_classes = self._asked
        self.selection: Selection = select(model, layers, head, num_classes)
        check_reduction(self._options["reduction"], self.selection.watched)
        classes = classes_of(
            self.selection.head, self.selection.head_outputs, num_classes, "Dense layer"
        )
        self.settings = Settings(num_classes=classes, **self._options)
        self._layouts = {
            name: layout_of(layer, self.selection.before.get(name, ()))
            for name, layer in self.selection.layers.items()
        }
        if self.verbose:
            say(self.describe())

    def _find_shapes(self, model: keras.Model) -> None:
        assert self._instrument is not None
        stash, streams = self._instrument.stash, [*self._streams.values()]
        try:
            try:
                frozen.find_shapes(self, model, stash, streams, frozen.input_specs(model))
            except frozen.ShapesUnknown:  # such as a model that looks its inputs up in a table
                frozen.find_shapes(self, model, stash, streams, frozen.input_specs(model, "int32"))
        except Exception as error:  # other backends make variables when the step is traced
            if keras.backend.backend() == "jax":
                unknown = isinstance(error, frozen.ShapesUnknown)
                self._degrade("shapes" if unknown else "batch", error)

    def close(self) -> None:
        """Leave the model as it was, and close what the sinks opened; what was reported stays."""
        self._leave()
        if self._close_sinks is not None:
            self._close_sinks()

    def _open_sinks(self) -> None:
        self._sinks = _sinks_by_stream(self._destinations, probed=self.probe is not None)
        # Also of a meter that is dropped without `close`.
        self._close_sinks = weakref.finalize(self, _close_all, self._sinks)

    def _leave(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._finalizer = self._instrument = self._probing = None
        self._streams = {}

    def describe(self) -> str:
        """Return what is watched and, for every other layer, why it is not."""
        chosen = self.selection
        return description(
            chosen.watched, chosen.head, chosen.skipped, self.settings.num_classes, "a Dense layer"
        )

    # In the step

    def _begin_step(self, stream: str) -> Stream:
        """Return what a step counts to, and suspect it of having no loss until one is seen."""
        self._bypassed.add(stream)
        if stream == "train":
            self._clock.begin(perf_counter())
        return self._streams[stream]

    def _count(self, stream: Stream, outputs: dict[Key, Any], step: dict[str, Any]) -> None:
        """Add one batch to a stream; nothing of ours reaches the step."""
        self._bypassed -= {name for name, one in self._streams.items() if one is stream}
        if self.degraded.keys() & {"shapes", "batch"}:
            return
        started = perf_counter()
        try:
            stream.within_budget(lambda: self._add(stream, outputs, step))
        except Exception as error:
            self._degrade("batch", error)
        if stream is self._streams.get("train"):
            self._clock.spend_since(started)

    def _add(self, stream: Stream, outputs: dict[Key, Any], step: dict[str, Any]) -> None:
        self._clock.taken = True
        output = self._main_output(step.get("y_pred"))
        y = given_labels(step.get("x"), step.get("y"), self.labels, output.key)
        labels = class_labels(y, output.scores, self.settings)
        weight = of_output(step.get("sample_weight"), output.key)
        labels = without_masked(labels, output.scores, weight, self.settings.ignore_index)
        rows = self._rows(outputs, step.get("y_pred"), tuple(labels.shape))
        decided = decisions(output.scores, self.selection.head_layer)
        stream.count(rows, ops.reshape(labels, (-1,)), decided)

    def _rows(
        self, outputs: dict[Key, Any], y_pred: Any, labels: tuple[int | None, ...] | None = None
    ) -> dict[Key, Tensor]:
        """Reduce what the layers gave to one row per label; a layer that fails is left out."""
        scores = self._main_output(y_pred).scores
        shape = tuple(scores.shape[:-1]) if labels is None else labels
        mask = get_keras_mask(scores)
        rows = {}
        for (name, call), output in outputs.items():
            if name in self.degraded:
                continue
            try:
                rows[name, call] = feature_rows(
                    output,
                    shape,
                    mask,
                    OPERATIONS,
                    layer=name,
                    layout=self._layouts.get(name) or _CHANNELS_LAST,
                    reduction=reduction_of(self.settings.reduction, name),
                )
            except Exception as error:
                self._degrade(name, error)
        return rows

    def _main_output(self, y_pred: Any) -> Output:
        # Not `self.model`, which on JAX writes the state of the step under way to the model.
        names = getattr(self._model, "output_names", None)
        which = self.labels if isinstance(self.labels, str) else None
        return main_output(y_pred, which, self.settings.num_classes, names)

    def _degrade(self, layer: str, error: Exception) -> None:
        if self.strict:
            raise error
        if layer in self.degraded:
            return
        self.degraded[layer] = f"{type(error).__name__}: {error}"
        what = f"layer {layer!r}" if layer in self.selection.watched else "anything"
        warn(
            f"collapsemeter could not measure {what} and leaves it out from here on; training "
            f"goes on ({type(error).__name__}: {error})"
        )

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
        report = self._made("validation")
        if self._in_fit:
            # The epoch's end publishes it. It is made now: an `evaluate` of other data may come before.
            self._validated = report
        elif report is not None:
            # Not into the logs: `loss, accuracy = model.evaluate(...)` must stay two values.
            self._publish("validation", report, None)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._instrument is None or epoch % self.every:
            return
        made = {"train": self._made("train"), "validation": self._validated}
        if self.probe is not None:
            made["probe"] = self._made("probe")
        for stream, report in made.items():
            if report is not None:
                self._publish(stream, report, logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._in_fit = False

    def _clear(self, stream: str) -> None:
        if (
            stream in self._streams
        ):  # a callback that is closed in the midst of a fit is still called
            self._streams[stream].clear()
            if stream == "train":
                self._clock.clear()

    def _made(self, stream: str) -> CollapseReport | None:
        """Return the report of a stream; training goes on whatever fails."""
        try:
            if stream == "probe":
                return self.observe(self.model, self.probe, "frozen-train", progress=False)
            return self._report(self._streams[stream], stream)
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
        for sink in self._sinks[stream]:
            sink.write(self._epoch, report)
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
        found = self._stream(stream)
        if not found.batches_seen():
            raise ValueError(f"no batch was counted: {finalise.why_nothing(self, stream)}")
        return self._report(found, stream)

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
        found = self._stream(stream)
        if (layer, call) not in found.layers or not found.batches_seen():
            raise ValueError(
                f"layer {layer!r} has counted nothing (call {call}); watched are "
                f"{', '.join(self.selection.watched)}{did_you_mean(layer, self.selection.watched)}"
            )
        return found.tally((layer, call)).moments(_PHASES[stream])

    def _stream(self, stream: str) -> Stream:
        if stream not in self._streams:
            raise ValueError(
                f"stream={stream!r}: choose 'train' or 'validation', of a meter that is attached"
            )
        _synchronise(self.model)
        return self._streams[stream]

    def reset(self) -> None:
        """Forget what was counted, and count the next batch; for loops of ``train_on_batch``, which have no epochs."""
        _synchronise(self.model)
        for stream in self._streams.values():
            stream.clear()
        self._clock.clear()

    def _report(self, stream: Stream, name: str, phase: Phase | None = None) -> CollapseReport:
        if phase is None:
            phase = _PHASES[name]
        report = finalise.report(self, stream, name, phase)
        for message in report.warnings:
            warn(message)
        return report

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
            As `frozen.batches_of` takes it.
        phase : {"frozen-eval", "frozen-train"}
            What the report calls the data: held-out, or the training set.
        batch_size : int
            Of what is cut from whole arrays.
        progress : bool
            Show a progress bar on standard error.

        Returns
        -------
        CollapseReport

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
            return self._observe(dataset, phase, batch_size, progress)
        finally:
            if not attached:
                self._leave()

    def _observe(
        self, dataset: Any, phase: Phase, batch_size: int, progress: bool
    ) -> CollapseReport:
        instrument, model = self._instrument, self.model
        assert instrument is not None
        if self._probing is None:  # kept, so that the next pass finds its step compiled
            stream = Stream("collapsemeter_probe", self.settings)
            self._probing = stream, frozen.frozen_step(self, model, instrument.stash, stream)
        stream, step = self._probing
        stream.clear()
        degraded, strict = self.degraded, self.strict
        self.degraded, self.strict = {}, True  # asked for by name: a failure is an error
        try:
            for item in shown(frozen.batches_of(dataset, batch_size), progress):
                x, y = frozen.inputs_and_labels(item, self)
                step(frozen.tensors(x), frozen.tensors(y))
        finally:
            self.degraded, self.strict = degraded, strict
        if not stream.batches_seen():
            raise no_batch(dataset)
        return self._report(stream, "probe", phase)

    # Saving

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return what was counted as arrays by name, for ``numpy.savez``."""
        return finalise.state_dict(self)

    def load_state_dict(self, state: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Continue from a `state_dict`.

        Raises
        ------
        ValueError
            If it is of other layers or classes.
        """
        finalise.load_state_dict(self, state)
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


def _known(metrics: Sequence[str] | Literal["all"]) -> tuple[str, ...]:
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


def _renew_steps(model: keras.Model) -> None:
    """Have Keras compile its steps anew: those that it has know nothing of us, or too much.

    Made at once and not only forgotten, because `fit` may be in the midst of calling them.
    """
    if model.train_function is not None:
        model.make_train_function(force=True)
    if model.test_function is not None:
        model.make_test_function(force=True)


def _detach(model: weakref.ref[keras.Model], instrument: Instrument, streams: list[Stream]) -> None:
    watched = model()
    if watched is not None:
        _synchronise(watched)  # while its list of metrics is that of the step's state
    instrument.remove()
    if watched is not None:
        kept = [m for m in watched._metrics if not any(m is our for our in streams)]
        watched._metrics[:] = kept
        _renew_steps(watched)


def _synchronise(model: Any) -> None:
    """Bring variables up to date, which on JAX live in the step's state within an epoch."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


def _sinks_by_stream(sinks: Any, probed: bool) -> dict[str, list[Any]]:
    """Open the destinations of every stream that will be written."""
    from collapsemeter.sinks import Fan  # file formats take their time

    streams = STREAMS if probed else STREAMS[:-1]
    if isinstance(sinks, Mapping):
        for name in sinks:
            if name not in STREAMS:
                raise ValueError(f"sinks has a stream {name!r}: choose of {', '.join(STREAMS)}")
        return {name: [Fan(*_several(sinks.get(name, ())))] for name in streams}
    return {name: [Fan(*_of_stream(_several(sinks), name))] for name in streams}


def _close_all(sinks: dict[str, list[Any]]) -> None:
    for fans in sinks.values():
        for fan in fans:
            fan.close()


def _several(sinks: Any) -> Iterable[Any]:
    if isinstance(sinks, str | Path) or not isinstance(sinks, Iterable):
        return [sinks]
    return sinks


def _of_stream(sinks: Iterable[Any], stream: str) -> Iterator[Any]:
    """Yield the destinations that a stream writes to."""
    for sink in sinks:
        if isinstance(sink, str | Path):
            path = Path(sink)
            yield path.with_suffix(f".{stream}{path.suffix}") if path.suffix else path / stream
        elif stream == "train" or callable(sink) or hasattr(sink, "write"):
            yield sink
