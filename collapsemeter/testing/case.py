"""How a case runs: attach a driver, feed it, hold it against the oracle, and say what went wrong."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from ..report.report import CollapseReport
from .driver import Batch, Case, Driver, Make, Spec
from .oracle import Oracle
from .streams import Stream

NEAR = 1e-3  # within-class std of features near collapse, where class means are about 1 apart
OFFSET = 1e3  # what all features have in common: an ulp of float32 there is 6e-5


def case(listed: list[Case]) -> Callable[[Callable[[Make], None]], Case]:
    """List a case; its failures begin with its name and end with its docstring."""

    def named(check: Callable[[Make], None]) -> Case:
        @functools.wraps(check)
        def run(make: Make) -> None:
            try:
                check(make)
            except AssertionError as error:
                hint = " ".join((check.__doc__ or "").split())
                raise AssertionError(f"{check.__name__}: {error}\nThis case: {hint}") from error
            except Exception as error:
                error.add_note(f"in case {check.__name__} of collapsemeter.testing")
                raise

        listed.append(run)
        return run

    return named


@contextmanager
def attached(make: Make, spec: Spec, batches: Iterable[Batch] = ()) -> Iterator[Driver]:
    """Attach a driver, feed it, and close it in the end."""
    driver = make(spec)
    driver.attach()
    try:
        feed(driver, batches)
        yield driver
    finally:
        driver.close()


def feed(driver: Driver, batches: Iterable[Batch]) -> None:
    """Feed every batch."""
    for features, labels in batches:
        driver.feed(features, labels)


def agrees(make: Make, spec: Spec, stream: Stream) -> CollapseReport:
    """Feed a stream to a new driver and hold its report and moments against the core."""
    with attached(make, spec, stream) as driver:
        return Oracle(spec, stream).check(driver)


def turned_away(driver: Driver, batch: Batch) -> bool:
    """Feed a batch that may be refused; return whether it was."""
    try:
        driver.feed(*batch)
    except Exception:  # frameworks have exceptions of their own for shapes that do not fit
        return True
    return False


@contextmanager
def quiet() -> Iterator[None]:
    """Let the warnings pass that a fault is meant to raise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
