"""Run one forward, of few rows or without arithmetic, and keep every layer's output."""

import contextlib
import inspect
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from collapsemeter.adapter.reduction import Layout

from .compiled import eager
from .costs import OperationCounter
from .reduction import layout_of
from .untouched import copied, untouched, with_tensors
from .weights import outputs_of

_SMALL = 2**25  # parameters
_PARAMETRIZED = "parametrizations."  # where PyTorch keeps what computes a weight
# An operation of autograd's graph, and which of its results. Every tensor that needs gradients has one.
Node = tuple[Any, int]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of one layer."""

    layer: str
    module: nn.Module
    input_node: Node | None
    tensor: Tensor | None  # what it gave
    node: Node | None
    weight: Tensor | None  # what stood in for its parameter
    outputs: int | None  # of a linear map
    layout: Layout | None  # where the channels are, as the last layer that knows says


@dataclass(eq=False)
class Trace:
    """One forward: the calls of all layers in the order in which they ended, and what came out."""

    calls: list[Call] = field(default_factory=list)
    output: Any = None
    sources: list[set[Node]] = field(default_factory=list)  # of each input; that of the first first
    operations: int = 0  # of its products


def node_of(tensor: Any) -> Node | None:
    """Return where a tensor stands in autograd's graph."""
    if not isinstance(tensor, Tensor) or tensor.grad_fn is None:
        return None
    return tensor.grad_fn, tensor.output_nr


def parents(node: Node) -> list[Node]:
    """Return what a tensor was computed from."""
    return [(function, number) for function, number in node[0].next_functions if function]


def trace(
    root: nn.Module, named: Mapping[str, nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Trace:
    """Run a network on a few rows, and without arithmetic where it is large or that fails.

    What runs it without arithmetic takes seconds to import, and no memory.
    """
    small = sum(p.numel() for p in root.parameters()) <= _SMALL
    few = pytree.tree_map(_few_rows(args, kwargs), (args, kwargs))
    all_rows = args, kwargs
    with_few = [(_with_arithmetic, few), (_without_arithmetic, few)]
    ways = [*with_few[:: 1 if small else -1], (_without_arithmetic, all_rows)]
    for way, arguments in ways:
        try:
            return way(root, named, *arguments)
        except Exception:  # whatever a network of somebody's does with few rows, or with no values
            continue
    return _with_arithmetic(root, named, args, kwargs)


def _with_arithmetic(
    root: nn.Module, named: Mapping[str, nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Trace:
    return _forward(root, named, args, kwargs, contextlib.nullcontext(), None)


def _without_arithmetic(
    root: nn.Module, named: Mapping[str, nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Trace:
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with _silent("torch._subclasses.fake_tensor"):
        return _forward(root, named, args, kwargs, mode, partial(_fake, mode))


def rerun(
    root: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    layers: Sequence[nn.Module],
    value: float,
) -> Any:
    """Run a network on few rows as if some layers gave one number everywhere; return what comes out."""

    def constant(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return torch.full_like(output, value)

    cut = _few_rows(args, kwargs)
    with (
        eager(),
        torch.inference_mode(False),
        untouched(root, copied, torch.clone),
        torch.no_grad(),
    ):
        args, kwargs = with_tensors((args, kwargs), lambda t: cut(t).clone())
        for layer in layers:
            layer.register_forward_hook(constant)
        return root(*args, **kwargs)


@contextlib.contextmanager
def _silent(logger: str) -> Iterator[None]:
    """Keep what PyTorch logs of a failure to ourselves: the forward is run in another way then."""
    log = logging.getLogger(logger)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _forward(
    root: nn.Module,
    named: Mapping[str, nn.Module],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    mode: Any,
    fake: Callable[[Tensor], Tensor] | None,
) -> Trace:
    told = Trace()
    with (
        eager(),
        torch.inference_mode(False),
        # What the study saves for a backward pass is nothing to a checkpoint around the model.
        torch.autograd.graph.saved_tensors_hooks(_same, _same),
        untouched(root, partial(_leaf, fake or copied), fake or torch.clone),
        mode,
        torch.enable_grad(),
        OperationCounter() as operations,
    ):
        inputs = _Inputs(told, fake or Tensor.detach)
        args, kwargs = inputs.replaced(root, args, kwargs)
        layer_heard = _Listener(told, inputs)
        for name, module in named.items():
            if not isinstance(module, torch.jit.ScriptModule) and _PARAMETRIZED not in name:
                hook = partial(layer_heard, name)
                module.register_forward_hook(hook, with_kwargs=True)
        told.output = root(*args, **kwargs)
    told.operations = operations.total
    if not told.sources and inputs.embedded:
        told.sources = [inputs.embedded]
    return told


class _Inputs:
    """Stand-ins of the inputs: floats start autograd's graph, and what embeds integers does in their place."""

    def __init__(self, told: Trace, stand_in: Callable[[Tensor], Tensor]) -> None:
        self._told, self._stand_in = told, stand_in
        self._integers: set[int] = set()  # memory of integer inputs
        self.embedded: set[Node] = set()  # of integers that are no input: positions, as a rule

    def replaced(
        self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        names = _names_of(root, len(args))
        replaced = tuple(
            self._replace(name, value) for name, value in zip(names, args, strict=True)
        )
        return replaced, {name: self._replace(name, value) for name, value in kwargs.items()}

    def _replace(self, name: str, value: Any) -> Any:
        return with_tensors(value, partial(self._replace_tensor, name))

    def _replace_tensor(self, name: str, tensor: Tensor) -> Tensor:
        stand_in = self._stand_in(tensor)
        if stand_in.is_inference():
            stand_in = stand_in.clone()
        if not tensor.is_floating_point() or "mask" in name:
            self._integers.add(memory_of(stand_in))
            return stand_in
        # A copy: the network may write into its input, and not into a leaf.
        copy = stand_in.requires_grad_().clone()
        self._told.sources.append({node for node in [node_of(copy)] if node})
        return copy

    def embed(self, index: Any, node: Node | None) -> None:
        """Note where integers become floats."""
        if node is None or not isinstance(index, Tensor):
            return
        if memory_of(index) in self._integers:
            self._told.sources.append({node})
        else:
            self.embedded.add(node)


class _Listener:
    """The hook of every layer."""

    def __init__(self, told: Trace, inputs: _Inputs) -> None:
        self._told, self._inputs = told, inputs
        self._layout: Layout | None = None

    def __call__(
        self, name: str, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any
    ) -> None:
        first = args[0] if args else next(iter(kwargs.values()), None)
        tensor = _first_tensor(output)
        node = node_of(tensor)
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            self._inputs.embed(first, node)
        self._layout = layout_of(module) or self._layout
        weight = module._parameters.get("weight")
        first = node_of(_first_tensor(first))
        outputs = outputs_of(module)
        call = Call(name, module, first, tensor, node, weight, outputs, self._layout)
        self._told.calls.append(call)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _names_of(root: nn.Module, count: int) -> list[str]:
    """Return what the first positional arguments of a network are called."""
    try:
        names = list(inspect.signature(root.forward).parameters)
    except (TypeError, ValueError):
        names = []
    return [*names, *["*"] * count][:count]


def _first_tensor(output: Any) -> Tensor | None:
    """Return the features among what a layer gave, as `reduction.tensor_of` takes them."""
    if isinstance(output, Mapping):
        tensors = [value for value in output.values() if isinstance(value, Tensor)]
        output = output.get("last_hidden_state", tensors[0] if len(tensors) == 1 else None)
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def memory_of(tensor: Tensor) -> int:
    """Return what tells the memory of a tensor, and of its views, from others."""
    return int(tensor.untyped_storage()._cdata)


def _leaf(stand_in: Callable[[Tensor], Tensor], parameter: Tensor) -> Tensor:
    """Return a stand-in of a parameter that begins autograd's graph, also of a frozen one."""
    leaf = stand_in(parameter)
    return leaf.requires_grad_() if leaf.is_floating_point() else leaf


def _fake(mode: Any, tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape without memory."""
    with mode:
        if (
            0 in tensor.stride()
        ):  # of a parameter that is spread over processes only the shape is known
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        return torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
        )


def _few_rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Any], Any]:
    """Return how to cut a batch to at least two rows, and to no number of which there is anything else."""
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    batch = next((len(leaf) for leaf in leaves if leaf.ndim), 0)
    others = {size for leaf in leaves for size in leaf.shape[1:]}
    few = next(number for number in itertools.count(2) if number not in others)

    def cut(leaf: Any) -> Any:
        rows = isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == batch
        return leaf[:few] if rows else leaf

    return cut
