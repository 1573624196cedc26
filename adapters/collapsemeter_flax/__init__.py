"""The Flax adapter: pure functions over a pytree that count inside a jitted step, and capture helpers.

In the order of the flow:

===========  ======================================================================================================================
`meter`      `CollapseMeter` and `observe`
`selection`  what is watched of a model, from
`study`      ... its scores, `head` and `points`
`trace`      ... in one abstract forward of `linen_models` or `nnx_models`, called with `arguments`
`graph`      ... whose values have names (`marks`) and an order (`call_order`); `calls` of modules, the `head` and the `score_order`
`capturing`  `capture`: outputs of an unmodified model; `sowing` is what it takes of a call
`updating`   `update`: one batch into the state, by `reduction`, `labels` and the operations of `namespace`
`state`      `State`, `init`, `reset`
`waiting`    small batches, until they make a block
`sample`     the row sample on the device
`merging`    `merge`: two states into one
`sharding`   mapped axes, shardings and copies of a state
`checkpoint` `save`, `load`, and what `flax.serialization` asks for
`frozen`     a pass over a data set with frozen weights
`costs`      what counting costs beside a step
`tallies`    the state and the head on the host: `to_moments`
`reporting`  `report`: state -> report
`demo`       the demo's network
===========  ======================================================================================================================
"""

try:
    import jax as _jax  # noqa: F401 # asked for first: the message below names what is missing
    from flax import nnx as _nnx
except ImportError as error:
    raise ImportError(
        f"the flax adapter needs flax and jax ({error}): pip install 'collapsemeter[flax]'"
    ) from error
if not hasattr(_nnx, "capture"):
    from flax import __version__ as _version

    raise ImportError(
        f"the flax adapter needs flax>=0.12.6, whose nnx.capture it uses, and found flax {_version}: "
        "pip install 'collapsemeter[flax]'"
    )

from .capturing import capture
from .checkpoint import load, save
from .merging import merge
from .meter import CollapseMeter, observe, watch
from .reporting import report
from .state import State, init, reset
from .tallies import to_moments
from .updating import update

__all__ = [
    "CollapseMeter",
    "State",
    "capture",
    "init",
    "load",
    "merge",
    "observe",
    "report",
    "reset",
    "save",
    "to_moments",
    "update",
    "watch",
]
