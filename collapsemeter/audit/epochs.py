"""Files of several epochs, taken for shards of one, would be pooled: their labels and names tell them apart."""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

WAY_ON = (
    "audit them with --epoch STEP FILE ... once for each epoch (map and merge take one epoch at a time); "
    "pass --one-epoch if they are of one"
)


class LabelsOf(NamedTuple):
    """The identity of a shard's labels: hashes of them in order and sorted, and how many values there are."""

    in_order: str = ""
    sorted: str = ""
    values: int = 0


class Labelled(NamedTuple):
    """A shard: the path of its first file, what identifies its rows, and its labels if they are known."""

    path: str
    rows: Callable[[], str]
    labels: LabelsOf | None


def labels_of(labels: npt.NDArray[Any]) -> LabelsOf:
    """Describe the labels of a shard, (n, ...) of any dtype."""
    labels = labels.astype(np.int64) if labels.dtype.kind in "iub" else labels
    if not labels.size:
        return LabelsOf()
    rows = np.ascontiguousarray(labels).reshape(len(labels), -1)
    ordered = np.sort(rows.view(f"V{rows.dtype.itemsize * rows.shape[1]}").reshape(-1))
    values = 1 + int((ordered[1:] != ordered[:-1]).sum())
    return LabelsOf(_hash(rows), _hash(ordered), values)


def _hash(array: npt.NDArray[Any]) -> str:
    return hashlib.sha256(array.tobytes() + repr(array.shape).encode()).hexdigest()


def check_one_epoch(shards: Iterable[Labelled]) -> None:
    """Raise ValueError if shards seem to be the same samples at several epochs, by the numbers in their names and by their labels."""
    groups: dict[str, list[Labelled]] = {}
    for shard in shards:
        if shard.labels is not None and shard.labels.values:
            groups.setdefault(shard.labels.sorted, []).append(shard)
    for first, *later in groups.values():
        for shard in later:
            if _are_epochs(first, shard):
                raise ValueError(
                    f"{first.path} and {shard.path} have the same labels, as files of several epochs have, "
                    f"which are no shards of one: {WAY_ON}"
                )


def _are_epochs(first: Labelled, second: Labelled) -> bool:
    if first.labels is None or second.labels is None or first.path == second.path:
        return False
    kind = what_numbers_count(first.path, second.path)
    same = first.labels.in_order == second.labels.in_order and first.labels.values > 1
    return (kind == "epochs" or (kind == "unknown" and same)) and first.rows() != second.rows()


def check_layers(titles: Sequence[str]) -> None:
    """Raise ValueError if layers that are called like their files are called like epochs."""
    for first, second in itertools.combinations(titles, 2):
        if what_numbers_count(first, second) == "epochs":
            raise ValueError(
                f"files {first!r} and {second!r} would be two layers, and are called like two epochs: {WAY_ON}"
            )


def what_numbers_count(first: str, second: str) -> Literal["epochs", "shards", "unknown"]:
    """Say what the numbers count in which two paths differ.

    >>> what_numbers_count("epoch-1/shard-0.npz", "epoch-2/shard-0.npz")
    'epochs'
    >>> what_numbers_count("epoch-1/shard-0.npz", "epoch-1/shard-1.npz")
    'shards'
    """
    parts, second_parts = re.split(r"(\d+)", first), re.split(r"(\d+)", second)
    if len(parts) != len(second_parts) or parts[::2] != second_parts[::2]:
        return "unknown"
    differing = [i for i in range(1, len(parts), 2) if parts[i] != second_parts[i]]
    if any(_EPOCH.search(parts[i - 1]) for i in differing):
        return "epochs"
    of_shards = [_SHARD.search(parts[i - 1]) or _OF.match(parts[i + 1]) for i in differing]
    return "shards" if of_shards and all(of_shards) else "unknown"


_EPOCH = re.compile(
    r"(?i)(^|[^a-z])(epochs?|ep|(global[-_]?)?steps?|iter(ation)?s?|ckpt|chkpt|checkpoint|snapshot)[-_.=]?$"
)
_SHARD = re.compile(r"(?i)(^|[^a-z])(shard|part|rank|chunk|split|worker|process|host|node)[-_.=]?$")
_OF = re.compile("(?i)[-_.]of[-_.]")
