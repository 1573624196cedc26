"""`observe` and `CollapseMeter`: from a data set, or a training step, to what is said of every layer."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import jax
from flax import linen, nnx

from collapsemeter import CollapseReport
from collapsemeter.adapter.batches import check_frozen_phase
from collapsemeter.adapter.memory import Memory
from collapsemeter.adapter.network import Scores
from collapsemeter.adapter.selection import MAX_LAYERS, Layers, Selection
from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.fields import Phase
from collapsemeter.system.terminal import say

from . import linen_models
from .arguments import arguments, evaluation, is_array
from .capturing import captured
from .costs import products_note
from .frozen import Frozen, first_state, frozen_pass, shapes_in_order
from .namespace import AxisName
from .reporting import state_report
from .selection import Choice, HeadOption, Request, choose
from .state import State, StateSpec, plan_memory
from .updating import update


def observe(
    model: Any,
    batches: Iterable[Any],
    *,
    variables: Any = None,
    layers: Layers = "auto",
    head: HeadOption = "auto",
    num_classes: int | None = None,
    scores: Scores | None = "auto",
    max_layers: int = MAX_LAYERS,
    phase: Phase = "frozen-eval",
    progress: bool = True,
    call: Mapping[str, Any] | None = None,
    **options: Any,
) -> CollapseReport:
    """Measure in one pass with frozen weights, in evaluation mode; the model is left as it is.

    Parameters
    ----------
    model : nnx.Module or linen.Module
        Of NNX a copy runs in ``eval()`` mode.
    batches : iterable of (inputs, labels), or of dicts with "labels"
        Inputs are an array, or a tuple or dict of arguments; arrays of NumPy, JAX or any framework that
        NumPy reads. Each shape of batch is compiled once.
    variables : mapping
        Of a linen model: ``{"params": ..., "batch_stats": ...}``.
    layers, head, num_classes, scores, max_layers
        See `capture`.
    phase : {"frozen-eval", "frozen-train"}
        What the report calls the data: held-out, or the training set.
    progress : bool
        Show a progress bar on standard error.
    call : mapping, optional
        Keywords of every call of the model (of linen's ``apply``). Those named ``train``, ``training``,
        ``is_training``, ``deterministic`` and ``use_running_average`` are set for evaluation by themselves
        where the model takes them.
    **options
        Those of `init`: ``reduction``, ``scatter``, ``convention``, ``ignore_index``, ``nonfinite``,
        ``mixed``, ``sample_rows``, ``seed``, ``sketch_rows``, ``groups``, ``dtype``.

    Raises
    ------
    ValueError
        If there is no batch, labels are invalid, or a layer's output does not fit them.

    Examples
    --------
    >>> import numpy as np
    >>> net = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 3, rngs=nnx.Rngs(1)))
    >>> images, labels = np.ones((6, 4), np.float32), np.arange(6) % 3
    >>> measured = observe(net, [(images, labels)], progress=False)
    >>> list(measured), measured.phase
    (['layers.0', 'layers.2'], 'frozen-eval')
    """
    check_frozen_phase(phase)
    frozen = Frozen(model, variables, call or {})
    request = Request(
        layers, head, num_classes, scores, max_layers, options.get("reduction", "auto")
    )
    return _observe(frozen, None, batches, request, phase, progress, options)


def _observe(
    frozen: Frozen,
    choice: Choice | None,
    batches: Iterable[Any],
    request: Request,
    phase: Phase,
    progress: bool,
    options: Mapping[str, Any],
) -> CollapseReport:
    state, choice = frozen_pass(frozen, choice, batches, request, progress, options)
    return state_report(state, frozen.head(choice), phase, choice.selection, dict(choice.unpaired))


class CollapseMeter:
    """Measure NC1 to NC4 of a Flax model's layers, while it trains or in a frozen pass.

    It bundles `capture`, `init`, `update`, `report` and `observe` for one model. It holds no counts: the
    state is yours, goes through the jitted step and comes back, so that nothing is changed in secret
    inside a trace.

    Parameters
    ----------
    model : nnx.Module or linen.Module
    layers, head, num_classes, scores, max_layers
        See `capture`.
    example : array, or tuple or dict of arguments, optional
        Inputs of one batch, of which only shapes are used: they show the layers at once, so that
        `selection` and `describe` have an answer before `init`.
    verbose : bool
        Print what is watched, and why the rest is not, as soon as an input shows the layers.
    **options
        Those of `init`: ``reduction``, ``scatter``, ``convention``, ``ignore_index``, ``nonfinite``,
        ``mixed``, ``sample_rows``, ``seed``, ``sketch_rows``, ``groups``, ``dtype``, ``memory``, ``waiting``.

    Raises
    ------
    ValueError
        If the model is not one of Flax, an option is unknown, or what is asked for does not fit the example.

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
        head: HeadOption = "auto",
        *,
        num_classes: int | None = None,
        scores: Scores | None = "auto",
        max_layers: int = MAX_LAYERS,
        example: Any = None,
        verbose: bool = True,
        **options: Any,
    ) -> None:
        if not isinstance(model, nnx.Module | linen.Module):
            raise ValueError(
                f"model is a {type(model).__module__}.{type(model).__qualname__}: pass an nnx.Module or "
                "a linen.Module"
            )
        # What is wrong with an option is said here, not when the first batch comes.
        plain = {
            name: value
            for name, value in options.items()
            if name not in ("dtype", "memory", "waiting")
        }
        Settings(num_classes=2 if num_classes is None else num_classes, **plain)
        self._model = model
        self._request = Request(
            layers, head, num_classes, scores, max_layers, options.get("reduction", "auto")
        )
        self._options = options
        self._verbose = verbose
        self._choice: Choice | None = None
        self._notes: list[str] = []  # what counting takes, known once the labels' shape is
        if example is not None:
            args, kwargs = arguments(example, evaluation(model))
            if isinstance(model, linen.Module):
                args = (linen_models.variables_for(model, args, kwargs), *args)
            self.init(*args, **kwargs)

    def _choose(self, model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Choice:
        if self._choice is None:
            self._choice = choose(model, args, kwargs, self._request)
        return self._choice

    def _chosen(self) -> Choice:
        if self._choice is None:
            raise ValueError(
                "the layers are not known before an input: call init(...) first, or pass example="
            )
        return self._choice

    @property
    def selection(self) -> Selection:
        """The layers watched; which run, and in which order, only a first input can tell."""
        return self._chosen().selection

    @property
    def num_classes(self) -> int:
        """Return C, by default the width of the scores."""
        return self.selection.classes(self._request.num_classes)

    @property
    def skipped(self) -> dict[str, str]:
        """Why each module that is not watched is not."""
        return dict(self.selection.skipped)

    def describe(self, *, full: bool = False) -> str:
        """Return what is watched, and by cause and count what is not; ``full=True`` lists every module."""
        return self.selection.describe(self.num_classes, full=full, notes=self._notes)

    def init(self, *args: Any, labels: Any = None, **kwargs: Any) -> State:
        """Return an empty state for the layers that an input runs through; only its shapes are used.

        The arguments are those of the model, for linen the variables first, as in `capture`. Labels are
        needed where they are not one for each row of the input: (B, T) for tokens. A layer whose output no
        rule pairs with such labels is left out, and a report says why.
        """
        choice = replace(self._choose(self._model, args, kwargs), unpaired=())
        model: Any = self._model
        weights: Any = None
        if isinstance(model, nnx.Module):
            graph, weights = nnx.split(model)

        def run(weights: Any, args: Any, kwargs: Any) -> Any:
            whole = nnx.merge(graph, weights) if weights is not None else model
            return captured(whole, choice, args, kwargs).features

        features = shapes_in_order(run, weights, args, kwargs)
        if labels is None:
            rows = jax.tree.leaves(next(reversed(features.values())))[0].shape[0]
            labels = jax.ShapeDtypeStruct((rows,), "int32")
        state, unpaired = first_state(
            features, labels, None, self.num_classes, choice, self._options
        )
        self._choice = choice.without(unpaired)
        is_first, self._notes = not self._notes, self._costs(state.spec, math.prod(labels.shape))
        if is_first and self._verbose:
            say(self.describe())
        return state

    def _costs(self, spec: StateSpec, rows: int) -> list[str]:
        memory: Memory = self._options.get("memory", "auto")
        widths = dict(zip(spec.names, spec.widths, strict=True))
        choice = self._chosen()
        plan = plan_memory(
            widths,
            spec.settings,
            memory,
            choice.parameter_bytes,
            spec.dtype,
            self._options.get("waiting", True),
        )
        assert choice.forward is not None
        time = products_note(choice.forward.graph, spec, rows)
        return [str(plan), *([time] if time else [])]

    def capture(self, model: Any, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Call the model, as the step holds it, and return outputs and features of this meter's layers.

        Inside ``jit`` the model is not the object that the meter was given; see `collapsemeter_flax.capture`.
        """
        run = captured(model, self._choose(model, args, kwargs), args, kwargs)
        return run.returned, run.features

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
        """Return the state with one batch more, see `collapsemeter_flax.update`.

        ``logits`` is what the model returned, of which the scores are taken; a single score decides by the
        threshold that the model's last operation implies, 1/2 behind a sigmoid.
        """
        if logits is not None and not is_array(logits):
            logits = self._chosen().scores_in(logits)
        return update(
            state,
            features,
            labels,
            logits=logits,
            mask=mask,
            axis_name=axis_name,
            when=when,
            threshold=0.0 if self._choice is None else self._choice.selection.threshold,
        )

    def report(self, state: State, weights: Any = None, *, phase: Phase = "live") -> CollapseReport:
        """Measure every layer of a state, see `collapsemeter_flax.report`.

        The head is taken from ``weights``, an nnx.Module or a mapping of linen variables; of NNX by default
        from the model that the meter was given.
        """
        choice = self._chosen()
        model = self._model if weights is None and isinstance(self._model, nnx.Module) else weights
        return state_report(
            state, choice.head_weights(model), phase, choice.selection, dict(choice.unpaired)
        )

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

        ``model`` is by default the one that the meter was given; a linen model needs ``variables``.
        """
        check_frozen_phase(phase)
        model = self._model if model is None else model
        frozen = Frozen(model, variables, call or {})
        return _observe(
            frozen, self._choice, batches, self._request, phase, progress, self._options
        )


def watch(model: Any, **options: Any) -> CollapseMeter:
    """Return the meter of a Flax model; what `collapsemeter.watch` calls."""
    return CollapseMeter(model, **options)
