"""The hooks: small, inert in copies, and reducing what they see at once."""

from __future__ import annotations

import math
from time import perf_counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling, is_exporting

from collapsemeter.adapter.reduction import BatchError, Layout, Reduction, mean_axes, reduction_of

from .inert import Hook
from .reduction import TORCH, feature_rows, tensor_of
from .scope import Scope, recomputing
from .sharding import copies, is_sharded, local, on_mesh
from .state import HEAD_OUTPUT

if TYPE_CHECKING:
    from .learnt import Learnt
    from .recorder import Recorder

_REORDERED = (
    "samples are put in another order after LAYER, so that labels do not tell which row is whose: sort inputs and "
    "labels before the network, or pass reduction={LAYER: ...}, a callable that gives rows in the order of the labels"
)
_SHAPES = 64  # of outputs whose reduction a hook remembers


class CountingHook(Hook):
    """A hook that adds what it sees to the statistics. Every layer of every batch passes here: calls are few."""

    __slots__ = ()
    name: str

    def see(self, output: Any) -> None:
        """Count this output for the current batch, or keep it until the loss brings labels."""
        recorder = self.recorder()
        if recorder is None:
            return
        scope = recorder.opened.scope
        if type(scope) is Scope:
            if scope.takes:
                self.guarded(scope, output)
        elif scope is None and recorder.waits_for_loss:
            recorder.stash(self.name, self.guarded, output)

    def guarded(self, scope: Scope, output: Any) -> None:
        """Count outside of graphs, and let no fault of ours reach the user's step."""
        if torch._C._current_graph_task_id() != -1:  # as `recomputing`
            return
        # A CUDA graph would run again without what the host does beside.
        if scope.on_cuda and torch.cuda.is_current_stream_capturing():
            return
        store = scope.store
        if self.name in store.degraded:
            return
        started = perf_counter()
        try:
            with store.lock:
                self.count(scope, output)
        except BatchError as error:
            scope.problems[self.name] = error
        except Exception as error:
            store.degrade(self.name, error)
        finally:
            store.clock.spent += perf_counter() - started

    def see_in_graph(self, output: Any) -> None:
        """Count in a graph that torch.compile makes."""
        recorder = self.recorder()
        scope = None if recorder is None else recorder.scope()
        if not isinstance(scope, Scope):
            if scope is None and recorder is not None and recorder.waits_for_loss:
                recorder.pending.refused = (
                    True  # a graph keeps no output until the loss brings labels
                )
            return
        # A graph that nobody could foresee is not prepared for: rows are missing, and reported.
        if scope.takes and scope.ready and not is_exporting():
            scope.unseen = True
            try:
                with (
                    torch.inference_mode(False),
                    torch.autocast(scope.device_type, enabled=False),
                    torch.no_grad(),
                ):
                    self.count_in_graph(scope, output)
            except BatchError as error:
                scope.problems[self.name] = error

    def undisturbed(self, scope: Scope, output: Any) -> None:
        """Count as if inference mode and autocast were off.

        Tensors made in inference mode cannot be saved or updated outside it. To leave modes that are not
        on would take longer than all else that a hook does.
        """
        kind = scope.device_type
        if torch.is_inference_mode_enabled() or torch.is_autocast_enabled(kind):
            with torch.inference_mode(False), torch.autocast(kind, enabled=False), torch.no_grad():
                self.count_anew(scope, output)
        else:
            self.count_anew(scope, output)

    def count(self, scope: Scope, output: Any) -> None:
        """Add an output to the statistics of this batch, in any mode."""
        self.undisturbed(scope, output)

    def count_anew(self, scope: Scope, output: Any) -> None:
        """Add an output without what is known of those before it."""

    def count_in_graph(self, scope: Scope, output: Any) -> None:
        """Add an output as part of a graph."""


class LayerHook(CountingHook):
    """Reduces a layer's output (as a forward hook) to its sums."""

    __slots__ = ("axes", "layout", "name", "reduction", "reordered", "turned")

    def __init__(
        self,
        recorder: Recorder,
        name: str,
        layout: Layout | None,
        reduction: Reduction,
        *,
        turned: bool,
        reordered: bool = False,
    ) -> None:
        super().__init__(recorder)
        self.name = name
        self.reordered = reordered and not callable(reduction)
        self.turned = turned and not callable(reduction)  # it gives (T, B, d)
        self.layout = layout
        self.reduction = reduction
        # Over which axes outputs are averaged to rows, by the shapes of output and labels.
        self.axes: dict[tuple[Any, ...], tuple[int, ...]] = {}

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if is_compiling():
            self.see_in_graph(output)
        else:
            self.see(output)

    def count(self, scope: Scope, output: Any) -> None:
        """Reduce to rows and hand them to the store, in the way that did for these shapes before."""
        plain = type(output) is Tensor and not output.is_nested
        if plain and scope.mask is None and scope.mask_seen is None:
            axes = self.axes.get((output.shape, output.dtype, scope.shape))
            if axes is not None:
                rows = output.detach()
                scope.store.add_rows(scope, self.name, TORCH.mean(rows, axes) if axes else rows)
                return
        self.undisturbed(scope, output)
        if plain and not self.turned:
            self._remember(output, scope.shape)

    def count_anew(self, scope: Scope, output: Any) -> None:
        scope.store.add_rows(scope, self.name, self._rows(scope, output))

    def _remember(self, output: Tensor, labels: torch.Size) -> None:
        axes = mean_axes(
            output.shape, labels, layer=self.name, layout=self.layout, reduction=self.reduction
        )
        if axes is not None:
            if len(self.axes) >= _SHAPES:  # of sequences of any length
                self.axes.clear()
            self.axes[output.shape, output.dtype, labels] = axes

    def _rows(self, scope: Scope, output: Any) -> Tensor:
        scope.store.copies.update(copies(output))
        output = self._samples_first(scope, output)
        return feature_rows(
            output,
            scope.labels,
            scope.mask_for(output),
            layer=self.name,
            layout=self.layout,
            reduction=self.reduction,
        )

    def _samples_first(self, scope: Scope, output: Any) -> Any:
        """Return what a layer gave as (B, T, d), if it has positions first and samples have one label each."""
        if self.reordered:
            raise BatchError(self.name, "rows", scope.labels.shape, _REORDERED)
        if not self.turned or scope.labels.ndim > 1:
            return output
        features = tensor_of(output, self.name, scope.labels)
        return features.transpose(0, 1) if features.ndim == 3 else features

    def count_in_graph(self, scope: Scope, output: Any) -> None:
        """Reduce to rows and hand them to the store."""
        scope.store.add_rows_in_graph(scope, self.name, self._rows(scope, output))


class HeadInputHook(LayerHook):
    """The same for what the head is given (as a forward pre-hook with keyword arguments)."""

    __slots__ = ()

    # Quantisation moves hooks to the layers that it makes, and forgets that this one is given keyword arguments.
    def __call__(self, module: nn.Module, args: Any, kwargs: Any = MappingProxyType({})) -> None:
        inputs = args[0] if args else kwargs.get("input", next(iter(kwargs.values()), None))
        if is_compiling():
            self.see_in_graph(inputs)
        else:
            self.see(inputs)


class SelectedInputHook(HeadInputHook):
    """The same where the scores are those of some positions: features are those of the same positions."""

    __slots__ = ()

    def count(self, scope: Scope, output: Any) -> None:
        """Wait for the scores, which say which positions."""
        if len(scope.shape) == 1 and is_sequence(output):
            scope.head_given = self._samples_first(scope, output)
        else:
            super().count(scope, output)

    def count_in_graph(self, scope: Scope, output: Any) -> None:
        if scope.labels.ndim == 1 and is_sequence(output):
            scope.head_given = self._samples_first(scope, output)
        else:
            super().count_in_graph(scope, output)


def head_input_hook(recorder: Recorder, learnt: Learnt) -> HeadInputHook:
    """Return the hook of the head, which must be known."""
    head = learnt.selection.head
    assert head is not None
    reduction = reduction_of(learnt.settings.reduction, head)
    kind = SelectedInputHook if learnt.selects and reduction == "auto" else HeadInputHook
    turned = head in learnt.turned
    return kind(recorder, head, learnt.head_layout(), reduction, turned=turned)


def is_sequence(value: Any) -> bool:
    """Whether something is a tensor (B, T, d)."""
    return isinstance(value, Tensor) and value.ndim == 3


def selected_rows(inputs: Tensor, output: Tensor, scores: Tensor) -> Tensor:
    """Return the rows of a head's input (B, T, d) whose output (B, T, C) became the scores (B, C), else NaN."""
    same = (output == scores[:, None]).all(-1)
    position = same.to(torch.uint8).argmax(1)
    rows = inputs.gather(1, position[:, None, None].expand(-1, 1, inputs.shape[2]))[:, 0]
    return torch.where(same.any(1)[:, None], rows, math.nan)


class HeadOutputHook(CountingHook):
    """Keeps what the head gave until the model's end: scores are chosen among it, or not returned at all.

    In a graph its decisions are the network's: hooks of the model itself run outside of it.
    """

    __slots__ = ("keeps",)
    name = HEAD_OUTPUT

    def __init__(self, recorder: Recorder, learnt: Learnt) -> None:
        super().__init__(recorder)
        self.keeps = learnt.selects or learnt.labelled

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if is_compiling():
            self.see_in_graph(output)
        elif self.keeps:
            recorder = self.recorder()
            scope = None if recorder is None else recorder.scope()
            if isinstance(scope, Scope) and not recomputing():
                scope.head_output = output

    def count_in_graph(self, scope: Scope, output: Tensor) -> None:
        rows = output.detach()
        rows = rows.flatten(0, -2) if rows.ndim < 4 else rows.movedim(1, -1)
        decided = decided_classes(scope, rows, 0.0)
        if decided is not None:
            scope.store.add_decisions_in_graph(scope, decided)


def decided_classes(scope: Scope, rows: Tensor, threshold: float) -> Tensor | None:
    """Return the decisions that scores (N, C) make, where there is one for each label."""
    if rows.ndim != 2 or rows.shape[0] != scope.flat_labels.shape[0]:
        return None  # NC4 is absent, with its reason
    if rows.shape[1] > 1:
        return rows.argmax(1)
    if scope.store.settings.num_classes > 2:
        return None  # a score of something else
    return (rows[:, 0] > threshold).to(torch.int64)


class ScoresHook(CountingHook):
    """Hands the network's own decisions to the store, and marks the end of the forward that labels belong to."""

    __slots__ = ("closes",)
    name = HEAD_OUTPUT

    def __init__(self, recorder: Recorder, *, closes: bool) -> None:
        super().__init__(recorder)
        self.closes = closes  # a batch that was opened when the network was called

    # torch.compile may trace this as a frame of its own, and would look at tensors among the arguments.
    def __call__(self, *arguments: Any) -> None:
        eager = not is_compiling()
        if eager and arguments[-1] is not None:  # None where the forward raised
            self.see(arguments[-1])
        recorder = self.recorder()
        if recorder is None:
            return
        scope = recorder.opened.scope if eager else recorder.scope()
        if scope is not None:
            scope.done, scope.takes = scope.done or scope.counted, False
        if eager and self.closes and recorder.opened_by_hook:
            recorder.forward_ends(arguments[-1])

    def count(self, scope: Scope, output: Any) -> None:
        """Take the decisions that scores (..., C), one row per label, make."""
        recorder = self.recorder()
        learnt = None if recorder is None else recorder.learnt
        if learnt is None or HEAD_OUTPUT in scope.calls:  # a graph has counted them
            return
        plain = learnt.scores_are_rows and type(output) is Tensor and output.ndim == 2
        if plain and scope.head_output is None and output.is_floating_point():
            self._add(scope, output.detach(), learnt)
        else:
            self.undisturbed(scope, output)

    def count_anew(self, scope: Scope, output: Any) -> None:
        recorder = self.recorder()
        learnt = None if recorder is None else recorder.learnt
        assert learnt is not None
        head_output, scope.head_output = scope.head_output, None
        head_speaks = head_output is not None and learnt.labelled
        try:
            rows = learnt.rows_of_scores(output)
        except ValueError as error:
            rows = None
            if not head_speaks:
                scope.misfit = error
                return
        head_input, scope.head_given = scope.head_given, None
        if head_input is not None and rows is not None and is_sequence(head_output):
            head = learnt.selection.head or ""
            if head in learnt.turned:
                head_output = head_output.transpose(0, 1)
            scope.store.add_rows(scope, head, selected_rows(head_input, head_output, rows).detach())
        if rows is None and head_speaks:
            rows = local(head_output.detach()).flatten(0, -2)
        if rows is not None:
            self._add(scope, rows, learnt)

    def _add(self, scope: Scope, rows: Tensor, learnt: Learnt) -> None:
        if type(rows) is not Tensor and on_mesh(rows):
            return
        width, due = rows.shape[-1], learnt.selection.width
        if width != due:
            recorder = self.recorder()
            # Else of some classes, as those of a head that is split among processes.
            if recorder is not None and not is_sharded(recorder.root):
                scope.misfit = ValueError(
                    f"the model returned scores of width {width}, and of width {due} when the meter learnt the network in "
                    "eval mode: if its head has changed, make a new CollapseMeter; if it returns something else in "
                    f"training, pass num_classes={width} and head=None to measure its layers alone"
                )
            return
        decided = decided_classes(scope, rows, learnt.selection.threshold)
        if decided is not None:
            scope.store.add_decisions(scope, decided)
