"""`CollapseMeter`: a model, its layers and settings in one object; the state stays outside of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
from flax import linen, nnx

from collapsemeter import CollapseReport
from collapsemeter.adapter.batches import check_phase
from collapsemeter.adapter.selection import description
from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.moments import Phase
from collapsemeter.system.terminal import say

from . import finalise, linen_models, nnx_models, observing
from .capturing import captured, find
from .layers import Layers, Selection
from .namespace import AxisName
from .state import State
from .updating import update


class CollapseMeter:
    """Measure NC1 to NC4 of a Flax model's layers, while it trains or in a frozen pass.

    It bundles `capture`, `init`, `update`, `report` and `observe` for one model. It holds no counts: the
    state is yours, goes through the jitted step and comes back, so that nothing is changed in secret
    inside a trace.

    Parameters
    ----------
    model : nnx.Module or linen.Module
    layers, head, num_classes
        See `capture`.
    verbose : bool
        Print what is watched, and why the rest is not, as soon as an input shows the layers.
    **options
        Those of `init`: ``reduction``, ``scatter``, ``convention``, ``ignore_index``, ``nonfinite``,
        ``sample_rows``, ``seed``, ``sketch_rows``, ``dtype``.

    Raises
    ------
    ValueError
        If the model is not one of Flax, or an option is unknown.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> class Net(nnx.Module):
    ...     def __init__(self, rngs):
    ...         self.hidden = nnx.Linear(4, 8, rngs=rngs)
    ...         self.fc = nnx.Linear(8, 3, rngs=rngs)
    ...     def __call__(self, x):
    ...         return self.fc(nnx.relu(self.hidden(x)))
    >>> net, images, labels = Net(nnx.Rngs(0)), jnp.ones((6, 4)), jnp.arange(6) % 3
    >>> meter = CollapseMeter(net, verbose=False)
    >>> state = meter.init(images)
    >>> logits, features = meter.capture(net, images)
    >>> state = meter.update(state, features, labels, logits=logits)
    >>> list(meter.report(state, net))
    ['hidden', 'fc']
    """

    def __init__(
        self,
        model: Any,
        layers: Layers = "auto",
        head: str | None = "auto",
        *,
        num_classes: int | None = None,
        verbose: bool = True,
        **options: Any,
    ) -> None:
        if not isinstance(model, nnx.Module | linen.Module):
            raise ValueError(
                f"model is a {type(model).__module__}.{type(model).__qualname__}: pass an nnx.Module or "
                "a linen.Module"
            )
        # What is wrong with an option is said here, not when the first batch comes.
        plain = {name: value for name, value in options.items() if name != "dtype"}
        Settings(num_classes=2 if num_classes is None else num_classes, **plain)
        self._model = model
        self._chosen: dict[str, Any] = {"layers": layers, "head": head, "num_classes": num_classes}
        self._options = options
        self._verbose = verbose
        self._selection: Selection | None = None

    def _select(self, model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Selection:
        if self._selection is None:
            self._selection = find(model, args, kwargs, **self._chosen)
            if self._verbose:
                say(self.describe())
        return self._selection

    @property
    def selection(self) -> Selection:
        """The layers watched.

        Raises
        ------
        ValueError
            Before a first input: which layers run, and in which order, only a run can tell.
        """
        if self._selection is None:
            raise ValueError("the layers are not known before an input: call init(...) first")
        return self._selection

    @property
    def num_classes(self) -> int:
        """C."""
        return self.selection.classes(self._chosen["num_classes"])

    @property
    def skipped(self) -> dict[str, str]:
        """Why each module that is not watched is not."""
        return dict(self.selection.skipped)

    def describe(self) -> str:
        """Return what is watched and, for every other module, why it is not."""
        chosen = self.selection
        return description(
            chosen.watched,
            chosen.head,
            chosen.skipped,
            self.num_classes,
            "an nnx.Linear or nn.Dense",
        )

    def init(self, *args: Any, labels: Any = None, **kwargs: Any) -> State:
        """Return an empty state for the layers that an input runs through; only its shapes are used.

        Parameters
        ----------
        *args, **kwargs
            Those of the model; for linen the variables first, as in `capture`.
        labels : array, optional
            Example labels, where they are not one for each row of the input: (B, T) for tokens.

        Returns
        -------
        State

        Raises
        ------
        ValueError
            As `capture`, and if a layer's output does not fit the labels.
        """
        selection = self._select(self._model, args, kwargs)
        model: Any = self._model
        weights: Any = None
        if isinstance(model, nnx.Module):
            graph, weights = nnx.split(model)

        def run(weights: Any, args: Any, kwargs: Any) -> Any:
            one = nnx.merge(graph, weights) if weights is not None else model
            return captured(one, selection, args, kwargs).features

        features = observing.shapes_in_order(run, weights, args, kwargs)
        if labels is None:
            rows = jax.tree.leaves(next(reversed(features.values())))[0].shape[0]
            labels = jax.ShapeDtypeStruct((rows,), "int32")
        return observing.first_state(features, labels, None, self.num_classes, self._options)

    def capture(self, model: Any, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Call the model as `collapsemeter_flax.capture` does, with this meter's layers.

        Parameters
        ----------
        model : nnx.Module or linen.Module
            The model as the step holds it: inside ``jit`` it is not the object that the meter was given.
        *args, **kwargs
            Those of the model; for linen the variables first.

        Returns
        -------
        outputs, features
        """
        run = captured(model, self._select(model, args, kwargs), args, kwargs)
        return run.outputs, run.features

    def update(
        self,
        state: State,
        features: Mapping[str, Any],
        labels: Any,
        *,
        logits: Any = None,
        mask: Any = None,
        axis_name: AxisName = None,
        when: Any = True,
    ) -> State:
        """Return the state with one batch more, see `collapsemeter_flax.update`."""
        return update(
            state, features, labels, logits=logits, mask=mask, axis_name=axis_name, when=when
        )

    def report(self, state: State, weights: Any = None, *, phase: Phase = "live") -> CollapseReport:
        """Measure every layer of a state.

        Parameters
        ----------
        state : State
        weights : nnx.Module, or mapping of linen variables, optional
            Where the head is taken from; of NNX by default the model that the meter was given.
        phase : str
            See `collapsemeter_flax.report`.

        Returns
        -------
        CollapseReport

        Raises
        ------
        ValueError
            As `collapsemeter_flax.report`, and if a linen model's variables are left out.
        """
        name = self.selection.head
        head: Any = None
        if name is not None and isinstance(self._model, nnx.Module):
            head = nnx_models.module_at(self._model if weights is None else weights, name)
        elif name is not None:
            head = linen_models.weights_at(weights, name)
        return finalise.report(state, head, phase=phase, skipped=self.selection.skipped)

    def observe(
        self,
        batches: Iterable[Any],
        *,
        model: Any = None,
        variables: Any = None,
        phase: Phase = "frozen-eval",
        progress: bool = True,
        call: Mapping[str, Any] | None = None,
    ) -> CollapseReport:
        """Measure in one pass with frozen weights, see `collapsemeter_flax.observe`.

        Parameters
        ----------
        batches : iterable of (inputs, labels), or of dicts with "labels"
        model : nnx.Module, optional
            By default the one that the meter was given.
        variables : mapping
            Of a linen model.
        phase, progress, call
            See `collapsemeter_flax.observe`.

        Returns
        -------
        CollapseReport
        """
        check_phase(phase)
        frozen = observing.Frozen(
            self._model if model is None else model, variables, {} if call is None else call
        )
        return observing.run(
            frozen, self._selection, batches, self._chosen, phase, progress, self._options
        )


def watch(model: Any, **options: Any) -> CollapseMeter:
    """Return the meter of a Flax model; what `collapsemeter.watch` calls.

    Examples
    --------
    >>> watch(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), verbose=False).selection
    Traceback (most recent call last):
        ...
    ValueError: the layers are not known before an input: call init(...) first
    """
    return CollapseMeter(model, **options)
