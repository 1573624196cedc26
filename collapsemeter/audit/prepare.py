"""From files and options to a job: classes, head and settings found, and checked against each other."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from ..activations.manifest import Manifest
from ..activations.remote import expand
from ..adapter.settings import Settings
from ..stats.head import Head
from ..stats.sums import IGNORE_INDEX
from ..system.memory import check_memory
from ..system.suggest import did_you_mean
from .arrays import LABELS, is_file_name
from .deciding import Reader
from .epochs import Labelled, check_layers, check_one_epoch
from .head import check_classes, check_width, load_head, read_layer
from .inputs import Inputs
from .job import Job
from .mapping import check_recorded, digest_of, digests_of, labels_told, shard_id
from .options import Options
from .plan import Plan, Wish, plan_shards
from .rows import Counting, OpenPiece
from .shard import Piece, Shard

_MANY_CLASSES = 2**16  # more, of few rows, is rather something else than labels
_OF_EACH = 3  # arrays of one row for each class that are at hand at once


def prepared(
    inputs: Inputs, options: Options, cache: str, progress: bool, mapping: bool = False
) -> tuple[Plan, Job]:
    """Find everything that an audit needs; ``mapping``: of one shard among others, perhaps."""
    manifest = inputs.manifest
    asked_head = options.head_of(inputs.step)
    head_file = only_file(asked_head) if asked_head is not None else inputs.head
    plan = _plan(inputs, options, head_file, cache)
    _check_reductions(options, plan.layers)
    head, layer = None, None
    if head_file is not None:
        if head_file in inputs.recorded:
            check_recorded(head_file, digest_of(head_file, cache), inputs.recorded[head_file])
        head, prefix = load_head(head_file, cache, options.head_name)
        asked = options.head_layer or (manifest.head_layer if manifest is not None else None)
        first = plan.shards[0].layers
        layer = read_layer({n: first[n].array.shape[-1] for n in plan.layers}, head, asked, prefix)
        if len(first[layer].array.shape) == 2:  # the width of a map is known when it is reduced
            check_width({layer: first[layer].array.shape[1]}, Reader(head, layer))
        if manifest is None and not options.layers:  # files do not tell the order of the network
            plan = replace(plan, layers=[n for n in plan.layers if n != layer] + [layer])
    elif options.head is None:
        check_head_named(options)
    ignore_index = options.ignore_index
    if ignore_index is None:
        ignore_index = IGNORE_INDEX if manifest is None else manifest.ignore_index
    classes = _classes(plan, options, manifest, head, ignore_index, cache, mapping)
    labels = _array_or_files(options.labels)
    counting = Counting(
        settings_of(options, max(classes, 2), ignore_index),
        options.reductions,
        (labels or LABELS) if not isinstance(labels, tuple) else None,
    )
    if not options.one_epoch:
        _check_one_epoch(plan, counting, cache)
    phase = options.phase or (manifest.phase if manifest is not None else "frozen-eval")
    return plan, Job(
        plan.shards,
        plan.layers,
        counting,
        phase,
        cache,
        head,
        layer,
        options.nc4,
        progress,
        lasting=mapping,
    )


def _check_one_epoch(plan: Plan, counting: Counting, cache: str) -> None:
    """Raise if files of several epochs were taken for shards, or for layers."""
    first = plan.shards[0].layers
    files = {first[layer].file for layer in plan.layers}
    if len(files) == len(plan.layers):
        check_layers(plan.layers)
    samples = Counter(shard.samples for shard in plan.shards)
    check_one_epoch(
        _labelled(shard, counting, cache) for shard in plan.shards if samples[shard.samples] > 1
    )


def _labelled(shard: Shard, counting: Counting, cache: str) -> Labelled:
    whole = Piece(shard, 0, shard.samples)
    with OpenPiece(whole, counting, cache) as opened:
        told = labels_told(opened, whole)
    return Labelled(shard.files[0], lambda: shard_id(whole, digests_of(shard, cache)), told)


def _plan(inputs: Inputs, options: Options, head_file: str | None, cache: str) -> Plan:
    wish = Wish(
        labels=_array_or_files(options.labels),
        predictions=_array_or_files(options.predictions),
        logits=_array_or_files(options.logits),
        mask=_array_or_files(options.mask),
        layers=tuple(options.layers),
    )
    apart = {os.path.realpath(head_file)} if head_file is not None else set()
    for asked in (wish.labels, wish.predictions, wish.logits, wish.mask):
        if isinstance(asked, tuple):
            apart.update(map(os.path.realpath, asked))
    files = [file for file in inputs.files if os.path.realpath(file) not in apart]
    if not files:
        raise ValueError("no file of activations is left beside those of labels and head")
    return plan_shards(files, wish, cache, inputs.manifest, inputs.recorded)


def _check_reductions(options: Options, layers: Sequence[str]) -> None:
    for pattern, _ in options.reductions:
        if not any(fnmatchcase(layer, pattern) for layer in layers):
            raise ValueError(
                f"--reduction {pattern}=...: no layer is named so; there are {', '.join(layers)}"
                + did_you_mean(pattern, layers)
            )


def _classes(
    plan: Plan,
    options: Options,
    manifest: Manifest | None,
    head: Head | None,
    ignore_index: int,
    cache: str,
    mapping: bool,
) -> int:
    """Return C: what was asked for, or the manifest says, or the head's rows, or the labels'."""
    classes = options.num_classes or (manifest.num_classes if manifest is not None else None)
    if head is not None:
        if classes is not None:
            check_classes(head, classes)
        return len(head.weight)
    if classes is not None:
        _check_memory(classes, plan)
        return classes
    if mapping and len(plan.shards) == 1:
        raise ValueError(
            "one shard does not tell how many classes there are in all: pass --num-classes or --head"
        )
    return _largest_label(plan.shards, cache, ignore_index) + 1


def _check_memory(classes: int, plan: Plan) -> None:
    """Raise if rows of as many classes do not fit into memory."""
    widest = max(at.array.shape[-1] for shard in plan.shards for at in shard.layers.values())
    check_memory(f"num_classes={classes} of {widest} features", 8.0 * _OF_EACH * classes * widest)


def settings_of(options: Options, classes: int, ignore_index: int) -> Settings:
    return Settings(
        num_classes=classes,
        scatter=options.scatter,
        convention=options.convention,
        ignore_index=ignore_index,
        nonfinite=options.nonfinite,
        seed=options.seed,
        sketch_rows=options.sketch_rows,
    )


def _array_or_files(asked: str | None) -> str | tuple[str, ...] | None:
    """Return files if a file is meant; the name of an array may be that of a folder here, too."""
    if asked is None:
        return None
    if is_file_name(asked) or (os.path.isfile(asked) and os.path.splitext(asked)[1]):
        return tuple(expand([asked]))
    return asked


def check_head_named(options: Options) -> None:
    """Raise if something is said of a head that is not given."""
    if options.head_layer is not None or options.head_name is not None:
        raise ValueError(
            "--head-layer and --head-name say something of a head: pass --head FILE, too"
        )


def only_file(asked: str) -> str:
    found = expand([asked])
    if len(found) > 1:
        raise ValueError(f"--head {asked!r} means {len(found)} files: pass one")
    return found[0]


def _largest_label(shards: Sequence[Shard], cache: str, ignore_index: int) -> int:
    largest = -1
    for shard in shards:
        at, features = shard.labels, next(iter(shard.layers.values())).array
        with OpenPiece(Piece(shard, 0, shard.samples), Counting(Settings(2)), cache) as opened:
            labels = opened.raw(at)
        if labels.ndim == len(features.shape) == 2 < labels.shape[1]:  # one-hot
            largest = max(largest, labels.shape[1] - 1 if labels.any() else -1)
            continue
        if labels.dtype.kind not in "biuf":
            raise ValueError(
                f"labels {at} have dtype {labels.dtype}: pass class numbers, or --num-classes for one-hot rows"
            )
        used = labels[labels != ignore_index]
        top = used.max() if used.size else -1
        if not np.isfinite(top):
            raise ValueError(f"labels {at} hold {top}: pass class numbers, or --num-classes")
        largest = max(largest, int(top))
    if largest < 0:
        raise ValueError("there is no labelled row: every label is ignored, or there is none")
    rows = sum(shard.samples for shard in shards)
    if largest >= max(_MANY_CLASSES, 10 * rows):
        raise ValueError(
            f"the largest label is {largest} and there are {rows} rows: if there are so many classes, pass "
            "--num-classes"
        )
    return largest
