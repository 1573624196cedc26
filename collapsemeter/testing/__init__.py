"""The conformance kit: what every adapter must pass, with the NumPy core as the oracle.

Write a `Driver`, then run the cases, with pytest:

.. code-block:: python

    @pytest.mark.parametrize("case", testing.CASES)
    def test_conformance(case):
        case(MyDriver)

or all at once with `check_adapter`. See ``adapters/README.md``. The modules:

* `driver`: what the kit needs of an adapter, and how a case runs
* `streams`: the data that are fed, small, seeded and without a tie
* `oracle`: what the NumPy core says of the same data
* `row_cases`, `network_cases`, `life_cases`: the cases
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from . import life_cases, network_cases, row_cases
from .driver import Case, Driver, Form, Make, Spec

__all__ = ["CASES", "Case", "Driver", "Form", "Make", "Spec", "check_adapter"]

CASES: tuple[Case, ...] = (*row_cases.CASES, *network_cases.CASES, *life_cases.CASES)
"""Every case: a function of `Make` that raises AssertionError; its docstring says what it guards against."""

_NOTHING: Mapping[str, str] = MappingProxyType({})


def check_adapter(
    make: Make,
    cases: Iterable[Case] | None = None,
    *,
    unsupported: Mapping[str, str] = _NOTHING,
) -> dict[str, str]:
    """Run the cases on an adapter; say of each whether it passed.

    Parameters
    ----------
    make : callable
        From a `Spec` to a `Driver` that is not yet attached; a driver class will do.
    cases : iterable of case, optional
        Some of `CASES`; by default all.
    unsupported : mapping from the name of a case to a reason
        What the adapter cannot do, in words. These cases are not run, and are printed with the reason.

    Returns
    -------
    dict of str to str
        By case: ``passed``, or ``unsupported: `` and the reason.

    Raises
    ------
    AssertionError
        If a case fails; it tells of every case that does.
    ValueError
        If ``unsupported`` names no case, or gives no reason.

    Examples
    --------
    >>> [case.__name__ for case in CASES[:3]]
    ['one_batch', 'ragged_batches', 'single_rows']
    >>> check_adapter(lambda spec: None, CASES[:1], unsupported={"one_batch": "there are no batches"})
    one_batch is not checked: there are no batches
    {'one_batch': 'unsupported: there are no batches'}
    """
    names = {case.__name__ for case in CASES}
    for name, reason in unsupported.items():
        if name not in names:
            raise ValueError(
                f"unsupported names {name!r}, which is no case: {', '.join(sorted(names))}"
            )
        if not reason:
            raise ValueError(f"unsupported={{{name!r}: {reason!r}}}: give the reason in words")
    outcome: dict[str, str] = {}
    failures: dict[str, Exception] = {}
    for case in CASES if cases is None else cases:
        name = case.__name__
        if name in unsupported:
            print(f"{name} is not checked: {unsupported[name]}")
            outcome[name] = f"unsupported: {unsupported[name]}"
            continue
        try:
            case(make)
        except Exception as error:
            failures[name] = error
        else:
            outcome[name] = "passed"
    if failures:
        told = [f"{len(failures)} of {len(outcome) + len(failures)} cases failed"]
        told += [_told(name, error) for name, error in failures.items()]
        raise AssertionError("\n\n".join(told)) from next(iter(failures.values()))
    return outcome


def _told(name: str, error: Exception) -> str:
    if isinstance(error, AssertionError):
        return str(error)
    return f"{name}: the driver or its adapter raised {type(error).__name__}: {error}"
