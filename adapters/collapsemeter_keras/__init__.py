"""The Keras adapter: a callback that measures neural collapse inside the compiled training step."""

try:
    import keras as _keras  # noqa: F401 # whether it is there, and with a backend that loads
except ImportError as error:
    raise ImportError(
        f"the keras adapter needs keras and one of its backends ({error}): "
        "pip install 'collapsemeter[keras]'"
    ) from error

from .meter import CollapseMeter, watch

__all__ = ["CollapseMeter", "watch"]
