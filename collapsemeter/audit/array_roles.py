"""The role of each array in the files: a layer, labels, a mask or a head."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

import numpy as np

from ..activations.array_file import Array
from ..activations.foreign import is_foreign_name
from ..activations.formats import READ
from ..activations.manifest import RESERVED, layer_stored_as
from ..activations.remote import is_url, open_file
from .job import LABELS, WEIGHTS, StoredArray, described

_UNNAMED = ("", "activations", "arr_0", "data", "embeddings", "features", "hidden_states", "x")
_NUMBER = r"(\d+-of-\d+|(shard|part|rank)[-_.]?\d+)"
_OF_SHARDS = re.compile(rf"(^|[-_.]){_NUMBER}$", re.IGNORECASE)


@dataclass
class SortedArrays:
    """Arrays by role: layers and extras (``labels``, ``predictions``, ...) have parts in the order of the files."""

    layers: dict[str, list[StoredArray]] = field(default_factory=dict)
    extras: dict[str, list[StoredArray]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)  # array -> why it is not measured
    refused: dict[tuple[str, str], str] = field(default_factory=dict)  # (file, array) -> why


@dataclass(frozen=True)
class _Contents:
    """The arrays of one file."""

    file: str
    layers: dict[str, Array]
    labels: StoredArray | None

    @property
    def stem(self) -> str:
        """The name of the file without its ending."""
        stem = PurePath(self.file.rstrip("/")).name
        for ending in READ:
            stem = stem.removesuffix(ending)
        return stem

    @property
    def unnamed(self) -> bool:
        """Whether there is one layer, and the array does not say which."""
        return len(self.layers) == 1 and next(iter(self.layers)) in (*_UNNAMED, self.stem)


def sort_arrays(files: Sequence[str], named: Mapping[str, str], cache: str) -> SortedArrays:
    """Sort the arrays of files by their role; ``named`` maps roles to names of arrays."""
    result = SortedArrays()
    contents = [_contents(file, named, cache, result) for file in files]
    by_file = _are_layers([c for c in contents if c.unnamed], cache)
    for content in contents:
        for name, array in content.layers.items():
            title = layer_stored_as(name)
            if content.unnamed and (by_file or name == content.stem):
                title = _OF_SHARDS.sub("", content.stem) or "features"
            result.layers.setdefault(title, []).append(StoredArray(content.file, name, array))
    return result


def _contents(file: str, named: Mapping[str, str], cache: str, result: SortedArrays) -> _Contents:
    arrays, refused = arrays_in_file(file, cache)
    result.skipped |= refused
    result.refused |= {(file, name): why for name, why in refused.items()}
    roles = {name: role for role, name in named.items()}
    layers = {}
    for name, array in arrays.items():
        if name in roles:
            result.extras.setdefault(roles[name], []).append(StoredArray(file, name, array))
        elif name in RESERVED:
            result.skipped[name] = "not asked for: others were named"
        elif len(array.shape) < 2 or array.dtype.kind not in "fV":
            result.skipped[name] = (
                f"{array}: a layer is an array of floats with two axes or more{_remedy(array)}"
            )
        elif 0 in array.shape[1:]:
            result.skipped[name] = f"{array}: a layer has a feature or more"
        elif _is_head(name, array, arrays):
            result.skipped[name] = (
                f"{array}: the weight of a head, it seems; pass it with --head {file}"
            )
        else:
            layers[name] = array
    labels = named.get(LABELS, "")
    stored = StoredArray(file, labels, arrays[labels]) if labels in arrays else None
    return _Contents(file, layers, stored)


def _remedy(array: Array) -> str:
    if array.dtype.kind in "iub" and len(array.shape) > 1:
        return "; if these are features, save them as floats, x.astype('float32')"
    if array.dtype.kind in "fV" and len(array.shape) == 1:
        return "; if these are features, one a row, save x.reshape(-1, 1)"
    return ""


def _is_head(name: str, array: Array, arrays: Mapping[str, Array]) -> bool:
    """Whether a matrix has the name of a weight, and a bias beside it that fits."""
    prefix, _, last = name.rpartition(".")
    bias = arrays.get(f"{prefix}.bias" if prefix else "bias")
    fitting = array.shape[-1:] if last == "kernel" else array.shape[:1]
    return last in WEIGHTS and len(array.shape) == 2 and bias is not None and bias.shape == fitting


def _are_layers(contents: Sequence[_Contents], cache: str) -> bool:
    """Whether files of one unnamed array are layers of the same rows, by their labels, and not shards of one layer."""
    labels = [c.labels for c in contents if c.labels is not None]
    if len(contents) < 2 or len(labels) < len(contents):
        return True
    if len({stored.array.shape for stored in labels}) > 1:
        return False
    first = _values(labels[0], cache)
    return all(np.array_equal(first, _values(stored, cache)) for stored in labels[1:])


def _values(stored: StoredArray, cache: str) -> np.ndarray:
    with open_file(stored.file, cache) as opened:
        return opened.read(stored.name, 0, stored.array.shape[0])


def arrays_in_file(file: str, cache: str) -> tuple[dict[str, Array], dict[str, str]]:
    """Return what a file says of its arrays, and which are not read and why."""
    with open_file(file, cache) as opened:
        return dict(opened.arrays), dict(opened.refused)


def only_array(file: str, role: str, cache: str) -> StoredArray:
    """Return the array of a role in a file of its own: the one of its name, or the only one."""
    arrays, refused = arrays_in_file(file, cache)
    name = role if role in arrays else next(iter(arrays)) if len(arrays) == 1 else None
    if role in refused or name is None:
        unread = role if role in refused else next(iter(refused)) if len(refused) == 1 else None
        if unread is not None and (unread == role or not arrays):
            raise ValueError(f"{role} {file}: array {unread!r} {refused[unread]}")
        raise ValueError(
            f'{file} has no array "{role}"; arrays found: {described(arrays, refused)}. Keep one array in '
            f"it, or name one {role!r}."
        )
    return StoredArray(file, name, arrays[name])


def is_file_name(text: str) -> bool:
    """Whether a text is rather a file or pattern than the name of an array."""
    return text.rstrip("/").lower().endswith(READ) or is_foreign_name(text) or is_url(text)
