"""What a Keras layer tells of where its channels are."""

from __future__ import annotations

from collections.abc import Iterable

import keras

from collapsemeter.adapter.reduction import Layout


def layout_of(
    layer: keras.layers.Layer, before: Iterable[keras.layers.Layer] = ()
) -> Layout | None:
    """Return what the last part of a layer that has channels says of them; None if none has.

    Parameters
    ----------
    layer : keras.layers.Layer
    before : iterable of keras.layers.Layer
        What runs just before it, in order, and speaks for an activation.

    Examples
    --------
    >>> layout_of(keras.layers.Conv2D(8, 3))
    Layout(channels_first=False, width=8)
    >>> layout_of(keras.layers.ReLU(), [keras.layers.Conv1D(4, 3, data_format="channels_first")])
    Layout(channels_first=True, width=4)
    """
    parts = [
        part for outer in (*before, layer) for part in outer._flatten_layers(include_self=True)
    ]
    for part in reversed(parts):
        width = next(
            (
                getattr(part, name)
                for name in ("filters", "units", "output_dim")
                if isinstance(getattr(part, name, None), int)
            ),
            None,
        )
        data_format = getattr(part, "data_format", None)
        if width is not None or data_format is not None:
            # A Flatten has a data format, too, and no channels any more.
            if isinstance(part, keras.layers.Flatten):
                continue
            return Layout(data_format == "channels_first", width)
    return None
