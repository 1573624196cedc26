"""The hooks of one meter on its model: put there, and taken off without a trace."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from collapsemeter.adapter.reduction import reduction_of

from . import compiled
from .batch import forward_begins
from .hooks import HeadOutputHook, LayerHook, ScoresHook, head_input_hook
from .inert import Hook
from .label_hooks import FirstForwardHook, KeywordLabelsHook, KeywordLabelsPreHook, RootPreHook
from .layers import innermost, named_layers

if TYPE_CHECKING:
    from .learnt import Learnt
    from .recorder import Recorder


class Attachment:
    """The hooks of one meter on its model."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._root = model, innermost(model)
        self.handles: list[RemovableHandle] = []
        self._first: list[RemovableHandle] = []  # until the first forward
        self.marked: list[compiled.CompiledMark] = []
        self.head_input: Callable[..., None] = _nothing
        self._finalizer: weakref.finalize[..., Any] | None = None
        self.newest = -1  # hook that was there when ours were last looked at

    def __bool__(self) -> bool:
        return bool(self.handles)

    def attach(self, recorder: Recorder) -> None:
        """Put the hooks on the model; where they are there already, nothing happens."""
        if recorder.learnt is None:
            self._show_first_forward(recorder)
        if self.handles:
            return
        model, root, handles = self._model, self._root, self.handles
        bare = model is root  # one hook each does for what the user calls and for the network in it
        before = KeywordLabelsPreHook(recorder, of_root=bare)
        handles.append(model.register_forward_pre_hook(before, with_kwargs=True))
        if not bare:
            handles.append(root.register_forward_pre_hook(RootPreHook(recorder)))
        # A meter that is dropped without `close` leaves no hook either.
        self._finalizer = weakref.finalize(recorder, _detach, handles, self.marked)
        if recorder.learnt is not None:
            self.watch(recorder, recorder.learnt)
        scores = ScoresHook(recorder, closes=bare)
        handles.append(root.register_forward_hook(scores, always_call=True))
        if not bare:
            after = KeywordLabelsHook(recorder)
            handles.append(model.register_forward_hook(after, always_call=True))

    def watch(self, recorder: Recorder, learnt: Learnt) -> None:
        """Put the hooks on the layers, which are known now."""
        if not self.handles:
            return
        handles, selection = self.handles, learnt.selection
        asked = learnt.settings.reduction
        for name in selection.layers:
            layout, reduction = learnt.layouts.get(name), reduction_of(asked, name)
            turned, reordered = name in learnt.turned, name in learnt.reordered
            hook = LayerHook(recorder, name, layout, reduction, turned=turned, reordered=reordered)
            handles.append(selection.modules[name].register_forward_hook(hook))
        head = selection.head_module
        if head is not None:
            self.head_input = head_input_hook(recorder, learnt)
            handles.append(head.register_forward_pre_hook(self.head_input, with_kwargs=True))
            handles.append(head.register_forward_hook(HeadOutputHook(recorder, learnt)))
        while self._first:
            self._first.pop().remove()
        self.marked += compiled.mark([self._root, *selection.modules.values()])

    def _show_first_forward(self, recorder: Recorder) -> None:
        """Show a model that is compiled in place, or elsewhere, to the recorder: its hooks run in the graph."""
        if not self._first:
            for wrapper in compiled.wrappers(self._root):
                hook = FirstForwardHook(recorder)
                self._first.append(wrapper.register_forward_pre_hook(hook, with_kwargs=True))
        model, run = self._model, self._model._compiled_call_impl
        if run is None or isinstance(run, _FirstForward):
            return
        model._compiled_call_impl = _FirstForward(model, run, weakref.ref(recorder))

    def stay_last(self) -> None:
        """Let no hook of somebody else run after ours, which might change what a layer gives or the head is given."""
        self.newest = RemovableHandle.next_id
        for handle in self.handles:
            hooks = handle.hooks_dict_ref()
            if hooks is not None and _is_followed(handle.id, hooks):
                hooks.move_to_end(handle.id)

    def replaced(self, modules: Mapping[str, nn.Module]) -> list[str]:
        """Name the layers that are other modules now than those with hooks of ours."""
        now = named_layers(self._model)
        return [
            name
            for name, module in modules.items()
            if now.get(name) is not module
            and not any(isinstance(hook, Hook) for hook in _hooks_of(now.get(name)))
        ]

    def detach(self) -> None:
        """Take every hook off the model."""
        while self._first:
            self._first.pop().remove()
        if self._finalizer is not None:
            self._finalizer()
            self._finalizer = None
        self.handles, self.marked = [], []


class _FirstForward:
    """In place of a compiled call until the recorder has learnt from the arguments of one."""

    def __init__(
        self, model: nn.Module, run: Callable[..., Any], recorder: weakref.ref[Recorder]
    ) -> None:
        self._model, self.run, self._recorder = weakref.ref(model), run, recorder

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        recorder, model = self._recorder(), self._model()
        if recorder is not None:
            forward_begins(recorder, args, kwargs)
        if model is not None and (recorder is None or recorder.learnt is not None):
            model._compiled_call_impl = self.run
        return self.run(*args, **kwargs)


def _hooks_of(module: nn.Module | None) -> list[Any]:
    if module is None:
        return []
    return [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]


def _is_followed(number: int, hooks: Mapping[int, Any]) -> bool:
    """Whether a hook of somebody else runs after one of ours."""
    for other in reversed(hooks):
        if other == number:
            return False
        if not isinstance(hooks[other], Hook):
            return True
    return False  # it was removed


def _nothing(*unused: Any) -> None:
    """In place of the hook of a head before it is known."""


def _detach(handles: list[RemovableHandle], marked: list[compiled.CompiledMark]) -> None:
    for handle in handles:
        handle.remove()
    compiled.unmark(marked)
