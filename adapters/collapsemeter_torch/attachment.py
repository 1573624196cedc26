"""The hooks of one meter on its model: put there, and taken off without a trace."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from collapsemeter.adapter.reduction import Layout, Reduction, reduction_of
from collapsemeter.adapter.selection import Selection

from . import compiled
from .hooks import (
    HeadInputHook,
    HeadOutputHook,
    KeywordLabelsHook,
    KeywordLabelsPreHook,
    LayerHook,
    RootHook,
    RootPreHook,
)
from .layers import innermost
from .reduction import layout_of

if TYPE_CHECKING:
    from .recorder import Recorder


class Attachment:
    """The hooks of one meter on its model."""

    def __init__(
        self,
        model: nn.Module,
        selection: Selection,
        reduction: Reduction | Mapping[str, Reduction],
    ) -> None:
        self._model, self._selection, self._reduction = model, selection, reduction
        self._handles: list[RemovableHandle] = []
        self.marked: list[compiled.Mark] = []
        self._finalizer: weakref.finalize[..., Any] | None = None

    def __bool__(self) -> bool:
        return bool(self._handles)

    def attach(self, recorder: Recorder) -> None:
        """Put the hooks on the model; where they are there already, nothing happens."""
        if self._handles:
            return
        model, root, selection = self._model, innermost(self._model), self._selection
        handles = self._handles
        handles.append(
            model.register_forward_pre_hook(KeywordLabelsPreHook(recorder), with_kwargs=True)
        )
        handles.append(root.register_forward_pre_hook(RootPreHook(recorder)))
        for name in selection.layers:
            module = selection.modules[name]
            layout = layout_of(module, selection.before.get(name, ()))
            hook = LayerHook(recorder, name, layout, reduction_of(self._reduction, name))
            handles.append(module.register_forward_hook(hook))
        head = selection.head_module
        if selection.head is not None and head is not None:
            layout = Layout(channels_first=False, width=head.in_features)
            reduction = reduction_of(self._reduction, selection.head)
            given = HeadInputHook(recorder, selection.head, layout, reduction)
            handles.append(head.register_forward_pre_hook(given, with_kwargs=True))
            handles.append(head.register_forward_hook(HeadOutputHook(recorder)))
        handles.append(root.register_forward_hook(RootHook(recorder), always_call=True))
        handles.append(model.register_forward_hook(KeywordLabelsHook(recorder), always_call=True))
        self.marked = compiled.mark([root, *selection.modules.values()])
        # A meter that is dropped without `close` leaves no hook either.
        self._finalizer = weakref.finalize(recorder, _detach, handles, self.marked)

    def detach(self) -> None:
        """Take every hook off the model."""
        if self._finalizer is not None:
            self._finalizer()
            self._finalizer = None
        self._handles, self.marked = [], []


def _detach(handles: list[RemovableHandle], marked: list[compiled.Mark]) -> None:
    for handle in handles:
        handle.remove()
    compiled.unmark(marked)
