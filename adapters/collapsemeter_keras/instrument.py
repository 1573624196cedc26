"""What is put on a model while it is watched: wrappers in instances, never in classes."""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
from keras.src.backend.common.symbolic_scope import get_symbolic_scope

from .layers import Layer, Selection

if TYPE_CHECKING:
    from .meter import CollapseMeter
    from .statistics import Stream

LOSS_ARGUMENTS = ("x", "y", "y_pred", "sample_weight", "training")


class Stash(threading.local):
    """What the layers gave in the forward under way, by layer and call; nothing outside of a step.

    Each thread has its own: a strategy traces its replicas in threads.
    """

    def __init__(self) -> None:
        self.stream: Stream | None = None  # that the step under way counts to
        self.scope: Any = None
        # A list, because torch.compile breaks its graph where a dict that was there before changes.
        self.notes: list[tuple[str, Any]] = []

    def note(self, name: str, output: Any) -> None:
        """Keep what a layer gave until the labels come."""
        # A model that is not built yet runs once on shapes alone, in a symbolic scope of its own.
        if self.stream is not None and get_symbolic_scope() is self.scope:
            self.notes.append((name, output))

    @contextmanager
    def open(self, stream: Stream) -> Iterator[None]:
        """Take notes within the block, and forget them at its end: tensors must not outlive a trace."""
        outer = self.stream, self.scope, self.notes
        self.stream, self.scope, self.notes = stream, get_symbolic_scope(), []
        try:
            yield
        finally:
            self.stream, self.scope, self.notes = outer

    def take(self) -> dict[tuple[str, int], Any]:
        """Return the notes of this forward, by layer and number of the call, and begin anew."""
        outputs: dict[tuple[str, int], Any] = {}
        calls: Counter[str] = Counter()
        for name, output in self.notes:
            outputs[name, calls[name]] = output
            calls[name] += 1
        self.notes = []
        return outputs


def _run_as_it_stands(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep torch.compile out of a function: a graph of its own would cost more than it saves."""
    if keras.backend.backend() != "torch":
        return function
    import torch

    disabled: Callable[..., Any] = torch.compiler.disable(function)
    return disabled


@dataclass(eq=False)
class _Put:
    """A wrapper in an instance's dict, and what was there before."""

    owner: Any
    attribute: str
    wrapper: Callable[..., Any]
    before: Any
    active: bool = True

    def remove(self) -> None:
        """Restore what was there; under a wrapper that someone put over it since, only fall silent."""
        self.active = False
        if self.owner.__dict__.get(self.attribute) is not self.wrapper:
            return
        before = self.before
        while isinstance(below := getattr(before, "put", None), _Put) and not below.active:
            before = below.before  # of another meter, closed before this one
        if before is None:
            del self.owner.__dict__[self.attribute]
        else:
            self.owner.__dict__[self.attribute] = before


class _Bracketed:
    """A compiled step of the model, and the bracket around it."""

    def __init__(self, instrument: Instrument, stream: str, function: Callable[..., Any]) -> None:
        self._instrument, self._stream, self._function = instrument, stream, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._instrument._bracket(self._stream, self._function, *args, **kwargs)


class Instrument:
    """Wrappers around the calls of the watched layers, the model's loss and its steps.

    Parameters
    ----------
    meter : CollapseMeter
        Held weakly: a model does not keep its meter alive.
    model : keras.Model
    selection : Selection
    """

    def __init__(self, meter: CollapseMeter, model: keras.Model, selection: Selection) -> None:
        self.stash = Stash()
        self._meter, self._model = weakref.ref(meter), weakref.ref(model)
        self._put: list[_Put] = []
        self._removed = False
        for name, layer in selection.layers.items():
            self._watch_output(name, layer)
        if selection.head is not None and selection.head_layer is not None:
            self._watch_input(selection.head, selection.head_layer)
        self._wrap(model, "compute_loss", self._count_in_loss)
        if keras.backend.backend() == "torch":
            # torch.compile breaks its graph within a step, and cannot within a context manager: the
            # bracket goes around what it compiles.
            self._wrap(model, "make_train_function", self._bracket_function)
            self._wrap(model, "make_test_function", self._bracket_function)
        else:
            self._wrap(model, "train_step", functools.partial(self._bracket, "train"))
            self._wrap(model, "test_step", functools.partial(self._bracket, "validation"))

    def remove(self) -> None:
        """Take every wrapper off."""
        self._removed = True
        for put in reversed(self._put):
            put.remove()
        self._put = []

    def _wrap(self, owner: Any, attribute: str, around: Callable[..., Any]) -> None:
        original = getattr(owner, attribute)

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return around(original, *args, **kwargs)

        put = _Put(owner, attribute, wrapper, owner.__dict__.get(attribute))
        wrapper.put = put  # type: ignore[attr-defined]
        # Past `Layer.__setattr__`, which would track it.
        owner.__dict__[attribute] = wrapper
        self._put.append(put)

    def _watch_output(self, name: str, layer: Layer) -> None:
        def noting(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            self.stash.note(name, output)
            return output

        self._watch(layer, noting)

    def _watch_input(self, name: str, head: keras.layers.Dense) -> None:
        def noting(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            self.stash.note(name, args[0] if args else kwargs.get("inputs"))
            return original(*args, **kwargs)

        self._watch(head, noting)

    def _watch(self, layer: Layer, noting: Callable[..., Any]) -> None:
        def outside(original: Callable[..., Any], call: Any, *args: Any, **kwargs: Any) -> Any:
            # What a rematerialised call computes inside is gone outside: note what comes out of it.
            return functools.partial(noting, original(call, *args, **kwargs))

        if getattr(layer, "_remat_mode", None) is not None:
            self._wrap(layer, "rematerialized_call", outside)
            return
        self._wrap(layer, "call", noting)
        if hasattr(layer, "quantized_call"):  # which runs in place of `call` once it is quantized
            self._wrap(layer, "quantized_call", noting)

    def _count_in_loss(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        loss = original(*args, **kwargs)
        if self.stash.stream is not None:
            self._count(args, kwargs)
        return loss

    @_run_as_it_stands
    def _count(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        meter, stream = self._meter(), self.stash.stream
        if meter is not None and stream is not None:
            names = dict(zip(LOSS_ARGUMENTS, args, strict=False)) | kwargs
            meter._count(stream, self.stash.take(), names)

    def _bracket_function(self, make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        made = make(*args, **kwargs)
        model = self._model()
        for stream, attribute in (("train", "train_function"), ("validation", "test_function")):
            function = getattr(model, attribute)
            if function is not None and not self._brackets(function):
                setattr(model, attribute, _Bracketed(self, stream, function))
        return made

    def _brackets(self, function: Any) -> bool:
        while isinstance(function, _Bracketed):
            if function._instrument is self:
                return True
            function = function._function  # of another meter on the model
        return False

    def _bracket(self, stream: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        meter = self._meter()
        if meter is None or self._removed:
            return original(*args, **kwargs)
        with self.stash.open(meter._begin_step(stream)):
            return original(*args, **kwargs)


def takes_training(model: keras.Model) -> bool:
    """Whether the model's call has a ``training`` argument.

    Examples
    --------
    >>> takes_training(keras.Sequential([keras.layers.Dense(2)]))
    True
    """
    return "training" in inspect.signature(type(model).call).parameters
