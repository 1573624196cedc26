"""The PyTorch adapter: hooks that measure neural collapse while a model trains."""

from .meter import CollapseMeter

__all__ = ["CollapseMeter"]
