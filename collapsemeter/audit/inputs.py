"""Resolve the inputs that people name: files, globs, URLs, folders and manifests, sorted by their step."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from ..activations.foreign import explained
from ..activations.formats import READ
from ..activations.manifest import NAME, Manifest
from ..activations.remote import expand, local_path, natural_order

Epochs = Sequence[tuple[int, Sequence[str]]]  # steps, and what is named for each
_UNSAID = Manifest((), (), 0)  # of files without one


@dataclass(frozen=True, eq=False)
class Inputs:
    """Files of one step; the manifest is the first where several dumps (of ranks, say) make one."""

    files: list[str]
    step: int | None = None
    manifest: Manifest = _UNSAID
    recorded: dict[str, str] = field(default_factory=dict)  # SHA-256 by file
    head: str | None = None  # the file of the head that the manifest names


def cache_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for copies of remote files, which goes in the end."""
    return tempfile.TemporaryDirectory(prefix="collapsemeter-cache-")


def read_inputs(names: Sequence[str], cache: str, epochs: Epochs = ()) -> list[Inputs]:
    """Find the files that names mean, by step: dumps of one step are measured together."""
    steps = _read(names, cache) if names else []
    for step, files in epochs:
        inputs = _read(files, cache)
        stated = next((i.step for i in inputs if i.step not in (None, step)), None)
        if stated is not None:
            raise ValueError(
                f"--epoch {step} {' '.join(files)}: the manifest says step {stated}; leave --epoch out"
            )
        if any(earlier.step == step for earlier in steps):
            raise ValueError(f"--epoch {step} is given twice: name all its files at once")
        steps.append(replace(inputs[0], step=step))
    return steps


def check_heads(head: str | Mapping[int, str] | None, steps: Sequence[int | None]) -> None:
    """Raise ValueError unless every head belongs to one step."""
    words = ", ".join("one without a step" if step is None else str(step) for step in steps)
    if isinstance(head, str) and len(steps) > 1:
        raise ValueError(
            f"--head {head}: it is the head of one epoch, and there are {len(steps)} ({words}); pass "
            "--head STEP=FILE for each epoch that has one"
        )
    for step, file in head.items() if isinstance(head, Mapping) else ():
        if step not in steps:
            raise ValueError(f"--head {step}={file}: there is no epoch {step}, but {words}")


def _read(names: Sequence[str], cache: str) -> list[Inputs]:
    loose: list[str] = []
    dumps: list[tuple[str, Manifest]] = []
    for name in expand(names):
        manifest = _manifest(name)
        if manifest is not None:
            dumps.append((manifest, Manifest.load(local_path(manifest, cache))))
        elif os.path.isdir(name) and not name.rstrip("/").endswith(".zarr"):
            loose += _inside(name)
        else:
            loose.append(name)
    if loose and dumps:
        raise ValueError(
            f"{loose[0]} is no manifest and {dumps[0][0]} is one: pass manifests (or their folders), or files"
        )
    if not dumps:
        return [Inputs(loose)]
    steps = sorted({m.step for _, m in dumps}, key=lambda step: -1 if step is None else step)
    return [_together([d for d in dumps if d[1].step == step]) for step in steps]


def _manifest(name: str) -> str | None:
    if name.endswith(".json"):
        return name
    inside = os.path.join(name, NAME)
    return inside if os.path.isdir(name) and os.path.exists(inside) else None


def _inside(folder: str) -> list[str]:
    files = [str(path) for path in Path(folder).iterdir() if path.name.endswith(READ)]
    if not files:
        raise ValueError(
            explained(folder)
            or f"folder {folder} holds no manifest.json and no file that ends in {', '.join(READ)}: pass the "
            "folder of a finished dump, or files"
        )
    return sorted(expand(files), key=natural_order)


def _together(dumps: list[tuple[str, Manifest]]) -> Inputs:
    """Take the dumps of one step, of several ranks, as one."""
    first = dumps[0][1]
    for where, manifest in dumps[1:]:
        for name in ("layers", "num_classes", "phase", "ignore_index", "head_layer"):
            a, b = getattr(first, name), getattr(manifest, name)
            if a != b and None not in (a, b):
                raise ValueError(
                    f"{dumps[0][0]} and {where} are of the same step and differ in {name}, {a!r} and {b!r}: "
                    "they are not dumps of one network; audit them one by one, or give them steps"
                )
    files, recorded = [], {}
    heads: dict[str, str] = {}
    for where, manifest in dumps:
        folder = where.removesuffix(PurePath(where).name)
        for record in manifest.files:
            files.append(folder + record.path)
            recorded[folder + record.path] = record.sha256
        if manifest.head is not None:
            heads.setdefault(manifest.head.sha256, folder + manifest.head.path)
            recorded[folder + manifest.head.path] = manifest.head.sha256
    if len(heads) > 1:
        raise ValueError(
            f"the manifests name different heads, {' and '.join(list(heads.values())[:2])}: they are not dumps "
            "of one network; audit them one by one, or pass --head"
        )
    with_head = next((m for _, m in dumps if m.head is not None), first)
    return Inputs(files, first.step, with_head, recorded, next(iter(heads.values()), None))
