"""Class moments: what the sums of a layer finalise to, and what batches, shards and machines exchange."""

import functools
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from .arithmetic import centred, merged
from .consistency import check_consistent, check_fields, check_shapes
from .fields import MomentFields, Phase
from .groups import GROUPS
from .host_sums import add_rows, empty_sums
from .labels import feature_dtype_of, labelled_rows
from .sketch import turned
from .stored import arrays_of, check_rows, fields_of, header_of
from .sums import (
    ARRAYS,
    EPS,
    IGNORE_INDEX,
    LEFT_OUT,
    SKETCH_ROWS,
    Nonfinite,
    ScatterKind,
    Sums,
    check_num_classes,
)

_KINDS: tuple[ScatterKind, ...] = ("class", "pooled", "sketch", "trace")  # from fine to coarse


@dataclass(frozen=True, eq=False)
class ClassMoments(MomentFields):
    r"""Sufficient statistics of one layer, in float64; `merge` is associative with an identity (Chan, Golub & LeVeque 1983).

    Parameters
    ----------
    counts : (C,) int64
        Rows of each class; 0 for an absent class.
    means : (C, d) float64
        Class means :math:`\mu_c`; zeros for an absent class.
    scatter : (d, d) or (C, d, d) float64, or None
        Within-class scatter, not divided by any count: summed over the classes, or of each class
        (which conventions that weight classes alike need when classes differ in size), or not kept.
    traces : (C,) float64
        :math:`\operatorname{tr} S_c = \sum_{i \in c} |h_i - \mu_c|^2`.
    feature_dtype : str
        The dtype the network computed in; its rounding sets a floor under NC1.
    phase : {"live", "frozen-train", "frozen-eval", "reference"}
        What was measured: a training stream while weights moved, a frozen pass, or a theory.
    shards : frozenset of str
        The shards that were counted, so that none is counted twice.
    ignored, nonfinite, unlabelled, mixed : int
        Rows left out: label ``ignore_index``; NaN or Inf; a one-hot label of zeros; a label of several
        classes or of parts of them.
    means_low : (C, d) float64, optional
        What rounding took from ``means``: under a large offset it carries the digits that differ.
    sketch : (k, d) float64, optional
        Sketch K of the rows about their class means, in the place of a scatter: for every u,
        :math:`|Ku|^2` is an unbiased estimate of :math:`u^\top \sum_c S_c u`, see `collapsemeter.stats.sketch`.
    signs : (k, C) float64, optional
        Sum of the signs of each class in each row of the sketch, which merging needs.
    seeds : frozenset of int
        What the buckets and signs in the sketch were hashed with; empty without one.
    rounding : Rounding, optional
        What the rounding of float32 sums may have taken, see `collapsemeter.stats.rounding`; None of float64 sums.
    groups : Groups, optional
        What each of 16 groups of rows holds, from which intervals come, see `collapsemeter.stats.groups`; None
        where it was turned off, of more classes and features than afford it, and in files of older versions.

    Raises
    ------
    ValueError
        If shapes disagree, the phase is unknown, or no data have such moments: a negative count, a
        scatter whose trace is not that of ``traces``, see `collapsemeter.stats.consistency`.

    Examples
    --------
    >>> a = ClassMoments.from_batch([[0.0, 0.0], [2.0, 0.0]], [0, 0], num_classes=2)
    >>> b = ClassMoments.from_batch([[0.0, 5.0]], [1], num_classes=2)
    >>> both = a.merge(b)
    >>> both.counts, both.means, both.traces
    (array([2, 1]), array([[1., 0.],
           [0., 5.]]), array([2., 0.]))
    """

    def __post_init__(self) -> None:
        check_fields(self.__dict__)
        self._freeze()
        self._check(np.float32)  # the least that sums are kept in

    @classmethod
    def summed_in(cls, dtype: type[np.floating[Any]], **values: Any) -> Self:
        """Return moments as the constructor does, checked to the rounding of sums in that dtype."""
        check_fields(values)
        moments = cls._trusted(**values)
        moments._check(dtype)
        return moments

    @classmethod
    def _trusted(cls, **values: Any) -> Self:
        """Return moments of what was computed here: they are not checked again."""
        moments = object.__new__(cls)
        for each in fields(cls):
            object.__setattr__(moments, each.name, values.get(each.name, each.default))
        moments._freeze()
        return moments

    def _with(self, **changes: Any) -> Self:
        return self._trusted(**(self.__dict__ | changes))

    def _freeze(self) -> None:
        """Make arrays read-only views, so that a merged or shared state cannot be changed by accident."""
        if self.means_low is None:
            object.__setattr__(self, "means_low", np.zeros(np.shape(self.means)))
        for name in ARRAYS:
            if getattr(self, name) is not None:
                dtype = np.int64 if name == "counts" else np.float64
                view = np.asarray(getattr(self, name), dtype).view()
                view.flags.writeable = False
                object.__setattr__(self, name, view)

    def _check(self, dtype: type[np.floating[Any]]) -> None:
        check_phase(self.phase)
        check_shapes(self)
        check_consistent(self, dtype)

    @classmethod
    def empty(
        cls,
        num_classes: int,
        width: int,
        *,
        scatter: ScatterKind | Literal["auto"] = "auto",
        feature_dtype: str = "float64",
        phase: Phase = "frozen-eval",
        sketch_rows: int = SKETCH_ROWS,
        groups: int = GROUPS,
    ) -> Self:
        """Return the identity of `merge`.

        Examples
        --------
        >>> ClassMoments.empty(3, 8).rows
        0
        """
        check_phase(phase)
        state = empty_sums(num_classes, width, scatter, sketch_rows, groups)
        return cls.from_sums(state, feature_dtype, phase)

    @classmethod
    def from_batch(
        cls,
        features: npt.ArrayLike,
        labels: npt.ArrayLike,
        num_classes: int,
        *,
        scatter: ScatterKind | Literal["auto"] = "auto",
        phase: Phase = "frozen-eval",
        shard: str | None = None,
        ignore_index: int = IGNORE_INDEX,
        nonfinite: Nonfinite = "skip",
        sketch_rows: int = SKETCH_ROWS,
        seed: int = 0,
        first_row: int = 0,
        groups: int = GROUPS,
    ) -> Self:
        """Measure the moments of one batch in float64.

        Parameters
        ----------
        features : (N, d) array_like of float
        labels : (N,) or (N, 1) array_like of class numbers, or (N, C) one-hot
            Whole numbers of any dtype. Rows that name no single class are left out and counted.
        num_classes : int
            C.
        scatter : {"auto", "class", "pooled", "sketch", "trace"}
            What is kept of the within-class scatter; ``auto``: the finest that is affordable.
        phase : str
            See `ClassMoments`.
        shard : str, optional
            A name for these rows; merging two states that share one is refused.
        ignore_index : int
            Label of the rows to leave out.
        nonfinite : {"skip", "raise", "propagate"}
            What to do with a row that holds NaN or Inf: leave it out and count it; refuse;
            or let its class become NaN.
        sketch_rows : int
            k, where a sketch is kept.
        seed : int
            What a sketch is hashed with, where one is kept. Two batches need another seed, or other row
            numbers: then use `update`.
        first_row : int
            The number of the first row that has a class: it decides on groups and the sketch's buckets.
        groups : int
            Groups of rows to keep for intervals: 16, 8, 4, or 0 for none. A layer that does not afford as
            many has fewer.

        Returns
        -------
        ClassMoments

        Raises
        ------
        ValueError
            If shapes or labels do not fit, or a row is not finite under ``nonfinite="raise"``.

        Examples
        --------
        >>> m = ClassMoments.from_batch([[1.0, 0.0], [0.0, 1.0]], [0, 1], num_classes=2)
        >>> m.rows, m.kind
        (2, 'class')
        """
        num_classes = check_num_classes(num_classes)
        check_phase(phase)
        rows, bins = labelled_rows(
            features, labels, num_classes, ignore_index=ignore_index, nonfinite=nonfinite
        )
        state = empty_sums(num_classes, rows.shape[1], scatter, sketch_rows, groups)
        add_rows(
            state,
            rows,
            bins,
            ignore_index=ignore_index,
            propagate=nonfinite == "propagate",
            seed=seed,
            first_row=first_row,
        )
        shards = () if shard is None else (shard,)
        dtype = feature_dtype_of(features, rows)
        return cls.from_sums(state, dtype, phase, shards, seed, in_place=True)

    @classmethod
    def from_sums(
        cls,
        state: Sums,
        feature_dtype: str,
        phase: Phase,
        shards: Iterable[str] = (),
        seed: int = 0,
        *,
        in_place: bool = False,
    ) -> Self:
        r"""Finalise class-shifted sums: :math:`\mu_c = k_c + s_c / n_c`, :math:`S = G - \sum_c s_c s_c^\top / n_c`.

        Parameters
        ----------
        state : Sums
            NumPy arrays of any float dtype, copied to the host.
        feature_dtype, phase, shards
            See `ClassMoments`.
        seed : int
            What the sketch was hashed with, where there is one.
        in_place : bool
            Whether the moments may take over the arrays of sums that `host_sums.add_rows` has filled.

        Examples
        --------
        >>> from collapsemeter.stats.sums import init
        >>> ClassMoments.from_sums(init(2, 3, "pooled"), "float32", "live").phase
        'live'
        """
        return cls._trusted(
            **centred(state, in_place=in_place),
            **{name: int(getattr(state, name)) for name in LEFT_OUT},
            feature_dtype=feature_dtype,
            phase=phase,
            shards=frozenset(shards),
            seeds=frozenset([seed] if state.sketch is not None and state.counts.any() else []),
        )

    def update(self, features: npt.ArrayLike, labels: npt.ArrayLike, **options: Any) -> Self:
        """Return the moments of these rows and the given ones (options as in `from_batch`).

        Every call copies the state: a stream of batches is faster with `collapsemeter.Accumulator`.
        Where a sketch is kept, row numbers go on, so that the sketch is that of all rows in one batch.

        Examples
        --------
        >>> ClassMoments.empty(2, 3).update(np.eye(3), [0, 1, 1]).counts
        array([1, 2])
        """
        options = {"scatter": self.kind, "phase": self.phase} | options
        if self.sketch is not None:
            options = {"sketch_rows": len(self.sketch)} | options
        if "seed" in options:
            return self.merge(type(self).from_batch(features, labels, self.num_classes, **options))
        if self.groups is None:
            options = {"groups": 0} | options
        # No row of these seeds has a number as high as the count of all rows.
        options |= {"seed": min(self.seeds, default=0), "first_row": self.rows + self.nonfinite}
        batch = type(self).from_batch(features, labels, self.num_classes, **options)
        return self._merged(batch, repeated=self.seeds)

    def merge(self, other: Self, *, numbered_apart: bool = False) -> Self:
        r"""Return the moments of both sets of rows.

        :math:`S = S_a + S_b + \sum_c \frac{n_a n_b}{n_a + n_b} (\mu_b - \mu_a)(\mu_b - \mu_a)^\top`.
        Where one keeps a coarser scatter, so does the result; of a sketch and a scatter only traces are
        left. Sketches add up about the joint means, :math:`K = \sum_i K_i - Z_i (\mu - \mu_i)`; their seeds must differ.

        Parameters
        ----------
        other : ClassMoments
            Of the same classes, width and phase.
        numbered_apart : bool
            No row of one has the number of a row of the other: seeds of sketches may then be the same.

        Raises
        ------
        ValueError
            If the layers differ, the phases differ, a shard is in both, or sketches have a seed in common
            or differ in size.

        References
        ----------
        Chan, Golub & LeVeque 1983.

        Examples
        --------
        >>> a = ClassMoments.from_batch([[1.0]], [0], num_classes=1)
        >>> a.merge(ClassMoments.empty(1, 1)).means
        array([[1.]])
        """
        return self._merged(other, repeated=self.seeds if numbered_apart else frozenset())

    def _merged(self, other: Self, repeated: frozenset[int] = frozenset()) -> Self:
        """Merge; ``repeated`` are seeds with which rows of other numbers were hashed in the other state."""
        self._check_mergeable(other, repeated)
        if not (self.rows and other.rows):  # an empty state has no phase or dtype of its own
            described = other if other.rows else self
        else:
            described = max(self, other, key=lambda moments: EPS.get(moments.feature_dtype, 0.0))
        kind = max(self.kind, other.kind, key=_KINDS.index)
        if kind == "sketch" and self.kind != other.kind:
            kind = "trace"
        a, b = self.coarsen(kind), other.coarsen(kind)
        return self._trusted(
            **merged(a, b),
            **{name: getattr(self, name) + getattr(other, name) for name in LEFT_OUT},
            feature_dtype=described.feature_dtype,
            phase=described.phase,
            shards=self.shards | other.shards,
            seeds=a.seeds | b.seeds,
        )

    def _check_mergeable(self, other: Self, repeated: frozenset[int]) -> None:
        if self.means.shape != other.means.shape:
            raise ValueError(
                f"these moments have (classes, width) {self.means.shape} and {other.means.shape}: "
                "merge only the same layer of the same model"
            )
        if self.rows and other.rows and self.phase != other.phase:
            raise ValueError(
                f"one state is {self.phase!r} and the other {other.phase!r}: "
                "they measure different things and are never merged"
            )
        twice = sorted(self.shards & other.shards)
        if twice:
            raise ValueError(f"shard {twice[0]!r} is in both states: it would be counted twice")
        if self.sketch is None or other.sketch is None:
            return
        if len(self.sketch) != len(other.sketch):
            raise ValueError(
                f"one sketch has {len(self.sketch)} rows and the other {len(other.sketch)}: count both "
                "with the same sketch_rows"
            )
        shared = sorted(self.seeds & other.seeds - repeated)
        if shared:
            raise ValueError(
                f"both sketches were hashed with seed={shared[0]}, so that their sum would be biased: count "
                "every stream with a seed of its own (seed=rank), or merge other.reseeded(rank)"
            )

    def reseeded(self, seed: int) -> Self:
        """Return the moments with the sketch as another seed might have made it; the estimates are the same.

        Streams that were counted with one seed merge after each was given a ``seed`` of its own.

        Examples
        --------
        >>> a, b = (ClassMoments.from_batch(np.eye(3), [0, 1, 1], 2, scatter="sketch") for _ in "ab")
        >>> a.merge(b.reseeded(1)).rows
        6
        """
        if self.sketch is None or self.signs is None or not self.seeds:
            return self
        return self._with(
            sketch=turned(self.sketch, seed),
            signs=turned(self.signs, seed),
            seeds=frozenset([seed]),
        )

    @classmethod
    def merge_all(cls, states: Iterable[Self]) -> Self:
        """Merge any number of states.

        Raises
        ------
        ValueError
            If there is none, or two do not merge.

        Examples
        --------
        >>> ClassMoments.merge_all([ClassMoments.empty(2, 3)] * 4).rows
        0
        """
        states = list(states)
        if not states:
            raise ValueError("merge_all got no state: pass at least one ClassMoments")
        return functools.reduce(lambda a, b: a.merge(b), states)

    def coarsen(self, kind: ScatterKind) -> Self:
        """Return the moments with a coarser scatter: ``class`` to ``pooled``, any to ``trace``.

        Raises
        ------
        ValueError
            If the scatter kept is coarser than ``kind``, or ``kind`` is a sketch and it is none.

        Examples
        --------
        >>> ClassMoments.empty(2, 3, scatter="class").coarsen("pooled").kind
        'pooled'
        """
        if kind == self.kind:
            return self
        if kind == "sketch" or _KINDS.index(kind) < _KINDS.index(self.kind):
            raise ValueError(f"a {self.kind!r} scatter was kept: {kind!r} cannot be made of it")
        if kind == "trace":
            return self._with(scatter=None, sketch=None, signs=None, seeds=frozenset())
        assert self.scatter is not None
        return self._with(scatter=self.scatter.sum(axis=0))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to an uncompressed ``.npz``, atomically, with a SHA-256 checksum as the archive's comment.

        Raises
        ------
        OSError
            If it cannot be written; an older file of that name is then untouched.

        Examples
        --------
        >>> import tempfile, os
        >>> path = os.path.join(tempfile.mkdtemp(), "layer.cm.npz")
        >>> ClassMoments.from_batch(np.eye(3), [0, 1, 1], num_classes=2).save(path)
        >>> ClassMoments.load(path).counts
        array([1, 2])
        """
        from .state_file import write_state  # with zipfile: for those who save or load

        write_state(path, header_of(self), arrays_of(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a state written by `save`.

        Raises
        ------
        CorruptStateError
            If the file is truncated, altered, or not a state file, was written by a newer version, or
            holds what no data have, whatever its checksum says.
        FileNotFoundError
            If there is none.

        Examples
        --------
        >>> import tempfile, os, pathlib
        >>> path = os.path.join(tempfile.mkdtemp(), "layer.cm.npz")
        >>> _ = pathlib.Path(path).write_bytes(b"not a state")
        >>> ClassMoments.load(path)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        collapsemeter.stats.state_file.CorruptStateError: ...layer.cm.npz is not a whole state file: its checksum does not match
        """
        from .state_file import CorruptStateError, read_state

        header, arrays = read_state(path)
        try:
            moments = cls(**fields_of(header, arrays))
            check_rows(moments, header)
            return moments
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptStateError(f"{os.fspath(path)} is not a state file: {error}") from error


def check_phase(phase: Phase) -> None:
    """Raise ValueError unless it says what was measured."""
    if phase not in get_args(Phase):
        raise ValueError(f"phase={phase!r}: choose one of {', '.join(get_args(Phase))}")
