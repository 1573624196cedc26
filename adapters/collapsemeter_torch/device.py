"""The sums of one layer on its device: the generic update in PyTorch's operations, in place."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from collapsemeter.stats.namespace import block_rows
from collapsemeter.stats.sampling import low_32_bits
from collapsemeter.stats.sketch import SKETCH_ROWS, row_hashes
from collapsemeter.stats.sums import (
    COUNTERS,
    IGNORE_INDEX,
    ScatterKind,
    Sums,
    scatter_shape,
    sketch_shapes,
    update,
)

from .gathering import Gathered, Numbers, joined
from .sampling import chosen, to_device

# On a GPU very many rows that go to few classes wait for each other in `index_add_`, and a product in
# blocks pays where each takes longer than its launch.
FEW_CLASSES, MANY_ROWS = 100, 2**15
LARGE_PRODUCT = 2**33
# An update makes several passes over its rows: on a CPU they stay in the caches between them.
CACHED_BYTES = 2**22


class TorchNamespace:
    """PyTorch's operations for `collapsemeter.stats.sums.update`; totals are updated in place.

    Parameters
    ----------
    dtype : torch.dtype
        What the sums are kept in.
    widen : bool
        Take products in float64, because the user's settings let float32 products run in TF32 or
        bfloat16, which makes NC1 wrong near collapse. The settings themselves are left alone.
    settled : bool
        Every class is known to have its shift, so that none is looked for.
    """

    def __init__(self, dtype: torch.dtype, widen: bool = False, settled: bool = False) -> None:
        self.dtype = dtype
        self.widen = widen
        self.settled = settled

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """Return ``a @ b`` in full precision."""
        return (a.double() @ b.double()).to(self.dtype) if self.widen else a @ b

    def to_float(self, rows: Tensor) -> Tensor:
        return rows.to(self.dtype)

    def where(self, condition: Tensor, a: Tensor, b: Tensor | float) -> Tensor:
        if isinstance(b, int) and b == 0 and not a.is_floating_point():
            return a * condition  # one kernel; of a number `where` makes a tensor first
        return torch.where(condition, a, b)

    def finite_rows(self, rows: Tensor) -> Tensor:
        if on_host(rows):
            # One pass as a rule: NaN and Inf are never lost in a sum.
            if math.isfinite(rows.sum()):
                return rows.new_ones(len(rows), dtype=torch.bool)
            # NaN is the largest of its row, and less than nothing; `isfinite` makes five passes.
            return torch.lt(rows.amax(1), math.inf) & torch.gt(rows.amin(1), -math.inf)
        return torch.lt(torch.linalg.vector_norm(rows, math.inf, dim=1), math.inf)

    def square_norms(self, rows: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
        return norms.square_()

    def rows_of(self, table: Tensor, labels: Tensor) -> Tensor:
        return table.index_select(0, labels)

    def residuals(self, rows: Tensor, table: Tensor, labels: Tensor, used: Tensor) -> Tensor:
        shifts = table.index_select(0, labels)
        left = torch.sub(rows, shifts, out=shifts)
        if on_host(rows) and used.all():  # the rule, and a mask is the dearest pass on a CPU
            return left
        return left.masked_fill_(~used[:, None], 0.0)

    def if_any(self, flags: Tensor, change: Callable[[Tensor], Tensor], table: Tensor) -> Tensor:
        if self.settled or (on_host(flags) and not flags.any()):
            return table
        return change(table)  # to look at the flags of a device would wait for it

    def count(self, flags: Tensor) -> Tensor:
        return flags.sum()

    def add(self, total: Tensor, part: Tensor) -> Tensor:
        return total.add_(part)

    def add_counts(self, total: Tensor, labels: Tensor, flags: Tensor) -> Tensor:
        return total.index_add_(0, labels, flags.to(total.dtype))

    def add_class_sum(self, total: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        if len(total) < FEW_CLASSES and len(rows) > MANY_ROWS and not on_host(rows):
            return total.add_(self.product(self.one_hot(labels, len(total)).t(), rows))
        return total.index_add_(0, labels, rows)

    def add_entries(self, total: Tensor, values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return total.index_put_((rows, columns), values, accumulate=True)

    def one_hot(self, labels: Tensor, num_classes: int) -> Tensor:
        """(B,) -> (B, C)."""
        return (labels[:, None] == torch.arange(num_classes, device=labels.device)).to(self.dtype)

    def add_product(self, total: Tensor, rows: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # a graph would copy the total for every block
            return self.accumulate(total, rows.t(), rows)
        most = 4 if on_host(rows) else worth_launching(*rows.shape)
        for block in block_rows(rows.shape[1], most):
            self.accumulate(total[block, : block.stop], rows[:, block].t(), rows[:, : block.stop])
        return total

    def accumulate(self, total: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Add ``a @ b`` in full precision."""
        return total.add_(self.product(a, b)) if self.widen else total.addmm_(a, b)

    def add_class_products(self, total: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        num_classes, width, _ = total.shape
        if on_host(rows):  # no device to wait for: one small product for each class that is there
            for label in labels.unique().tolist():
                self.add_product(total[label], rows[labels == label])
            return total
        spread = self.one_hot(labels, num_classes)[:, :, None] * rows[:, None, :]
        product = self.product(spread.flatten(1).t(), rows)
        return total.add_(product.view(num_classes, width, width))


def worth_launching(rows: int, width: int) -> int:
    """Return into how many blocks a device cuts a product, so that each takes longer than its launch.

    Examples
    --------
    >>> [worth_launching(rows, 2048) for rows in (256, 1024, 4096, 16384)]
    [1, 1, 2, 4]
    """
    return max(1, min(4, rows * width**2 // LARGE_PRODUCT))


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's first parameter is; the CPU where it has none.

    Examples
    --------
    >>> device_of(nn.Linear(2, 2))
    device(type='cpu')
    """
    modules: list[nn.Module | None] = [model]  # every batch asks, and `parameters()` takes its time
    while modules:
        module = modules.pop()
        if module is not None:
            for parameter in module._parameters.values():
                if parameter is not None:
                    return parameter.device
            modules.extend(reversed(module._modules.values()))
    return torch.device("cpu")


def on_host(x: Tensor) -> bool:
    """Whether Python may look at the values of a tensor without waiting for a device, or for a graph."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


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


def in_graph() -> bool:
    """Whether operations become part of a graph, which runs again without what Python does beside."""
    if torch.compiler.is_compiling():
        return True
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def products_are_reduced(device_type: str) -> bool:
    """Whether the user lets float32 products on that device run in TF32 or bfloat16.

    Examples
    --------
    >>> products_are_reduced("cpu")
    False
    """
    if not hasattr(torch.backends, "fp32_precision"):  # before PyTorch 2.9
        return torch.get_float32_matmul_precision() != "highest"
    # These getters neither warn nor fail where older and newer settings are mixed.
    backend: Any = torch.backends.cuda if device_type == "cuda" else torch.backends.mkldnn
    chosen = backend.matmul.fp32_precision
    if chosen == "none":
        chosen = cast(Any, torch.backends).fp32_precision
    return chosen in ("tf32", "bf16")


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64.

    Examples
    --------
    >>> has_float64(torch.device("cpu"))
    True
    """
    try:
        torch.ones(1, dtype=torch.float64, device=device).sum()
    except (TypeError, RuntimeError):  # Apple's devices, and some of Intel's
        return False
    return True


class LayerState:
    """Class-shifted sums and a sample of rows of one layer, on one device.

    Parameters
    ----------
    rows : (B, d) tensor
        The first features seen: they fix width, device and precision (float64 stays float64, of all
        else sums and sampled rows are kept in float32).
    num_classes : int
    kind : {"class", "pooled", "sketch", "trace"}
    sample_size : int
        Rows kept for NC4; one more slot takes the rows that are not kept.
    wide : bool
        Keep the sums in float64 in any case: rows are widened before any arithmetic.
    sketch_rows, seed : int
        Of a sketch: k, and what its hashes are of.
    ignore_index : int
    propagate : bool
        See `collapsemeter.stats.sums.update`.

    Examples
    --------
    >>> state = LayerState(torch.zeros(2, 3), num_classes=2, kind="pooled", sample_size=4)
    >>> labels = torch.tensor([0, 1])
    >>> state.update(torch.eye(2, 3), labels, range(2))
    >>> state.sums.counts
    tensor([1, 1])
    """

    def __init__(
        self,
        rows: Tensor,
        num_classes: int,
        kind: ScatterKind,
        sample_size: int,
        *,
        wide: bool = False,
        sketch_rows: int = SKETCH_ROWS,
        seed: int = 0,
        ignore_index: int = IGNORE_INDEX,
        propagate: bool = False,
    ) -> None:
        width, device = rows.shape[1], rows.device
        exact = torch.float64 if rows.dtype == torch.float64 else torch.float32  # holds any row
        dtype = torch.float64 if wide else exact
        shape = scatter_shape(kind, num_classes, width)
        self.width = width
        self.kind = kind
        self.seed = seed
        self.feature_dtype = str(rows.dtype).removeprefix("torch.")
        self.dtype = dtype

        def zeros(*size: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self.ignore_index = ignore_index
        self.propagate = propagate
        self.gathered = Gathered(width, on_device=device.type != "cpu")
        self.made_in_graph = torch.compiler.is_compiling()
        self._sums = Sums(
            counts=zeros(num_classes, dtype=torch.int64),
            shift=zeros(num_classes, width),
            sums=zeros(num_classes, width),
            squares=zeros(num_classes),
            scatter=None if shape is None else zeros(*shape),
            **{cause: zeros(dtype=torch.int64) for cause in COUNTERS},
            **{
                name: zeros(*size)
                for name, size in sketch_shapes(kind, num_classes, width, sketch_rows).items()
            },
        )
        self.sample_rows = zeros(sample_size + 1, width, dtype=exact)
        self.sample_labels = zeros(sample_size + 1, dtype=torch.int64)
        self.sample_ids = zeros(sample_size + 1, dtype=torch.int64) - 1
        self.settled = Settled()

    @property
    def sums(self) -> Sums:
        """The sums, with the batches that waited."""
        self.flush()
        return self._sums

    def update(self, rows: Tensor, labels: Tensor, numbers: Numbers) -> None:
        """Add a batch, or let it wait: a row, a label and a row number for each; labels are ours."""
        if not self.gathered.takes(len(rows)):
            self._place(rows, labels, joined([numbers]))
            return
        self.make_room(len(rows))
        self.gathered.put(rows, labels, numbers)

    def make_room(self, rows: int) -> bool:
        """Add the batches that wait, if so many more rows cannot wait with them; whether they were added."""
        full = self.gathered.takes(rows) and not self.gathered.fits(rows)
        if full:
            self.flush()
        return full

    def flush(self) -> None:
        """Add the batches that waited."""
        if self.gathered.count:
            kind = self.sample_rows.device.type  # the caller may well compute under autocast
            with torch.no_grad(), torch.inference_mode(False), torch.autocast(kind, enabled=False):
                self._place(*self.gathered.take())

    def _place(self, rows: Tensor, labels: Tensor, numbers: npt.NDArray[np.int64]) -> None:
        device = rows.device
        hashes = None
        if self._sums.sketch is not None:
            parts = row_hashes(numbers, len(self._sums.sketch), self.seed, low_32_bits)
            buckets, negative = (to_device(torch.from_numpy(part), device) for part in parts)
            hashes = buckets, negative
        reduced = products_are_reduced(device.type)
        for part in self._parts(rows):
            of_part = None if hashes is None else (hashes[0][part], hashes[1][part])
            self._add(rows[part], labels[part], reduced, of_part)
        if picked := chosen(numbers, self.seed, self.sample_ids):
            places, slots, ids = picked
            self._keep(rows[places], labels[places], slots, ids)

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
    ) -> None:
        """Add a batch in a compiled graph, which is given where in the sample each row goes."""
        self._add(rows, labels, widen, hashes)
        self._keep(rows, labels, slots, ids)

    def _add(
        self, rows: Tensor, labels: Tensor, widen: bool, hashes: tuple[Tensor, Tensor] | None
    ) -> None:
        update(
            self._sums,
            rows,
            labels,
            TorchNamespace(self.dtype, widen, settled=self.settled.look()),
            ignore_index=self.ignore_index,
            propagate=self.propagate,
            hashes=hashes,
        )
        self.settled.ask(self._sums.counts)

    def _keep(self, rows: Tensor, labels: Tensor, slots: Tensor, ids: Tensor) -> None:
        self.sample_rows.index_copy_(0, slots, rows.to(self.sample_rows.dtype))
        self.sample_labels.index_copy_(0, slots, labels)
        self.sample_ids.index_copy_(0, slots, ids)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state by name; of batches that wait, see `gathered`."""
        named = {part.name: getattr(self._sums, part.name) for part in fields(self._sums)}
        named |= {
            "sample_rows": self.sample_rows,
            "sample_labels": self.sample_labels,
            "sample_ids": self.sample_ids,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def replace(self, name: str, tensor: Tensor) -> None:
        """Put another tensor in the place of one of `tensors`."""
        setattr(self if name.startswith("sample_") else self._sums, name, tensor)
        self.settled = Settled()

    def clear(self) -> None:
        """Start again from nothing, in the same memory: a compiled graph keeps its tensors."""
        self.gathered.clear()
        for tensor in self.tensors().values():
            tensor.zero_()
        self.sample_ids.fill_(-1)
        self.settled = Settled()

    def host_sums(self) -> Sums:
        """Copy the sums to NumPy."""
        parts: dict[str, Any] = {part.name: getattr(self.sums, part.name) for part in fields(Sums)}
        return Sums(
            **{name: None if part is None else part.cpu().numpy() for name, part in parts.items()}
        )
