"""What lies in the files that were named: which array is a layer, and which are labels and the like."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

import numpy as np

from ..activations import Array
from ..activations.foreign import is_foreign_name
from ..activations.manifest import RESERVED, layer_of
from ..activations.remote import is_url, open_file
from ..adapter.selection import listed
from .shard import ArrayAt

LABELS, PREDICTIONS, LOGITS, MASK = RESERVED
ENDINGS = (".safetensors", ".npy", ".npz", ".zarr", ".hdf5", ".h5")
_UNNAMED = ("", "activations", "arr_0", "data", "embeddings", "features", "hidden_states", "x")
_NUMBER = r"(\d+-of-\d+|(shard|part|rank)[-_.]?\d+)"
_OF_SHARDS = re.compile(rf"(^|[-_.]){_NUMBER}$", re.IGNORECASE)
_WEIGHTS = ("weight", "kernel")


@dataclass
class Found:
    """What lies in the files, by role.

    Attributes
    ----------
    layers : dict of str to list of ArrayAt
        By name, the parts in the order of the files.
    extras : dict of str to list of ArrayAt
        By role: ``labels``, ``predictions``, ``logits``, ``attention_mask``.
    skipped : dict of str to str
        Other arrays, and why they are not measured.
    refused : dict of (file, array) to str
        Those that could not be read, and why.
    """

    layers: dict[str, list[ArrayAt]] = field(default_factory=dict)
    extras: dict[str, list[ArrayAt]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    refused: dict[tuple[str, str], str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Contents:
    """The arrays of one file."""

    file: str
    layers: dict[str, Array]
    labels: ArrayAt | None

    @property
    def stem(self) -> str:
        return _stem(self.file)

    @property
    def unnamed(self) -> bool:
        """Whether there is one layer, and the array does not say which."""
        return len(self.layers) == 1 and next(iter(self.layers)) in (*_UNNAMED, self.stem)


def find_arrays(files: Sequence[str], named: Mapping[str, str], cache: str) -> Found:
    """Sort the arrays of files by their role.

    Parameters
    ----------
    files : sequence of str
        Paths or URLs.
    named : mapping from role to the name of an array
    cache : str
        Folder for copies of remote files.

    Raises
    ------
    ActivationsError, OSError
        If a file does not read.
    """
    found = Found()
    contents = [_contents(file, named, cache, found) for file in files]
    by_file = _are_layers([c for c in contents if c.unnamed], cache)
    for content in contents:
        for name, array in content.layers.items():
            title = layer_of(name)
            if content.unnamed and (by_file or name == content.stem):
                title = _OF_SHARDS.sub("", content.stem) or "features"
            found.layers.setdefault(title, []).append(ArrayAt(content.file, name, array))
    return found


def _contents(file: str, named: Mapping[str, str], cache: str, found: Found) -> _Contents:
    refused: dict[str, str] = {}
    arrays = arrays_of(file, cache, refused)
    found.skipped |= refused
    found.refused |= {(file, name): why for name, why in refused.items()}
    roles = {name: role for role, name in named.items()}
    layers = {}
    for name, array in arrays.items():
        if name in roles:
            found.extras.setdefault(roles[name], []).append(ArrayAt(file, name, array))
        elif name in RESERVED:
            found.skipped[name] = "not asked for: others were named"
        elif len(array.shape) < 2 or array.dtype.kind not in "fV":
            found.skipped[name] = (
                f"{array}: a layer is an array of floats with two axes or more{_remedy(array)}"
            )
        elif _is_head(name, array, arrays):
            found.skipped[name] = (
                f"{array}: the weight of a head, it seems; pass it with --head {file}"
            )
        else:
            layers[name] = array
    labels = named.get(LABELS)
    at = ArrayAt(file, labels, arrays[labels]) if labels in arrays and labels is not None else None
    return _Contents(file, layers, at)


def _remedy(array: Array) -> str:
    if array.dtype.kind in "iub" and len(array.shape) > 1:
        return "; if these are features, save them as floats, x.astype('float32')"
    if array.dtype.kind in "fV" and len(array.shape) == 1:
        return "; if these are features, one a row, save x.reshape(-1, 1)"
    return ""


def arrays_of(file: str, cache: str, refused: dict[str, str] | None = None) -> dict[str, Array]:
    """Return what a file says of its arrays; put those that are not read in ``refused``."""
    with open_file(file, cache) as opened:
        if refused is not None:
            refused.update(opened.refused)
        return dict(opened.arrays)


def _is_head(name: str, array: Array, arrays: Mapping[str, Array]) -> bool:
    """Whether a matrix has the name of a weight, and a bias beside it that fits."""
    prefix, _, last = name.rpartition(".")
    bias = arrays.get(f"{prefix}.bias" if prefix else "bias")
    fitting = array.shape[-1:] if last == "kernel" else array.shape[:1]
    return last in _WEIGHTS and len(array.shape) == 2 and bias is not None and bias.shape == fitting


def _are_layers(contents: Sequence[_Contents], cache: str) -> bool:
    """Whether files of one unnamed array are layers of the same rows, and not shards of one layer.

    Files with labels of their own are layers if all have the same ones.
    """
    labels = [c.labels for c in contents if c.labels is not None]
    if len(contents) < 2 or len(labels) < len(contents):
        return True
    if len({at.array.shape for at in labels}) > 1:
        return False
    first = _whole(labels[0], cache)
    return all(np.array_equal(first, _whole(at, cache)) for at in labels[1:])


def _whole(at: ArrayAt, cache: str) -> np.ndarray:
    with open_file(at.file, cache) as opened:
        return opened.read(at.name, 0, at.array.shape[0])


def _stem(file: str) -> str:
    """Return the name of a file without its ending."""
    stem = PurePath(file.rstrip("/")).name
    for ending in ENDINGS:
        stem = stem.removesuffix(ending)
    return stem


def is_file_name(text: str) -> bool:
    """Whether a text is rather a file or pattern than the name of an array.

    Examples
    --------
    >>> is_file_name("labels.npy"), is_file_name("y")
    (True, False)
    """
    return text.rstrip("/").lower().endswith(ENDINGS) or is_foreign_name(text) or is_url(text)


def described(arrays: Mapping[str, Array], refused: Mapping[str, str] | None = None) -> str:
    """Return arrays in words, with those that are not read and why.

    Examples
    --------
    >>> described({"y": Array((5,), np.dtype("int64"))}, {"names": "has dtype <U3"})
    "y (5,) int64; not read: 'names' has dtype <U3"
    """
    found = listed((f"{name} {array}" for name, array in arrays.items()), 12)
    if not refused:
        return found
    return f"{found}; not read: {listed((f'{name!r} {why}' for name, why in refused.items()), 3)}"
