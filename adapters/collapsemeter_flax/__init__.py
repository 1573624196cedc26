"""The Flax adapter: pure functions over a pytree that count inside a jitted step, and capture helpers."""

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
from .host import to_moments
from .merging import merge
from .meter import CollapseMeter, observe, watch
from .reporting import report
from .saving import load, save
from .state import State, init, reset
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
