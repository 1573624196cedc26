"""Layers that are one linear map, x W + b."""

from typing import Any

import keras
import numpy as np
from keras import ops

from .running import activated, on_host, shape_of
from .traced_tensors import TracedTensor, signals_of


def linear_map(part: Any) -> tuple[Any, Any] | None:
    """Return kernel and bias (or None) of a layer that is one linear map, of (..., d, C) or (C, d); else None."""
    if isinstance(part, keras.layers.TimeDistributed | keras.layers.SpectralNormalization):
        return linear_map(part.layer)
    if not isinstance(part, keras.layers.Layer) or not part.built:
        return None
    if isinstance(part, keras.layers.Embedding):
        return _reversed(part)
    if isinstance(part, keras.layers.Dense | keras.layers.EinsumDense):
        return _plain(part.kernel, part.bias)
    if _is_pointwise(part):
        return _plain(part.kernel, part.bias if part.use_bias else None)
    if type(part).__module__.startswith("keras."):
        return None
    variables = [*part._trainable_variables, *part._non_trainable_variables]
    tables = [variable for variable in variables if len(variable.shape) == 2]
    vectors = [variable for variable in variables if len(variable.shape) == 1]
    if len(tables) != 1:
        return None
    return tables[0], vectors[0] if len(vectors) == 1 else None


def _plain(kernel: Any, bias: Any) -> tuple[Any, Any] | None:
    spatial, fits = kernel.shape[:-2], bias is None or len(bias.shape) == 1
    return (kernel, bias) if fits and len(kernel.shape) >= 2 and set(spatial) <= {1} else None


def _is_pointwise(part: Any) -> bool:
    """Whether a layer is a convolution of single positions."""
    kinds = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
    return isinstance(part, kinds) and part.groups == 1 and set(part.strides) <= {1}


def _reversed(part: Any) -> tuple[Any, None] | None:
    """Return the kernel of an embedding that is called in reverse, from features to scores."""
    kernel = getattr(part, "reverse_embeddings", None)
    if kernel is not None:
        return kernel, None
    return (ops.transpose(part.embeddings), None) if is_reversible(part) else None


def is_reversible(part: Any) -> bool:
    """Whether a layer is an embedding that also makes scores, as those of Keras and KerasHub."""
    return isinstance(part, keras.layers.Embedding) and hasattr(part, "tie_weights")


def is_affine(
    part: Any, value: TracedTensor, layer_input: TracedTensor | None, arguments: Any = None
) -> bool:
    """Whether a call of a linear map gives x W + b: that of a layer of the user's is run on rows of ours."""
    if layer_input is not None and not layer_input.is_float:
        return False  # words that are looked up
    plain_layers = [layer for layer in (part, getattr(part, "layer", None)) if _is_own(layer)]
    linear = linear_map(part)
    if linear is None or not plain_layers or getattr(part, "data_format", "") == "channels_first":
        return linear is not None
    if layer_input is None:
        return False
    kernel, bias = (None if weights is None else on_host(weights) for weights in linear)
    assert kernel is not None
    kernel = kernel.reshape(kernel.shape[-2:])
    rows = np.random.default_rng(0).normal(size=shape_of(layer_input)).astype(np.float32)
    tensor = ops.convert_to_tensor(rows, dtype=layer_input.dtype)
    with keras.StatelessScope():
        try:
            args, kwargs = (tensor,), {}
            if arguments is not None:
                given_to = {id(t): tensor for t in signals_of(arguments)}
                args, kwargs = arguments.fill_in(given_to)
            scores = on_host(part(*args, **kwargs))
        except Exception:  # a layer that cannot be run by itself
            return False
        if kernel.shape[0] != rows.shape[-1]:
            kernel = kernel.T
        if kernel.shape[0] != rows.shape[-1]:
            return False
        expected = rows @ kernel + (0.0 if bias is None else bias)
        expected = on_host(activated(part, ops.convert_to_tensor(expected, dtype=value.dtype)))
    close = 0.05 if "16" in value.dtype else 1e-3
    return scores.shape == expected.shape and bool(
        np.abs(scores - expected).max() <= close * max(1.0, float(np.abs(expected).max()))
    )


def _is_own(layer: Any) -> bool:
    """Whether a layer is a class of the user's that is not quantised."""
    if layer is None or getattr(layer, "quantization_mode", None) is not None:
        return False
    return not type(layer).__module__.startswith("keras.")
