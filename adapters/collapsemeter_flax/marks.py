"""Names on the inputs and outputs of modules, which stay in the jaxpr of an abstract forward."""

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, nnx
from jax.ad_checkpoint import checkpoint_name

from .calls import PREFIX

Path = tuple[str, ...]
_LAYERS = ("flax.nnx.nn.", "flax.nnx.helpers", "flax.nnx.pytreelib", "flax.linen.")
_BASES = {"flax.linen.module", "flax.nnx.pytreelib"}  # of users' modules, too
_HOLDERS = (nnx.List, nnx.Dict, nnx.Sequential, linen.Sequential)
_DROPOUTS = (nnx.Dropout, linen.Dropout)
_EMBEDDINGS = (nnx.Embed, linen.Embed)


@dataclass(frozen=True)
class Part:
    """A module of the model, as an abstract run of it showed it."""

    path: Path  # its attributes (or linen names) from the root
    type: type
    gets_out: bool = True  # whether what it gives can be taken out of the transformations around it
    makes_scores: bool = (
        False  # an embedding that is called the other way round, from features to scores
    )

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def is_elementary(self) -> bool:
        """Whether it is one layer of Flax, such as a convolution or a norm, and no block of them."""
        if issubclass(self.type, _HOLDERS):
            return False
        bases = [base.__module__ for base in self.type.__mro__]
        return any(base.startswith(_LAYERS) and base not in _BASES for base in bases)

    @property
    def is_embedding(self) -> bool:
        return issubclass(self.type, _EMBEDDINGS) and not self.makes_scores

    @property
    def is_dropout(self) -> bool:
        return issubclass(self.type, _DROPOUTS)

    def is_layer(self, ran: Set[str]) -> bool:
        """Whether it is called: a list only holds others, and few embeddings make scores."""
        if self.makes_scores:
            return self.name in ran
        return not issubclass(self.type, nnx.List | nnx.Dict)


class Mark(NamedTuple):
    """The meaning of a name in a jaxpr."""

    kind: str  # "in" or "out"
    layer: str
    shape: tuple[int, ...]  # of one call, where a transformation stacks several


def marked(kind: str, layer: str, value: Any) -> Any:
    """Name the features among what a module is given or gives; the rest stays as it is."""
    features = features_of(value)
    if features is None or (kind == "out" and not jnp.issubdtype(features.dtype, jnp.inexact)):
        return value
    name = f"{PREFIX}:{json.dumps([kind, layer, features.shape])}"
    named = checkpoint_name(features, name)
    return jax.tree.map(lambda leaf: named if leaf is features else leaf, value)


def marked_input(layer: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Name the first argument of a call."""
    if args:
        return (marked("in", layer, args[0]), *args[1:]), kwargs
    if kwargs:
        first = next(iter(kwargs))
        return args, {**kwargs, first: marked("in", layer, kwargs[first])}
    return args, kwargs


def read_mark(name: str) -> Mark | None:
    """Return what a name says, if it is one of `marked`."""
    if not name.startswith(PREFIX):
        return None
    kind, layer, shape = json.loads(name.partition(":")[2])
    return Mark(kind, layer, tuple(shape))


def features_of(value: Any) -> Any:
    """Return the array that a reduction would take of what a module gave."""
    if isinstance(value, Mapping):
        arrays = [leaf for leaf in value.values() if isinstance(leaf, jax.Array)]
        value = value.get("last_hidden_state", arrays[0] if len(arrays) == 1 else None)
    elif isinstance(value, tuple | list):
        value = value[0] if value else None
    plain = isinstance(value, jax.Array) and not jnp.issubdtype(value.dtype, jax.dtypes.extended)
    return value if plain else None


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module: the values that it was given and gave, where they could be named."""

    layer: str
    number: int
    output: int
