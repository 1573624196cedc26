"""`CollapseMeter`: attach to a PyTorch model, count batches, read reports."""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from collapsemeter import ClassMoments, CollapseReport, Convention
from collapsemeter.activations import Writer
from collapsemeter.activations.manifest import NAME as MANIFEST
from collapsemeter.activations.writer import SHARD_BYTES
from collapsemeter.adapter.batches import check_phase, no_batch
from collapsemeter.adapter.budget import Budget
from collapsemeter.adapter.reduction import Layout, Reduction, check_reduction, reduction_of
from collapsemeter.adapter.selection import classes_of, description
from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.moments import Phase
from collapsemeter.stats.sketch import SKETCH_ROWS
from collapsemeter.stats.sums import IGNORE_INDEX, Nonfinite, ScatterKind, check_num_classes
from collapsemeter.system.suggest import did_you_mean
from collapsemeter.system.terminal import say
from collapsemeter.system.warning import warn

from . import compiled, finalise
from .batch import Batch
from .criterion import CriterionHook, Pending
from .device import device_of
from .dumping import Dump
from .hooks import HeadInputHook, HeadOutputHook, LayerHook, RootHook, RootPreHook
from .keyword_labels import KeywordLabelsHook, KeywordLabelsPreHook
from .layers import Layers, innermost, select
from .observing import run
from .reduction import layout_of
from .scope import Store

_NUMBERS = itertools.count()


class CollapseMeter:
    r"""Measure NC1 to NC4 of a PyTorch model's layers, while it trains or in a frozen pass.

    Forward hooks reduce each watched layer to class-shifted sums on its device, without a copy to the
    host, a change to the model's output, its gradients or the random state.

    Parameters
    ----------
    model : nn.Module
        Bare, compiled, or wrapped for data parallelism; layer names are those of the bare model.
    layers : "auto", str, iterable of str, or callable
        Names or shell patterns of modules whose output is watched, or ``predicate(name, module)``.
        ``auto`` takes the blocks a person would name. The head's input is watched besides, under
        the head's name.
    head : "auto", str, or None
        The final linear layer; ``auto`` finds it.
    num_classes : int, optional
        C; by default the head's outputs.
    reduction : str, callable, or mapping from layer name to one
        How an output becomes one row per label, see `reduction.feature_rows`.
    scatter : {"auto", "class", "pooled", "sketch", "trace"}
        What is kept of the within-class scatter, see `collapsemeter.stats.sums.scatter_kind`.
    criterion : nn.Module, optional
        A loss module called as ``criterion(output, labels)``: its labels are used, and the loop needs
        no other change. Not under torch.compile.
    convention : str or Convention
    ignore_index : int
        Label of rows to leave out.
    nonfinite : {"skip", "raise", "propagate"}
        What to do with rows that hold NaN or Inf; ``raise`` raises in `compute`.
    sample_rows : int
        Rows of each layer kept for NC4 (a uniform sample; a sixteenth of it where d > 4096).
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
    seed : int
        Of the row sample, and of the sketch of wide layers: where the moments of several processes
        are to be merged, one each (``seed=rank``).
    sketch_rows : int
        Rows of the sketch that a wide layer keeps, see `collapsemeter.adapter.settings.Settings`.
    verbose : bool
        Print what is watched, and why the rest is not.

    Raises
    ------
    ValueError
        If layers, head, reduction or classes do not fit the model.

    Examples
    --------
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
        head: str | None = "auto",
        *,
        num_classes: int | None = None,
        reduction: Reduction | Mapping[str, Reduction] = "auto",
        scatter: ScatterKind | Literal["auto"] = "auto",
        criterion: nn.Module | None = None,
        convention: Convention | str = "papyan2020",
        ignore_index: int = IGNORE_INDEX,
        nonfinite: Nonfinite = "skip",
        sample_rows: int = 4096,
        exact: bool = False,
        count_eval: bool = False,
        every: int = 1,
        max_rows: int | None = None,
        strict: bool = False,
        seed: int = 0,
        sketch_rows: int = SKETCH_ROWS,
        verbose: bool = True,
    ) -> None:
        if not isinstance(model, nn.Module):
            what = (
                f"the class {model.__name__}"
                if isinstance(model, type)
                else f"a {type(model).__name__}"
            )
            raise ValueError(f"model is {what}: pass the nn.Module that is trained")
        if num_classes is not None:
            num_classes = check_num_classes(num_classes, least=2)
        self.budget = Budget(every, max_rows)
        self.selection = select(model, layers, head, num_classes)
        check_reduction(reduction, self.selection.watched)
        self.settings = Settings(
            num_classes=classes_of(
                self.selection.head, self.selection.head_outputs, num_classes, "nn.Linear"
            ),
            reduction=reduction,
            scatter=scatter,
            convention=convention,
            ignore_index=ignore_index,
            nonfinite=nonfinite,
            sample_rows=sample_rows,
            seed=seed,
            sketch_rows=sketch_rows,
        )
        self.exact = exact
        self.count_eval = count_eval
        self.strict = strict
        self._model = model
        self._root = innermost(model)
        self._slot = f"meter {next(_NUMBERS)}"
        self._local = threading.local()
        self._lock = threading.RLock()  # two threads may each have a batch
        self._live = Store()
        self._closed = False
        self._steps = [0, 0]  # the first step of what is being measured, and the next one
        self._handles: list[RemovableHandle] = []
        self._marked: list[compiled.Mark] = []
        self._pending = Pending()
        self._criterion: weakref.finalize[..., Any] | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None
        if criterion is not None:
            self._watch_criterion(criterion)
        self.attach()
        if verbose:
            say(self.describe())

    # Attaching

    def attach(self) -> None:
        """Put the hooks on the model; where they are there already, nothing happens."""
        if self._handles:
            return
        chosen, handles = self.selection, self._handles
        handles.append(
            self._model.register_forward_pre_hook(KeywordLabelsPreHook(self), with_kwargs=True)
        )
        handles.append(self._root.register_forward_pre_hook(RootPreHook(self)))
        for name, module in chosen.layers.items():
            layout = layout_of(module, chosen.before.get(name, ()))
            hook = LayerHook(self, name, layout, reduction_of(self.settings.reduction, name))
            handles.append(module.register_forward_hook(hook))
        if chosen.head is not None and chosen.head_module is not None:
            head = chosen.head_module
            given = Layout(channels_first=False, width=head.in_features)
            into = HeadInputHook(
                self, chosen.head, given, reduction_of(self.settings.reduction, chosen.head)
            )
            handles.append(head.register_forward_pre_hook(into, with_kwargs=True))
            handles.append(head.register_forward_hook(HeadOutputHook(self)))
        handles.append(self._root.register_forward_hook(RootHook(self), always_call=True))
        handles.append(self._model.register_forward_hook(KeywordLabelsHook(self), always_call=True))
        self._marked = compiled.mark(self._hooked_modules())
        # A meter that is dropped without `close` leaves no hook either.
        self._finalizer = weakref.finalize(self, _detach, self._handles, self._marked)

    def _hooked_modules(self) -> list[nn.Module]:
        modules = [self._root, *self.selection.layers.values()]
        return modules + ([self.selection.head_module] if self.selection.head_module else [])

    def detach(self) -> None:
        """Take every hook off the model; what was counted stays, and `batch` attaches again."""
        if self._finalizer is not None:
            self._finalizer()
            self._finalizer = None
        self._handles, self._marked = [], []

    def close(self) -> None:
        """Detach for good, from the criterion too: model and loss are as they were before."""
        self._closed = True
        self.detach()
        self._pending.clear()
        if self._criterion is not None:
            self._criterion()
            self._criterion = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def num_classes(self) -> int:
        """C."""
        return self.settings.num_classes

    def describe(self) -> str:
        """Return what is watched and, for every other module, why it is not."""
        chosen = self.selection
        return description(
            chosen.watched, chosen.head, chosen.skipped, self.num_classes, "an nn.Linear"
        )

    @property
    def skipped(self) -> dict[str, str]:
        """Why each module that is not watched is not."""
        return dict(self.selection.skipped)

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
        due = self._due()
        return Batch(self, self._live, labels, mask, anyway=self.count_eval, due=due)

    def _due(self) -> bool:
        """Whether the budget takes the next training batch."""
        taken: bool = self.budget.takes(self._steps[1] - self._steps[0], self._live.expected)
        return taken

    def observe(
        self,
        batches: Iterable[Any],
        *,
        phase: Phase = "frozen-eval",
        progress: bool = True,
    ) -> CollapseReport:
        """Measure in one pass with frozen weights: eval mode, no gradients, modes restored after.

        Parameters
        ----------
        batches : iterable of (inputs, labels), or of dicts with "labels"
            Inputs are a tensor, or a tuple or dict of arguments; they are moved to the model's device.
        phase : {"frozen-eval", "frozen-train"}
            What the report calls the data: held-out, or the training set.
        progress : bool
            Show a progress bar on standard error.

        Returns
        -------
        CollapseReport

        Raises
        ------
        ValueError
            If there is no batch, or a layer's output does not fit the labels.

        Examples
        --------
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> meter = CollapseMeter(net, verbose=False)
        >>> images, labels = torch.randn(60, 4), torch.arange(60) % 3
        >>> report = meter.observe([(images[:30], labels[:30]), (images[30:], labels[30:])], progress=False)
        >>> report.phase, report["2"].provenance["rows"], net.training
        ('frozen-eval', 60, True)
        """
        check_phase(phase)
        store = Store(wide=True)
        self._frozen_pass(store, batches, progress)
        return self._report(store, phase, {})

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
        without a manifest, which is none to the audit.

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

        Examples
        --------
        >>> import tempfile
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> meter = CollapseMeter(net, verbose=False)
        >>> images, labels = torch.randn(60, 4), torch.arange(60) % 3
        >>> meter.dump([(images, labels)], tempfile.mkdtemp(), progress=False).name
        'manifest.json'
        """
        check_phase(phase)
        with Writer(
            path,
            num_classes=self.num_classes,
            head=finalise.head_of(self.selection),
            head_layer=self.selection.head,
            phase=phase,
            step=step,
            ignore_index=self.settings.ignore_index,
            shard_bytes=shard_bytes,
        ) as writer:
            self._frozen_pass(Dump(self, writer), batches, progress)
        return writer.folder / MANIFEST

    def _frozen_pass(self, store: Store, batches: Iterable[Any], progress: bool) -> None:
        attached, started = bool(self._handles), perf_counter()
        self.attach()
        try:
            run(self, self._model, store, batches, progress)
        finally:
            # An exception in a block takes the hooks off, so that none remains: not those of before.
            if attached:
                self.attach()
            else:
                self.detach()
            self._live.clock.skip_since(started)
        if not store.batches:
            raise no_batch(batches)

    def compute(self) -> CollapseReport:
        """Return the report of what was counted live since the last `reset`.

        Its provenance holds ``first_step`` and ``last_step``, numbers of labelled training batches
        whether they were counted or not, and ``overhead``, the share of the training's time that the
        hooks took, see `collapsemeter.adapter.budget.Clock`.

        Raises
        ------
        ValueError
            If no labelled batch was counted, or a row is not finite under ``nonfinite="raise"``.
        """
        started, live = perf_counter(), self._live
        self._pending.clear()
        if live.batches == 0:
            raise ValueError(
                "no labelled batch was counted: wrap the forward in `with meter.batch(labels):` while "
                "the model is in training mode (or pass count_eval=True), pass labels= to the model, "
                "or name the loss module with criterion=" + compiled.hint(self._root)
            )
        first, after = self._steps
        device = device_of(self._root).type
        more = {
            "first_step": first,
            "last_step": after - 1,
            **self.budget.provenance(after - first - live.batches, live.expected),
            **live.clock.provenance(compiled.UNSEEN, asynchronous=device != "cpu"),
        }
        report = self._report(live, "live", more)
        live.clock.skip_since(started)
        return report

    def moments(self, layer: str, call: int = 0) -> ClassMoments:
        """Return what a layer counted live as moments, for merging over processes or saving.

        Parameters
        ----------
        layer : str
        call : int
            Which of its calls in one forward, for a module that is called more than once.

        Raises
        ------
        ValueError
            If the layer counted nothing.
        """
        state = self._live.layers.get((layer, call))
        if state is None:
            raise ValueError(
                f"layer {layer!r} has counted nothing (call {call}); watched are "
                f"{', '.join(self.selection.watched)}{did_you_mean(layer, self.selection.watched)}"
            )
        with self._lock:
            sums = state.host_sums()
        return ClassMoments.from_sums(sums, state.feature_dtype, "live", seed=state.seed)

    def _report(self, store: Store, phase: Phase, more: dict[str, Any]) -> CollapseReport:
        with self._lock:  # batches that wait are added now
            report = finalise.report(self, store, phase, more)
        for message in report.warnings:
            warn(message)
        return report

    def reset(self) -> None:
        """Forget what was counted; hooks and memory stay, and the next batch is counted."""
        self._live.clear()
        self._pending.clear()
        self._steps[0] = self._steps[1]

    def state_dict(self) -> dict[str, Any]:
        """Return what was counted as tensors and plain values, for ``torch.save``."""
        with self._lock:
            return finalise.state_dict(
                self._live, self._steps, self.num_classes, self.selection.watched
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`, also in the phase of ``every``; `overhead` begins anew.

        Raises
        ------
        ValueError
            If it is of other layers, widths or classes, of a newer version, or no state; nothing is loaded then.
        """
        self._steps = finalise.load_state(self, self._live, state)

    # What the hooks call

    @property
    def _stashing(self) -> bool:
        return self._criterion is not None

    def _stash(self, hook: LayerHook, output: Any) -> None:
        if torch.compiler.is_compiling():
            self._pending.refused = True
        elif self._root.training and torch.is_grad_enabled():
            started = perf_counter()
            if self._due():
                self._pending.add(hook, output)
            else:
                self._pending.left_out = True
            self._live.clock.spend_since(started)

    def _watch_criterion(self, criterion: nn.Module) -> None:
        if not isinstance(criterion, nn.Module):
            raise ValueError(
                f"criterion={criterion!r} is not an nn.Module: pass the loss as a module "
                "(nn.CrossEntropyLoss()), or use `with meter.batch(labels):`"
            )
        if compiled.is_compiled(self._model):
            raise ValueError(
                "criterion= does not work under torch.compile, where activations are gone when the "
                "labels come: use `with meter.batch(labels):` around the forward"
            )
        handle = criterion.register_forward_pre_hook(CriterionHook(self), with_kwargs=True)
        self._criterion = weakref.finalize(self, handle.remove)


def _detach(handles: list[RemovableHandle], marked: list[compiled.Mark]) -> None:
    for handle in handles:
        handle.remove()
    compiled.unmark(marked)
