"""Decisions on rows: which class centre is nearest, and whether the network decides so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from ..stats.head import Head, HeadLike, argmax_or_none
from ..stats.labels import check_predictions, class_rows, labelled_rows
from ..stats.linalg import LARGEST, row_blocks
from ..stats.plain import check_real, plain
from ..stats.sums import IGNORE_INDEX
from .class_centres import ClassCentres, Counts

if TYPE_CHECKING:
    from ..stats.moments import ClassMoments


@dataclass(frozen=True, eq=False)
class Decisions:
    """Counts of rows by class: decided on, nearest to their own centre, decided as the network does.

    Decisions of disjoint sets of rows about the same means merge by addition.

    Parameters
    ----------
    rows, correct : (C,) int64
        Rows decided on, and those whose nearest class centre is their label.
    agree : (C,) int64, or None
        Rows on which the network's decision is the nearest class centre; None without logits.
    sampled : bool
        Whether the rows are a sample of those measured, so that intervals are due.
    alone : (C,) int64, optional
        Rows whose nearest class centre is their label's if it is made without them; None where they are none of
        those that made the means, and in files of older versions.

    Examples
    --------
    >>> d = Decisions(np.array([3]), np.array([2]), None, sampled=False)
    >>> d.merge(d).rows
    array([6])
    """

    rows: Counts
    correct: Counts
    agree: Counts | None
    sampled: bool
    alone: Counts | None = None

    def merge(self, other: Self) -> Self:
        """Return the decisions on both sets of rows.

        Raises
        ------
        ValueError
            If they are about different numbers of classes.
        """
        if self.rows.shape != other.rows.shape:
            raise ValueError(
                f"decisions about {len(self.rows)} classes and about {len(other.rows)}: "
                "merge only those of the same layer"
            )
        return type(self)(
            self.rows + other.rows,
            self.correct + other.correct,
            _sum_of_known(self.agree, other.agree),
            self.sampled or other.sampled,
            _sum_of_known(self.alone, other.alone),
        )


def _sum_of_known(a: Counts | None, b: Counts | None) -> Counts | None:
    return None if a is None or b is None else a + b


def decide(
    moments: ClassMoments,
    features: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    head: HeadLike | None = None,
    logits: npt.ArrayLike | None = None,
    predictions: npt.ArrayLike | None = None,
    sampled: bool | None = None,
    ignore_index: int = IGNORE_INDEX,
    centres: ClassCentres | None = None,
    resubstitution: bool = True,
) -> Decisions:
    r"""Compare the network's decisions with the nearest class centre, row by row.

    Parameters
    ----------
    moments : ClassMoments
        The final class means.
    features : (N, d) array_like of float
        Rows to decide on.
    labels : (N,) or (N, 1) array_like of class numbers, or (N, C) one-hot
        As of `collapsemeter.ClassMoments.from_batch`; rows that name no single class are left out.
    head : Head, or its weight (C, d), or the pair (weight, bias), optional
        As `measure` takes it: the network's decision as :math:`\arg\max W h + b`.
    logits : (N, C) array_like, or predictions : (N,) array_like of int, optional
        The network's own decision; it takes precedence over ``head``.
    sampled : bool, optional
        Whether the rows are a sample; by default, whether there are fewer than the moments counted.
    ignore_index : int
    centres : ClassCentres, optional
        Those of the moments, where many batches are decided on.
    resubstitution : bool
        Whether the rows are among those that made the means, as those of a report are. Pass False for fresh rows,
        such as a test set beside training's means: no row needs to be left out of its class's mean then.

    Returns
    -------
    Decisions

    Raises
    ------
    ValueError
        If shapes do not fit, or a prediction of a row that has a class is no class; -1 is that of no decision.

    References
    ----------
    Papyan, Han & Donoho 2020, figure 7; Ben-Shaul & Dekel 2022.

    Examples
    --------
    >>> from collapsemeter import ClassMoments
    >>> rows, labels = np.array([[0.0], [1.0], [9.0]]), np.array([0, 0, 1])
    >>> m = ClassMoments.from_batch(rows, labels, num_classes=2)
    >>> decide(m, rows, labels, predictions=[0, 1, 1]).agree
    array([1, 1])
    """
    rows, bins = labelled_rows(features, labels, moments.num_classes, ignore_index=ignore_index)
    if rows.shape[1] != moments.width:
        raise ValueError(
            f"features have shape {rows.shape}, the moments are about {moments.width} features"
        )
    head = None if head is None else Head.of(head)
    if head is not None:
        head.check_fit(moments.num_classes, moments.width)
    decided = _network_decision(rows, head, logits, predictions, moments.num_classes)
    centres = ClassCentres(moments) if centres is None else centres
    usable = class_rows(bins, moments.num_classes, ignore_index) & _bounded(rows)
    if predictions is not None and decided is not None:
        check_predictions(decided, moments.num_classes, usable)
    usable[usable] = centres.known[bins[usable]]
    if not usable.all():
        rows, bins = rows[usable], bins[usable]
        decided = None if decided is None else decided[usable]
    nearest, alone = centres.decided(rows, bins)
    agree = None
    if decided is not None:
        agree = _per_class(bins, decided == nearest, moments.num_classes)
    return Decisions(
        rows=_per_class(bins, np.ones(len(bins), bool), moments.num_classes),
        correct=_per_class(bins, bins == nearest, moments.num_classes),
        agree=agree,
        sampled=len(rows) < moments.rows if sampled is None else sampled,
        alone=_per_class(bins, alone, moments.num_classes) if resubstitution else None,
    )


def _per_class(bins: Counts, flags: npt.NDArray[np.bool_], num_classes: int) -> Counts:
    return np.bincount(bins[flags], minlength=num_classes).astype(np.int64)


def _bounded(rows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """(N, d) -> (N,): no value of the row is NaN, or so large that its powers overflow."""
    bounded = np.empty(len(rows), bool)
    for part in row_blocks(*rows.shape):
        tile = rows[part].astype(np.float64, copy=False)
        bounded[part] = (np.abs(tile) <= LARGEST).all(axis=1)
    return bounded


def _network_decision(
    rows: npt.NDArray[Any],
    head: Head | None,
    logits: npt.ArrayLike | None,
    predictions: npt.ArrayLike | None,
    num_classes: int,
) -> npt.NDArray[Any] | None:
    if predictions is not None:
        decided = plain(predictions, "predictions")
    elif logits is not None:
        scores = plain(logits, "logits")
        check_real(scores, "logits")
        if scores.ndim != 2 or scores.shape[1] != num_classes:
            raise ValueError(
                f"logits have shape {scores.shape}: pass one column for each of the {num_classes} classes, "
                "(N, C); of a single logit pass predictions=logit > 0"
            )
        decided = argmax_or_none(scores)
    elif head is not None:
        if not head.finite:
            return None
        decided = head.decide(rows)
    else:
        return None
    if decided.shape != rows.shape[:1]:
        raise ValueError(
            f"the network decided on rows of shape {decided.shape}, features have shape "
            f"{rows.shape}: pass one decision per row"
        )
    return decided
