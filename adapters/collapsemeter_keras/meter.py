"""`CollapseMeter`: a Keras callback that counts what the compiled step computes, and reports."""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np

from collapsemeter import ClassMoments, CollapseReport, Convention
from collapsemeter.adapter.batches import check_frozen_phase, each_batch
from collapsemeter.adapter.budget import Budget, Clock
from collapsemeter.adapter.memory import Memory, budget_of
from collapsemeter.adapter.network import Scores
from collapsemeter.adapter.reduction import Reduction
from collapsemeter.adapter.selection import MAX_LAYERS, Layers, Selection, nothing_counted
from collapsemeter.adapter.settings import Settings
from collapsemeter.report.report import TABLE
from collapsemeter.stats.fields import Phase
from collapsemeter.stats.groups import GROUPS
from collapsemeter.stats.labels import Mixed
from collapsemeter.stats.sketch import SKETCH_ROWS
from collapsemeter.stats.sums import IGNORE_INDEX, Nonfinite, ScatterKind

from . import checkpoint, frozen
from .attachment import Attachment
from .batch import Batch
from .callback_order import move_before_readers
from .entries import PHASES, STREAMS
from .instrument import synchronise
from .publishing import Publisher
from .reporting import report_of, report_of_nothing
from .selection import HeadOption, Request
from .state import StreamSums
from .streams import EpochReports


class CollapseMeter(EpochReports):
    r"""Measure NC1 to NC4 of a Keras model's layers inside ``fit`` and ``evaluate``.

    ``model.fit(..., callbacks=[CollapseMeter()])`` needs nothing else. The watched layers' outputs are
    reduced to class-shifted sums inside the compiled step that computes them anyway, for the training
    stream and for the validation data apart: there is no second pass, and the weights after training
    are those of a fit without the meter.

    Parameters
    ----------
    layers : "auto", str, iterable of str, or callable
        Names or patterns of layers whose output is watched, or ``predicate(name, layer)``: ``*`` stays
        within one part of a name (``"encoder/*"``), ``**`` crosses parts. ``auto`` takes the layers that
        the whole signal passes, between the branches of blocks. The head's input is watched besides,
        under the head's name.
    head : "auto", str, None, or (layer or name, callable)
        The layer that makes the scores; ``auto`` finds it in the graph of the model. A callable takes the
        weight from the layer, (C, d), or weight and bias.
    num_classes : int, optional
        C; by default the width of the scores, two for a single score.
    scores : "auto", key, index or callable
        Which output has the scores, of a model that has several: a key or the name of an output, a
        position, or a callable from what the model returns. By default that of ``labels``, or the only
        one that fits.
    example : array, tensor, or a tuple or dict of them, optional
        A batch of inputs, for a subclassed model that is not built yet. Without it layers are chosen at
        the first batch.
    max_layers : int
        The most layers that ``auto`` watches, the head among them, spread over the depth.
    memory : "auto", float or None
        MiB that all layers together may hold: by default the larger of 64 and half of the parameters. Within
        it hidden layers keep fewer rows for NC4, then no groups, then narrower scatters; None keeps all.
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
        Where the labels are: a key of a dict of targets (or inputs), or ``labels(x, y)``. Where it is the
        name of an output, too, that has the scores.
    log_metrics : sequence of str, or "all"
        Which metrics go into Keras' ``logs``, and so into History, CSVLogger and the progress bar:
        ``nc1_pinv/fc``, ``val_nc1_pinv/fc``, ``probe_nc1_pinv/fc``. Those of the last layer are there as
        ``nc1_pinv/head``, too, whatever name Keras gave it. ``EarlyStopping(monitor="nc1_pinv/head",
        mode="min")`` may stand before the meter in ``callbacks=``.
    reduction, scatter, convention, ignore_index, nonfinite, mixed, sample_rows, seed, sketch_rows,
    groups
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
    >>> x, y = np.random.default_rng(0).normal(size=(64, 4)).astype("float32"), np.arange(64) % 3
    >>> meter = CollapseMeter(verbose=False)
    >>> history = net.fit(x, y, epochs=2, verbose=0, validation_data=(x, y), callbacks=[meter])
    >>> epoch, report = meter.reports["train"][-1]
    >>> epoch, report.phase, report["fc"].provenance["rows"]
    (1, 'live', 64)
    >>> history.history["val_nc1_pinv/fc"][-1] == meter.reports["validation"][-1].report["fc"]["nc1_pinv"]
    True
    >>> meter.close()
    """

    def __init__(
        self,
        layers: Layers = "auto",
        head: HeadOption = "auto",
        *,
        num_classes: int | None = None,
        scores: Scores = "auto",
        example: Any = None,
        max_layers: int = MAX_LAYERS,
        memory: Memory = "auto",
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
        mixed: Mixed = "skip",
        sample_rows: int = 4096,
        seed: int = 0,
        sketch_rows: int = SKETCH_ROWS,
        groups: int = GROUPS,
        strict: bool = False,
        verbose: bool = True,
    ) -> None:
        if isinstance(layers, keras.Model):
            raise ValueError(
                f"layers is the model {layers.name!r}: the meter gets its model from fit, evaluate or observe; pass "
                "callbacks=[CollapseMeter()], or call collapsemeter.watch(model)"
            )
        options: dict[str, Any] = {
            "reduction": reduction,
            "scatter": scatter,
            "convention": convention,
            "ignore_index": ignore_index,
            "nonfinite": nonfinite,
            "mixed": mixed,
            "sample_rows": sample_rows,
            "seed": seed,
            "sketch_rows": sketch_rows,
            "groups": groups,
        }
        Settings(num_classes=2 if num_classes is None else num_classes, **options)
        budget_of(memory)  # refuses what is none
        if every < 1:
            raise ValueError(f"every={every}: report every epoch, or every second, third, ...")
        if max_layers < 1:
            raise ValueError(f"max_layers={max_layers}: watch at least one layer")
        if labels is not None and not (callable(labels) or isinstance(labels, str)):
            raise ValueError(f"labels={labels!r}: pass a key or a callable (x, y) -> labels")
        request = Request(
            layers,
            head,
            num_classes,
            scores,
            labels,
            example,
            max_layers,
            memory,
            options,
            strict,
            verbose,
        )
        super().__init__(probe, every)
        self.budget = Budget(every_batch, max_rows, name="every_batch")
        self.labels, self.strict, self.verbose = labels, strict, verbose
        self.degraded = {}
        self._request = request
        self._clock = Clock()
        self._publisher = Publisher(log_metrics, sinks, probed=probe is not None)
        self._attachment: Attachment | None = None
        self._observer: Attachment | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None

    # Attaching

    def set_model(self, model: keras.Model) -> None:
        """Attach to a model; Keras calls this before it compiles the step."""
        if self._attached and model is not self.model:
            self._leave()
        self._in_fit = False  # a fit that an exception ended did not say so
        super().set_model(model)
        move_before_readers(self, self._publisher.is_logged)
        self.attach()

    def attach(self) -> None:
        """Put wrappers and statistics on the model; where they are there already, nothing happens."""
        model = self.model
        self._publisher.open()  # a meter that was closed may be used again
        if model is None:
            raise ValueError(
                "the meter has no model: pass it to fit(callbacks=[meter]), or set_model"
            )
        if not self._attached:
            attachment = Attachment(model, self._request, self.budget, self._clock, self.degraded)
            self._attachment = attachment
            # A meter that is dropped without `close` leaves nothing on the model either.
            self._finalizer = weakref.finalize(self, attachment.leave)
        elif self._attachment is not None:
            self._attachment.learn()

    @property
    def _attached(self) -> bool:
        return self._attachment is not None and self._attachment.attached

    @property
    def _streams(self) -> dict[str, StreamSums]:
        if self._attachment is None or not self._attachment.attached:
            return {}
        return self._attachment.streams

    def _end_validation(self) -> None:
        if self._attachment is not None and self._attachment.attached:
            self._attachment.end_validation()

    def _leave(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._finalizer = None

    # What is watched

    @property
    def selection(self) -> Selection:
        """The layers watched, the head, and why others are not.

        Raises
        ------
        ValueError
            If there is no model yet, or none whose inputs are known.
        """
        if self._attachment is None or self._attachment.selection is None:
            raise ValueError(
                "no layers are chosen yet: the meter needs a model, and its first batch or example="
            )
        return self._attachment.selection

    @property
    def settings(self) -> Settings:
        """How layers are counted, once they are chosen."""
        self.selection  # noqa: B018 # raises where nothing is chosen
        assert self._attachment is not None
        return self._attachment.settings

    def describe(self, full: bool = False) -> str:
        """Return what is watched and why the rest is not, in a few lines; ``full=True`` names every layer."""
        if self._attachment is None:
            raise ValueError("the meter has no model: there is nothing to describe")
        return self._attachment.describe(full)

    def close(self) -> None:
        """Leave the model as it was, and close what the sinks opened; what was reported stays."""
        self._leave()
        self._observer = None
        self._publisher.close()

    # In a loop of your own

    def batch(
        self, labels: Any, statistics: Sequence[Any] | None = None, *, stream: str | None = None
    ) -> Batch:
        """Count the forward inside ``with meter.batch(labels):`` for these labels.

        The labels belong to the first forward of the model in the block. It goes around ``model(x)`` in a loop of a
        ``tf.GradientTape``, of PyTorch or of JAX, and in a ``train_step`` of your own; in a compiled
        function it goes inside. A step of JAX that is compiled also takes `statistics`, and returns ``batch.statistics``.

        Parameters
        ----------
        labels : tensor or array of class numbers, or one-hot rows
        statistics : list of tensors, optional
            What was counted before this batch, on JAX: from `statistics`, or of the batch before.
        stream : {"train", "validation"}, optional
            By default the one that runs in ``fit``, else ``train``.

        Returns
        -------
        context manager
            With ``statistics``, those after this batch.

        Raises
        ------
        ValueError
            If the meter has no model, and at the end of the block if nothing can be counted.

        Examples
        --------
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="fc")])
        >>> meter, x = watch(net, verbose=False), np.ones((6, 4), "float32")
        >>> with meter.batch(np.arange(6) % 3):
        ...     logits = net(x, training=True)
        >>> meter.compute()["fc"].provenance["rows"]
        6
        >>> meter.close()
        """
        attachment = self._attached_to()
        if stream not in (None, *STREAMS[:-1]):
            raise ValueError(f"stream={stream!r}: choose 'train' or 'validation'")
        return Batch(attachment, labels, stream, statistics)

    def statistics(self, stream: str = "train") -> list[Any]:
        """Return what was counted as a list of tensors, which a compiled step of JAX passes on.

        Parameters
        ----------
        stream : {"train", "validation"}

        Raises
        ------
        ValueError
            If the meter has no model, or the model is not known yet.
        """
        self._check_stream(stream)
        self.selection  # noqa: B018 # raises where nothing is chosen
        return self._attached_to().allocated(stream).values()

    def _attached_to(self) -> Attachment:
        if not self._attached or self._attachment is None:
            raise ValueError(
                "the meter has no model: make it by `meter = collapsemeter_keras.watch(model)`"
            )
        return self._attachment

    # On demand

    def compute(
        self, stream: str = "train", *, statistics: Sequence[Any] | None = None
    ) -> CollapseReport:
        """Return the report of what was counted since the stream began, or since `reset`.

        Where nothing was counted every metric is NaN, with a reason and a warning of the cause.

        Parameters
        ----------
        stream : {"train", "validation"}
        statistics : list of tensors, optional
            What compiled steps of JAX returned: it is counted by the meter from here on.

        Raises
        ------
        ValueError
            If the meter is not attached, or a row is not finite under ``nonfinite="raise"``.
        """
        self._check_stream(stream)
        if statistics is not None:
            self._attached_to().allocated(stream).assign(statistics)
        return self._report(stream)

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
        self._check_stream(stream)
        sums, watched = self._streams.get(stream), self.selection.watched
        if sums is None or (layer, call) not in sums.layers or not sums.batches_seen():
            raise nothing_counted(layer, call, watched)
        return sums.tally((layer, call)).moments(PHASES[stream])

    def _check_stream(self, stream: str) -> None:
        if not self._attached or stream not in STREAMS[:-1]:
            raise ValueError(
                f"stream={stream!r}: choose 'train' or 'validation', of a meter that is attached"
            )
        synchronise(self.model)

    def _report(self, stream: str) -> CollapseReport:
        assert self._attachment is not None
        if self._attachment.selection is None:
            return report_of_nothing(self._attachment, stream)
        sums = self._streams[stream]
        return report_of(self._attachment, self.model, stream, sums, PHASES[stream], self._epoch)

    def reset(self) -> None:
        """Forget what was counted, and count the next batch; for loops of ``train_on_batch``, which have no epochs."""
        synchronise(self.model)
        for stream in self._streams.values():
            stream.clear()
        self._clock.clear()

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
        check_frozen_phase(phase)
        attached = self._attached and model in (None, self.model)
        if model is None and not attached:
            raise ValueError("observe needs a model: pass observe(model, dataset)")
        model = self.model if model is None else model
        attachment = self._attachment if attached else self._observer_of(model)
        assert attachment is not None
        try:
            step: frozen.Step | None = None
            batches = frozen.batches_of(dataset, batch_size)
            for item in each_batch(batches, progress, source=dataset):
                x, y = frozen.inputs_and_labels(item, self.labels)
                x, y = frozen.tensors(x), frozen.tensors(y)
                if step is None:
                    attachment.learn(x)
                    sums, step = attachment.frozen_pass(model, x)
                step(x, y)
            return report_of(attachment, model, "probe", sums, phase, self._epoch)
        finally:
            if not attached:
                attachment.pause()

    def _observer_of(self, model: keras.Model) -> Attachment:
        """Return what observes a model that the meter is not on; the last one is kept with what it compiled."""
        observer = self._observer
        if observer is not None and observer.may_resume(model):
            observer.resume()
        else:
            observer = Attachment(
                model, self._request, self.budget, self._clock, self.degraded, observing=True
            )
            self._observer = observer
        if not self._attached:
            self._attachment = observer
        return observer

    def _probe(self) -> CollapseReport:
        return self.observe(self.model, self.probe, PHASES["probe"], progress=False)

    # Saving

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return what was counted as arrays by name, for ``numpy.savez``."""
        return checkpoint.state_dict(self.selection, self.settings, self._streams)

    def load_state_dict(self, state: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Continue from a `state_dict`.

        Raises
        ------
        ValueError
            If it is of other layers or classes.
        """
        checkpoint.load_state_dict(self.selection, self.settings, self._streams, state)
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
