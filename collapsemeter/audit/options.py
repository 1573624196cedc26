"""The options of an audit: how activations are found and counted, and how it runs."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ..adapter.reduction import Reduction, check_reduction
from ..adapter.settings import Settings
from ..metrics.convention import Convention
from ..stats.fields import Phase
from ..stats.groups import GROUPS
from ..stats.sketch import SKETCH_ROWS
from ..stats.sums import IGNORE_INDEX, Nonfinite, ScatterKind, check_num_classes
from ..system.processes import check_jobs

Accept = Callable[[Sequence[str], int], None]  # is told layers and classes, and may raise


@dataclass(frozen=True)
class Options:
    """How activations are found and counted; what a manifest says is the default.

    Parameters
    ----------
    labels, predictions, logits, mask : str, optional
        The name of an array in the files, or a file or glob of their own. ``labels`` by default.
    layers : sequence of str
        Names or patterns, in the order wanted; all if empty.
    reduction : str, or mapping from pattern to one
        How saved maps and sequences become one row per label, see `reduction.feature_rows`.
    head : str, or mapping from step to str, optional
        File with the classifier's ``weight`` (C, d) and ``bias`` (C,); of several epochs, one for each
        that has one.
    head_name, head_layer : str, optional
        The prefix of its weights, and the layer that it reads; found by name and width.
    one_epoch : bool
        Whether files with the same labels are shards of one epoch. They are refused by default: files of
        several epochs, taken for shards, would be pooled.
    num_classes : int, optional
        C; by default the head's rows, or the largest label and one.
    scatter : {"auto", "class", "pooled", "sketch", "trace"}
        What is kept of the within-class scatter; ``auto``: the finest that is affordable.
    convention : str or Convention
    ignore_index : int, optional
        Label of rows to leave out; -100.
    nonfinite : {"skip", "raise", "propagate"}
        What to do with rows that hold NaN or Inf.
    phase : str, optional
        ``frozen-eval``.
    nc4 : "auto", "exact", "none" or int
        Rows of the second pass, see `second_pass.choose_rows`.
    seed : int
        Of a sample of rows.
    sketch_rows : int
        k, the rows of the sketch that a layer keeps which is too wide for a scatter.
    groups : int
        Groups of rows that each layer keeps for intervals: 16, 8, 4, or 0 for none.
    first_row : int
        The number of the first row that has a class, of files that are a part of a data set (`map_files`): how many
        such rows the parts before have. Numbers deal rows to groups.

    Raises
    ------
    ValueError
        If a choice is unknown.
    """

    labels: str | None = None
    predictions: str | None = None
    logits: str | None = None
    mask: str | None = None
    layers: Sequence[str] = ()
    reduction: Reduction | Mapping[str, Reduction] = "auto"
    head: str | Mapping[int, str] | None = None
    head_name: str | None = None
    head_layer: str | None = None
    one_epoch: bool = False
    num_classes: int | None = None
    scatter: ScatterKind | Literal["auto"] = "auto"
    convention: Convention | str = "papyan2020"
    ignore_index: int | None = None
    nonfinite: Nonfinite = "skip"
    phase: Phase | None = None
    nc4: str | int = "auto"
    seed: int = 0
    sketch_rows: int = SKETCH_ROWS
    groups: int = GROUPS
    first_row: int = 0

    def __post_init__(self) -> None:
        for _, how in self.reductions:
            check_reduction(how)
            if callable(how):
                raise ValueError(
                    f"reduction={how!r}: an audit takes names alone, so that states can tell how they were "
                    "counted; reduce before saving"
                )
        sizes = ("auto", "exact", "none")
        if self.nc4 not in sizes and not (isinstance(self.nc4, int) and self.nc4 > 0):
            raise ValueError(f"nc4={self.nc4!r}: choose {', '.join(sizes)} or a number of rows")
        if self.num_classes is not None:
            check_num_classes(self.num_classes)
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: pass 0 or more")
        if self.first_row < 0:
            raise ValueError(f"first_row={self.first_row}: pass 0 or more")
        for name, value, known in (
            ("scatter", self.scatter, ("auto", *get_args(ScatterKind))),
            ("nonfinite", self.nonfinite, get_args(Nonfinite)),
            ("phase", self.phase, (None, *get_args(Phase))),
        ):
            if value not in known:
                raise ValueError(
                    f"{name}={value!r}: choose one of {', '.join(filter(None, known))}"
                )
        self.settings(2, IGNORE_INDEX)  # checks the rest

    def settings(self, classes: int, ignore_index: int) -> Settings:
        """Return how layers are counted and measured."""
        return Settings(
            num_classes=classes,
            scatter=self.scatter,
            convention=self.convention,
            ignore_index=ignore_index,
            nonfinite=self.nonfinite,
            seed=self.seed,
            sketch_rows=self.sketch_rows,
            groups=self.groups,
        )

    def head_of(self, step: int | None) -> str | None:
        """Return the file of the head of a step; the one head is that of any."""
        if self.head is None or isinstance(self.head, str):
            return self.head
        return None if step is None else self.head.get(step)

    @property
    def reductions(self) -> tuple[tuple[str, Reduction], ...]:
        """Patterns of layers and their reductions."""
        if isinstance(self.reduction, Mapping):
            return tuple(self.reduction.items())
        return (("**", self.reduction),)


@dataclass(frozen=True)
class Running:
    """Where and how an audit runs.

    Parameters
    ----------
    jobs : int
        Processes.
    dask : str, optional
        Address of a Dask scheduler instead.
    state : str or path, optional
        Folder for states; a temporary one if left out.
    resume : bool
        Use the states that lie there.
    progress : bool
        Show bars on standard error.
    earlier : sequence of path
        State folders from which states are taken over, where ``resume`` asks for it.

    Raises
    ------
    ValueError
        If ``jobs`` is no number of processes, or ``dask`` is given, too.
    """

    jobs: int = 1
    dask: str | None = None
    state: str | os.PathLike[str] | None = None
    resume: bool = False
    progress: bool = False
    earlier: Sequence[str | os.PathLike[str]] = ()

    def __post_init__(self) -> None:
        check_jobs(self.jobs)
        if self.dask is not None and self.jobs != 1:
            raise ValueError(f"jobs={self.jobs} and dask={self.dask!r}: choose one of them")
