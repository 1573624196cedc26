"""One batch on its way through the model: its labels, and where its rows go in the sample."""

from __future__ import annotations

import threading
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from collapsemeter.adapter.budget import Clock
from collapsemeter.adapter.reduction import BatchError
from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.labels import check_dtype, class_labels, coded, dtype_name
from collapsemeter.stats.sampling import low_32_bits, reservoir_slots
from collapsemeter.stats.sketch import row_hashes
from collapsemeter.system.warning import warn

from .compiled import graphs_may_come
from .device import LayerState, has_float64, products_are_reduced
from .gathering import Decisions, Numbers, joined
from .sampling import PredictionState, chosen, to_device

if TYPE_CHECKING:
    from .meter import CollapseMeter

HEAD_OUTPUT = "<head output>"  # the key of its decisions; no module has such a name
_FEW_LABELS = 1024
_WIDTH = "the layer had another width before; watch modules of one width, or pass a reduction"

# The scope of each meter in each thread, by the meter's slot. A global: tensors that torch.compile
# reaches through a module are constant in shape to it, and every batch size would be a graph of its own.
# Not a ContextVar, which a compiled graph cannot read; other threads never set it.
_SCOPES = threading.local()


def current_scope(slot: str) -> Scope | LeftOut | None:
    """The batch that is open in this thread."""
    scope: Scope | LeftOut | None = getattr(_SCOPES, slot, None)
    return scope


def set_scope(slot: str, scope: Scope | LeftOut | None) -> None:
    """Open a batch in this thread, or close it."""
    if scope is not None:
        setattr(_SCOPES, slot, scope)
    elif hasattr(_SCOPES, slot):
        delattr(_SCOPES, slot)


class Store:
    """The statistics of one measurement: states by (layer, call), decisions, and what to expect.

    Parameters
    ----------
    wide : bool
        Keep sums in float64 where the device has it: no step of a training waits for them.
    """

    def __init__(self, *, wide: bool = False) -> None:
        self.wide = wide
        self.clock = Clock()
        self.layers: dict[tuple[str, int], LayerState] = {}
        self.predictions: dict[tuple[int, int], PredictionState] = {}  # by (call, sample size)
        self.decisions: dict[int, Decisions] = {}  # that wait, by call
        self.expected = 0  # label rows given
        self.partial: dict[tuple[str, int], int] = {}  # rows that only some layers saw, by layer
        self.batches = 0
        self.next_row = 0
        self.degraded: dict[str, str] = {}
        self.kept: dict[tuple[str, int], list[tuple[Tensor, Tensor, Tensor]]] = {}  # exact NC4

    def clear(self) -> None:
        """Start again; states stay in place, because compiled graphs hold their tensors."""
        for state in self.layers.values():
            state.clear()
        for predictions in self.predictions.values():
            predictions.clear()
        for decisions in self.decisions.values():
            decisions.clear()
        self.expected = self.batches = self.next_row = 0
        self.partial.clear()
        self.degraded.clear()
        self.kept.clear()
        self.clock.clear()

    def flush(self) -> None:
        """Add the batches that wait to the sums of every layer, and to the sample."""
        for state in self.layers.values():
            state.flush()
        self.flush_decisions()

    # What the hooks call

    def add_rows(self, meter: CollapseMeter, scope: Scope, layer: str, rows: Tensor) -> None:
        """Add the rows of a layer's next call in this batch to its sums."""
        call = scope.calls.get(layer, 0)
        state = self.layers.get((layer, call))
        if state is None:
            state = self._new_state(meter, rows)
            self.layers[layer, call] = state
        if state.width != rows.shape[1]:
            raise BatchError(layer, rows.shape, scope.labels.shape, _WIDTH)
        # Before the update: one that is cut short leaves rows missing, and so is noticed.
        scope.calls[layer] = call + 1
        if torch.compiler.is_compiling():
            size = state.sample_rows.shape[0] - 1
            state.add(
                rows,
                scope.flat_labels,
                scope.slots[size],
                scope.ids,
                widen=scope.widen,
                hashes=self._hashes(meter, scope) if state.kind == "sketch" else None,
            )
            return
        started = perf_counter()
        if state.make_room(len(rows)):  # for batches of many steps
            self.clock.spread_since(started)
        state.update(rows, scope.flat_labels, scope.numbers)
        if meter.exact:
            self._keep(scope, (layer, call), rows)

    def _hashes(self, meter: CollapseMeter, scope: Scope) -> tuple[Tensor, Tensor]:
        if scope.hashes is None:  # of a layer that ran for the first time, and after others
            settings = meter.settings
            return row_hashes(scope.ids, settings.sketch_rows, settings.seed, low_32_bits)
        return scope.hashes

    def may_sketch(self, settings: Settings) -> bool:
        """Whether a layer keeps a sketch, as far as can be told before they run."""
        if settings.scatter != "auto":
            return settings.scatter == "sketch"
        return not self.layers or any(state.kind == "sketch" for state in self.layers.values())

    def _new_state(self, meter: CollapseMeter, rows: Tensor) -> LayerState:
        width, settings = rows.shape[1], meter.settings
        return LayerState(
            rows,
            settings.num_classes,
            settings.kind(width),
            settings.sample_size(width),
            wide=self.wide and has_float64(rows.device),
            sketch_rows=settings.sketch_rows,
            seed=settings.seed,
            ignore_index=settings.ignore_index,
            propagate=settings.propagate,
        )

    def add_decisions(self, meter: CollapseMeter, scope: Scope, decided: Tensor) -> None:
        """Keep the network's own decisions on the sampled rows."""
        call = scope.calls.get(HEAD_OUTPUT, 0)
        scope.calls[HEAD_OUTPUT] = call + 1
        if torch.compiler.is_compiling():
            for size, slots in scope.slots.items():
                self._predictions(call, size, decided.device).add(decided, slots, scope.ids)
            return
        waiting = self.decisions.setdefault(call, Decisions())
        if not waiting.fits(len(decided)):
            started = perf_counter()
            self.flush_decisions()
            self.clock.spread_since(started)
        waiting.put(decided, scope.numbers)
        if meter.exact:
            self._keep(scope, (HEAD_OUTPUT, call), decided)

    def _predictions(self, call: int, size: int, device: torch.device) -> PredictionState:
        state = self.predictions.get((call, size))
        if state is None:
            state = PredictionState(device, size)
            self.predictions[call, size] = state
        return state

    def flush_decisions(self) -> None:
        """Keep the decisions that wait, for the samples that layers have."""
        samples = {len(layer.sample_ids) - 1: layer.seed for layer in self.layers.values()}
        for call, waiting in self.decisions.items():
            if not waiting:
                continue
            with torch.inference_mode(False):
                decided, numbers = waiting.take()
                for size, seed in samples.items():
                    state = self._predictions(call, size, decided.device)
                    if picked := chosen(numbers, seed, state.ids):
                        places, slots, ids = picked
                        state.add(decided[places], slots, ids)

    def _keep(self, scope: Scope, key: tuple[str, int], rows: Tensor) -> None:
        numbers = torch.from_numpy(joined([scope.numbers]))
        self.kept.setdefault(key, []).append((rows.cpu().clone(), scope.flat_labels.cpu(), numbers))

    def degrade(self, meter: CollapseMeter, layer: str, error: Exception) -> None:
        """Leave a layer out from here on, and warn: the user's step goes on."""
        if meter.strict:
            raise error
        if layer in self.degraded:
            return
        self.degraded[layer] = f"{type(error).__name__}: {error}"
        warn(
            f"collapsemeter could not measure layer {layer!r} and leaves it out from here on; "
            f"training goes on ({type(error).__name__}: {error})"
        )

    # What a batch calls at its end

    def commit(self, scope: Scope) -> None:
        """Expect every layer to have seen these labels."""
        self.expected += scope.flat_labels.numel()
        self.batches += 1
        if not scope.timed.issuperset(scope.calls):
            self.clock.unseen = True


class LeftOut:
    """In place of a `Scope`, for a batch that the budget leaves out: its labels are not looked at."""

    def __init__(self, *, anyway: bool) -> None:
        self.anyway = anyway  # a batch whatever mode the model is in
        self.counted = True  # the model is in a mode that counts
        self.done = False
        self.again = False
        self.problems: dict[str, BatchError] = {}


class Scope:
    """What hooks need to know of the current batch; a new one for every batch.

    Where a graph may be made or run, everything that it needs is prepared here, outside of it: hooks
    only read it, note their calls in ``calls`` and problems in ``problems``, and clear the flags.
    """

    def __init__(
        self,
        store: Store,
        labels: Tensor,
        mask: Tensor | None,
        settings: Settings,
        *,
        device: torch.device,
        complete: bool,  # every label is known to be a class
        anyway: bool,
    ) -> None:
        self.store = store
        self.device_type = device.type
        self.labels = to_device(labels, device)
        self.flat_labels = self.labels.flatten()
        self.mask = mask
        self.anyway = anyway  # count it whatever mode the model is in
        self.counted = True  # the model is in a mode that counts
        self.done = False  # the forward that the labels belong to is over
        self.again = False  # the model ran a second time on the same labels
        self.calls: dict[str, int] = {}
        self.timed: set[str] = set()  # layers counted outside of compiled graphs
        self.problems: dict[str, BatchError] = {}
        self.first_row = store.next_row
        rows = labels.numel()
        self.numbers: Numbers = range(self.first_row, self.first_row + rows)
        if not complete:
            self.numbers, rows = row_numbers(labels, self.first_row, settings)
        store.next_row = self.end_row = self.first_row + rows
        self.ready = graphs_may_come()
        if self.ready:
            with torch.inference_mode(False):
                self._prepare(store, settings, device)

    def _prepare(self, store: Store, settings: Settings, device: torch.device) -> None:
        numbers = joined([self.numbers])
        self.widen = products_are_reduced(device.type)
        self.slots: dict[int, Tensor] = {}
        self.ids = to_device(torch.from_numpy(numbers), device)
        for size in set(settings.sample_sizes):
            slots = reservoir_slots(numbers, size, settings.seed)
            self.slots[size] = to_device(torch.from_numpy(slots), device)
        self.hashes: tuple[Tensor, Tensor] | None = None
        if store.may_sketch(settings):  # here: a compiled graph takes minutes to fuse all this
            hashes = row_hashes(numbers, settings.sketch_rows, settings.seed, low_32_bits)
            buckets, negative = (to_device(torch.from_numpy(part), device) for part in hashes)
            self.hashes = buckets, negative

    def abort(self) -> None:
        """Remember which layers counted a batch that the others did not see to its end, if any."""
        if not self.calls and self.store.next_row == self.end_row:
            # Nobody took these rows: the sample goes on as before.
            self.store.next_row = self.first_row
        for layer, calls in self.calls.items():
            for call in range(calls):
                key = (layer, call)
                self.store.partial[key] = self.store.partial.get(key, 0) + len(self.flat_labels)


def row_numbers(labels: Tensor, first: int, settings: Settings) -> tuple[Numbers, int]:
    """Return the number of each row, -1 where it may not be kept for NC4, and how many may.

    Examples
    --------
    >>> row_numbers(torch.tensor([0, 2, -100, 1]), 5, Settings(num_classes=3))
    (array([ 5,  6, -1,  7]), 3)
    """
    if labels.device.type != "cpu":  # a look at the values would wait for the device
        return range(first, first + labels.numel()), labels.numel()
    plain = labels.reshape(-1).numpy()
    usable = (plain >= 0) & (plain < settings.num_classes) & (plain != settings.ignore_index)
    return np.where(usable, first + np.cumsum(usable) - 1, -1), int(usable.sum())


def are_classes(labels: Any, num_classes: int, ignore_index: int) -> bool:
    """Whether these are classes, one for each row and none of them ignored, of which no more need be asked.

    As a rule they are, and that is said fast: of a small batch by Python, of others by one pass.

    Examples
    --------
    >>> are_classes(torch.tensor([0, 2]), 3, -100), are_classes(torch.tensor([0, -100]), 3, -100)
    (True, False)
    """
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.dtype != torch.int64:
        return False
    if labels.device.type != "cpu" or not labels.numel() or 0 <= ignore_index < num_classes:
        return False
    if labels.numel() <= _FEW_LABELS:
        plain: list[int] = labels.tolist()  # amid a training step two operations take twice as long
        return min(plain) >= 0 and max(plain) < num_classes
    low, high = labels.aminmax()
    return int(low) >= 0 and int(high) < num_classes


def label_tensor(
    labels: Any,
    num_classes: int,
    ignore_index: int,
    device: torch.device,
    mask: Tensor | None = None,
) -> Tensor:
    """Return labels as int64 in memory of our own, which the loop does not write into.

    On the host they are checked and stay, others go to the model's device.

    Parameters
    ----------
    labels : tensor or array_like
        Class numbers of any shape and dtype, or one-hot over the last axis. Rows that name no single
        class get a code, see `collapsemeter.stats.labels.class_labels`.
    num_classes, ignore_index : int
    device : torch.device
    mask : tensor, optional
        Attention mask: labels of its shape are one for each token.

    Raises
    ------
    ValueError
        As `collapsemeter.stats.labels.class_labels`, for labels on the host. On another device a value that is
        no class is counted there and reported by ``compute``, so that no batch waits.

    Examples
    --------
    >>> label_tensor([[0, 1], [1, 0]], 2, -100, torch.device("cpu"))
    tensor([1, 0])
    """
    # Else nothing is known of the features, which come later.
    tokens = True if mask is not None and np.shape(mask) == np.shape(labels) else None
    if isinstance(labels, Tensor) and labels.device.type != "cpu":
        coded = _on_device(labels.detach(), num_classes, ignore_index, tokens).to(device)
    else:
        checked = class_labels(labels, num_classes, ignore_index=ignore_index, tokens=tokens)
        coded = torch.from_numpy(checked)
    return coded[:, 0] if coded.ndim == 2 and coded.shape[1] == 1 else coded


def _on_device(labels: Tensor, num_classes: int, ignore_index: int, tokens: bool | None) -> Tensor:
    """Code labels where they are, in memory of our own; without a look at them their shape decides."""
    integers = not labels.is_floating_point() and labels.dtype != torch.bool
    one_hot = labels.ndim >= 2 and labels.shape[-1] == num_classes >= 2
    if integers:
        one_hot = one_hot and labels.ndim == 2 and tokens is None
    if not one_hot:
        check_dtype(dtype_name(labels.dtype), tuple(labels.shape), num_classes)
    if labels.is_floating_point() and labels.itemsize < 4:
        labels = labels.float()  # not every operation has a form for narrow ones
    found: Tensor = coded(labels, num_classes, ignore_index, TORCH_LABELS, one_hot=one_hot)
    return found.clone() if found is labels else found


class TorchLabels:
    """PyTorch's operations for `collapsemeter.stats.labels.coded`."""

    def integers(self, x: Tensor) -> Tensor:
        return x.to(torch.int64)

    def keeps(self, x: Tensor) -> bool:
        return not x.is_floating_point() and x.dtype != torch.uint64

    def same(self, whole: Tensor, x: Tensor) -> Tensor:
        return (whole.to(x.dtype) == x) & ((whole < 0) == (x < 0))

    def is_float(self, x: Tensor) -> bool:
        return x.is_floating_point()

    def where(self, condition: Tensor, a: Tensor | int, b: Tensor | int) -> Tensor:
        return torch.where(condition, a, b)

    def count_last(self, flags: Tensor) -> Tensor:
        return flags.sum(-1)

    def place_last(self, flags: Tensor) -> Tensor:
        return flags.to(torch.uint8).argmax(-1)


TORCH_LABELS = TorchLabels()
