"""Adapters by entry point: the framework is read from the model's class, and no other is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "collapsemeter.adapters"


def adapters() -> dict[str, EntryPoint]:
    """Return the adapters installed, by the framework's root module."""
    from importlib.metadata import entry_points  # slow to import, and seldom needed

    return {entry.name: entry for entry in entry_points(group=GROUP)}


def watch(model: Any, **options: Any) -> Any:
    """Attach the meter of the model's own framework.

    Parameters
    ----------
    model : object
        A model of a framework that an installed adapter serves.
    **options
        Passed on to that adapter's ``CollapseMeter``.

    Returns
    -------
    CollapseMeter

    Raises
    ------
    TypeError
        If no adapter serves the model's class.
    ImportError
        If its adapter lacks something; the message names what to install.

    Examples
    --------
    >>> watch(42)
    Traceback (most recent call last):
        ...
    TypeError: no adapter watches a 'builtins.int'; adapters installed: flax, keras, torch
    """
    known = adapters()
    # Never from sys.modules: importing one framework may import another.
    roots = [cls.__module__.partition(".")[0] for cls in type(model).__mro__]
    for root in roots:
        if root in known:
            return _loaded(known[root])(model, **options)
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    raise TypeError(
        f"no adapter watches a {kind!r}; adapters installed: {', '.join(sorted(known)) or 'none'}"
    )


def _loaded(entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except ImportError as error:
        if "pip install" in str(error):  # the adapter knows what it needs
            raise
        package = entry.value.partition(":")[0]
        raise ImportError(
            f"the {entry.name} adapter, {package}, cannot be loaded: {error}"
        ) from error
