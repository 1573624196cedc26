"""From what a store has counted to a report: of this process, or merged over the ranks of a process group."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from collapsemeter import ClassMoments, CollapseReport, Head
from collapsemeter.adapter.joint_tally import JointTally, evened
from collapsemeter.adapter.network_report import network_report
from collapsemeter.adapter.selection import nothing_counted
from collapsemeter.adapter.tally import Tally
from collapsemeter.stats.fields import Phase
from collapsemeter.system.warning import warn

from . import compiled
from .batch import count_pending
from .counts import Call, Counts, counts_for, counts_of
from .data_parallel import buffers_of_rank_0
from .members import Sync, members_of, twins_among
from .merging import attempt, moments_of_all, result_of, result_of_all, tallies_of_all
from .namespace import device_of
from .provenance import ranks_said, with_missing_rows, without_weights
from .ranks import Members, on_device, ranks_of_meter, this_rank
from .sharding import is_sharded, mesh_ranks, twins
from .spread import Spread, is_plain, spread_of
from .tallies import causes, sample_size, tallies

if TYPE_CHECKING:
    from .recorder import Recorder
    from .state import Store

Result = TypeVar("Result")
_ADVICE = (
    "wrap the forward in `with meter.batch(labels):` while the model is in training mode (or pass "
    "count_eval=True), pass labels= to the model, or name the loss module with criterion="
)


class Reporter:
    """The maker of one meter's reports."""

    def __init__(self, recorder: Recorder, model: nn.Module, *, exact: bool) -> None:
        self._recorder, self._model, self._exact = recorder, model, exact
        self.ranks = ranks_of_meter()
        self._warned = False

    def live(self, sync: Sync, timeout: float) -> CollapseReport:
        """Return the report of what was counted live."""
        recorder, live = self._recorder, self._recorder.live
        members = members_of(sync, self._model)
        count_pending(recorder)
        steps = recorder.first_step, recorder.next_step
        on_gpu = device_of(recorder.root).type != "cpu"
        more = {
            "nothing": f"{recorder.nothing or _ADVICE}{compiled.hint(recorder.root)}",
            "steps": steps,
            "left_out": steps[1] - steps[0] - live.batches,
            "overhead": live.clock.provenance(compiled.UNSEEN, asynchronous=on_gpu),
        }
        here = this_rank()
        if members is None and here.ranks > 1:
            self._warn_once(
                f"sync=False: the report is of the rows of rank {here.rank} of {here.ranks} alone, not merged"
            )
        return self.report(live, "live", "compute()", members, timeout, **more)

    def spread(self, batches: Any, sync: Sync) -> tuple[Members | None, Spread | None]:
        """Return over which processes a frozen pass is merged, and how its data are spread."""
        auto = isinstance(sync, str) and sync == "auto"
        members = members_of(True if auto else sync, self._model)
        if members is None:
            return None, None
        spread = spread_of(batches)
        if spread is None and auto and not is_plain(batches):
            self._warn_once(
                f"observe() cannot see whether a {type(batches).__name__} is spread over ranks: the report is of "
                "this rank's rows; pass sync=True if it is, or sync=False"
            )
        if spread is None and not auto:
            spread = Spread(0, 0, None, None)
        return (None if spread is None else members), spread

    @contextlib.contextmanager
    def gathering(self, members: Members | None, timeout: float) -> Iterator[None]:
        """Meet the other ranks before a pass that is merged, and tell them if it fails."""
        if members is None:
            yield
            return
        self._meet(members, "observe()", timeout)
        try:
            with buffers_of_rank_0(self._model):
                yield
        except BaseException as error:
            self.ranks.fail(self._meeting(members), error)
            raise

    def _meet(self, members: Members, place: str, timeout: float) -> None:
        self.ranks.meet(self._meeting(members), place, timeout)

    def _meeting(self, members: Members) -> Members:
        """Return who must come: all, where weights are gathered from others than the members."""
        return Members() if mesh_ranks(self._model) - set(members.ranks) else members

    def _warn_once(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            warn(message, stacklevel=5)

    def report(
        self,
        store: Store,
        phase: Phase,
        place: str,
        members: Members | None,
        timeout: float,
        **more: Any,
    ) -> CollapseReport:
        """Return the report of a store, merged with those of the other members if there are any."""
        known = self._recorder.known
        with store.lock:
            # All that waits is added before the first layer is measured: threads of BLAS look for more
            # work by spinning, and PyTorch's operations between would wait for them.
            store.flush()
            copies = {} if known is None else tallies(store, known.selection)
            counts = self._counts(store, place, copies, members, **more)
            if members is None:
                even = {
                    key: partial(_own_tally, copy, self._sample_size(store, key), counts)
                    for key, copy in copies.items()
                }
                spread = is_sharded(self._model)
                head = None if known is None or spread else known.head(self._model)
                return self._measured(counts, even, phase, head)

            def measured(together: Counts, root: int) -> Callable[[], CollapseReport]:
                speaks = counts_for(members.here.rank, counts)
                own = {
                    key: partial(self._joint_tally, store, key, copy, phase)
                    for key, copy in copies.items()
                    if speaks
                }
                merged = tallies_of_all(members, together, own, root)
                head = None if known is None else attempt(lambda: known.head(self._model))
                return lambda: self._measured(together, merged, phase, result_of(head))

            return self._of_all(members, counts, timeout, measured)

    def moments(self, layer: str, call: int, sync: Sync, timeout: float) -> ClassMoments:
        """Return what a layer counted live as moments."""
        recorder, live = self._recorder, self._recorder.live
        known, members = recorder.known, members_of(sync, self._model)
        with live.lock:
            copies = {} if known is None else tallies(live, known.selection)
            state = live.layers.get((layer, call))
            counts = self._counts(live, f"moments({layer!r})", copies, members)

            def own_moments() -> ClassMoments | None:
                if state is None or not (members is None or counts_for(members.here.rank, counts)):
                    return None
                sums = state.host_sums()
                return ClassMoments.from_sums(sums, state.feature_dtype, "live", seed=state.seed)

            if members is None:
                return _counted(own_moments(), layer, call, counts)

            def merged(together: Counts, root: int) -> Callable[[], ClassMoments]:
                part = moments_of_all(members, own_moments, root)
                return lambda: _counted(result_of(part), layer, call, together)

            return self._of_all(members, counts, timeout, merged)

    def _of_all(
        self,
        members: Members,
        counts: Counts,
        timeout: float,
        merge: Callable[[Counts, int], Callable[[], Result]],
    ) -> Result:
        """Meet the other ranks, and return what `result_of_all` does."""
        self._meet(members, counts.place, timeout)
        with on_device(device_of(self._recorder.root)):
            return result_of_all(members, counts, merge)

    def _counts(
        self,
        store: Store,
        place: str,
        copies: Mapping[Call, Any],
        members: Members | None,
        **more: Any,
    ) -> Counts:
        """Return what this rank has counted besides the sums of its layers."""
        known = self._recorder.known
        same = () if members is None else twins_among(members, self._model, store.copies)
        counts = counts_of(store, known, place, calls=tuple(copies), twins=same, **more)
        if not (store.copies or twins(self._model)):
            return counts
        split = {
            layer: f"it gave {store.layers[layer, call].width} of {known.plan.widths[layer]} features on this rank, a part "
            "of what layers that are split among processes give: watch one whose output is whole"
            for layer, call in copies
            if known is not None
            and layer in known.plan.widths
            and store.layers[layer, call].width < known.plan.widths[layer]
        }
        return replace(counts, unpaired={**counts.unpaired, **split})

    def _joint_tally(
        self, store: Store, key: Call, copy: Callable[[], Tally], phase: Phase
    ) -> JointTally:
        return JointTally.of(copy(), phase, self._sample_size(store, key))

    def _sample_size(self, store: Store, key: Call) -> int | None:
        """Return how many rows the sample of a layer holds; None where all are kept."""
        return None if self._exact and key in store.exact_rows else sample_size(store, key)

    def _measured(
        self,
        counts: Counts,
        copies: Mapping[Call, Callable[[], Tally]],
        phase: Phase,
        head: Head | None,
    ) -> CollapseReport:
        """Measure every layer."""
        known, live = self._recorder.known, phase == "live"
        nothing = []
        if live and counts.batches == 0:
            nothing = [f"no labelled batch was counted: {counts.nothing}"]
        if not (live or counts.batches):
            raise ValueError("observe got no batch on any rank: pass (inputs, labels) pairs")
        if known is None:
            for part, error in counts.degraded.items():
                nothing.append(f"{part} failed and was left out: {error}")
            for message in nothing:
                warn(message, stacklevel=5)
            return CollapseReport({}, phase=phase, warnings=tuple(nothing))
        if others := self._recorder.attachment.replaced(known.selection.modules):
            nothing.append(
                f"{', '.join(map(repr, others))} was replaced by another module after the meter had learnt the "
                "network: make a new CollapseMeter to measure it"
            )
        provenance = self._live_provenance(counts) if live else {}
        report = network_report(
            known.selection,
            copies,
            known.settings,
            phase=phase,
            framework=f"torch {torch.__version__}",
            expected_rows=counts.rows,
            batches=counts.batches,
            head=head,
            causes=causes(self._model),
            degraded=counts.degraded,
            unpaired=counts.unpaired,
            warnings=nothing,
            interrupted=counts.interrupted,
            provenance=provenance | ranks_said(counts) | known.provenance(),
        )
        if head is None:
            code = "sharded_head" if is_sharded(self._model) else "scores_are_not_the_heads"
            report = without_weights(report, known.selection.head, code)
        return with_missing_rows(report) if self._exact else report

    def _live_provenance(self, counts: Counts) -> dict[str, Any]:
        first, following = counts.steps
        budget = self._recorder.budget.provenance(counts.left_out, counts.most_rows)
        return {"first_step": first, "last_step": following - 1, **budget, **counts.overhead}


def _own_tally(copy: Callable[[], Tally], sample_size: int | None, counts: Counts) -> Tally:
    """Return what a layer counted in this process."""
    return evened(copy(), sample_size, counts.numbered)


def _counted(moments: ClassMoments | None, layer: str, call: int, counts: Counts) -> ClassMoments:
    """Return moments, or raise ValueError where there are none."""
    if moments is None:
        raise nothing_counted(layer, call, counts.watched or [])
    return moments
