"""One copy of the state and the head to the host, and everything after it in float64."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from flax import linen, nnx

from collapsemeter import ClassMoments, Head
from collapsemeter.adapter.tally import Tally, classifier
from collapsemeter.adapter.waiting_on_host import add_waiting, usable
from collapsemeter.stats.fields import Phase
from collapsemeter.stats.sketch import derived_seed
from collapsemeter.stats.sums import COUNTERS, INTEGERS, Sums

from .merging import merge
from .namespace import FULL
from .sample import EMPTY
from .sharding import by_device, distinct
from .state import DTYPES, UNDECIDED, LayerSums, State

Host = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class MergedTally(Tally):
    """The counts of one layer in several states: counters summed, moments merged."""

    parts: tuple[Tally, ...] = ()

    def moments(self, phase: Phase) -> ClassMoments:
        """Merge by Chan, Golub & LeVeque in float64; states of one seed get another each for their sketches."""
        return ClassMoments.merge_all(
            part.moments(phase).reseeded(derived_seed(part.seed, i)) if i else part.moments(phase)
            for i, part in enumerate(self.parts)
        )


def to_moments(state: State, phase: Phase = "live") -> dict[str, ClassMoments]:
    r"""Return the class moments of every layer: :math:`\mu_c = k_c + s_c / n_c`, in float64.

    Parameters
    ----------
    state : State
        With leading axes (the devices of ``pmap``, replicas of ``vmap``, a stack of states) its parts
        are merged exactly. Copies of one state, as ``axis_name=`` leaves them on every device, count once.
    phase : str
        See `collapsemeter.ClassMoments`.

    Raises
    ------
    ValueError
        If a counter has come to its end at 2^32 - 1, or the phase is unknown.

    Examples
    --------
    >>> from collapsemeter_flax import init, update
    >>> import jax.numpy as jnp
    >>> state = update(init({"fc": 3}, num_classes=2), {"fc": jnp.eye(3)}, jnp.array([0, 1, 1]))
    >>> to_moments(state)["fc"].counts
    array([1, 2])
    """
    parts = unstacked(state)
    return {
        name: tally(parts, number).moments(phase) for number, name in enumerate(state.spec.names)
    }


def unstacked(state: State) -> list[State]:
    """Copy a state to the host, take leading axes apart, and leave out copies."""
    host: State = jax.device_get(by_device(state))
    extra = np.ndim(host.batches)
    if not extra:
        return [host]
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[extra:]), host)
    parts = [jax.tree.map(lambda leaf, i=i: leaf[i], flat) for i in range(len(flat.batches))]
    return distinct(parts)


def expected_rows(parts: Sequence[State]) -> int:
    """Return the label rows given, which a state counts in two halves of 32 bits."""
    return sum(int(part.expected[0]) * 2**32 + int(part.expected[1]) for part in parts)


def tally(parts: Sequence[State], number: int) -> Tally:
    """Return what a layer counted, in one or in several states."""
    tallies = tuple(_tally_of(part, number) for part in parts)
    if len(tallies) == 1:
        return tallies[0]
    joint = _tally_of(functools.reduce(_joint_sample, parts), number, checked=False)
    sums = Sums(
        **{name: sum(getattr(t.sums, name) for t in tallies) for name in ("counts", *COUNTERS)},
        **dict.fromkeys(("shift", "sums", "squares", "scatter")),
    )
    dtypes = [int(part.feature_dtypes[number]) for part in parts]
    return MergedTally(
        sums,
        DTYPES[max(dtypes)],
        joint.rows,
        joint.labels,
        joint.ids,
        joint.decided,
        joint.seed,
        tallies,
    )


def _joint_sample(a: State, b: State) -> State:
    merged: State = jax.device_get(merge(*jax.device_put((a, b))))
    return merged


def _tally_of(part: State, number: int, checked: bool = True) -> Tally:
    layer = part.layers[number]
    name, size = part.spec.names[number], part.spec.holdings[number].sample_rows
    sample = part.samples[part.spec.sample_sizes.index(size)]
    sums = _host_sums(layer, name, checked)
    kept = (np.asarray(layer.rows), np.asarray(sample.codes))
    if part.filled:
        sums, kept = _with_waiting(part, number, sums, kept)
    rows, labels, decided = _sampled(*kept)
    return Tally(
        sums,
        DTYPES[int(part.feature_dtypes[number])] or "float32",
        rows,
        labels,
        np.arange(len(labels)),
        decided,
        part.spec.settings.seed,
    )


def _with_waiting(
    part: State, number: int, sums: Sums, kept: tuple[Host, Host]
) -> tuple[Sums, tuple[Host, Host]]:
    """Return sums and sample of a layer with the rows that wait, which lie before `State.next_row`."""
    waiting, filled = part.waiting, int(part.filled)
    assert waiting is not None
    rows, codes = np.asarray(waiting.rows[number])[:filled], np.asarray(waiting.codes)[:filled]
    settings, size = part.spec.settings, len(kept[0])
    first = int(part.next_row) - int(usable(codes[:, 0], settings).sum())
    sums, _, slots = add_waiting(sums, rows, codes[:, 0], first, settings, size)
    inside = slots < size
    sampled = [np.array(values) for values in kept]
    for values, added in zip(sampled, (rows, codes), strict=True):
        values[slots[inside]] = added[inside]
    return sums, (sampled[0], sampled[1])


def _host_sums(layer: LayerSums, name: str, checked: bool) -> Sums:
    parts = {part.name: getattr(layer.sums, part.name) for part in fields(Sums)}
    for counter in INTEGERS:
        if parts[counter] is None:
            continue
        if checked and np.any(np.asarray(parts[counter]) == FULL):
            raise ValueError(
                f"layer {name!r} has counted 2^32 - 1 rows or more of a kind ({counter}), where "
                "its counters end: report and reset more often, or add up to_moments(state) of each part"
            )
        parts[counter] = np.asarray(parts[counter]).astype(np.int64)
    return Sums(**parts)


def _sampled(rows: Host, codes: Host) -> tuple[Host, Host, tuple[Host, Host] | None]:
    filled = codes[:, 0] != EMPTY
    (labels, predictions), rows = codes[filled].T, rows[filled]
    known = np.flatnonzero(predictions != UNDECIDED)
    return rows, labels, (known, predictions[known]) if len(known) else None


def head_of(head: Any) -> Head:
    """Return a classifier as core `Head`, whose weight is (C, d): a Flax kernel is its transpose."""
    if isinstance(head, Head):
        return head
    kernel = bias = None
    if isinstance(head, jax.Array | np.ndarray | nnx.Variable):
        kernel = head
    elif isinstance(head, Mapping):
        kernel, bias = head.get("kernel"), head.get("bias")
    elif isinstance(head, tuple | list) and len(head) == 2:
        kernel, bias = head
    elif isinstance(head, nnx.Module):
        kernel, bias = getattr(head, "kernel", None), getattr(head, "bias", None)
    weight = None if kernel is None else _float64(kernel)
    if weight is None or weight.ndim != 2:
        shape = "" if weight is None else f" with a kernel of shape {weight.shape}"
        raise ValueError(
            f"head is a {type(head).__name__}{shape}: pass an nnx.Linear, a mapping with 'kernel' (d, C) "
            "and 'bias', a pair (kernel, bias), or a collapsemeter.Head"
        )
    offset = None if bias is None or np.size(_plain(bias)) == 0 else _float64(bias)
    return classifier(weight.T, offset)


def _plain(parameter: Any) -> Any:
    """The array inside a variable of nnx, or a box of linen that carries a sharding."""
    if isinstance(parameter, nnx.Variable):
        parameter = parameter.get_value()
    return linen.meta.unbox(parameter)


def _float64(parameter: Any) -> npt.NDArray[np.float64]:
    array = _plain(parameter)
    return np.asarray(jax.device_get(array)).astype(np.float64)
