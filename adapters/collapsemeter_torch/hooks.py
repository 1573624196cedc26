"""The hooks: small, inert in copies, and reducing what they see at once; some bring the labels, too."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from collapsemeter.adapter.reduction import BatchError, Layout, Reduction

from .batch import Scope
from .reduction import feature_rows
from .store import HEAD_OUTPUT

if TYPE_CHECKING:
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
            scope.mask,
            layer=self.name,
            layout=self.layout,
            reduction=self.reduction,
        )
        scope.store.add_rows(scope, self.name, rows)


class HeadInputHook(LayerHook):
    """The same for what the head is given (as a forward pre-hook with keyword arguments)."""

    __slots__ = ()

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.see(args[0] if args else kwargs.get("input"))


class HeadOutputHook(CountingHook):
    """Hands the network's own decisions to the store."""

    __slots__ = ()
    name = HEAD_OUTPUT

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        scope = self.scope()
        if scope is not None and isinstance(output, Tensor):
            self.guarded(scope, output)

    def count(self, scope: Scope, output: Tensor) -> None:
        """Take the decisions that logits (..., C), one row per label, make."""
        rows = output.detach().flatten(0, -2)
        if rows.ndim != 2 or rows.shape[0] != scope.flat_labels.shape[0]:
            return  # not one decision per label: NC4 is absent, with its reason
        if rows.shape[1] == 1 and scope.store.settings.num_classes > 2:
            return  # a score of something else
        # One logit decides between two classes by its sign.
        decided = rows.argmax(1) if rows.shape[1] > 1 else (rows[:, 0] > 0).to(torch.int64)
        scope.store.add_decisions(scope, decided)


class RootHook(Hook):
    """Marks the end of the forward that the labels belong to: later ones are not counted."""

    __slots__ = ()

    # torch.compile may trace this as a frame of its own, and would look at tensors among the arguments.
    def __call__(self, *unused: Any) -> None:
        recorder = self.recorder()
        scope = recorder.scope() if recorder is not None else None
        if scope is not None:
            scope.done = True


class RootPreHook(Hook):
    """Marks the start of a forward."""

    __slots__ = ()

    def __call__(self, module: nn.Module, *unused: Any) -> None:
        recorder = self.recorder()
        scope = recorder.scope() if recorder is not None else None
        if scope is None:
            return
        if scope.done:
            scope.again |= torch.compiler.is_compiling() or not recomputing()
        elif not scope.anyway:
            scope.counted = module.training and torch.is_grad_enabled()


# Labels that need no edit of the loop


class KeywordLabelsPreHook(Hook):
    """Opens a batch when the model is called with ``labels=`` and none is open."""

    __slots__ = ()

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        recorder = self.recorder()
        if recorder is None or torch.compiler.is_compiling():
            return
        recorder.pending.clear()  # what a forward without a loss left behind
        recorder.close_stale()
        labels = kwargs.get("labels")
        if labels is None or recorder.scope() is not None:
            return
        if not recorder.count_eval and not (module.training and torch.is_grad_enabled()):
            return
        try:
            if recorder.takes_next():
                labels = next_token(recorder, labels)
            recorder.open_by_hook(labels, kwargs.get("attention_mask"))
        except Exception as error:  # the loop was not edited for us: it must not notice us either
            recorder.live.degrade("labels=", error)


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


def next_token(recorder: Recorder, labels: Any) -> Any:
    """Shift the labels of a causal language model, whose position t predicts label t + 1."""
    names = [cls.__name__ for cls in type(recorder.root).__mro__]
    causal = any(word in name for name in names for word in ("CausalLM", "LMHead"))
    if not causal or not isinstance(labels, Tensor) or labels.ndim != 2:
        return labels
    last = torch.full_like(labels[:, :1], recorder.live.settings.ignore_index)
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
            logits, labels = of_one_logit(logits, labels)
        if isinstance(module, nn.BCELoss) and isinstance(logits, Tensor):
            logits = logits.detach() - 0.5  # of probabilities: a half decides, and not zero
        try:
            with recorder.batch(labels):
                scope = recorder.scope()
                if not isinstance(scope, Scope):
                    return
                for hook, output in waiting:
                    hook.guarded(scope, output)
                if isinstance(logits, Tensor) and logits.ndim == scope.labels.ndim + 1:
                    # Loss modules take the classes on axis 1, however many positions follow.
                    HeadOutputHook(recorder).guarded(scope, logits.movedim(1, -1))
        except ValueError as error:  # the loop was not edited for us: it must not notice us either
            recorder.live.degrade("criterion=", error)


def of_one_logit(logits: Tensor, labels: Any) -> tuple[Tensor, Any]:
    """Return a binary loss's logits with their one column, and its labels without: it takes both in one shape."""
    if not isinstance(labels, Tensor) or labels.shape != logits.shape:
        return logits, labels
    if logits.ndim == 1:
        return logits[:, None], labels
    return (logits, labels[:, 0]) if logits.shape[1] == 1 else (logits, labels)
