"""From files and options to a job: classes, head and settings found, and checked against each other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from ..activations.manifest import sha256_of_path
from ..activations.remote import expand, local_path
from ..settings import Settings
from ..sums import IGNORE_INDEX
from .head import load_head, read_layer
from .inputs import Inputs
from .job import Job
from .options import Options
from .plan import Plan, Wish, is_file_name, plan_shards
from .rows import Counting, OpenPiece
from .shard import Piece, Shard


def prepared(
    inputs: Inputs, options: Options, cache: str, progress: bool, mapping: bool = False
) -> tuple[Plan, Job]:
    manifest = inputs.manifest
    head_file = only_file(options.head) if options.head is not None else inputs.head
    files = [file for file in inputs.files if file != head_file]
    wish = Wish(
        labels=_array_or_files(options.labels),
        predictions=_array_or_files(options.predictions),
        logits=_array_or_files(options.logits),
        mask=_array_or_files(options.mask),
        layers=tuple(options.layers),
    )
    beside = [f for asked in (wish.labels, wish.predictions, wish.logits, wish.mask)
              if isinstance(asked, tuple) for f in asked]  # fmt: skip
    plan = plan_shards(
        [f for f in files if f not in beside], wish, cache, manifest, inputs.recorded
    )
    ignore_index = options.ignore_index
    if ignore_index is None:
        ignore_index = IGNORE_INDEX if manifest is None else manifest.ignore_index
    head, prefix = None, None
    if head_file is not None:
        head, prefix = load_head(head_file, cache, options.head_name)
        _check_digest(head_file, inputs.recorded.get(head_file), cache)
    asked = options.head_layer or (manifest.head_layer if manifest is not None else None)
    layer = None if head is None else read_layer(plan.shards, plan.layers, head, asked, prefix)
    if layer is not None and manifest is None and not options.layers:
        plan = replace(plan, layers=[n for n in plan.layers if n != layer] + [layer])
    classes = options.num_classes or (manifest.num_classes if manifest is not None else None)
    if classes is None and head is not None:
        classes = len(head.weight)
    if classes is None:
        if mapping and len(plan.shards) == 1:
            raise ValueError(
                "one shard does not tell how many classes there are in all: pass --num-classes or --head"
            )
        classes = _largest_label(plan.shards, cache, ignore_index) + 1
    settings = settings_of(options, max(classes, 2), ignore_index)
    counting = Counting(settings, options.reductions)
    phase = options.phase or (manifest.phase if manifest is not None else "frozen-eval")
    job = Job(plan.shards, plan.layers, counting, phase, cache, head, layer, options.nc4, progress)  # type: ignore[arg-type]  # a manifest's phase is checked where moments are made
    return plan, job


def settings_of(options: Options, classes: int, ignore_index: int) -> Settings:
    return Settings(
        num_classes=classes,
        scatter=options.scatter,
        convention=options.convention,
        ignore_index=ignore_index,
        nonfinite=options.nonfinite,
        seed=options.seed,
    )


def _array_or_files(asked: str | None) -> str | tuple[str, ...] | None:
    if asked is None or not (is_file_name(asked) or os.path.exists(asked)):
        return asked
    return tuple(expand([asked]))


def only_file(asked: str) -> str:
    found = expand([asked])
    if len(found) > 1:
        raise ValueError(f"--head {asked!r} means {len(found)} files: pass one")
    return found[0]


def _check_digest(file: str, recorded: str | None, cache: str) -> None:
    if recorded is not None and sha256_of_path(local_path(file, cache)) != recorded:
        raise ValueError(
            f"{file} is not what the manifest says (its SHA-256 differs): it was changed or damaged after it "
            "was written; write the activations again"
        )


def _largest_label(shards: Sequence[Shard], cache: str, ignore_index: int) -> int:
    largest = -1
    for shard in shards:
        at = shard.labels
        with OpenPiece(Piece(shard, 0, shard.samples), Counting(Settings(2)), cache) as opened:
            labels = opened.raw(at)
        if labels.dtype.kind not in "iu":
            raise ValueError(
                f"labels {at} have dtype {labels.dtype}: pass integers, or --num-classes for one-hot rows"
            )
        used = labels[labels != ignore_index]
        largest = max(largest, int(used.max(initial=-1)))
    if largest < 0:
        raise ValueError("there is no labelled row: every label is ignored, or there is none")
    return largest
