"""The states of all ranks side by side, not merged, for checkpoints that one process writes for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .ranks import Members, Ranks, of_all, ranks_of_meter, this_rank

if TYPE_CHECKING:
    from .meter import CollapseMeter

TIMEOUT = 60.0  # seconds that ranks wait for each other
_RANKS = "ranks"


class StateOfRanks:
    """The state of a meter on all ranks, where a checkpoint holds one for all of them.

    Its `state_dict` gathers what every rank has counted, and its `load_state_dict` gives each rank its own
    part. So ``accelerator.register_for_checkpointing(StateOfRanks(meter))`` saves and resumes a meter.

    Parameters
    ----------
    meter : CollapseMeter

    Raises
    ------
    TypeError
        If it is no meter.

    Examples
    --------
    >>> from torch import nn
    >>> from collapsemeter_torch import CollapseMeter
    >>> meter = CollapseMeter(nn.Linear(4, 3), verbose=False)
    >>> state = StateOfRanks(meter).state_dict()
    >>> StateOfRanks(meter).load_state_dict(state)
    """

    def __init__(self, meter: CollapseMeter) -> None:
        if not hasattr(meter, "compute"):
            raise TypeError(f"StateOfRanks({meter!r}): pass the CollapseMeter whose state is saved")
        self._meter, self._ranks = meter, ranks_of_meter()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all ranks in their order; every rank must call it.

        Raises
        ------
        TimeoutError
            If a rank does not come; the error names it.
        """
        return gathered_states(self._ranks, self._meter.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from this rank's part of a `state_dict`.

        Raises
        ------
        ValueError
            If it is of another number of ranks, or as `CollapseMeter.load_state_dict`.
        """
        self._meter.load_state_dict(state_of_this_rank(state))


def gathered_states(ranks: Ranks, state: dict[str, Any]) -> dict[str, Any]:
    """Return the states of all ranks as one; every rank must call it."""
    if this_rank().ranks == 1:
        return {_RANKS: [state]}
    ranks.meet(Members(), "state_dict()", TIMEOUT)
    return {_RANKS: of_all(Members(), state)}


def state_of_this_rank(state: dict[str, Any]) -> dict[str, Any]:
    """Return the part of this rank of what `gathered_states` returned, or of one process the state itself."""
    states: list[dict[str, Any]] = state.get(_RANKS, [state])
    check_processes(len(states))
    return states[this_rank().rank]


def check_processes(saved: int) -> None:
    """Raise ValueError unless there are as many processes as had counted what was saved."""
    now = this_rank().ranks
    if saved != now:
        raise ValueError(
            f"the state is that of {saved} process{'es' * (saved > 1)} and there {'are' if now > 1 else 'is'} {now}: "
            "resume on as many, or call reset()"
        )
