"""Wrap the layers of a watched model: in instances, never in classes."""

from __future__ import annotations

import functools
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import keras
from keras import tree
from keras.src.backend.common.symbolic_scope import get_symbolic_scope

from collapsemeter.adapter.selection import Selection

from .linear import is_reversible
from .operations import BACKEND, Key, detached, dtype_of, is_writable

if TYPE_CHECKING:
    from .state import StreamSums

LOSS_ARGUMENTS = ("x", "y", "y_pred", "sample_weight", "training")
# A forward of the model, and its arguments, to what it returns.
Run: TypeAlias = Callable[[Callable[..., Any], Any, Any], Any]
# From a stream, the outputs of layers, and the arguments of the loss.
Count: TypeAlias = "Callable[[StreamSums, dict[Key, Any], dict[str, Any]], None]"
# From "train" or "validation", and the data of a step where they are known, to what the step counts to.
Begin: TypeAlias = "Callable[[str, Any], StreamSums | None]"
# From "train" or "validation", what a step was given and what it returned, to what it returns.
Settle: TypeAlias = "Callable[[str, tuple[Any, ...], Any], Any]"


class Stash(threading.local):
    """The layers' outputs in the forward under way; empty outside of a step.

    Each thread has its own: a strategy traces its replicas in threads.
    """

    def __init__(self) -> None:
        self.stream: StreamSums | None = None  # that the step under way counts to
        self.scope: Any = None
        # A list, because torch.compile breaks its graph where a dict that was there before changes.
        self.notes: list[tuple[str, Any]] = []
        self.run: Run | None = None  # of the block that waits for its forward
        self.in_blocks = (
            False  # this step counts in blocks of its own, and not where it has its loss
        )
        # Of JAX: what is counted when the step has its state.
        self.deferred: list[tuple[dict[Key, Any], dict[str, Any]]] = []

    def note(self, name: str, output: Any) -> None:
        """Keep what a layer gave until the labels come."""
        # A model that is not built yet runs once on shapes alone, in a symbolic scope of its own.
        if self.stream is not None and get_symbolic_scope() is self.scope:
            self.notes.append((name, output))

    @contextmanager
    def open(self, stream: StreamSums) -> Iterator[None]:
        """Take notes within the block, and forget them at its end: tensors must not outlive a trace."""
        outer = self.stream, self.scope, self.notes, self.deferred, self.in_blocks
        self.stream, self.scope, self.notes = stream, get_symbolic_scope(), []
        self.deferred, self.in_blocks = [], False
        try:
            yield
        finally:
            self.stream, self.scope, self.notes, self.deferred, self.in_blocks = outer

    def pop_outputs(self) -> dict[Key, Any]:
        """Return the notes of this forward, by layer and number of the call, and begin anew."""
        outputs: dict[Key, Any] = {}
        calls: Counter[str] = Counter()
        for name, output in self.notes:
            outputs[name, calls[name]] = output
            calls[name] += 1
        self.notes = []
        return outputs


def _run_uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep torch.compile out of a function: a graph of its own would cost more than it saves."""
    if BACKEND != "torch":
        return function
    import torch

    disabled: Callable[..., Any] = torch.compiler.disable(function)
    return disabled


@dataclass(eq=False)
class Wrapper:
    """A function in an instance's dict, and what was there before."""

    owner: Any
    attribute: str
    function: Callable[..., Any]
    before: Any
    active: bool = True

    def restore(self) -> None:
        """Be there again."""
        self.active = True
        self.owner.__dict__[self.attribute] = self.function

    def remove(self) -> None:
        """Restore what was there; under a wrapper that someone put over it since, only fall silent."""
        self.active = False
        if self.owner.__dict__.get(self.attribute) is not self.function:
            return
        before = self.before
        while isinstance(below := getattr(before, "wrapper", None), Wrapper) and not below.active:
            before = below.before  # of another meter, closed before this one
        if before is None:
            del self.owner.__dict__[self.attribute]
        else:
            self.owner.__dict__[self.attribute] = before


class BracketedStep:
    """A compiled step of the model, and the bracket around it."""

    def __init__(self, instrument: Instrument, stream: str, function: Callable[..., Any]) -> None:
        self.instrument, self.stream, self.function = instrument, stream, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.instrument.bracket(self.stream, None, self.function, *args, **kwargs)


class Instrument:
    """Wrappers around the model's loss and its steps, and around the calls of the layers watched.

    ``in_steps=False`` leaves the model's loss and steps alone; ``begin`` says what a step counts to; ``count`` adds a batch to it; ``prepare`` is told
    which of the model's steps is about to be made or run; ``settle`` puts into what a step of JAX returned
    what it counted.
    """

    def __init__(
        self,
        model: keras.Model,
        begin: Begin,
        count: Count,
        prepare: Callable[[str], None],
        settle: Settle,
        *,
        in_steps: bool = True,
    ) -> None:
        self.stash = Stash()
        self._begin, self._count, self._prepare, self._settle = begin, count, prepare, settle
        self._listens = False
        self._model = weakref.ref(model)
        self._wrappers: list[Wrapper] = []
        self._removed = False
        if in_steps:
            self._wrap_steps(model)

    def _wrap_steps(self, model: keras.Model) -> None:
        self._wrap(model, "compute_loss", self._count_in_loss)
        for stream, make in (
            ("train", "make_train_function"),
            ("validation", "make_test_function"),
        ):
            self._wrap(model, make, functools.partial(self._bracket_compiled, stream))
        if BACKEND != "torch":
            self._wrap(model, "train_step", functools.partial(self._bracket_step, "train"))
            self._wrap(model, "test_step", functools.partial(self._bracket_step, "validation"))

    def watch(self, selection: Selection) -> None:
        """Note what the layers give, and what the head is given."""
        for name, part in selection.modules.items():
            note = self._note_output
            if name == selection.head:
                note = self._note_reversed if is_reversible(part) else self._note_input
            self._watch(part, functools.partial(note, name))

    def enter(self, run: Run) -> None:
        """Wait for the forward of a block."""
        model = self._model()
        if self.stash.run is not None:
            raise ValueError(
                "labels arrive while labels wait for their forward: close the first `with meter.batch(labels)` block"
            )
        if model is not None and not self._listens:
            self._listens = True
            self._wrap(model, "call", self._run_forward)
            if hasattr(model, "quantized_call"):
                self._wrap(model, "quantized_call", self._run_forward)
        self.stash.run, self.stash.in_blocks = run, True

    def leave(self) -> None:
        """Wait no longer."""
        self.stash.run = None

    def _run_forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        run = self.stash.run
        # A model that is built, or studied, runs on shapes alone.
        if run is None or self._removed or get_symbolic_scope() is not None:
            return original(*args, **kwargs)
        return run(original, args, kwargs)

    def remove(self) -> None:
        """Take every wrapper off."""
        self._removed = True
        for wrapper in reversed(self._wrappers):
            wrapper.remove()

    def fits(self) -> bool:
        """Whether wrappers that were taken off may be put back: nothing else was put there since."""
        return all(
            wrapper.owner.__dict__.get(wrapper.attribute) is wrapper.before
            for wrapper in self._wrappers
        )

    def restore(self) -> None:
        """Put every wrapper back."""
        self._removed = False
        for wrapper in self._wrappers:
            wrapper.restore()

    def _wrap(self, owner: Any, attribute: str, around: Callable[..., Any]) -> None:
        original = getattr(owner, attribute)

        @functools.wraps(original)
        def function(*args: Any, **kwargs: Any) -> Any:
            return around(original, *args, **kwargs)

        wrapper = Wrapper(owner, attribute, function, owner.__dict__.get(attribute))
        function.wrapper = wrapper  # type: ignore[attr-defined]
        # Past `Layer.__setattr__`, which would track it.
        owner.__dict__[attribute] = function
        self._wrappers.append(wrapper)

    def _note_output(
        self, name: str, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        output = original(*args, **kwargs)
        self.stash.note(name, output)
        return output

    def _note_input(
        self, name: str, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        inputs = args[0] if args else kwargs.get("inputs")
        if keras.backend.is_float_dtype(
            dtype_of(inputs)
        ):  # words that are looked up make no scores
            self.stash.note(name, inputs)
        return original(*args, **kwargs)

    def _note_reversed(
        self, name: str, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Note what an embedding is given where it makes scores, and not where it looks words up."""
        if kwargs.get("reverse", args[1] if len(args) > 1 else False):
            return self._note_input(name, original, *args, **kwargs)
        return original(*args, **kwargs)

    def _watch(self, layer: Any, note: Callable[..., Any]) -> None:
        def outside(original: Callable[..., Any], call: Any, *args: Any, **kwargs: Any) -> Any:
            # What a rematerialised call computes inside is gone outside: note what comes out of it.
            return functools.partial(note, original(call, *args, **kwargs))

        if getattr(layer, "_remat_mode", None) is not None:
            self._wrap(layer, "rematerialized_call", outside)
            return
        self._wrap(layer, "call", note)
        if hasattr(layer, "quantized_call"):  # which runs in place of `call` once it is quantized
            self._wrap(layer, "quantized_call", note)

    def _count_in_loss(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        loss = original(*args, **kwargs)
        if self.stash.stream is not None and not self.stash.in_blocks:
            self._count_batch(args, kwargs)
        return loss

    @_run_uncompiled
    def _count_batch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream = self.stash.stream
        if stream is not None and not self._removed:
            arguments = dict(zip(LOSS_ARGUMENTS, args, strict=False)) | kwargs
            outputs = self.stash.pop_outputs()
            if is_writable(stream.batches):
                self._count(stream, outputs, arguments)
            else:  # a step of JAX that calls the loss outside of Keras' own scope
                parts = tree.map_structure(detached, (outputs, arguments))
                self.stash.deferred.append(parts)

    def _bracket_compiled(
        self, prepared: str, make: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        if not self._removed:
            self._prepare(prepared)
        result = make(*args, **kwargs)
        if BACKEND != "torch":
            return result
        # torch.compile breaks its graph within a step, and cannot within a context manager: the
        # bracket goes around what it compiles.
        model = self._model()
        for stream, attribute in (("train", "train_function"), ("validation", "test_function")):
            function = getattr(model, attribute)
            if function is not None and not self._brackets(function):
                setattr(model, attribute, BracketedStep(self, stream, function))
        return result

    def _brackets(self, function: Any) -> bool:
        while isinstance(function, BracketedStep):
            if function.instrument is self:
                return True
            function = function.function  # of another meter on the model
        return False

    def _bracket_step(
        self, stream: str, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        data = args[-1] if args else kwargs.get("data")
        return self.bracket(stream, data, original, *args, **kwargs)

    def bracket(
        self, stream: str, data: Any, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Run a step, and take notes in it."""
        sums = None if self._removed else self._begin(stream, data)
        if sums is None:
            return original(*args, **kwargs)
        with self.stash.open(sums):
            result = original(*args, **kwargs)
            return self._settle(stream, args, result) if BACKEND == "jax" else result


def renew_steps(model: keras.Model) -> None:
    """Have Keras compile its steps anew: those that it has know nothing of us, or too much.

    Made at once and not only forgotten, because `fit` may be in the midst of calling them.
    """
    if model.train_function is not None:
        model.make_train_function(force=True)
    if model.test_function is not None:
        model.make_test_function(force=True)


def synchronise(model: Any) -> None:
    """Bring variables up to date, which on JAX live in the step's state within an epoch."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()
