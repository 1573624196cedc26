"""`report`, `observe` and `CollapseMeter`: from a state or a data set to what is said of every layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import flax
import jax
from flax import linen, nnx

from collapsemeter import CollapseReport
from collapsemeter.adapter.batches import check_phase
from collapsemeter.adapter.network_report import network_report
from collapsemeter.adapter.selection import Selection
from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.moments import Phase
from collapsemeter.system.terminal import say

from . import linen_models, nnx_models, observing
from .capturing import captured, find
from .host import expected_rows, head_of, tally, unstacked
from .layers import Layers
from .operations import AxisName
from .state import State
from .updating import update

_STRAY = (
    "its counters do not add up to the rows given: the state was changed other than by update "
    "and merge, or devices that share one state split the batch without axis_name="
)
_CAUSES = dict.fromkeys(("never_fired", "rows_missing", "rows_counted_twice"), _STRAY)


def report(
    state: State,
    head: Any = None,
    *,
    phase: Phase = "live",
    skipped: Mapping[str, str] | None = None,
) -> CollapseReport:
    """Measure every layer of a state.

    Parameters
    ----------
    state : State
        Also one with leading axes, see `to_moments`.
    head : nnx.Linear, mapping with "kernel" and "bias", pair (kernel, bias), or Head, optional
        The classifier that reads the last layer; a Flax kernel is (d, C). A kernel of one column is a
        single logit between two classes.
    phase : {"live", "frozen-train", "frozen-eval"}
        What was measured: the training stream, or a pass with frozen weights. A live stream was
        decided on by heads that are gone: give `update` the logits to have NC4 of it.
    skipped : mapping of str to str, optional
        Layers that are not watched, with the reason.

    Raises
    ------
    ValueError
        If no batch was counted, a counter has come to its end, the head is not one, or a row is not
        finite under ``nonfinite="raise"``.

    Examples
    --------
    >>> from collapsemeter_flax import init, update
    >>> import jax.numpy as jnp
    >>> state = update(init({"fc": 3}, num_classes=2), {"fc": jnp.eye(3)}, jnp.array([0, 1, 1]))
    >>> measured = report(state, head={"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)})
    >>> measured.phase, measured["fc"].provenance["rows"]
    ('live', 3)
    """
    parts = unstacked(state)
    batches = sum(int(part.batches) for part in parts)
    if not batches:
        raise ValueError(
            "no labelled batch was counted: keep what update returns, "
            "state = update(state, features, labels), and give the last one to report"
        )
    names = state.spec.names
    classifier = None if head is None else head_of(head)
    last = None if classifier is None else names[-1]
    layers = names if last is None else names[:-1]
    return network_report(
        Selection(layers, last, skipped=dict(skipped or {})),
        {(name, 0): partial(tally, parts, number) for number, name in enumerate(names)},
        state.spec.settings,
        phase=phase,
        framework=f"flax {flax.__version__} (jax {jax.__version__})",
        expected_rows=expected_rows(parts),
        batches=batches,
        head=classifier,
        causes=_CAUSES,
    )


def observe(
    model: Any,
    batches: Iterable[Any],
    *,
    variables: Any = None,
    layers: Layers = "auto",
    head: str | None = "auto",
    num_classes: int | None = None,
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
    layers, head, num_classes
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
        ``sample_rows``, ``seed``, ``sketch_rows``, ``dtype``.

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
    check_phase(phase)
    frozen = observing.Frozen(model, variables, call or {})
    chosen = {"layers": layers, "head": head, "num_classes": num_classes}
    return _observe(frozen, None, batches, chosen, phase, progress, options)


def _observe(
    frozen: observing.Frozen,
    selection: Selection | None,
    batches: Iterable[Any],
    layers: Mapping[str, Any],
    phase: Phase,
    progress: bool,
    options: Mapping[str, Any],
) -> CollapseReport:
    state, selection = observing.frozen_pass(frozen, selection, batches, layers, progress, options)
    head = None if selection.head is None else frozen.head(selection.head)
    return report(state, head, phase=phase, skipped=selection.skipped)


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
        """The layers watched; which run, and in which order, only a first input can tell."""
        if self._selection is None:
            raise ValueError("the layers are not known before an input: call init(...) first")
        return self._selection

    @property
    def num_classes(self) -> int:
        """Return C, by default the head's outputs."""
        return self.selection.classes(self._chosen["num_classes"])

    @property
    def skipped(self) -> dict[str, str]:
        """Why each module that is not watched is not."""
        return dict(self.selection.skipped)

    def describe(self) -> str:
        """Return what is watched and, for every other module, why it is not."""
        return self.selection.describe(self.num_classes)

    def init(self, *args: Any, labels: Any = None, **kwargs: Any) -> State:
        """Return an empty state for the layers that an input runs through; only its shapes are used.

        The arguments are those of the model, for linen the variables first, as in `capture`. Labels are
        needed where they are not one for each row of the input: (B, T) for tokens.
        """
        selection = self._select(self._model, args, kwargs)
        model: Any = self._model
        weights: Any = None
        if isinstance(model, nnx.Module):
            graph, weights = nnx.split(model)

        def run(weights: Any, args: Any, kwargs: Any) -> Any:
            whole = nnx.merge(graph, weights) if weights is not None else model
            return captured(whole, selection, args, kwargs).features

        features = observing.shapes_in_order(run, weights, args, kwargs)
        if labels is None:
            rows = jax.tree.leaves(next(reversed(features.values())))[0].shape[0]
            labels = jax.ShapeDtypeStruct((rows,), "int32")
        return observing.first_state(features, labels, None, self.num_classes, self._options)

    def capture(self, model: Any, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Call the model, as the step holds it, and return outputs and features of this meter's layers.

        Inside ``jit`` the model is not the object that the meter was given; see `collapsemeter_flax.capture`.
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
        """Measure every layer of a state, see `collapsemeter_flax.report`.

        The head is taken from ``weights``, an nnx.Module or a mapping of linen variables; of NNX by default
        from the model that the meter was given.
        """
        name = self.selection.head
        head: Any = None
        if name is not None and isinstance(self._model, nnx.Module):
            head = nnx_models.module_at(self._model if weights is None else weights, name)
        elif name is not None:
            head = linen_models.weights_at(weights, name)
        return report(state, head, phase=phase, skipped=self.selection.skipped)

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
        check_phase(phase)
        model = self._model if model is None else model
        frozen = observing.Frozen(model, variables, call or {})
        return _observe(
            frozen, self._selection, batches, self._chosen, phase, progress, self._options
        )


def watch(model: Any, **options: Any) -> CollapseMeter:
    """Return the meter of a Flax model; what `collapsemeter.watch` calls."""
    return CollapseMeter(model, **options)
