"""From files and options to a job: classes, head and settings are resolved, and checked against each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..adapter.settings import Settings
from ..system.memory import check_memory
from ..system.patterns import matches
from ..system.suggest import did_you_mean
from .digests import check_recorded, digest_of, digests_of, rows_id
from .epochs import Labelled, check_layers, check_one_epoch
from .head_file import check_classes, check_head_named, check_width, load_reader
from .job import Counting, HeadReader, Job, Shard
from .piece_rows import OpenPiece

if TYPE_CHECKING:
    from .inputs import Inputs
    from .options import Options
    from .plan import AuditPlan

_MANY_CLASSES = 2**16  # more, of few rows, is rather something else than labels
_OF_EACH = 3  # arrays of one row for each class that are at hand at once


def prepare(
    plan: AuditPlan,
    inputs: Inputs,
    options: Options,
    head_file: str | None,
    cache: str,
    progress: bool,
    mapping: bool,
) -> Job:
    """Resolve classes, head and settings; with ``mapping`` one shard of many is perhaps all that is visible."""
    stated = inputs.manifest
    _check_reductions(options, plan.layers)
    layers, reader = plan.layers, None
    if head_file is not None:
        reader = _reader(head_file, inputs, options, plan, cache)
        if not (stated.layers or options.layers):  # files do not tell the order of the network
            layers = [name for name in layers if name != reader.layer] + [reader.layer]
    elif options.head is None:
        check_head_named(options)
    ignore_index = options.ignore_index
    ignore_index = stated.ignore_index if ignore_index is None else ignore_index
    classes = options.num_classes or stated.num_classes
    if reader is not None:
        check_classes(reader.head, classes)
        classes = len(reader.head.weight)
    elif classes:
        widest = max(
            stored.array.shape[-1] for shard in plan.shards for stored in shard.layers.values()
        )
        what = f"num_classes={classes} of {widest} features"
        check_memory(what, 8.0 * _OF_EACH * classes * widest)
    elif mapping and len(plan.shards) == 1:
        raise ValueError(
            "one shard does not tell how many classes there are in all: pass --num-classes or --head"
        )
    else:
        classes = _largest_label(plan.shards, cache, ignore_index) + 1
    settings = options.settings(max(classes, 2), ignore_index)
    counting = Counting(settings, options.reductions, plan.labels)
    if not options.one_epoch:
        _check_one_epoch(plan.shards, layers, counting, cache)
    return Job(
        plan.shards,
        layers,
        counting,
        options.phase or stated.phase,
        cache,
        reader,
        options.nc4,
        progress,
        lasting=mapping,
        skipped=plan.skipped,
    )


def _check_reductions(options: Options, layers: Sequence[str]) -> None:
    for pattern, _ in options.reductions:
        if not any(matches(pattern, layer) for layer in layers):
            raise ValueError(
                f"--reduction {pattern}=...: no layer is named so; there are {', '.join(layers)}"
                + did_you_mean(pattern, layers)
            )


def _reader(
    head_file: str, inputs: Inputs, options: Options, plan: AuditPlan, cache: str
) -> HeadReader:
    """Read the head, and find the layer that it reads."""
    if head_file in inputs.recorded:
        check_recorded(head_file, digest_of(head_file, cache), inputs.recorded[head_file])
    stored = plan.shards[0].layers
    widths = {name: stored[name].array.shape[-1] for name in plan.layers}
    reader = load_reader(head_file, cache, options, widths, inputs.manifest.head_layer)
    if len(stored[reader.layer].array.shape) == 2:  # the width of a map is known when it is reduced
        check_width(widths, reader)
    return reader


def _largest_label(shards: Sequence[Shard], cache: str, ignore_index: int) -> int:
    largest = -1
    for shard in shards:
        stored, features = shard.labels, next(iter(shard.layers.values())).array
        with OpenPiece(shard.whole, Counting(Settings(2)), cache) as opened:
            labels = opened.raw(stored)
        if labels.ndim == len(features.shape) == 2 < labels.shape[1]:  # one-hot
            largest = max(largest, labels.shape[1] - 1 if labels.any() else -1)
            continue
        if labels.dtype.kind not in "biuf":
            raise ValueError(
                f"labels {stored} have dtype {labels.dtype}: pass class numbers, or --num-classes for one-hot "
                "rows"
            )
        used = labels[labels != ignore_index]
        top = used.max() if used.size else -1
        if not np.isfinite(top):
            raise ValueError(f"labels {stored} hold {top}: pass class numbers, or --num-classes")
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


def _check_one_epoch(
    shards: Sequence[Shard], layers: Sequence[str], counting: Counting, cache: str
) -> None:
    """Raise if files of several epochs were taken for shards, or for layers."""
    files = {shards[0].layers[layer].file for layer in layers}
    if len(files) == len(layers):
        check_layers(layers)
    samples = Counter(shard.samples for shard in shards)
    check_one_epoch(
        _labelled(shard, counting, cache) for shard in shards if samples[shard.samples] > 1
    )


def _labelled(shard: Shard, counting: Counting, cache: str) -> Labelled:
    with OpenPiece(shard.whole, counting, cache) as opened:
        labels = opened.labels_told()
    return Labelled(
        shard.layer_files[0], lambda: rows_id(shard.whole, digests_of(shard, cache)), labels
    )
