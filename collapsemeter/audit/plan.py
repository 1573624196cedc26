"""From the files that were named to shards: which array is what, and whether they fit each other."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from ..activations.manifest import Manifest
from ..adapter.selection import listed, matching
from ..system.suggest import did_you_mean
from .arrays import LABELS, LOGITS, MASK, PREDICTIONS, Found, arrays_of, described, find_arrays
from .shard import ArrayAt, Shard


@dataclass(frozen=True)
class Wish:
    """What was asked for beside the files.

    Parameters
    ----------
    labels, predictions, logits, mask : str or tuple of str, optional
        The name of an array in the files, or files of their own.
    layers : tuple of str
        Names or patterns, in the order wanted; all if empty.
    """

    labels: str | tuple[str, ...] | None = None
    predictions: str | tuple[str, ...] | None = None
    logits: str | tuple[str, ...] | None = None
    mask: str | tuple[str, ...] | None = None
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Shards to measure, and why other arrays are not.

    Attributes
    ----------
    shards : list of Shard
    layers : list of str
        In the order of the report.
    skipped : dict of str to str
        Arrays that are not measured, with the reason.
    manifest : Manifest or None
    """

    shards: list[Shard]
    layers: list[str]
    skipped: dict[str, str]
    manifest: Manifest | None = None
    folder: str = ""


def plan_shards(
    files: Sequence[str],
    wish: Wish,
    cache: str,
    manifest: Manifest | None = None,
    recorded: Mapping[str, str] | None = None,
) -> Plan:
    """Sort the arrays of files into shards.

    Every layer's arrays are its parts in the order of the files; the j-th parts of all layers make
    shard j. So one file per layer, many layers per file and shards of either are all understood.

    Parameters
    ----------
    files : sequence of str
        Paths or URLs.
    wish : Wish
    cache : str
        Folder for copies of remote files.
    manifest : Manifest, optional
        Its layers give the order.
    recorded : mapping from file to SHA-256, optional

    Returns
    -------
    Plan

    Raises
    ------
    ValueError
        If there is no layer or there are no labels, or lengths differ; the message lists what was found.
    """
    named = {
        LABELS: wish.labels or LABELS,
        PREDICTIONS: wish.predictions or PREDICTIONS,
        LOGITS: wish.logits or LOGITS,
        MASK: wish.mask or MASK,
    }
    found = find_arrays(files, {r: n for r, n in named.items() if isinstance(n, str)}, cache)
    if not found.layers:
        raise ValueError(
            f"{listed(files, 4)}: no array of floats with two axes or more was found, which a layer is"
            + _reasons(found.skipped)
        )
    chosen = _chosen(found, wish, manifest)
    shards = _shards(found, {name: found.layers[name] for name in chosen}, recorded or {})
    for role, attribute in ((LABELS, "labels"), *_OPTIONAL.items()):
        wanted = named[role]
        parts = found.extras.get(role, [])
        if not isinstance(wanted, str):
            parts = [_only_array(file, role, cache) for file in wanted]
        asked = role == LABELS or getattr(wish, attribute) is not None
        if not parts and asked and isinstance(wanted, str):
            raise ValueError(_missing(role, wanted, files, cache))
        if parts:
            shards = _attached(shards, role, attribute, parts)
    return Plan(shards, chosen, found.skipped, manifest)


_OPTIONAL = {PREDICTIONS: "predictions", LOGITS: "logits", MASK: "mask"}


def _chosen(found: Found, wish: Wish, manifest: Manifest | None) -> list[str]:
    names = list(found.layers)
    if manifest is not None:
        names = [n for n in manifest.layers if n in names] + [
            n for n in names if n not in manifest.layers
        ]
    if not wish.layers:
        return names
    ordered: dict[str, None] = {}
    for pattern in wish.layers:  # in their order: files may not tell that of the network
        if pattern not in names and not fnmatch.filter(names, pattern):
            raise ValueError(
                f"--layers {pattern}: no layer is named so; there are {listed(names)}{did_you_mean(pattern, names)}"
            )
        ordered |= dict.fromkeys([pattern] if pattern in names else matching(names, [pattern]))
    found.skipped.update({n: "not chosen by layers=" for n in names if n not in ordered})
    return list(ordered)


def _shards(
    found: Found, layers: Mapping[str, list[ArrayAt]], recorded: Mapping[str, str]
) -> list[Shard]:
    counts = {name: len(parts) for name, parts in layers.items()}
    if len(set(counts.values())) > 1:
        many, few = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
        with_few = {at.file for at in layers[few]}
        lacking = [at.file for at in layers[many] if at.file not in with_few]
        whys = [f"{file}: array {few!r} {found.refused[file, few]}" for file in lacking
                if (file, few) in found.refused]  # fmt: skip
        at = f" ({whys[0]})" if whys else f" (not in {lacking[0]})" if lacking else ""
        raise ValueError(
            f"layer {many!r} is in {counts[many]} files and layer {few!r} in {counts[few]}{at}: every layer "
            "needs a part in every shard; choose with --layers, or pass the missing files"
        )
    shards = []
    for j in range(next(iter(counts.values()))):
        parts = {name: at[j] for name, at in layers.items()}
        _same_length(parts)
        first = next(iter(parts.values()))
        files = list(dict.fromkeys(at.file for at in parts.values()))
        shards.append(
            Shard(
                name=listed((PurePath(file).name for file in files), 2),
                layers=parts,
                labels=first,  # until the labels are attached
                samples=first.array.shape[0],
                recorded={file: recorded[file] for file in files if file in recorded},
            )
        )
    for name, parts_of in layers.items():
        shapes = {at.array.shape[1:]: at for at in parts_of}
        if len(shapes) > 1:
            a, b = list(shapes.values())[:2]
            raise ValueError(
                f"layer {name!r} is {a.array} in {a.file} and {b.array} in {b.file}: shards of a "
                "layer differ in their number of rows alone"
            )
    return shards


def _same_length(parts: Mapping[str, ArrayAt]) -> None:
    lengths = {at.array.shape[0]: at for at in parts.values()}
    if len(lengths) > 1:
        a, b = list(lengths.values())[:2]
        raise ValueError(
            f"{a} has shape {a.array.shape} and {b} {b.array.shape}: arrays of one shard have the same "
            "number of rows"
        )


def _only_array(file: str, role: str, cache: str) -> ArrayAt:
    refused: dict[str, str] = {}
    arrays = arrays_of(file, cache, refused)
    name = role if role in arrays else next(iter(arrays)) if len(arrays) == 1 else None
    if role in refused or name is None:
        unread = role if role in refused else next(iter(refused)) if len(refused) == 1 else None
        if unread is not None and (unread == role or not arrays):
            raise ValueError(f"{role} {file}: array {unread!r} {refused[unread]}")
        raise ValueError(
            f'{file} has no array "{role}"; arrays found: {described(arrays, refused)}. Keep one array in '
            f"it, or name one {role!r}."
        )
    return ArrayAt(file, name, arrays[name])


def _attached(
    shards: list[Shard], role: str, attribute: str, parts: Sequence[ArrayAt]
) -> list[Shard]:
    """Give every shard its part, or its slice of one long array."""
    beside = [[at for at in parts if at.file in shard.files] for shard in shards]
    if all(beside):  # where each layer's file has its own, they are alike
        parts = [at[0] for at in beside]
    samples, given = [s.samples for s in shards], [at.array.shape[0] for at in parts]
    if samples == given:
        pairs = list(zip(shards, parts, strict=True))
    elif len(parts) == 1 and given[0] == sum(samples):
        offset, pairs = 0, []
        for shard in shards:
            pairs.append((shard, replace(parts[0], offset=offset)))
            offset += shard.samples
    else:
        at = next(
            (s for s, n, m in zip(shards, samples, given, strict=False) if n != m), shards[-1]
        )
        one = next(iter(at.layers.values()))
        raise ValueError(
            f"{role} have {' + '.join(map(str, given[:6]))} rows and the activations "
            f"{' + '.join(map(str, samples[:6]))}{' + ...' if len(samples) > 6 else ''} (first, {one} "
            f"{one.array}): pass one for each row, in files that pair with the shards or in one array"
        )
    return [_with(shard, attribute, at) for shard, at in pairs]


def _with(shard: Shard, attribute: str, at: ArrayAt) -> Shard:
    changed: dict[str, Any] = {attribute: at}
    return replace(shard, **changed)


def _missing(role: str, wanted: str, files: Sequence[str], cache: str) -> str:
    refused: dict[str, str] = {}
    arrays = arrays_of(files[0], cache, refused)
    if wanted in refused:
        return f"{files[0]}: array {wanted!r} {refused[wanted]}"
    option = role.removeprefix("attention_")
    return (
        f'{PurePath(files[0]).name} has no array "{wanted}"; arrays found: {described(arrays, refused)}. '
        f"Pass --{option} NAME, or --{option} FILE{did_you_mean(wanted, [*arrays, *refused]) or '.'}"
    )


def _reasons(skipped: Mapping[str, str]) -> str:
    return "".join(f"; {name!r} {why}" for name, why in list(skipped.items())[:3])
