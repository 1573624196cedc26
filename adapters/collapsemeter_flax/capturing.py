"""`capture`: outputs and named features of an unmodified model, inside any transformation."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from collapsemeter.adapter.network import Scores
from collapsemeter.adapter.selection import MAX_LAYERS, Layers

from . import linen_models, nnx_models
from .calls import Calls, in_order
from .selection import Choice, HeadOption, Request, choose, of_linen
from .sowing import Sown, selected_rows


def capture(
    model: Any,
    *args: Any,
    layers: Layers = "auto",
    head: HeadOption = "auto",
    num_classes: int | None = None,
    scores: Scores | None = "auto",
    max_layers: int = MAX_LAYERS,
    **kwargs: Any,
) -> tuple[Any, dict[str, Any]]:
    """Call a model; return what it gives, and what its layers gave on the way.

    A pure function of the call: it works inside ``jit``, ``grad(has_aux=True)``, ``nnx.jit``,
    ``nnx.value_and_grad``, ``remat`` and ``scan``, and leaves nothing on the model. Which layers there
    are, and which of them makes the scores, is read off the data flow of an abstract run, which computes
    nothing and costs nothing once the step is compiled.

    Parameters
    ----------
    model : nnx.Module or linen.Module
    *args, **kwargs
        Those of the model. For linen those of ``apply``: first the variables, and among the keywords
        ``mutable``, ``rngs`` and ``method`` where there are any.
    layers : "auto", str, iterable of str, or callable
        Names or patterns of modules whose output is taken (``*`` within one part of a name, ``**`` across),
        or ``predicate(name, type)``. A name is the path of attributes (``"blocks.0.conv"``), for linen of
        module names (``"Block_0.Conv_0"``). ``auto`` takes the layers whose output every path from the
        inputs to the scores passes: blocks, and no branches inside of them.
    head : "auto", str, None, or pair of (module or its name, callable)
        The layer that makes the scores, whose *input* comes last under its name. ``auto`` takes the one
        linear map whose output is the scores, or becomes them in the same order of every row; where there
        is none, or two, no head is taken. The callable of a pair gives kernel (d, C), or kernel and bias,
        from the module (NNX) or its parameters (linen).
    num_classes : int, optional
        C, by default the width of the scores.
    scores : "auto", key, index, callable, or None
        Where the scores are in what the model returns: a tensor, its ``logits``, or the only array whose
        last axis fits the classes. None of a model that returns no scores.
    max_layers : int
        How many layers ``auto`` takes at most, spread over the depth.

    Returns
    -------
    outputs : object
        What ``model(...)``, or ``model.apply(variables, ...)``, returns.
    features : dict of str to object
        In the order in which data reach the layers, the head's input last (``jit`` sorts the keys of what
        it returns; the order of a report is that of `init`). A layer that is called more than once, or is scanned, comes
        as ``name#0``, ``name#1``, ...

    Raises
    ------
    ValueError
        If layers or head do not fit the model, several arrays may be the scores, or a layer that was named
        gave nothing: it never ran, or ran in an ``nn.scan`` that does not carry ``intermediates``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> class Net(nnx.Module):
    ...     def __init__(self, rngs):
    ...         self.hidden = nnx.Linear(4, 8, rngs=rngs)
    ...         self.fc = nnx.Linear(8, 3, rngs=rngs)
    ...     def __call__(self, x):
    ...         return self.fc(nnx.relu(self.hidden(x)))
    >>> logits, features = capture(Net(nnx.Rngs(0)), jnp.ones((2, 4)))
    >>> {name: x.shape for name, x in features.items()}
    {'hidden': (2, 8), 'fc': (2, 8)}
    """
    choice = choose(model, args, kwargs, Request(layers, head, num_classes, scores, max_layers))
    run = captured(model, choice, args, kwargs)
    return run.returned, run.features


class Captured(NamedTuple):
    """The return value of a call, the model's own part of it, and the features of the watched layers."""

    returned: Any
    outputs: Any
    features: dict[str, Any]


def captured(
    model: Any, choice: Choice, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Captured:
    """Call a model; return what it gives, and the features of the layers chosen, in the order of the data."""
    head, by_layer = choice.selection.head, dict[str, Calls]()
    watched: dict[str, Sown] = dict.fromkeys(choice.watched, "output")
    if head in watched:
        watched[head] = "both" if choice.selects else "input"
    if isinstance(model, nnx.Module):
        returned, by_layer = nnx_models.run(model, watched, args, kwargs)
        outputs = returned
    else:
        variables, inputs = of_linen(model, args)
        returned, by_layer = linen_models.run(model, variables, watched, inputs, kwargs)
        outputs = returned if kwargs.get("mutable", False) is False else returned[0]
    features = {}
    for name in watched:
        calls = in_order(by_layer.get(name, {}))
        if not calls:
            models = nnx_models if isinstance(model, nnx.Module) else linen_models
            raise ValueError(models.never_ran(name))
        if name in choice.turned:
            calls = [jax.tree.map(_samples_first, call) for call in calls]
        if name == head:
            last = choice.head_call if choice.head_call < len(calls) else -1
            if choice.selects:
                head_input, output = calls[last]
                features[name] = selected_rows(head_input, output, choice.scores_in(outputs))
            else:
                features[name] = calls[last]
        else:
            names = [name] if len(calls) == 1 else [f"{name}#{i}" for i in range(len(calls))]
            features |= zip(names, calls, strict=True)
    return Captured(returned, outputs, _by_depth(features, choice))


def _samples_first(x: Any) -> Any:
    """Return (T, B, d) as (B, T, d)."""
    return jnp.swapaxes(x, 0, 1) if getattr(x, "ndim", 0) == 3 else x


def _by_depth(features: Mapping[str, Any], choice: Choice) -> dict[str, Any]:
    """Order features as the data reach them, the head's input last."""
    last = len(choice.depth)

    def place(name: str) -> int:
        if name == choice.selection.head:
            return last + 1
        return choice.depth.get(name if "#" in name else f"{name}#0", last)

    return {name: features[name] for name in sorted(features, key=place)}
