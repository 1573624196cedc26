"""The hooks: small, inert in copies, and reducing what they see at once; some bring the labels, too."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from collapsemeter.adapter.reduction import BatchError, Layout, Reduction, reduction_of

from .batch import IN_EVAL_MODE, FirstBatch, Scope
from .callers import labels_taken
from .reduction import feature_rows
from .store import HEAD_OUTPUT

if TYPE_CHECKING:
    from .learner import Learnt
    from .recorder import Recorder


def _inert(*args: Any, **kwargs: Any) -> None:
    """What a copied or unpickled model has in place of a hook."""


def _make_inert() -> Callable[..., None]:
    return _inert


def recomputing() -> bool:
    """Whether a backward pass is running: this forward is activation checkpointing's second one."""
    return torch._C._current_graph_task_id() != -1


class Hook:
    """A hook that holds its recorder weakly, returns nothing, and is left out of copies."""

    __slots__ = ("__weakref__", "recorder")

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = weakref.ref(recorder)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _inert

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[()]]:
        return _make_inert, ()


class CountingHook(Hook):
    """A hook that adds what it sees to the statistics."""

    __slots__ = ()
    name: str

    def scope(self) -> Scope | None:
        """The current batch of this thread, where there is one that counts."""
        recorder = self.recorder()
        if recorder is None:
            return None
        scope = recorder.scope()
        if not isinstance(scope, Scope) or scope.done or not scope.counted:
            return None
        if torch.compiler.is_compiling():
            return scope
        if recomputing():
            return None
        # A CUDA graph would run again without what the host does beside.
        if scope.device_type == "cuda" and torch.cuda.is_current_stream_capturing():
            return None
        return scope

    def guarded(self, scope: Scope, output: Any) -> None:
        """Count, and let no fault of ours reach the user's step."""
        if torch.compiler.is_compiling():
            if not scope.ready:  # a graph that nobody could foresee: rows are missing, and reported
                return
            try:
                self.undisturbed(scope, output)
            except BatchError as error:
                scope.problems[self.name] = error
            return
        store = scope.store
        if self.name in store.degraded:
            return
        started = perf_counter()
        scope.timed.add(self.name)
        try:
            with store.lock:
                self.undisturbed(scope, output)
        except BatchError as error:
            scope.problems[self.name] = error
        except Exception as error:
            store.degrade(self.name, error)
        finally:
            store.clock.spend_since(started)

    def undisturbed(self, scope: Scope, output: Any) -> None:
        """Count as if inference mode and autocast were off.

        Tensors made in inference mode cannot be saved or updated outside it. To leave modes that are not
        on would take longer than all else that a hook does.
        """
        kind = scope.device_type
        if (
            torch.compiler.is_compiling()
            or torch.is_inference_mode_enabled()
            or torch.is_autocast_enabled(kind)
        ):
            with torch.inference_mode(False), torch.autocast(kind, enabled=False), torch.no_grad():
                self.count(scope, output)
        else:
            self.count(scope, output)

    def count(self, scope: Scope, output: Any) -> None:
        """Add an output to the statistics of this batch."""


class LayerHook(CountingHook):
    """Reduces a layer's output (as a forward hook) to its sums."""

    __slots__ = ("layout", "name", "reduction")

    def __init__(
        self, recorder: Recorder, name: str, layout: Layout | None, reduction: Reduction
    ) -> None:
        super().__init__(recorder)
        self.name = name
        self.layout = layout
        self.reduction = reduction

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.see(output)

    def see(self, output: Any) -> None:
        """Count this output for the current batch, or keep it until the loss brings labels."""
        scope = self.scope()
        if scope is not None:
            self.guarded(scope, output)
            return
        recorder = self.recorder()
        if recorder is not None and recorder.waits_for_loss and recorder.scope() is None:
            recorder.stash(self, output)

    def count(self, scope: Scope, output: Any) -> None:
        """Reduce to rows and hand them to the store."""
        rows = feature_rows(
            output,
            scope.labels,
            scope.mask_for(output),
            layer=self.name,
            layout=self.layout,
            reduction=self.reduction,
        )
        scope.store.add_rows(scope, self.name, rows)


class HeadInputHook(LayerHook):
    """The same for what the head is given (as a forward pre-hook with keyword arguments).

    Where the scores are those of some positions, it waits for them: features are those of the same positions.
    """

    __slots__ = ("selects",)
    selects: bool

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.see(args[0] if args else kwargs.get("input", next(iter(kwargs.values()), None)))

    def count(self, scope: Scope, output: Any) -> None:
        if self.selects and scope.labels.ndim == 1 and is_sequence(output):
            scope.head_given = output
        else:
            super().count(scope, output)


def head_input_hook(recorder: Recorder, learnt: Learnt) -> HeadInputHook:
    """Return the hook of the head, which must be known."""
    head = learnt.selection.head
    assert head is not None
    reduction = reduction_of(learnt.settings.reduction, head)
    hook = HeadInputHook(recorder, head, learnt.head_layout(), reduction)
    hook.selects = learnt.selects and reduction == "auto"
    return hook


def is_sequence(value: Any) -> bool:
    """Whether something is a tensor (B, T, d)."""
    return isinstance(value, Tensor) and value.ndim == 3


def selected_rows(given: Tensor, output: Tensor, scores: Tensor) -> Tensor:
    """Return the rows of a head's input (B, T, d) whose output (B, T, C) became the scores (B, C), else NaN."""
    same = (output == scores[:, None]).all(-1)
    position = same.to(torch.uint8).argmax(1)
    rows = given.gather(1, position[:, None, None].expand(-1, 1, given.shape[2]))[:, 0]
    return torch.where(same.any(1)[:, None], rows, math.nan)


class HeadOutputHook(CountingHook):
    """Keeps what the head gave until the model's end: scores are chosen among it, or not returned at all.

    In a graph its decisions are the network's: hooks of the model itself run outside of it.
    """

    __slots__ = ()
    name = HEAD_OUTPUT

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        scope = self.scope()
        if scope is None:
            return
        if torch.compiler.is_compiling():
            self.guarded(scope, output)
        else:
            scope.head_output = output

    def count(self, scope: Scope, output: Tensor) -> None:
        rows = output.detach()
        add_decisions(scope, rows.flatten(0, -2) if rows.ndim < 4 else rows.movedim(1, -1), 0.0)


def add_decisions(scope: Scope, rows: Tensor, threshold: float) -> None:
    """Keep the decisions that scores (N, C) make, where there is one for each label."""
    if rows.ndim != 2 or rows.shape[0] != scope.flat_labels.shape[0]:
        return  # NC4 is absent, with its reason
    if rows.shape[1] == 1 and scope.store.settings.num_classes > 2:
        return  # a score of something else
    decided = rows.argmax(1) if rows.shape[1] > 1 else (rows[:, 0] > threshold).to(torch.int64)
    scope.store.add_decisions(scope, decided)


class ScoresHook(CountingHook):
    """Hands the network's own decisions to the store, and marks the end of the forward that labels belong to."""

    __slots__ = ()
    name = HEAD_OUTPUT

    # torch.compile may trace this as a frame of its own, and would look at tensors among the arguments.
    def __call__(self, *arguments: Any) -> None:
        if not torch.compiler.is_compiling():
            self.see(arguments[-1])
        recorder = self.recorder()
        scope = recorder.scope() if recorder is not None else None
        if scope is not None:
            scope.done = True

    def see(self, output: Any) -> None:
        """Count the decisions of this output, or keep it until the loss brings labels."""
        if output is None:  # the forward raised
            return
        scope = self.scope()
        recorder = self.recorder()
        if scope is not None:
            self.guarded(scope, output)
        elif recorder is not None and recorder.waits_for_loss and recorder.scope() is None:
            recorder.stash(self, output)

    def count(self, scope: Scope, output: Any) -> None:
        """Take the decisions that scores (..., C), one row per label, make."""
        recorder = self.recorder()
        if recorder is None or recorder.learnt is None:
            return
        if HEAD_OUTPUT in scope.calls:  # a graph has counted them
            return
        head_output, scope.head_output = scope.head_output, None
        head_speaks = head_output is not None and recorder.learnt.labelled
        try:
            rows = recorder.learnt.rows_of_scores(output)
        except ValueError as error:
            rows = None
            if not head_speaks:
                scope.misfit = error
                return
        given, scope.head_given = scope.head_given, None
        if given is not None and rows is not None and is_sequence(head_output):
            head = recorder.learnt.selection.head or ""
            scope.store.add_rows(scope, head, selected_rows(given, head_output, rows).detach())
        if rows is None and head_speaks:
            rows = head_output.detach().flatten(0, -2)
        if rows is not None:
            add_decisions(scope, rows, recorder.learnt.selection.threshold)


class RootPreHook(Hook):
    """Marks the start of a forward."""

    __slots__ = ()

    def __call__(self, module: nn.Module, *unused: Any) -> None:
        recorder = self.recorder()
        if recorder is None:
            return
        scope = recorder.scope()
        if scope is None:
            if recorder.waits_for_loss and torch.compiler.is_compiling():
                recorder.pending.refused = (
                    True  # a graph keeps no output until the loss brings labels
                )
            return
        if isinstance(scope, FirstBatch):
            scope.compiled = scope.compiled or torch.compiler.is_compiling()
        if scope.done:
            scope.again |= torch.compiler.is_compiling() or not recomputing()
        elif not scope.anyway:
            scope.counted = module.training and torch.is_grad_enabled()


# Labels that need no edit of the loop


class KeywordLabelsPreHook(Hook):
    """Shows the first forward to the meter, and opens a batch when ``labels=`` come and none is open."""

    __slots__ = ()

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        recorder = self.recorder()
        if recorder is None or torch.compiler.is_compiling():
            return
        known = recorder.learnt is not None
        self._begin(recorder, module, args, kwargs)
        learnt = recorder.learnt
        if not known and learnt is not None and learnt.selection.head_module is module:
            # Hooks that come while a module's hooks run are not called: here the model is the head.
            head_input_hook(recorder, learnt)(module, args, kwargs)

    def _begin(
        self, recorder: Recorder, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> None:
        recorder.pending.clear()  # what a forward without a loss left behind
        recorder.close_stale()
        labels = kwargs.get("labels") if recorder.keyword_labels else None
        scope = recorder.scope()
        if labels is None and scope is None and recorder.keyword_labels:
            labels = labels_taken()
        if labels is None or scope is not None:
            recorder.forward_begins(args, kwargs)
            scope = recorder.scope()
            if isinstance(scope, Scope) and not scope.done:
                scope.mask_seen = kwargs.get("attention_mask")
            return
        if not recorder.count_eval and not (module.training and torch.is_grad_enabled()):
            recorder.nothing = IN_EVAL_MODE
            return
        try:
            recorder.learn(args, kwargs)
            if recorder.takes_next():
                labels = next_token(recorder.root, labels, recorder.live.settings.ignore_index)
            recorder.open_by_hook(labels, kwargs.get("attention_mask"))
        except Exception as error:  # the loop was not edited for us: it must not notice us either
            recorder.live.degrade("labels=", error)


class FirstForwardHook(Hook):
    """Shows the first forward of a compiled model to the meter of the model inside."""

    __slots__ = ()

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        recorder = self.recorder()
        if recorder is not None and not torch.compiler.is_compiling():
            recorder.forward_begins(args, kwargs)


class KeywordLabelsHook(Hook):
    """Closes the batch that the pre-hook opened."""

    __slots__ = ()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        recorder = self.recorder()
        if recorder is None or torch.compiler.is_compiling():
            return
        try:
            recorder.close_by_hook(failed=output is None)  # a forward that raised has no output
        except Exception as error:
            recorder.live.degrade("labels=", error)


def next_token(root: nn.Module, labels: Any, ignore_index: int) -> Any:
    """Shift the labels of a causal language model, whose position t predicts label t + 1."""
    names = [cls.__name__ for cls in type(root).__mro__]
    causal = any(word in name for name in names for word in ("CausalLM", "LMHead"))
    if not causal or not isinstance(labels, Tensor) or labels.ndim != 2:
        return labels
    last = torch.full_like(labels[:, :1], ignore_index)
    return torch.cat([labels[:, 1:], last], dim=1)


class CriterionHook(Hook):
    """Counts what waits when the loss module is called with the labels."""

    __slots__ = ()

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        recorder = self.recorder()
        if recorder is None:
            return
        pending = recorder.pending
        if pending.refused:
            pending.clear()
            raise RuntimeError(
                "criterion= does not work under torch.compile, where activations are gone when the "
                "labels come: use `with meter.batch(labels):` around the forward"
            )
        if pending.left_out and recorder.scope() is None:
            pending.clear()
            with recorder.left_out():
                return
        waiting = pending.take()
        if not waiting:
            return
        labels = args[1] if len(args) > 1 else kwargs.get("target", kwargs.get("labels"))
        if labels is None:
            raise ValueError(
                f"criterion {type(module).__name__} was called without labels as second argument or "
                "target=: use `with meter.batch(labels):` instead"
            )
        logits = args[0] if args else kwargs.get("input")
        if isinstance(logits, Tensor):
            labels = of_one_logit(logits, labels)
        try:
            with recorder.batch(labels):
                scope = recorder.scope()
                if not isinstance(scope, Scope):
                    return
                for hook, output in waiting:
                    hook.guarded(scope, output)
        except ValueError as error:  # the loop was not edited for us: it must not notice us either
            recorder.live.degrade("criterion=", error)


def of_one_logit(logits: Tensor, labels: Any) -> Any:
    """Return a binary loss's labels without their column: it takes both in one shape."""
    alike = isinstance(labels, Tensor) and labels.shape == logits.shape
    return labels[:, 0] if alike and logits.ndim > 1 and logits.shape[1] == 1 else labels
