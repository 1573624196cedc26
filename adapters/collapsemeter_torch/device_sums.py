"""The sums of one layer on its device: the generic update in PyTorch's operations, in place."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.sampling import low_32_bits
from collapsemeter.stats.sketch import row_hashes
from collapsemeter.stats.sums import INTEGERS, ScatterKind, Sums, array_shapes, update

from .blocks import Block, RowNumbers, block_of, to_device
from .namespace import CACHED_BYTES, TorchNamespace, in_graph, on_host, products_are_reduced
from .tiles import Tiles
from .waiting import WaitingRows, most_rows


class Settled:
    """Whether every class has been seen, as far as the host knows without waiting for the device.

    The answer of a device is asked for after a batch and looked at with the next one that finds it there.
    """

    def __init__(self) -> None:
        self.known = False
        self._answer: tuple[Tensor, torch.cuda.Event] | None = None

    def look(self) -> bool:
        """Return what is known, with the answer if one was asked for and is there."""
        if self._answer is not None and not in_graph() and self._answer[1].query():
            self.known, self._answer = bool(self._answer[0]), None
        return self.known

    def ask(self, counts: Tensor) -> None:
        """Ask a GPU; on the host `update` looks itself, and a graph cannot ask."""
        if self.known or self._answer is not None or not counts.is_cuda or in_graph():
            return
        flag = torch.empty((), dtype=torch.bool, pin_memory=True)
        flag.copy_((counts > 0).all(), non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(counts.device))
        self._answer = flag, event


class DeviceSums:
    """Class-shifted sums and a sample of rows of one layer, on one device.

    The first rows fix width, device and precision: float64 stays float64, of all else sums and sampled
    rows are kept in float32 (with ``wide`` the sums in float64). The sample has one more slot, the bin.
    """

    def __init__(
        self,
        rows: Tensor,
        settings: Settings,
        kind: ScatterKind | None = None,
        sample_size: int | None = None,
        *,
        groups: int | None = None,
        waiting_rows: int | None = None,
        wide: bool = False,
    ) -> None:
        width, device = rows.shape[1], rows.device
        exact = torch.float64 if rows.dtype == torch.float64 else torch.float32  # holds any row
        self.dtype = torch.float64 if wide else exact
        self.width = width
        self.kind = kind = settings.kind(width) if kind is None else kind
        self.groups = groups = settings.afforded_groups(width) if groups is None else groups
        self.seed = settings.seed
        self.ignore_index, self.propagate = settings.ignore_index, settings.propagate
        self.feature_dtype = str(rows.dtype).removeprefix("torch.")
        self.waiting = WaitingRows(
            most_rows(width, device) if waiting_rows is None else waiting_rows
        )
        self.made_in_graph = torch.compiler.is_compiling()

        def zeros(*size: int, dtype: torch.dtype = self.dtype) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        shapes = array_shapes(kind, settings.num_classes, width, settings.sketch_rows, groups)
        tensors = {
            name: zeros(*shape, dtype=torch.int64 if name in INTEGERS else self.dtype)
            for name, shape in shapes.items()
        }
        self._sums = Sums(**{"scatter": None, **tensors})
        slots = 1 + (settings.sample_size(width) if sample_size is None else sample_size)
        self.sample_rows = zeros(slots, width, dtype=exact)
        self.sample_labels = zeros(slots, dtype=torch.int64)
        self.sample_ids = zeros(slots, dtype=torch.int64) - 1
        self.settled = Settled()
        self._tiles: Tiles | None = None

    @property
    def sample_size(self) -> int:
        """Rows kept for NC4."""
        return self.sample_ids.shape[0] - 1

    @property
    def sums(self) -> Sums:
        """The sums, with the batches that waited."""
        self.flush()
        return self._sums

    def update(self, rows: Tensor, labels: Tensor, numbers: RowNumbers) -> bool:
        """Add a batch, or let it wait: a row, a label and a row number for each; labels are ours. Whether to `flush`."""
        waiting, size = self.waiting, rows.shape[0]
        if not 0 < size <= waiting.most:
            self._add_block(rows, block_of([(labels, numbers)]))
            return False
        if waiting.count + size > waiting.room:
            self.flush()
        return waiting.put(rows, labels, numbers)

    def flush(self) -> None:
        """Add the batches that waited."""
        if self.waiting.count:
            self._add_block(*self.waiting.take())

    def load_waiting(self, rows: Tensor, labels: Tensor, numbers: RowNumbers) -> None:
        """Let the rows wait that waited when a state was saved; where they have no room, add them."""
        if rows.shape[0] <= self.waiting.room:
            self.waiting.put(rows, labels, numbers)
        else:
            self._add_block(rows, block_of([(labels, numbers)]))

    def _add_block(self, rows: Tensor, block: Block) -> None:
        kind = rows.device.type  # the caller may well compute under autocast, or in inference mode
        if (
            torch.is_grad_enabled()
            or torch.is_inference_mode_enabled()
            or torch.is_autocast_enabled(kind)
        ):
            with torch.no_grad(), torch.inference_mode(False), torch.autocast(kind, enabled=False):
                self._place(rows, block)
        else:
            self._place(rows, block)

    def _place(self, rows: Tensor, block: Block) -> None:
        if self.kind == "sketch" or not on_host(rows):
            self._add_anywhere(rows, block)
        else:
            self._add_on_host(rows, block)
        picked = block.sampled(self.seed, self.sample_ids)
        if picked is None:
            return
        places, slots, ids = picked
        rows = rows.index_select(0, places)
        if not on_host(rows):
            self._keep(rows, block.labels.index_select(0, places), slots, ids)
            return
        where = slots.numpy()  # by NumPy, which copies whole rows: `index_copy_` goes by columns
        self.sample_rows.numpy()[where] = rows.to(self.sample_rows.dtype).numpy()
        self.sample_labels.numpy()[where] = block.labels.numpy()[places.numpy()]
        self.sample_ids.numpy()[where] = ids.numpy()

    def _add_on_host(self, rows: Tensor, block: Block) -> None:
        sums, by_class = self._sums, self.kind == "class"
        if self._tiles is None:
            self._tiles = Tiles(sums)
        cells = block.cells(len(sums.counts), self.ignore_index, self.groups, by_class=by_class)
        if not self._tiles.know(cells):
            self._add_anywhere(rows, block)
            return
        xp = TorchNamespace(self.dtype, products_are_reduced("cpu"))
        for left in self._tiles.add(rows, cells, xp):
            groups = block.groups(self.groups)[left] if self.groups else None
            self._add(rows[left], block.labels[left], xp.widen, None, groups)

    def _add_anywhere(self, rows: Tensor, block: Block) -> None:
        device, hashes = rows.device, None
        if self._sums.sketch is not None:
            parts = row_hashes(block.numbers, len(self._sums.sketch), self.seed, low_32_bits)
            buckets, negative = (to_device(torch.from_numpy(part), device) for part in parts)
            hashes = buckets, negative
        groups = block.groups(self.groups) if self.groups else None
        reduced = products_are_reduced(device.type)
        for part in self._parts(rows):
            of_part = None if hashes is None else (hashes[0][part], hashes[1][part])
            group = None if groups is None else groups[part]
            self._add(rows[part], block.labels[part], reduced, of_part, group)

    def _parts(self, rows: Tensor) -> list[slice]:
        """Cut rows into parts that stay in a CPU's caches; a device takes them at once."""
        whole = len(rows)
        step = CACHED_BYTES // (self.width * self.dtype.itemsize) if on_host(rows) else whole
        return [slice(start, start + step) for start in range(0, whole, max(64, step))]

    def add(
        self,
        rows: Tensor,
        labels: Tensor,
        slots: Tensor,
        ids: Tensor,
        *,
        widen: bool,
        hashes: tuple[Tensor, Tensor] | None,
        groups: Tensor | None,
    ) -> None:
        """Add a batch in a compiled graph, which is given where in the sample each row goes."""
        self._add(rows, labels, widen, hashes, groups)
        self._keep(rows, labels, slots, ids)

    def _add(
        self,
        rows: Tensor,
        labels: Tensor,
        widen: bool,
        hashes: tuple[Tensor, Tensor] | None,
        groups: Tensor | None,
    ) -> None:
        update(
            self._sums,
            rows,
            labels,
            TorchNamespace(self.dtype, widen, settled=self.settled.look()),
            ignore_index=self.ignore_index,
            propagate=self.propagate,
            hashes=hashes,
            groups=groups,
        )
        self.settled.ask(self._sums.counts)

    def _keep(self, rows: Tensor, labels: Tensor, slots: Tensor, ids: Tensor) -> None:
        self.sample_rows.index_copy_(0, slots, rows.to(self.sample_rows.dtype))
        self.sample_labels.index_copy_(0, slots, labels)
        self.sample_ids.index_copy_(0, slots, ids)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state by name; of batches that wait, see `waiting`."""
        named = {part.name: getattr(self._sums, part.name) for part in fields(self._sums)}
        named |= {
            "sample_rows": self.sample_rows,
            "sample_labels": self.sample_labels,
            "sample_ids": self.sample_ids,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def clear(self) -> None:
        """Start again from nothing, in the same memory: a compiled graph keeps its tensors."""
        self.waiting.clear()
        for tensor in self.tensors().values():
            tensor.zero_()
        self.sample_ids.fill_(-1)
        self.settled = Settled()

    def make_ordinary(self) -> None:
        """Make ordinary tensors of what a compiled graph made for this state.

        In inference mode a graph makes tensors that cannot be updated outside of it, and where it is
        recorded as a CUDA graph they lie in memory that the next graph takes for its own.
        """
        for name, tensor in self.tensors().items():
            if self.made_in_graph or tensor.is_inference():
                setattr(self if name.startswith("sample_") else self._sums, name, tensor.clone())
                self.settled, self._tiles = Settled(), None
        self.made_in_graph = False

    def host_sums(self) -> Sums:
        """Copy the sums to NumPy."""
        parts: dict[str, Any] = {part.name: getattr(self.sums, part.name) for part in fields(Sums)}
        return Sums(
            **{name: None if part is None else part.cpu().numpy() for name, part in parts.items()}
        )
