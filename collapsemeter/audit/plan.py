"""From the files that were named to shards: the parts of every layer, with their labels, and whether they fit."""

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from ..activations.manifest import RESERVED
from ..activations.remote import expand, natural_order
from ..adapter.selection import matching
from ..system.patterns import matches
from ..system.suggest import did_you_mean, listed
from .array_roles import SortedArrays, arrays_in_file, is_file_name, only_array, sort_arrays
from .inputs import Inputs
from .job import LABELS, Shard, StoredArray, described
from .options import Options

_OPTIONS = {role: role.removeprefix("attention_") for role in RESERVED}
Where = str | tuple[str, ...]  # the name of an array in the files, or files of their own


@dataclass(frozen=True)
class AuditPlan:
    """Shards to measure, layers in the order of the report, and why other arrays are not measured."""

    shards: list[Shard]
    layers: list[str]
    skipped: dict[str, str]
    labels: str | None  # the array in the files; None where labels have files of their own


def plan_shards(inputs: Inputs, options: Options, head_file: str | None, cache: str) -> AuditPlan:
    """Sort the arrays of files into shards: the j-th parts of all layers, in the order of the files, make shard j."""
    asked = _asked(options)
    files = _layer_files(inputs.files, asked, head_file)
    places: dict[str, Where] = {role: asked.get(role, role) for role in RESERVED}
    arrays = sort_arrays(files, {r: p for r, p in places.items() if isinstance(p, str)}, cache)
    if not arrays.layers:
        raise ValueError(
            f"{listed(files, 4)}: no array of floats with two axes or more was found, which a layer is"
            + "".join(f"; {name!r} {why}" for name, why in list(arrays.skipped.items())[:3])
        )
    chosen = _chosen(arrays, options.layers, inputs)
    shards = _shards(arrays, {name: arrays.layers[name] for name in chosen}, inputs.recorded)
    for role, place in places.items():
        if isinstance(place, str):
            parts = arrays.extras.get(role, [])
            if not parts and (role == LABELS or role in asked):
                raise ValueError(_missing(role, place, files[0], cache))
        else:
            parts = [only_array(file, role, cache) for file in place]
        if parts:
            shards = _attached(shards, role, parts)
    labels = places[LABELS]
    return AuditPlan(shards, chosen, arrays.skipped, labels if isinstance(labels, str) else None)


def _asked(options: Options) -> dict[str, Where]:
    """Return by role where labels and the like are, as far as it was said."""
    places = {role: getattr(options, option) for role, option in _OPTIONS.items()}
    return {role: _array_or_files(where) for role, where in places.items() if where is not None}


def _array_or_files(where: str) -> Where:
    """Return files if a file is meant; the name of an array may be that of a folder here, too."""
    if is_file_name(where) or (os.path.isfile(where) and os.path.splitext(where)[1]):
        return tuple(expand([where]))
    return where


def _layer_files(
    files: Sequence[str], asked: Mapping[str, Where], head_file: str | None
) -> list[str]:
    """Return the files that are not those of labels, a head and the like."""
    named = [file for where in asked.values() if isinstance(where, tuple) for file in where]
    apart = {os.path.realpath(file) for file in [*named, head_file] if file is not None}
    left = [file for file in files if os.path.realpath(file) not in apart]
    if not left:
        raise ValueError("no file of activations is left beside those of labels and head")
    return left


def _chosen(arrays: SortedArrays, patterns: Sequence[str], inputs: Inputs) -> list[str]:
    names, recorded = list(arrays.layers), inputs.manifest.layers
    names = [n for n in recorded if n in names] + [n for n in names if n not in recorded]
    if not patterns:
        return names
    ordered: dict[str, None] = {}
    for pattern in patterns:  # in their order: files may not tell that of the network
        if not any(matches(pattern, name) for name in names):
            raise ValueError(
                f"--layers {pattern}: no layer is named so; there are {listed(names)}{did_you_mean(pattern, names)}"
            )
        ordered |= dict.fromkeys([pattern] if pattern in names else matching(names, [pattern]))
    arrays.skipped.update({n: "not chosen by layers=" for n in names if n not in ordered})
    return list(ordered)


def _shards(
    arrays: SortedArrays, layers: Mapping[str, list[StoredArray]], recorded: Mapping[str, str]
) -> list[Shard]:
    _check_parts(arrays, layers)
    shards = []
    for j in range(len(next(iter(layers.values())))):
        parts = {name: stored[j] for name, stored in layers.items()}
        _check_length(parts)
        first = next(iter(parts.values()))
        files = list(dict.fromkeys(stored.file for stored in parts.values()))
        shards.append(
            Shard(
                name=listed((PurePath(file).name for file in files), 2),
                layers=parts,
                samples=first.array.shape[0],
                recorded={file: recorded[file] for file in files if file in recorded},
            )
        )
    for name, stored_parts in layers.items():
        shapes = {stored.array.shape[1:]: stored for stored in stored_parts}
        if len(shapes) > 1:
            a, b = list(shapes.values())[:2]
            raise ValueError(
                f"layer {name!r} is {a.array} in {a.file} and {b.array} in {b.file}: shards of a "
                "layer differ in their number of rows alone"
            )
    return shards


def _check_parts(arrays: SortedArrays, layers: Mapping[str, list[StoredArray]]) -> None:
    """Raise unless all layers have as many parts."""
    counts = {name: len(parts) for name, parts in layers.items()}
    many, few = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[many] == counts[few]:
        return
    with_few = {stored.file for stored in layers[few]}
    lacking = [stored.file for stored in layers[many] if stored.file not in with_few]
    whys = [
        f"{file}: array {few!r} {arrays.refused[file, few]}"
        for file in lacking
        if (file, few) in arrays.refused
    ]
    where = f" ({whys[0]})" if whys else f" (not in {lacking[0]})" if lacking else ""
    raise ValueError(
        f"layer {many!r} is in {counts[many]} files and layer {few!r} in {counts[few]}{where}: every layer "
        "needs a part in every shard; choose with --layers, or pass the missing files"
    )


def _check_length(parts: Mapping[str, StoredArray]) -> None:
    """Raise unless the arrays of one shard have as many rows."""
    lengths = {stored.array.shape[0]: stored for stored in parts.values()}
    if len(lengths) > 1:
        a, b = list(lengths.values())[:2]
        raise ValueError(
            f"{a} has shape {a.array.shape} and {b} {b.array.shape}: arrays of one shard have the same "
            "number of rows"
        )


def _attached(shards: list[Shard], role: str, parts: Sequence[StoredArray]) -> list[Shard]:
    """Give every shard its part of labels and the like, or its slice of one long array."""
    beside = [[part for part in parts if part.file in shard.layer_files] for shard in shards]
    if all(beside):  # where each layer's file has its own, they are alike
        parts = [stored[0] for stored in beside]
    else:
        _check_order(shards, role, parts)
    samples, rows = [s.samples for s in shards], [stored.array.shape[0] for stored in parts]
    if len(parts) == 1 and rows[0] == sum(samples):
        starts = itertools.accumulate(samples[:-1], initial=0)
        parts = [replace(parts[0], offset=start) for start in starts]
    elif samples != rows:
        unequal = (s for s, n, m in zip(shards, samples, rows, strict=False) if n != m)
        first = next(iter(next(unequal, shards[-1]).layers.values()))
        raise ValueError(
            f"{role} have {' + '.join(map(str, rows[:6]))} rows and the activations "
            f"{' + '.join(map(str, samples[:6]))}{' + ...' if len(samples) > 6 else ''} (first, {first} "
            f"{first.array}): pass one for each row, in files that pair with the shards or in one array"
        )
    return [
        replace(shard, extras=shard.extras | {role: stored})
        for shard, stored in zip(shards, parts, strict=True)
    ]


def _check_order(shards: Sequence[Shard], role: str, parts: Sequence[StoredArray]) -> None:
    """Raise if shards whose names differ in numbers alone are out of their order, or labels and the like in another one.

    A shell puts ``part10`` before ``part2``, and a quoted pattern ``part2`` before ``part10``.
    """
    files = [next(iter(shard.layers.values())).file for shard in shards]
    numbered = len({re.sub(r"\d+", "#", file) for file in files}) == 1
    ordered = sorted(files, key=natural_order)
    if numbered and len(parts) == 1 and files != ordered:
        first = next(a for a, b in zip(files, ordered, strict=True) if a != b)
        raise ValueError(
            f"{role} {parts[0]} pair with the shards by their order, and {first} comes before shards of lower "
            "numbers: name the shards by their numbers, as a quoted pattern does"
        )
    theirs = [stored.file for stored in parts]
    numbers, others = _numbers(files), _numbers(theirs)
    if numbers != others and sorted(numbers) == sorted(others):
        a, b = next(
            (a, b) for a, b, m, n in zip(files, theirs, numbers, others, strict=True) if m != n
        )
        raise ValueError(
            f"{role} pair with the shards by their order, and {b} would be those of {a}: name both in one order, "
            "as quoted patterns do"
        )


def _numbers(files: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the numbers in the name of each file that are not those of all."""
    found = [[int(number) for number in re.findall(r"\d+", file)] for file in files]
    columns = [column for column in zip(*found, strict=False) if len(set(column)) > 1]
    return list(zip(*columns, strict=True))


def _missing(role: str, name: str, file: str, cache: str) -> str:
    arrays, refused = arrays_in_file(file, cache)
    if name in refused:
        return f"{file}: array {name!r} {refused[name]}"
    option = _OPTIONS[role]
    return (
        f'{PurePath(file).name} has no array "{name}"; arrays found: {described(arrays, refused)}. '
        f"Pass --{option} NAME, or --{option} FILE{did_you_mean(name, [*arrays, *refused]) or '.'}"
    )
