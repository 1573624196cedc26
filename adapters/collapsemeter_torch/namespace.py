"""PyTorch's operations for the sums, and what there is to know of a device before they run."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from collapsemeter.stats.namespace import block_rows

# On a GPU very many rows that go to few classes wait for each other in `index_add_`, and a product in
# blocks pays where each takes longer than its launch.
FEW_CLASSES, MANY_ROWS = 100, 2**15
LARGE_PRODUCT = 2**33
# An update makes several passes over its rows: on a CPU they stay in the caches between them.
CACHED_BYTES = 2**21


class Scratch(threading.local):
    """Memory of a thread that passes over rows write into: new memory costs a CPU more than their arithmetic."""

    def __init__(self) -> None:
        self._memory: dict[tuple[str, torch.dtype], Tensor] = {}

    def like(self, rows: Tensor, use: str) -> Tensor:
        """Return memory for as many entries, which the next call for the same use writes into."""
        size = rows.numel()
        memory = self._memory.get((use, rows.dtype))
        if memory is None or len(memory) < size:
            with torch.inference_mode(False):
                memory = torch.empty(size, dtype=rows.dtype, device="cpu")
            if memory.nbytes <= CACHED_BYTES:
                self._memory[use, rows.dtype] = memory
        return memory[:size].view(rows.shape)


SCRATCH = Scratch()


class TorchNamespace:
    """PyTorch's operations for `collapsemeter.stats.sums.update`; totals are updated in place.

    ``widen`` takes products in float64, because the user's settings let float32 products run in TF32 or
    bfloat16, which makes NC1 wrong near collapse; the settings themselves are left alone. ``settled``
    says that every class has its shift, so that none is looked for.
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
        if on_host(rows):
            shifts = torch.index_select(table, 0, labels, out=SCRATCH.like(rows, "residuals"))
        else:
            shifts = table.index_select(0, labels)
        left = torch.sub(rows, shifts, out=shifts)
        if on_host(rows) and used.all():  # the rule, and a mask is the dearest pass on a CPU
            return left
        return left.masked_fill_(~used[:, None], 0.0)

    def if_any(self, flags: Tensor, change: Callable[[Any], Any], table: Any) -> Any:
        if on_host(flags) and not flags.any():
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
            return self.add_whole_product(total, rows)
        most = 4 if on_host(rows) else worth_launching(*rows.shape)
        blocks = block_rows(rows.shape[1], most)
        if len(blocks) == 1:  # of a narrow layer to cut takes as long as to multiply
            return self.add_whole_product(total, rows)
        for block in blocks:
            self.accumulate(total[block, : block.stop], rows[:, block].t(), rows[:, : block.stop])
        return total

    def add_whole_product(self, total: Tensor, rows: Tensor) -> Tensor:
        """Add ``rows.T @ rows``, both triangles."""
        return self.accumulate(total, rows.t(), rows)

    def accumulate(self, total: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Add ``a @ b`` in full precision."""
        return total.add_(self.product(a, b)) if self.widen else total.addmm_(a, b)

    def add_class_products(self, total: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        num_classes, width, _ = total.shape
        if on_host(rows):  # no device to wait for: one small product for each class that is there
            memory = SCRATCH.like(rows, "in order")
            rows = torch.index_select(rows, 0, labels.argsort(), out=memory)
            lengths: list[int] = labels.bincount(minlength=num_classes).tolist()
            for scatter, of_class in zip(total, rows.split(lengths), strict=True):
                if len(of_class):
                    self.add_product(scatter, of_class)
            return total
        spread = self.one_hot(labels, num_classes)[:, :, None] * rows[:, None, :]
        product = self.product(spread.flatten(1).t(), rows)
        return total.add_(product.view(num_classes, width, width))


def worth_launching(rows: int, width: int) -> int:
    """Return into how many blocks a device cuts a product, so that each takes longer than its launch."""
    return max(1, min(4, rows * width**2 // LARGE_PRODUCT))


def class_products(device: torch.device, num_classes: int) -> int:
    """Return how many pooled products the scatters of single classes cost, see `add_class_products`."""
    return 1 if device.type == "cpu" else num_classes


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's first parameter is; the CPU where it has none."""
    parameter = next(iter(model.parameters()), None)
    return torch.device("cpu") if parameter is None else parameter.device


def first_parameters(model: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return those of the first module that has any, where they are looked up; none where there are none."""
    for module in model.modules():
        if any(parameter is not None for parameter in module._parameters.values()):
            return module._parameters
    return {}


def on_host(x: Tensor) -> bool:
    """Whether Python may look at the values of a tensor without waiting for a device, or for a graph."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def in_graph() -> bool:
    """Whether operations become part of a graph, which runs again without what Python does beside."""
    if torch.compiler.is_compiling():
        return True
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def products_are_reduced(device_type: str) -> bool:
    """Whether the user lets float32 products on that device run in TF32 or bfloat16."""
    if not hasattr(torch.backends, "fp32_precision"):  # before PyTorch 2.9
        return torch.get_float32_matmul_precision() != "highest"
    # These getters neither warn nor fail where older and newer settings are mixed.
    backend: Any = torch.backends.cuda if device_type == "cuda" else torch.backends.mkldnn
    precision = backend.matmul.fp32_precision
    if precision == "none":
        precision = cast(Any, torch.backends).fp32_precision
    return precision in ("tf32", "bf16")


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64."""
    try:
        torch.ones(1, dtype=torch.float64, device=device).sum()
    except (TypeError, RuntimeError):  # Apple's devices, and some of Intel's
        return False
    return True
