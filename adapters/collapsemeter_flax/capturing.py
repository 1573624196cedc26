"""`capture`: outputs and named features of an unmodified model, inside any transformation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flax import linen, nnx

from collapsemeter.adapter.selection import Selection

from . import linen_models, nnx_models
from .calls import Calls, in_order
from .layers import Layers, select, tree


def capture(
    model: Any,
    *args: Any,
    layers: Layers = "auto",
    head: str | None = "auto",
    num_classes: int | None = None,
    **kwargs: Any,
) -> tuple[Any, dict[str, Any]]:
    """Call a model; return what it gives, and what its layers gave on the way.

    A pure function of the call: it works inside ``jit``, ``grad(has_aux=True)``, ``nnx.jit``,
    ``nnx.value_and_grad``, ``remat`` and ``scan``, and leaves nothing on the model. Which layers there
    are is found in an abstract run, which costs nothing once the step is compiled.

    Parameters
    ----------
    model : nnx.Module or linen.Module
    *args, **kwargs
        Those of the model. For linen those of ``apply``: first the variables, and among the keywords
        ``mutable``, ``rngs`` and ``method`` where there are any.
    layers : "auto", str, iterable of str, or callable
        Names or shell patterns of modules whose output is taken, or ``predicate(name, type)``. A name is
        the path of attributes (``"blocks.0.conv"``), for linen of module names (``"Block_0.Conv_0"``).
        ``auto`` takes the blocks a person would name.
    head : "auto", str, or None
        The final linear layer, whose *input* comes last under its name; ``auto`` finds it.
    num_classes : int, optional
        Outputs of the head, to find it by.

    Returns
    -------
    outputs : object
        What ``model(...)``, or ``model.apply(variables, ...)``, returns.
    features : dict of str to object
        In the order the layers run, the head's input last (``jit`` sorts the keys of what it returns; the
        order of a report is that of `init`). A layer that is called more than once, or is scanned, comes
        as ``name#0``, ``name#1``, ...

    Raises
    ------
    ValueError
        If layers or head do not fit the model, or a selected layer gave nothing: it never ran, or ran in
        an ``nn.scan`` that does not carry the ``intermediates`` collection.

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
    selection = find(model, args, kwargs, layers, head, num_classes)
    run = captured(model, selection, args, kwargs)
    return run.outputs, run.features


def find(
    model: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    layers: Layers = "auto",
    head: str | None = "auto",
    num_classes: int | None = None,
) -> Selection:
    """Choose the layers of a model in an abstract run on these arguments."""
    if isinstance(model, nnx.Module):
        parts = nnx_models.parts(model, args, kwargs)
    else:
        variables, inputs = of_linen(model, args)
        parts = linen_models.parts(model, variables, inputs, kwargs)
    return select(tree(parts), layers, head, num_classes)


class Captured(NamedTuple):
    """What a model gave, the features of the selected layers, and what the head gave in its first call."""

    outputs: Any
    features: dict[str, Any]
    logits: Any


def captured(
    model: Any, selection: Selection, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Captured:
    """Call a model; return what it gives, and the features of a selection."""
    by_layer: dict[str, Calls]
    if isinstance(model, nnx.Module):
        outputs, by_layer = nnx_models.run(model, selection, args, kwargs)
    else:
        variables, inputs = of_linen(model, args)
        outputs, by_layer = linen_models.run(model, variables, selection, inputs, kwargs)
    features, logits = {}, None
    for name in selection.watched:
        calls = in_order(by_layer.get(name, {}))
        if not calls:
            models = nnx_models if isinstance(model, nnx.Module) else linen_models
            raise ValueError(models.never_ran(name))
        if name == selection.head:
            calls, (logits, *_) = calls[::2], calls[1::2]
        for number, value in enumerate(calls):
            features[name if len(calls) == 1 else f"{name}#{number}"] = value
    return Captured(outputs, features, logits)


def of_linen(model: Any, args: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
    """Take the variables off the arguments of a linen module, or say what is wrong."""
    if not isinstance(model, linen.Module):
        raise ValueError(
            f"model is a {type(model).__module__}.{type(model).__qualname__}: pass an nnx.Module or a "
            "linen.Module"
        )
    if not args or not isinstance(args[0], Mapping) or "params" not in args[0]:
        what = f"a {type(args[0]).__name__}" if args else "nothing"
        raise ValueError(
            f"{type(model).__name__} is a linen module and was given {what}: pass its variables first, "
            "capture(model, {'params': params}, inputs)"
        )
    return args[0], args[1:]
