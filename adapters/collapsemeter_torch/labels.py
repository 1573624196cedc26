"""Labels as PyTorch loops have them: int64 class numbers, and which rows the sample may keep."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.labels import Mixed, check_dtype, class_labels, coded, dtype_name

from .blocks import RowNumbers

_FEW_LABELS = 1024
KEYS = ("labels", "label", "targets", "target", "y")


def row_numbers(labels: Tensor, first: int, settings: Settings) -> tuple[RowNumbers, int]:
    """Return the number of each row, -1 where it may not be kept for NC4, and how many may."""
    if labels.device.type != "cpu":  # a look at the values would wait for the device
        return range(first, first + labels.numel()), labels.numel()
    plain = labels.reshape(-1).numpy()
    usable = (plain >= 0) & (plain < settings.num_classes) & (plain != settings.ignore_index)
    return np.where(usable, first + np.cumsum(usable) - 1, -1), int(usable.sum())


def are_classes(labels: Any, num_classes: int, ignore_index: int) -> bool:
    """Whether each label is a class and none is ignored, so that no more need be asked.

    Most are, and that is found fast: of a small batch by Python, of others by one pass.
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
    mixed: Mixed = "skip",
) -> Tensor:
    """Return labels as int64 in memory of our own, which the loop does not write into.

    Labels on the host are checked and stay there, others go to the model's device: there a value that is
    no class is counted and reported by ``compute``, so that no batch waits. Rows that name no single
    class get a code, see `collapsemeter.stats.labels.class_labels`.
    """
    # Else nothing is known of the features, which come later.
    tokens = True if mask is not None and np.shape(mask) == np.shape(labels) else None
    if isinstance(labels, Tensor) and labels.device.type != "cpu":
        plain = _on_device(labels.detach(), num_classes, ignore_index, tokens, mixed).to(device)
    else:
        checked = class_labels(
            labels, num_classes, ignore_index=ignore_index, tokens=tokens, mixed=mixed
        )
        plain = torch.from_numpy(checked)
    return plain[:, 0] if plain.ndim == 2 and plain.shape[1] == 1 else plain


def _on_device(
    labels: Tensor, num_classes: int, ignore_index: int, tokens: bool | None, mixed: Mixed
) -> Tensor:
    """Code labels where they are, in memory of our own; without a look at them their shape decides."""
    integers = not labels.is_floating_point() and labels.dtype != torch.bool
    one_hot = labels.ndim >= 2 and labels.shape[-1] == num_classes >= 2
    if integers:
        one_hot = one_hot and labels.ndim == 2 and tokens is None
    if not one_hot:
        check_dtype(dtype_name(labels.dtype), tuple(labels.shape), num_classes)
    if labels.is_floating_point() and labels.itemsize < 4:
        labels = labels.float()  # not every operation has a form for narrow ones
    plain: Tensor = coded(
        labels, num_classes, ignore_index, TORCH_LABELS, one_hot=one_hot, mixed=mixed
    )
    return plain.clone() if plain is labels else plain


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

    def max_last(self, x: Tensor) -> Tensor:
        return x.amax(-1, keepdim=True)


TORCH_LABELS = TorchLabels()


# In the batches of a trainer


def labels_among(batch: Any) -> Any:
    """Return the labels of a batch: under a usual key of a mapping, or after the inputs of a tuple."""
    if isinstance(batch, Mapping):
        for key in KEYS:
            if key in batch:
                return batch[key]
        raise ValueError(
            f"the batch has {', '.join(map(repr, batch))} and no labels among {', '.join(KEYS)}: pass "
            "labels=, a key or a callable from the batch"
        )
    if isinstance(batch, tuple | list) and len(batch) > 1:
        return labels_among(batch[1]) if isinstance(batch[1], Mapping) else batch[1]
    raise ValueError(
        f"a batch is a {type(batch).__name__} in which labels are not told apart: pass labels=, a "
        "callable from the batch"
    )


def chosen_labels(batch: Any, labels: str | int | Callable[[Any], Any] | None) -> Any:
    """Return the labels of a batch, as the user says where they are."""
    if labels is None:
        return labels_among(batch)
    if callable(labels):
        return labels(batch)
    try:
        return batch[labels]
    except (KeyError, IndexError, TypeError):
        names = ", ".join(map(repr, batch)) if isinstance(batch, Mapping) else len(batch)
        raise ValueError(
            f"labels={labels!r} is not in the batch, a {type(batch).__name__} of {names}"
        ) from None
