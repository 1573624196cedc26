"""The counts of one measurement: sums by (layer, call), the head's decisions, and the rows to expect."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from collapsemeter.adapter.budget import Clock
from collapsemeter.adapter.memory import Holding
from collapsemeter.adapter.reduction import BatchError
from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.sampling import low_32_bits
from collapsemeter.stats.sketch import row_hashes
from collapsemeter.system.warning import warn

from .blocks import RowNumbers, forget_block, joined
from .device_sums import DeviceSums
from .namespace import has_float64
from .ranks import Numbering, this_rank
from .waiting import SampledDecisions, WaitingDecisions

if TYPE_CHECKING:
    from .memory import Plan

HEAD_OUTPUT = "<head output>"  # the key of its decisions; no module has such a name
_WIDTH = "the layer had another width before; watch modules of one width, or pass a reduction"


class CountedBatch(Protocol):
    """The parts of a batch that a store reads, see `scope.Scope`; those from ``ids`` on are there for graphs alone."""

    calls: dict[str, int]
    labels: Tensor
    flat_labels: Tensor
    shape: torch.Size
    numbers: RowNumbers
    rows: int
    first_row: int
    end_row: int
    unseen: bool
    ids: Tensor
    groups: Tensor
    slots: dict[int, Tensor]
    hashes: tuple[Tensor, Tensor] | None
    widen: bool


class Store:
    """The counts of one measurement.

    ``exact`` keeps all rows for NC4, ``strict`` raises a failure of the meter's own, and ``wide`` keeps
    sums in float64 where the device has it: no step of a training waits for them. ``place`` tells which rows
    this process numbers.
    """

    def __init__(
        self,
        settings: Settings,
        plan: Plan,
        *,
        exact: bool = False,
        strict: bool = False,
        wide: bool = False,
        place: Callable[[], Numbering] = this_rank,
    ) -> None:
        self.plan = plan
        self.settings, self.exact, self.strict, self.wide = settings, exact, strict, wide
        self.place, self.numbering = place, Numbering()
        self.lock = threading.RLock()  # two threads may each have a batch
        self.clock = Clock()
        self.layers: dict[tuple[str, int], DeviceSums] = {}
        self.predictions: dict[tuple[int, int], SampledDecisions] = {}  # by (call, sample size)
        self.waiting: dict[int, WaitingDecisions] = {}  # by call
        self.exact_rows: dict[
            tuple[str, int], list[tuple[Tensor, Tensor, Tensor]]
        ] = {}  # exact NC4
        self.expected_rows = self.batches = self.next_row = 0
        self.copies: set[int] = set()  # ranks that see the same rows, as layers' outputs say
        self.full = False  # a layer has no room for one more batch
        self.repeated = 0  # rows that a sampler gave to two ranks, and that are left out
        self.interrupted: dict[tuple[str, int], int] = {}  # rows that only some layers saw
        self.degraded: dict[str, str] = {}
        self.unpaired: dict[str, str] = {}  # layers whose output no rule pairs with the labels

    def clear(self) -> None:
        """Start again; states stay in place, because compiled graphs hold their tensors."""
        self.layers = {  # of a loaded state some may have fewer groups than this meter keeps
            key: state
            for key, state in self.layers.items()
            if state.groups == self.holding(key[0], state.sample_rows).groups
        }
        for state in self.layers.values():
            state.clear()
        for decisions in self.predictions.values():
            decisions.clear()
        for waiting in self.waiting.values():
            waiting.clear()
        self.expected_rows = self.batches = self.next_row = 0
        self.interrupted.clear()
        self.degraded.clear()
        self.unpaired.clear()
        self.exact_rows.clear()
        self.clock.clear()

    def numbered(self, rows: RowNumbers) -> RowNumbers:
        """Return the numbers that rows of this process have among those of all ranks."""
        if not self.next_row:
            self.numbering = self.place()
        return self.numbering.numbered(rows)

    def flush(self) -> None:
        """Add the batches that wait to the sums of every layer, and to the sample."""
        with torch.no_grad():
            for state in self.layers.values():
                state.flush()
        forget_block()
        self.flush_decisions()

    # What the hooks call

    def add_rows(self, scope: CountedBatch, layer: str, rows: Tensor) -> None:
        """Add the rows of a layer's next call in this batch to its sums."""
        call = scope.calls.get(layer, 0)
        state = self.layers.get((layer, call))
        if state is None:
            with torch.inference_mode(False):
                state = self._begin((layer, call), rows)
        if state.width != rows.shape[1]:
            raise BatchError(layer, rows.shape, scope.shape, _WIDTH)
        # Before the update: one that is cut short leaves rows missing, and so is noticed.
        scope.calls[layer] = call + 1
        if state.update(rows, scope.flat_labels, scope.numbers):
            self.full = True
        if self.exact:
            self._keep(scope, (layer, call), rows)

    def add_rows_in_graph(self, scope: CountedBatch, layer: str, rows: Tensor) -> None:
        """Do the same as part of a compiled graph, which is given all that it needs."""
        call = scope.calls.get(layer, 0)
        state = self.layers.get((layer, call))
        if state is None:
            state = self._begin((layer, call), rows)
        if state.width != rows.shape[1]:
            raise BatchError(layer, rows.shape, scope.labels.shape, _WIDTH)
        scope.calls[layer] = call + 1
        hashes = self._hashes(scope) if state.kind == "sketch" else None
        groups = scope.groups % state.groups if state.groups else None
        slots = scope.slots[state.sample_size]
        state.add(
            rows,
            scope.flat_labels,
            slots,
            scope.ids,
            widen=scope.widen,
            hashes=hashes,
            groups=groups,
        )

    def _begin(self, key: tuple[str, int], rows: Tensor) -> DeviceSums:
        wide = self.wide and has_float64(rows.device)
        held = self.holding(key[0], rows)
        state = self.layers[key] = DeviceSums(
            rows,
            self.settings,
            held.kind,
            held.sample_rows,
            groups=held.groups,
            waiting_rows=self.plan.room(key[0], rows.shape[1], self.settings, rows.device),
            wide=wide,
        )
        return state

    def holding(self, layer: str, rows: Tensor) -> Holding:
        """Return what a layer of such rows keeps."""
        return self.plan.holding(layer, rows.shape[1], self.settings, rows.device)

    @property
    def sample_sizes(self) -> set[int]:
        """How many rows a layer may keep for NC4."""
        return self.plan.sample_sizes(self.settings)

    def _hashes(self, scope: CountedBatch) -> tuple[Tensor, Tensor]:
        if scope.hashes is None:  # of a layer that ran for the first time, and after others
            settings = self.settings
            return row_hashes(scope.ids, settings.sketch_rows, settings.seed, low_32_bits)
        return scope.hashes

    def may_sketch(self) -> bool:
        """Whether a layer keeps a sketch, as far as can be told before they run."""
        if self.settings.scatter != "auto":
            return self.settings.scatter == "sketch"
        return not self.layers or any(state.kind == "sketch" for state in self.layers.values())

    def add_decisions_in_graph(self, scope: CountedBatch, decided: Tensor) -> None:
        """Keep the network's own decisions on the sampled rows, as part of a compiled graph."""
        call = scope.calls.get(HEAD_OUTPUT, 0)
        scope.calls[HEAD_OUTPUT] = call + 1
        for size, slots in scope.slots.items():
            self._sampled_decisions(call, size, decided.device).add(decided, slots, scope.ids)

    def add_decisions(self, scope: CountedBatch, decided: Tensor) -> None:
        """Keep the network's own decisions until some of them are sampled."""
        call = scope.calls.get(HEAD_OUTPUT, 0)
        scope.calls[HEAD_OUTPUT] = call + 1
        waiting = self.waiting.get(call)
        if waiting is None:
            waiting = self.waiting[call] = WaitingDecisions()
        if waiting.put(decided, scope.numbers):
            self.flush_decisions()
        if self.exact:
            self._keep(scope, (HEAD_OUTPUT, call), decided)

    def _sampled_decisions(self, call: int, size: int, device: torch.device) -> SampledDecisions:
        decisions = self.predictions.get((call, size))
        if decisions is None:
            decisions = self.predictions[call, size] = SampledDecisions(device, size)
        return decisions

    def flush_decisions(self) -> None:
        """Keep the decisions that wait, for the samples that layers have."""
        samples = {layer.sample_size: layer.seed for layer in self.layers.values()}
        for call, waiting in self.waiting.items():
            if not waiting:
                continue
            with torch.inference_mode(False):
                block = waiting.take()
                for size, seed in samples.items():
                    decisions = self._sampled_decisions(call, size, block.labels.device)
                    if picked := block.sampled(seed, decisions.ids):
                        places, slots, ids = picked
                        decisions.add(block.labels[places], slots, ids)

    def _keep(self, scope: CountedBatch, key: tuple[str, int], rows: Tensor) -> None:
        numbers = torch.from_numpy(joined([scope.numbers]))
        self.exact_rows.setdefault(key, []).append(
            (rows.cpu().clone(), scope.flat_labels.cpu(), numbers)
        )

    def degrade(self, layer: str, error: Exception) -> None:
        """Leave a layer out from here on, and warn: the user's step goes on."""
        if self.strict:
            raise error
        if layer in self.degraded:
            return
        self.degraded[layer] = f"{type(error).__name__}: {error}"
        warn(
            f"collapsemeter could not measure layer {layer!r} and leaves it out from here on; "
            f"training goes on ({type(error).__name__}: {error})"
        )

    # What a batch calls

    def unpair(self, problems: Mapping[str, BatchError]) -> None:
        """Leave layers out that others did without, and warn once."""
        for layer, problem in problems.items():
            if layer not in self.unpaired:
                self.unpaired[layer] = str(problem)
                warn(f"collapsemeter leaves layer {layer!r} out: {problem}")

    def make_ordinary(self) -> None:
        """Make ordinary tensors of what a compiled graph made."""
        for state in self.layers.values():
            state.make_ordinary()
        for decisions in self.predictions.values():
            decisions.make_ordinary()

    def commit(self, scope: CountedBatch) -> None:
        """Expect every layer to have seen these labels."""
        self.expected_rows += scope.rows
        self.batches += 1
        self.clock.unseen |= scope.unseen
        if self.full:  # here for all layers, as by itself each would find nothing in the caches
            self.full = False
            self.flush()

    def abort(self, scope: CountedBatch) -> None:
        """Remember which layers counted a batch that the others did not see to its end, if any."""
        if not scope.calls and self.next_row == scope.end_row:
            # Nobody took these rows: the sample goes on as before.
            self.next_row = scope.first_row
        for layer, calls in scope.calls.items():
            for call in range(calls):
                key = (layer, call)
                self.interrupted[key] = self.interrupted.get(key, 0) + len(scope.flat_labels)
