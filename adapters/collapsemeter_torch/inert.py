"""The base of every hook: small, and inert in copies of the model."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .recorder import Recorder


def _inert(*args: Any, **kwargs: Any) -> None:
    """The place-holder that a copied or unpickled model has for a hook."""


def _make_inert() -> Callable[..., None]:
    return _inert


class Hook:
    """A hook that holds its recorder weakly, returns nothing, and is left out of copies."""

    __slots__ = ("__weakref__", "recorder")

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = weakref.ref(recorder)

    @property
    def __name__(self) -> str:
        raise AttributeError(
            "torch.jit.script cannot compile the hooks of a CollapseMeter: call meter.detach() before it, and "
            "the next `with meter.batch(labels)` attaches them again"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _inert

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[()]]:
        return _make_inert, ()
