"""One pass over a data set with frozen weights: counted, or written row by row for the audit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from collapsemeter.activations import Writer
from collapsemeter.adapter.batches import each_batch, require_labels, split
from collapsemeter.adapter.selection import Selection
from collapsemeter.adapter.settings import Settings

from .batch import Batch
from .compiled import eager
from .data_parallel import alone, waiting_for_none
from .label_hooks import next_token
from .memory import UNPLANNED
from .namespace import device_of
from .scope import Scope, mask_of_positions
from .sharding import is_sharded
from .spread import Spread
from .state import HEAD_OUTPUT, CountedBatch, Store

if TYPE_CHECKING:
    from .learnt import Learnt
    from .recorder import Recorder

# NumPy reads these through integers of their size; the name is ml_dtypes'.
_SEEN_AS = {
    torch.bfloat16: torch.int16,
    torch.float8_e4m3fn: torch.int8,
    torch.float8_e5m2: torch.int8,
}


def frozen_pass(
    recorder: Recorder,
    model: nn.Module,
    make_store: Callable[[Learnt], Store],
    batches: Iterable[Any],
    progress: bool,
    spread: Spread | None = None,
) -> Store | None:
    """Pass every batch through the model into a store; leave the model's modes as they were.

    Of data that are ``spread`` over ranks a rank may get none, and rows that repeat others are left out.
    """
    store: Store | None = None
    modes = {module: module.training for module in model.modules()}
    device = device_of(model)
    runs = alone(model)
    seen = 0
    model.eval()
    try:
        # Compiled graphs may have been made without the hooks, and gain nothing in one pass.
        with torch.inference_mode(), eager(), waiting_for_none(model):
            for item in each_batch(batches, progress, may_be_empty=spread is not None):
                inputs, labels, mask = split(item)
                if isinstance(item, Mapping):
                    labels = next_token(recorder.root, labels, recorder.live.settings.ignore_index)
                require_labels(labels)
                inputs = inputs_on_device(inputs, device)
                if store is None:
                    store = make_store(recorder.learn(*as_arguments(inputs)))
                if spread is not None:
                    rows = len(labels)
                    fresh = spread.fresh(seen, rows)
                    seen, store.repeated = seen + rows, store.repeated + rows - fresh
                    if not fresh:
                        if is_sharded(model):  # the other ranks wait for this one in the forward
                            args, kwargs = as_arguments(inputs)
                            runs(*args, **kwargs)
                        continue
                    if fresh < rows:
                        inputs, labels, mask = first_rows((inputs, labels, mask), rows, fresh)
                args, kwargs = as_arguments(inputs)
                with Batch(recorder, store, labels, mask, anyway=True):
                    if runs is not model:
                        show_mask(recorder, kwargs)
                    runs(*args, **kwargs)
    finally:
        for module, training in modes.items():
            module.training = training
    return store


def show_mask(recorder: Recorder, kwargs: Mapping[str, Any]) -> None:
    """Show the attention mask to the open batch, as the hook of the whole model would."""
    scope = recorder.scope()
    if isinstance(scope, Scope):
        scope.mask_seen = mask_of_positions(kwargs)


def first_rows(batch: Any, rows: int, number: int) -> Any:
    """Return the first rows of a batch, in all of its arrays that have one entry a row."""

    def cut(leaf: Any) -> Any:
        shape = getattr(leaf, "shape", None)
        return leaf[:number] if shape and shape[0] == rows else leaf

    return pytree.tree_map(cut, batch)


def inputs_on_device(inputs: Any, device: torch.device) -> Any:
    """Return inputs as tensors on a device."""
    return pytree.tree_map(lambda leaf: _to(leaf, device), inputs)


def as_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return how a model is called with a batch of inputs: a tensor, a tuple, or a dict of arguments."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


def _to(leaf: Any, device: torch.device) -> Any:
    if isinstance(leaf, np.ndarray):
        leaf = torch.tensor(leaf)
    return leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf


class Dump(Store):
    """A store that keeps the rows of one batch and writes them at its end."""

    def __init__(self, settings: Settings, selection: Selection, writer: Writer) -> None:
        super().__init__(settings, UNPLANNED)
        self._watched, self._head = selection.watched, selection.head
        self._writer = writer
        self._batch: dict[tuple[str, int], npt.NDArray[Any]] = {}
        self._calls: dict[str, int] = {}  # of each layer in every batch, as in the first

    def add_rows(self, scope: CountedBatch, layer: str, rows: Tensor) -> None:
        """Copy the rows of a layer's next call in this batch to the host."""
        call = scope.calls.get(layer, 0)
        scope.calls[layer] = call + 1
        self._batch[layer, call] = exact_array(rows)

    def add_decisions(self, scope: CountedBatch, decided: Tensor) -> None:
        """Copy the network's own decisions; those of its first call speak for it, as in reports."""
        scope.calls[HEAD_OUTPUT] = 1
        self._batch.setdefault((HEAD_OUTPUT, 0), exact_array(decided))

    def degrade(self, layer: str, error: Exception) -> None:
        """Refuse: what is asked for by name is written whole or not at all."""
        raise ValueError(
            f"layer {layer!r} cannot be written: {type(error).__name__}: {error}"
        ) from error

    def commit(self, scope: CountedBatch) -> None:
        """Write the batch, if every layer gave what it gave in those before."""
        calls = {name: scope.calls.get(name, 0) for name in self._watched}
        self._check(calls)
        batch, self._batch = self._batch, {}
        layers = {
            name if count == 1 else f"{name}#{call}": batch[name, call]
            for name, count in calls.items()
            for call in range(count)
        }
        labels = scope.flat_labels.cpu().numpy()
        self._writer.write(layers, labels, predictions=batch.get((HEAD_OUTPUT, 0)))
        super().commit(scope)

    def _check(self, calls: dict[str, int]) -> None:
        number = self.batches + 1
        for name, count in calls.items():
            if count == 0:
                raise ValueError(
                    f"layer {name!r} was not called in batch {number}, so nothing can be written of it: "
                    "leave it out with layers="
                )
            if count != self._calls.get(name, count):
                raise ValueError(
                    f"layer {name!r} was called {count} times in batch {number} and {self._calls[name]} "
                    "times in those before: every batch must have the same calls"
                )
        if self._head is not None and calls[self._head] > 1:
            raise ValueError(
                f"head {self._head!r} was called {calls[self._head]} times in batch {number}: only one "
                "decision for each label can be written; pass head=None"
            )
        self._calls = calls


def exact_array(tensor: Tensor) -> npt.NDArray[Any]:
    """Copy a tensor to NumPy, bit for bit; half precision of any kind, too."""
    import ml_dtypes

    # A copy: the network may write into its activations later in the forward.
    copied = tensor.detach().to("cpu", copy=True).contiguous()
    seen_as = _SEEN_AS.get(copied.dtype)
    if seen_as is None:
        array: npt.NDArray[Any] = copied.numpy()
        return array
    name = str(copied.dtype).removeprefix("torch.")
    return copied.view(seen_as).numpy().view(np.dtype(getattr(ml_dtypes, name)))
