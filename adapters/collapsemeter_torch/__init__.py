"""The PyTorch adapter: hooks that measure neural collapse while a model trains."""

try:
    import torch as _torch  # noqa: F401 # asked for first: the message below names what is missing
except ImportError as error:
    raise ImportError(
        f"the torch adapter needs torch ({error}): pip install 'collapsemeter[torch]'"
    ) from error

from .meter import CollapseMeter

__all__ = ["CollapseMeter"]
