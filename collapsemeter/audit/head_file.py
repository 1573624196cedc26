"""The classifier among saved weights, and the layer that it reads."""

from collections.abc import Mapping

import numpy as np

from ..activations.remote import expand, open_file
from ..stats.head import Head
from ..system.suggest import did_you_mean
from .job import WEIGHTS, HeadReader, described
from .options import Options


def only_file(pattern: str) -> str:
    """Return the one file that a pattern means."""
    files = expand([pattern])
    if len(files) > 1:
        raise ValueError(f"--head {pattern!r} means {len(files)} files: pass one")
    return files[0]


def check_head_named(options: Options) -> None:
    """Raise ValueError if something is said of a head that is not given."""
    if options.head_layer is not None or options.head_name is not None:
        raise ValueError(
            "--head-layer and --head-name say something of a head: pass --head FILE, too"
        )


def load_reader(
    file: str, cache: str, options: Options, widths: Mapping[str, int], stated: str | None = None
) -> HeadReader:
    """Read a head, and find the layer that it reads: the one asked for, or that a manifest states."""
    head, prefix = _load_head(file, cache, options.head_name)
    return HeadReader(head, _read_layer(widths, head, options.head_layer or stated, prefix))


def _load_head(file: str, cache: str, name: str | None) -> tuple[Head, str | None]:
    """Read ``weight`` (C, d) or ``kernel`` (d, C), and a bias; return them with what stands before ``.weight``."""
    with open_file(file, cache) as opened:
        arrays = opened.arrays
        matrices = [n for n, a in arrays.items() if len(a.shape) == 2 and a.dtype.kind in "fV"]
        prefixes = {n.rpartition(".")[0]: n for n in matrices if n.rpartition(".")[2] in WEIGHTS}
        if name is not None:
            chosen = prefixes.get(name, name if name in matrices else None)
        elif len(matrices) == 1:
            chosen = matrices[0]
        else:
            chosen = next(iter(prefixes.values())) if len(prefixes) == 1 else None
        if chosen is None:
            asked = f"no head named {name!r}" if name is not None else "no one weight of a head"
            raise ValueError(
                f"{file} has {asked}; arrays found: {described(arrays, opened.refused)}. Pass --head-name NAME, "
                "for NAME.weight (C, d) and NAME.bias (C,); of a single logit they are (1, d) and (1,)"
                f"{did_you_mean(name or '', prefixes) or '.'}"
            )
        prefix, _, last = chosen.rpartition(".")
        weight = opened.read(chosen, 0, arrays[chosen].shape[0]).astype(np.float64)
        beside = f"{prefix}.bias" if prefix else "bias"
        bias = None
        if last in WEIGHTS and beside in opened.refused:
            raise ValueError(f"{file}: array {beside!r} {opened.refused[beside]}")
        if last in WEIGHTS and beside in arrays:
            bias = opened.read(beside, 0, arrays[beside].shape[0]).astype(np.float64)
    weight = weight.T if last == "kernel" else weight
    if len(weight) == 1:  # a single logit, which decides between two classes
        head = Head.from_single_logit(weight[0], 0.0 if bias is None else bias)
    else:
        head = Head(weight, bias)
    return head, prefix or None


def _read_layer(
    widths: Mapping[str, int], head: Head, asked: str | None, prefix: str | None
) -> str:
    """Return the layer asked for; else the one of the head's name; else the last one as wide as its weight."""
    if asked is not None:
        if asked not in widths:
            raise ValueError(
                f"--head-layer {asked!r}: no such layer; there are {', '.join(widths)}"
                + did_you_mean(asked, widths)
            )
        return asked
    if prefix is not None and prefix in widths:
        return prefix
    fitting = [name for name, width in widths.items() if width == head.weight.shape[1]]
    if not fitting:
        raise ValueError(_unfit(widths, head))
    return fitting[-1]


def check_classes(head: Head, classes: int) -> None:
    """Raise ValueError unless the head has as many classes as were asked for, if any number was."""
    rows = len(head.weight)
    if classes and rows != max(classes, 2):
        raise ValueError(
            f"the head has {rows} classes (weight {head.weight.shape}) and num_classes={classes}: they must agree"
        )


def check_width(widths: Mapping[str, int], reader: HeadReader | None) -> None:
    """Raise ValueError unless the head takes the features of the layer that it reads."""
    if reader is not None and widths[reader.layer] != reader.head.weight.shape[1]:
        raise ValueError(_unfit({reader.layer: widths[reader.layer]}, reader.head))


def _unfit(widths: Mapping[str, int], head: Head) -> str:
    layers = ", ".join(f"{name} ({width})" for name, width in widths.items())
    todo = "pass the right --head, or name its layer with --head-layer"
    if head.weight.shape[0] in widths.values():
        todo = "its transpose would fit: save that (a 'weight' is (C, d), a 'kernel' (d, C))"
    return (
        f"the head takes {head.weight.shape[1]} features (weight {head.weight.shape}) and there is no layer of "
        f"as many: {layers}; {todo}"
    )
