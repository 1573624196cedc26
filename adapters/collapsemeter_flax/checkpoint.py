"""`save` and `load`, and what `flax.serialization` asks for: a state in a file, and counting goes on where it was."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from collapsemeter.adapter.checkpoint import say_without_groups
from collapsemeter.adapter.memory import Holding
from collapsemeter.stats.state_file import CorruptStateError, read_state, write_state
from collapsemeter.stats.sums import Sums

from .sharding import by_device
from .state import State, StateSpec, empty

_HOLDS = "collapsemeter_flax.State"
Path = tuple[str, ...]  # of an array


def save(state: State, path: str | os.PathLike[str]) -> None:
    """Write a state to a file, atomically, with a checksum; `load` gives it back bit for bit.

    Parameters
    ----------
    state : State
        Also one with a leading axis of devices or replicas.
    path : str or path

    Raises
    ------
    OSError
        If it cannot be written; an older file of that name is then untouched.

    Examples
    --------
    >>> import os, tempfile
    >>> from collapsemeter_flax import init
    >>> path = os.path.join(tempfile.mkdtemp(), "state.npz")
    >>> save(init({"fc": 4}, num_classes=3), path)
    >>> load(path, like=init({"fc": 4}, num_classes=3))
    <State of 3 classes in: fc (4)>
    """
    leaves = [np.asarray(leaf) for leaf in jax.device_get(jax.tree.leaves(by_device(state)))]
    header = {
        "holds": _HOLDS,
        "layers": _described(state.spec),
        "packed": True,  # as `State` is today
        # A file's arrays have rows: a scalar becomes one.
        "shapes": [leaf.shape for leaf in leaves],
    }
    write_state(path, header, {f"leaf{i}": leaf for i, leaf in enumerate(leaves)})


def load(path: str | os.PathLike[str], like: State) -> State:
    """Read a state written by `save`; counting goes on as if it had not been interrupted.

    Parameters
    ----------
    path : str or path
    like : State
        One made by the same `init`: it says what the settings are, which a file cannot hold where a
        reduction is a function.

    Raises
    ------
    CorruptStateError
        If the file is truncated, altered, or not a state file.
    ValueError
        If it is of other layers, classes or sizes than ``like``.
    FileNotFoundError
        If there is none.
    """
    if not isinstance(like, State):
        raise ValueError(f"like= is a {type(like).__name__}: pass a State that the same init made")
    header, arrays = read_state(path)
    if header.get("holds") != _HOLDS:
        raise CorruptStateError(f"{os.fspath(path)} is a state file, but not one of this adapter")
    template, like = like, _as_written(header, like)
    _check_described(header["layers"], like, os.fspath(path))
    try:
        loaded = [arrays[f"leaf{i}"].reshape(s) for i, s in enumerate(header["shapes"])]
        names = list(_arrays(like) if header.get("packed") else older_arrays(like))
        if not header.get("packed"):
            loaded = _with_added(loaded, names)
        named = dict(zip(names, loaded, strict=True))
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptStateError(f"{os.fspath(path)} is not a state file: {error}") from error
    return _filled(like, named, os.fspath(path), template.spec)


def _check_described(described: str, like: State, source: str) -> None:
    if described != _described(like.spec):
        raise ValueError(f"{source} counts {described}, and like= counts {_described(like.spec)}")


def _filled(like: State, loaded: Mapping[Path, Any], source: str, asked: StateSpec) -> State:
    """Return a state of these arrays, which are named as those of today's state or of an older one."""
    arrays, older = _arrays(like), older_arrays(like)
    for name, new in loaded.items():
        old = (arrays if loaded.keys() == arrays.keys() else older)[name]
        # Only a leading axis of devices may differ from `like`.
        if new.shape[new.ndim - old.ndim :] != old.shape or new.dtype != old.dtype:
            raise ValueError(
                f"{source} holds an array {new.shape} {new.dtype} where like= has "
                f"{old.shape} {old.dtype}: call init with the same options"
            )
    whole = loaded if loaded.keys() == arrays.keys() else _joined(like, loaded)
    leaves = [jnp.asarray(whole[name]) for name in arrays]
    state: State = jax.tree.unflatten(jax.tree.structure(like), leaves)
    if like.spec.settings.groups != asked.settings.groups:
        grouped = zip(asked.names, asked.holdings, strict=True)
        say_without_groups((name for name, held in grouped if held.groups), until="a new init()")
    return state


def _to_state_dict(state: State) -> dict[str, Any]:
    """Return nested dicts of arrays, for `flax.serialization`; the tree is that of Orbax."""
    whole: dict[str, Any] = {"counts": _described(state.spec)}
    for (*above, last), leaf in _arrays(by_device(state)).items():
        inner = whole
        for key in above:
            inner = inner.setdefault(key, {})
        inner[last] = leaf
    return whole


def _from_state_dict(like: State, saved: Any) -> State:
    """Read what `_to_state_dict` wrote, or the tree that Orbax restores without a target; also of older versions."""
    source, asked = "the state dict", like.spec
    is_older = _part(saved, ("tallies",)) is None and _part(saved, ("next_row",)) is not None
    grouped = [name for name in older_arrays(like) if name[-1] == "group_counts"]
    if grouped and not any(
        _is_grouped(saved, name, asked.settings.num_classes) for name in grouped
    ):
        like = empty(_without_groups(asked))
    if isinstance(saved, Mapping) and "counts" in saved:
        _check_described(saved["counts"], like, source)
    loaded = {}
    for name in older_arrays(like) if is_older else _arrays(like):
        part = _part(saved, name)
        if part is None:
            raise ValueError(
                f"{source} has no {'.'.join(name)}: pass one of a State that the same init made"
            )
        loaded[name] = part if isinstance(part, jax.Array) else np.asarray(part)
    return _filled(like, loaded, source, asked)


def _is_grouped(saved: Any, name: Path, num_classes: int) -> bool:
    """Whether a tree of today or an older one has the groups of a layer, which its squares have, too."""
    *above, _ = name[:-1]
    squares = _part(saved, (*above, "squares"))
    return _part(saved, name) is not None or (
        squares is not None and squares.shape[-1] != num_classes
    )


def _part(saved: Any, keys: Sequence[str]) -> Any:
    """Return a leaf of a tree, or None where there is none."""
    for key in keys:
        try:
            saved = saved[key] if isinstance(saved, Mapping) else saved[int(key)]
        except (IndexError, KeyError, TypeError, ValueError):
            return None
    return saved


def _arrays(state: Any) -> dict[Path, Any]:
    """Return the arrays of a state by name."""
    return {
        tuple(str(getattr(key, "name", getattr(key, "idx", key))) for key in path): leaf
        for path, leaf in jax.tree.leaves_with_path(state)
    }


def older_arrays(like: State) -> dict[Path, Any]:
    """Return the arrays that such a state had before counters were joined and rows waited, in the order of files."""
    arrays: dict[Path, Any] = {}
    for number, layer in enumerate(like.layers):
        above = ("layers", str(number))
        for part in fields(Sums):
            array = getattr(layer.sums, part.name)
            if array is not None:
                arrays[*above, "sums", part.name] = array
        arrays[*above, "rows"] = layer.rows
        arrays[*above, "feature_dtype"] = like.feature_dtypes[..., number].astype(np.int32)
    for number, sample in enumerate(like.samples):
        for name in ("labels", "predictions"):
            arrays["samples", str(number), name] = getattr(sample, name)
    return arrays | {(name,): getattr(like, name) for name in ("next_row", "expected", "batches")}


def _joined(like: State, older: Mapping[Path, Any]) -> dict[Path, Any]:
    """Return the arrays of today's state, of those that a state had before; no row waits."""
    counted = older["batches",]
    whole: dict[Path, Any] = {
        name: np.broadcast_to(leaf, counted.shape + leaf.shape)
        for name, leaf in _arrays(empty(like.spec)).items()
    }
    types: list[Any] = []
    for number, layer in enumerate(like.layers):
        above = ("layers", str(number))
        sums = Sums(**{part.name: older.get((*above, "sums", part.name)) for part in fields(Sums)})
        joined = layer.with_sums(sums, older[*above, "rows"])
        whole |= {(*above, *name): array for name, array in _arrays(joined).items()}
        types.append(older[*above, "feature_dtype"])
    for number in range(len(like.samples)):
        codes = [older["samples", str(number), name] for name in ("labels", "predictions")]
        whole["samples", str(number), "codes"] = np.stack(codes, axis=-1)
    expected, none = older["expected",], np.zeros_like(counted)
    tallies = (
        older["next_row",],
        counted,
        expected[..., 0],
        expected[..., 1],
        none,
        *types,
    )
    whole["tallies",] = np.stack(tallies, axis=-1).astype(np.uint32)
    return whole


serialization.register_serialization_state(State, _to_state_dict, _from_state_dict)


def _as_written(header: Any, like: State) -> State:
    """Return a state that keeps what a file from before budgets of memory kept, if it is one."""
    settings, shapes = like.spec.settings, header.get("shapes")
    if not isinstance(shapes, list):
        return like
    before = tuple(Holding(settings.kind(d), settings.sample_size(d)) for d in like.spec.widths)
    without_groups = _without_groups(like.spec)
    for spec in (like.spec, without_groups, replace(without_groups, holdings=before)):
        if header["layers"] == _described(spec) and all(
            [size] in shapes or [size, 2] in shapes for size in spec.sample_sizes
        ):
            return empty(spec)
    return like


def _without_groups(spec: StateSpec) -> StateSpec:
    holdings = tuple(replace(held, groups=0) for held in spec.holdings)
    return replace(spec, holdings=holdings, settings=replace(spec.settings, groups=0))


def _with_added(loaded: list[Any], names: Sequence[Path]) -> list[Any]:
    """Return the arrays of a file with the counters that older files lack, at zero."""
    added = [name[-1] in ("unlabelled", "mixed") for name in names]
    if len(loaded) != len(names) - sum(added):
        return loaded
    old = iter(loaded)
    whole: list[Any] = []
    for is_new in added:
        whole.append(
            np.zeros_like(whole[-1]) if is_new else next(old)
        )  # after a counter of its shape
    return whole


def _described(spec: StateSpec) -> str:
    layers = ", ".join(
        f"{name} ({width}, {held.kind})"
        for name, width, held in zip(spec.names, spec.widths, spec.holdings, strict=True)
    )
    settings = spec.settings
    groups = "/".join(map(str, dict.fromkeys(held.groups for held in spec.holdings)))
    grouped = "" if groups == "0" else f", groups={groups}"  # as files without them say
    return (
        f"{settings.num_classes} classes in {layers}; {spec.dtype}, sample_rows="
        f"{settings.sample_rows}, seed={settings.seed}, sketch_rows={settings.sketch_rows}, ignore_index={settings.ignore_index}, "
        f"nonfinite={settings.nonfinite}{grouped}"
    )
