"""`save` and `load`, and what `flax.serialization` asks for: a state in a file, and counting goes on where it was."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from collapsemeter.adapter.memory import Holding
from collapsemeter.adapter.resuming import say_without_groups
from collapsemeter.stats.state_file import CorruptStateError, read_state, write_state

from .sharding import by_device
from .state import State, StateSpec, empty

_HOLDS = "collapsemeter_flax.State"


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
    given, like = like, _as_written(header, like)
    _check_described(header["layers"], like, os.fspath(path))
    try:
        loaded = [arrays[f"leaf{i}"].reshape(s) for i, s in enumerate(header["shapes"])]
        loaded = _with_added(loaded, like)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptStateError(f"{os.fspath(path)} is not a state file: {error}") from error
    return _filled(like, loaded, os.fspath(path), given.spec)


def _check_described(described: str, like: State, source: str) -> None:
    if described != _described(like.spec):
        raise ValueError(f"{source} counts {described}, and like= counts {_described(like.spec)}")


def _filled(like: State, loaded: Sequence[Any], source: str, asked: StateSpec) -> State:
    leaves, tree = jax.tree.flatten(like)
    for old, new in zip(leaves, loaded, strict=True):
        # Only a leading axis of devices may differ from `like`.
        if new.shape[new.ndim - old.ndim :] != old.shape or new.dtype != old.dtype:
            raise ValueError(
                f"{source} holds an array {new.shape} {new.dtype} where like= has "
                f"{old.shape} {old.dtype}: call init with the same options"
            )
    state: State = jax.tree.unflatten(tree, [jnp.asarray(leaf) for leaf in loaded])
    if like.spec.settings.groups != asked.settings.groups:
        grouped = zip(asked.names, asked.holdings, strict=True)
        say_without_groups((name for name, held in grouped if held.groups), until="a new init()")
    return state


def _to_state_dict(state: State) -> dict[str, Any]:
    """Return nested dicts of arrays, for `flax.serialization`; the tree is that of Orbax."""
    whole: dict[str, Any] = {"counts": _described(state.spec)}
    for path, leaf in jax.tree.leaves_with_path(by_device(state)):
        *above, last = _keys(path)
        inner = whole
        for key in above:
            inner = inner.setdefault(key, {})
        inner[last] = leaf
    return whole


def _from_state_dict(like: State, saved: Any) -> State:
    """Read what `_to_state_dict` wrote, or the tree that Orbax restores without a target."""
    source, asked = "the state dict", like.spec
    paths = [_keys(path) for path, _ in jax.tree.leaves_with_path(like)]
    grouped = [path for path in paths if path[-1] == "group_counts"]
    if grouped and all(_part(saved, path) is None for path in grouped):
        like = empty(_without_groups(asked))
    if isinstance(saved, Mapping) and "counts" in saved:
        _check_described(saved["counts"], like, source)
    loaded = []
    for path, _ in jax.tree.leaves_with_path(like):
        part = _part(saved, _keys(path))
        if part is None:
            raise ValueError(
                f"{source} has no {'.'.join(_keys(path))}: pass one of a State that the same init made"
            )
        loaded.append(part if isinstance(part, jax.Array) else np.asarray(part))
    return _filled(like, loaded, source, asked)


def _part(saved: Any, keys: Sequence[str]) -> Any:
    """Return a leaf of a tree, or None where there is none."""
    for key in keys:
        try:
            saved = saved[key] if isinstance(saved, Mapping) else saved[int(key)]
        except (IndexError, KeyError, TypeError, ValueError):
            return None
    return saved


def _keys(path: Any) -> list[str]:
    return [str(getattr(key, "name", getattr(key, "idx", key))) for key in path]


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
            [size] in shapes for size in spec.sample_sizes
        ):
            return empty(spec)
    return like


def _without_groups(spec: StateSpec) -> StateSpec:
    holdings = tuple(replace(held, groups=0) for held in spec.holdings)
    return replace(spec, holdings=holdings, settings=replace(spec.settings, groups=0))


def _with_added(loaded: list[Any], like: State) -> list[Any]:
    """Return the arrays of a file with the counters that older files lack, at zero."""
    names = [str(path[-1]) for path, _ in jax.tree_util.tree_leaves_with_path(like)]
    added = [name in (".unlabelled", ".mixed") for name in names]
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
