"""The operations of the network's own products in a step, to compare counting with."""

import math
from collections.abc import Mapping
from typing import Any

import keras

from .graph import Graph
from .traced_tensors import TracedTensor

_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)


def forward_operations(graph: Graph, parts: Mapping[str, Any]) -> int:
    """Return the operations of a network's linear maps for one row of the input; 0 where a size is not known."""
    total = 0
    for name, output in graph.made.items():
        part, layer_input = parts.get(name), graph.given.get(name)
        if not isinstance(part, keras.layers.Layer):
            continue
        inside = f"{name}/"
        if any(child.startswith(inside) for child in graph.made):  # which are counted by themselves
            continue
        counted = _operations(part, output, layer_input)
        if counted is None:
            return 0
        total += counted
    return total


def _operations(layer: Any, output: TracedTensor, layer_input: TracedTensor | None) -> int | None:
    if isinstance(layer, (keras.layers.RNN, keras.layers.Bidirectional)):
        steps = None if layer_input is None or len(layer_input.shape) != 3 else layer_input.shape[1]
        return None if steps is None else 2 * steps * sum(map(math.prod, _matrices(layer.weights)))
    kernels = _kernels(layer)
    if not kernels:
        return 0
    numbers = output.shape[1:]
    if None in numbers or not numbers:
        return None
    entries = math.prod(numbers)  # type: ignore[arg-type]  # none is None
    width = numbers[-1]
    return sum(
        2 * entries * math.prod(shape) // (outputs or width or 1) for shape, outputs in kernels
    )


def _kernels(layer: Any) -> list[tuple[tuple[int, ...], int]]:
    """Return the shape of each kernel, and how many outputs it makes at a position; 0: as many as come out."""
    if isinstance(layer, _SEPARABLE):
        depthwise, pointwise = layer.depthwise_kernel.shape, layer.pointwise_kernel.shape
        return [(depthwise, layer.filters), (pointwise, layer.filters)]
    if isinstance(layer, keras.layers.Embedding):
        return []
    kernel = None if layer._layers else getattr(layer, "kernel", None)
    # Attention, and layers of the user's: each matrix is taken for a map at every position.
    if kernel is None:
        return [(shape, 0) for shape in _matrices(layer.trainable_weights)]
    shape = tuple(kernel.shape)
    if isinstance(layer, _DEPTHWISE):
        return [(shape, shape[-2] * shape[-1])]
    if isinstance(layer, _TRANSPOSED):
        return [(shape, shape[-2] * math.prod(layer.strides))]
    if isinstance(layer, keras.layers.EinsumDense):
        return [(shape, _einsum_outputs(layer.equation, shape))]
    return [(shape, shape[-1])] if len(shape) > 1 else []


def _matrices(weights: list[keras.Variable]) -> list[tuple[int, ...]]:
    """Return the shapes of what multiplies; a bias may have two axes, too."""
    return [tuple(w.shape) for w in weights if len(w.shape) > 1 and not w.name.endswith("bias")]


def _einsum_outputs(equation: str, shape: tuple[int, ...]) -> int:
    """Return the product of the kernel's axes that the output keeps."""
    inputs, _, outputs = equation.replace(" ", "").partition("->")
    letters = inputs.split(",")[1].replace("...", "")
    output_sizes = [size for letter, size in zip(letters, shape, strict=False) if letter in outputs]
    return max(1, math.prod(output_sizes))
