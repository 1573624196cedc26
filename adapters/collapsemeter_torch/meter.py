"""`CollapseMeter`: attach to a PyTorch model, count batches, read reports."""

import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, Self

from torch import Tensor, nn

from collapsemeter import ClassMoments, CollapseReport, Convention
from collapsemeter.activations.manifest import NAME as MANIFEST
from collapsemeter.activations.writer import SHARD_BYTES, Writer
from collapsemeter.adapter.batches import check_frozen_phase
from collapsemeter.adapter.budget import Budget
from collapsemeter.adapter.memory import Memory
from collapsemeter.adapter.network import Scores
from collapsemeter.adapter.reduction import Reduction, check_reduction
from collapsemeter.adapter.selection import MAX_LAYERS, Layers, Selection
from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.fields import Phase
from collapsemeter.stats.groups import GROUPS
from collapsemeter.stats.labels import Mixed
from collapsemeter.stats.sketch import SKETCH_ROWS
from collapsemeter.stats.sums import IGNORE_INDEX, Nonfinite, ScatterKind, check_num_classes
from collapsemeter.system.terminal import say

from .attachment import Attachment
from .batch import Batch, count_pending, live_batch
from .frozen import Dump, as_arguments, frozen_pass, inputs_on_device
from .label_hooks import watch_criterion
from .learnt import Learnt
from .members import Sync, numbering_of
from .namespace import device_of
from .ranks import Numbering
from .recorder import Recorder
from .reporting import Reporter
from .selection import HeadOption, Learner
from .spread import Spread
from .state import Store

TIMEOUT = 60.0  # seconds that ranks wait for each other
_UNSEEN = "the first batch, or example=, tells which layers the network has"


class CollapseMeter:
    r"""Measure NC1 to NC4 of a PyTorch model's layers, while it trains or in a frozen pass.

    Forward hooks reduce each watched layer to class-shifted sums on its device, without a copy to the
    host, a change to the model's output, its gradients or the random state. Head, classes and layers
    are learnt from one forward of the model, of which nothing remains: that of ``example``, or else
    that of the first batch, just before it is counted.

    Parameters
    ----------
    model : nn.Module
        Bare, compiled, or wrapped for data parallelism; layer names are those of the bare model.
    layers : "auto", str, iterable of str, or callable
        Names or patterns of modules whose output is watched (``*`` within one part of a name, ``**``
        across), or ``predicate(name, module)``. ``auto`` takes the ends of blocks whose output all of
        the signal passes, in the order of the data. The head's input is watched besides, under the
        head's name.
    head : "auto", str, pair, or None
        The linear map or 1x1 convolution that makes the scores; ``auto`` finds it. A head that computes
        otherwise, such as a cosine classifier, is ``(name or module, callable)``; the callable returns
        its (C, d) weight, or weight and (C,) bias, from the module.
    example : tensor, tuple or dict, optional
        One batch of inputs to learn from at once.
    scores : "auto", key, index, or callable
        Which part of what the model returns holds the scores, (B, C) or one column for two classes.
        ``auto`` takes a tensor, ``logits``, or the only part of C columns.
    max_layers : int
        How many layers ``auto`` takes at most, spread over the depth.
    memory : "auto", float, or None
        MiB that the statistics of all layers may take: hidden layers keep fewer rows for NC4 and
        smaller scatters before the last layer does. ``auto`` is the larger of 64 MiB and half of the
        parameters; None sets no limit.
    num_classes : int, optional
        C; by default the width of the scores.
    reduction, scatter, convention, ignore_index, nonfinite, mixed, sample_rows, seed, sketch_rows,
    groups
        See `collapsemeter.adapter.settings.Settings`.
    criterion : nn.Module, optional
        A loss module called as ``criterion(output, labels)``: its labels are used, and the loop needs
        no other change. Not under torch.compile.
    keyword_labels : bool
        Count a forward that is given ``labels=``, without an edit of the loop.
    wide_sums : bool
        Keep live sums in float64 where the device has it, as `observe` does.
    exact : bool
        Keep all rows for NC4, on the host.
    count_eval : bool
        Count batches of a model in eval mode or without gradients, too.
    every : int
        Count every k-th training batch only, from the first after a `reset` on. Of the others nothing
        is looked at, neither activations nor labels. `observe` and `dump` take every batch.
    max_rows : int, optional
        Count no more batches once so many label rows were counted since the last `reset`; batches are
        counted whole.
    strict : bool
        Re-raise a failure of the meter itself instead of marking the layer ``degraded``.
    verbose : bool
        Print what is watched, and why the rest is not.

    Raises
    ------
    ValueError
        If layers, head, reduction or classes do not fit the model; what only a forward tells is
        raised at the end of the first batch.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> meter = CollapseMeter(net, verbose=False)
    >>> with meter.batch(torch.tensor([0, 1, 2, 0, 1, 2])):
    ...     logits = net(torch.randn(6, 4))
    >>> report = meter.compute()
    >>> list(report), report.provenance["rows"]
    (['2'], 6)
    >>> meter.close()
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = "auto",
        head: HeadOption = "auto",
        *,
        example: Any = None,
        scores: Scores = "auto",
        max_layers: int = MAX_LAYERS,
        memory: Memory = "auto",
        num_classes: int | None = None,
        reduction: Reduction | Mapping[str, Reduction] = "auto",
        scatter: ScatterKind | Literal["auto"] = "auto",
        criterion: nn.Module | None = None,
        convention: Convention | str = "papyan2020",
        ignore_index: int = IGNORE_INDEX,
        nonfinite: Nonfinite = "skip",
        mixed: Mixed = "skip",
        sample_rows: int = 4096,
        keyword_labels: bool = True,
        wide_sums: bool = False,
        exact: bool = False,
        count_eval: bool = False,
        every: int = 1,
        max_rows: int | None = None,
        strict: bool = False,
        seed: int = 0,
        sketch_rows: int = SKETCH_ROWS,
        groups: int = GROUPS,
        verbose: bool = True,
    ) -> None:
        if not isinstance(model, nn.Module):
            kind = (
                f"the class {model.__name__}"
                if isinstance(model, type)
                else f"a {type(model).__name__}"
            )
            raise ValueError(f"model is {kind}: pass the nn.Module that is trained")
        if num_classes is not None:
            num_classes = check_num_classes(num_classes, least=2)
        self.budget = Budget(every, max_rows)
        for how in reduction.values() if isinstance(reduction, Mapping) else ():
            check_reduction(how)  # of which layer is known when the network has run
        settings = Settings(
            num_classes=num_classes or 2,
            reduction=reduction,
            scatter=scatter,
            convention=convention,
            ignore_index=ignore_index,
            nonfinite=nonfinite,
            mixed=mixed,
            sample_rows=sample_rows,
            seed=seed,
            sketch_rows=sketch_rows,
            groups=groups,
        )
        self.exact, self.strict = exact, strict
        self._model = model
        if not isinstance(layers, str) and not callable(layers):
            layers = list(layers)
        learner = Learner(
            model,
            layers,
            head,
            num_classes,
            settings,
            scores,
            max_layers,
            memory,
            criterion,
            wide_sums,
        )
        learner.check()
        self._attachment = Attachment(model)
        self._recorder = Recorder(
            learner,
            self.budget,
            self._attachment,
            exact=exact,
            strict=strict,
            count_eval=count_eval,
            announce=partial(_announce, verbose),
        )
        self._reporter = Reporter(self._recorder, model, exact=exact)
        self._recorder.keyword_labels = keyword_labels
        self._closed = False
        self._criterion: weakref.finalize[..., Any] | None = None
        if criterion is not None:
            remove = watch_criterion(criterion, model, self._recorder)
            self._criterion = weakref.finalize(self, remove)
        if example is not None:
            inputs = inputs_on_device(example, device_of(self._recorder.root))
            self._recorder.learn(*as_arguments(inputs))
        self.attach()

    # Attaching

    def attach(self) -> None:
        """Put the hooks on the model; where they are there already, nothing happens."""
        self._recorder.attach()

    def detach(self) -> None:
        """Take every hook off the model; what was counted stays, and `batch` attaches again."""
        self._recorder.detach()

    def close(self) -> None:
        """Detach for good, from the criterion too: model and loss are as they were before."""
        if not self.__dict__:  # a copy has no hooks
            return
        self._closed = True
        self.detach()
        self._recorder.pending.clear()
        if self._criterion is not None:
            self._criterion()
            self._criterion = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # Copies, with the module that holds a meter: hooks, threads and the model itself stay behind

    def __reduce__(self) -> tuple[Any, ...]:
        return _copied, (type(self),)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if self.__dict__ or name.startswith("__"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            raise CopiedMeterError(
                "this is a copy of a meter and measures nothing: make a CollapseMeter for the copied model, "
                "and take the counts along by load_state_dict(meter.state_dict())"
            )

    @property
    def num_classes(self) -> int:
        """C."""
        return self.settings.num_classes

    @property
    def rows(self) -> int:
        """Labels that came with counted batches since the last `reset`."""
        count_pending(self._recorder)
        return self._recorder.live.expected_rows

    @property
    def settings(self) -> Settings:
        """How layers are counted and measured."""
        return self._learnt.settings

    @property
    def selection(self) -> Selection:
        """The layers that are watched."""
        return self._learnt.selection

    @property
    def skipped(self) -> dict[str, str]:
        """Why each module that is not watched is not."""
        return dict(self.selection.skipped)

    def describe(self, full: bool = False) -> str:
        """Return in words what is watched, and why the rest is not.

        Parameters
        ----------
        full : bool
            Name every module that is not watched; by default they are counted by reason.
        """
        if self._recorder.known is None:
            return f"collapsemeter watches nothing yet: {_UNSEEN}"
        return self._learnt.describe(full)

    @property
    def _learnt(self) -> Learnt:
        learnt = self._recorder.known
        if learnt is None:
            raise ValueError(f"this is not known yet: {_UNSEEN}")
        return learnt

    # Counting

    def batch(self, labels: Any, mask: Tensor | None = None) -> Batch:
        """Count the forward inside ``with meter.batch(labels):`` for these labels.

        The labels belong to the first forward of the model in the block. Batches of a model in eval
        mode or without gradients are not counted, unless ``count_eval=True``.

        Parameters
        ----------
        labels : (B,), (B, 1) or (B, T) tensor or array of class numbers, or one-hot (B, C)
            Whole numbers of any dtype, such as the 0.0 and 1.0 of a binary loss. Rows that name no
            single class are left out and counted. Integers (B, C) of 0 and 1 are one-hot where most rows
            name one class; those of a sequence of C tokens need its ``mask``.
        mask : (B, T) tensor, optional
            Attention mask of a padded sequence.

        Returns
        -------
        context manager

        Raises
        ------
        ValueError
            If labels are invalid or another batch is open, and at the end of the block if a layer's
            output does not fit the labels (the forward itself is not disturbed).
        """
        if self._closed:
            raise ValueError("this meter is closed: make a new CollapseMeter to count more batches")
        return live_batch(self._recorder, labels, mask)

    def observe(
        self,
        batches: Iterable[Any],
        *,
        phase: Phase = "frozen-eval",
        progress: bool = True,
        sync: Sync = "auto",
        timeout: float = TIMEOUT,
    ) -> CollapseReport:
        """Measure in one pass with frozen weights: eval mode, no gradients, modes restored after.

        Parameters
        ----------
        batches : iterable of (inputs, labels), or of dicts with "labels"
            Inputs are a tensor, or a tuple or dict of arguments; they are moved to the model's device. Labels are
            read as in training, by the meter's ``mixed``, ``ignore_index`` and ``nonfinite``.
        phase : {"frozen-eval", "frozen-train"}
            What the report calls the data: held-out, or the training set.
        progress : bool
            Show a progress bar on standard error.
        sync : {"auto", True, False}, process group, or device mesh of one dimension
            Merge over ranks as `compute` does, each of which must call it. ``auto`` merges where the loader's
            sampler spreads the data over them, and leaves out the rows that it repeats.
            A rank that reports alone may be the only one to call it.
        timeout : float
            Seconds to wait for the other ranks.

        Returns
        -------
        CollapseReport

        Raises
        ------
        ValueError
            If there is no batch, or a layer's output does not fit the labels.
        TimeoutError
            If a rank does not come, or fails on its way; the error names it.
        """
        check_frozen_phase(phase)
        members, spread = self._reporter.spread(batches, sync)
        place = partial(numbering_of, self._model, members) if members is not None else Numbering

        def wide_store(learnt: Learnt) -> Store:
            return Store(
                learnt.settings,
                learnt.plan,
                exact=self.exact,
                strict=self.strict,
                wide=True,
                place=place,
            )

        with self._reporter.gathering(members, timeout):
            store = self._frozen_pass(wide_store, batches, progress, spread)
        ranks = 0 if spread is None else spread.ranks
        return self._reporter.report(store, phase, "observe()", members, timeout, spread=ranks)

    def dump(
        self,
        batches: Iterable[Any],
        path: str | os.PathLike[str],
        *,
        phase: Phase = "frozen-eval",
        step: int | None = None,
        shard_bytes: int = SHARD_BYTES,
        progress: bool = True,
    ) -> Path:
        """Write every layer's rows in one pass as `observe` makes it, for the audit.

        Rows are those that `observe` measures, in their own dtype, with labels, the network's own
        decisions and the head, see `collapsemeter.activations.Writer`. A pass that fails leaves a folder
        without a manifest, and the audit refuses such a folder.

        Parameters
        ----------
        batches : iterable of (inputs, labels), or of dicts with "labels"
            As of `observe`.
        path : str or path
            Folder; one that holds a dump is refused.
        phase : {"frozen-eval", "frozen-train"}
        step : int, optional
            The epoch or step.
        shard_bytes : int
            About how large a file becomes; as much is held in memory.
        progress : bool

        Returns
        -------
        Path
            Of the manifest.

        Raises
        ------
        ValueError
            As `observe`, and if a layer is not called in every batch, as often as in the others.
        ImportError
            If the libraries that write are missing.
        """
        check_frozen_phase(phase)
        with ExitStack() as stack:

            def written(learnt: Learnt) -> Store:
                writer = Writer(
                    path,
                    num_classes=learnt.settings.num_classes,
                    head=learnt.head(self._model),
                    head_layer=learnt.selection.head,
                    phase=phase,
                    step=step,
                    ignore_index=learnt.settings.ignore_index,
                    shard_bytes=shard_bytes,
                )
                return Dump(learnt.settings, learnt.selection, stack.enter_context(writer))

            self._frozen_pass(written, batches, progress)
        return Path(path) / MANIFEST

    def _frozen_pass(
        self,
        make_store: Callable[[Learnt], Store],
        batches: Iterable[Any],
        progress: bool,
        spread: Spread | None = None,
    ) -> Store:
        attached, started = bool(self._attachment), perf_counter()
        self.attach()
        try:
            store = frozen_pass(self._recorder, self._model, make_store, batches, progress, spread)
            live = self._recorder.live
            return store or Store(live.settings, live.plan, place=live.place)
        finally:
            # An exception in a block takes the hooks off, so that none remains: not those of before.
            if attached:
                self.attach()
            else:
                self.detach()
            self._recorder.live.clock.skip_since(started)

    def compute(self, *, sync: Sync = True, timeout: float = TIMEOUT) -> CollapseReport:
        """Return the report of what was counted live since the last `reset`.

        Where nothing was counted all metrics are NaN, and a warning says why.
        Its provenance holds ``first_step`` and ``last_step``, numbers of labelled training batches
        whether they were counted or not, and ``overhead``, the share of the training's time that the
        hooks took, see `collapsemeter.adapter.budget.Clock`.

        Where a process group has several ranks, the report is that of the rows of all of them, the same
        on every rank. All ranks must call it, also one without data.

        Parameters
        ----------
        sync : bool, process group, or device mesh of one dimension
            Merge over all ranks, or over those of the data-parallel wrapper's own process group; rows that
            several ranks see, because layers are split among them, count once. A process group, or a part of a
            device mesh such as ``mesh["dp"]``, says over which ranks rows differ where no wrapper does. False
            reports the rows of this rank.
        timeout : float
            Seconds to wait for the other ranks.

        Raises
        ------
        ValueError
            If a row is not finite under ``nonfinite="raise"``, or ranks do not measure the same layers.
        TimeoutError
            If a rank does not come; the error names it.
        """
        started = perf_counter()
        report = self._reporter.live(sync, timeout)
        self._recorder.live.clock.skip_since(started)
        return report

    def moments(
        self, layer: str, call: int = 0, *, sync: Sync = True, timeout: float = TIMEOUT
    ) -> ClassMoments:
        """Return what a layer counted live as moments, for saving or merging.

        Parameters
        ----------
        layer : str
        call : int
            Which of its calls in one forward, for a module that is called more than once.
        sync, timeout
            As of `compute`.

        Raises
        ------
        ValueError
            If the layer counted nothing.
        TimeoutError
            As `compute`.
        """
        count_pending(self._recorder)
        return self._reporter.moments(layer, call, sync, timeout)

    def reset(self) -> None:
        """Forget what was counted; hooks and memory stay, and the next batch is counted."""
        self._recorder.reset()

    def state_dict(self) -> dict[str, Any]:
        """Return what was counted as tensors and plain values, for ``torch.save``."""
        count_pending(self._recorder)
        return self._recorder.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`, also in the phase of ``every``; `overhead` begins anew.

        Raises
        ------
        ValueError
            If it is of other layers, widths or classes, of a newer version, or no state; nothing is loaded then.
        """
        self._recorder.load_state_dict(state)


class CopiedMeterError(AttributeError, ValueError):
    """A copy of a meter is used; an `AttributeError`, so that `hasattr` may ask it anything."""


def _copied(kind: type[CollapseMeter]) -> CollapseMeter:
    """Return what a copied or unpickled module has in place of a meter."""
    return kind.__new__(kind)


def _announce(verbose: bool, learnt: Learnt) -> None:
    if verbose:
        say(learnt.describe())
