"""The kit's view of an adapter: a model that is known exactly, and an adapter at work on it."""

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ..adapter.settings import Settings
from ..report.report import CollapseReport
from ..stats.fields import Phase
from ..stats.moments import ClassMoments

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[Any]
Batch = tuple[Features, Labels]
Form = Literal[
    "plain",
    "head_first",
    "reversed",
    "two_heads",
    "functional_tail",
    "one_score",
    "one_label",
    "repeated",
]


@dataclass(frozen=True, eq=False)
class Spec:
    """The model that a driver builds, and how its adapter is told to measure it.

    The model passes its input on, and its head is the given linear map, so that every feature is known:

    * ``shape`` is ``(d,)``: the head reads the rows as they are;
    * ``(H, W, d)``, an image with channels last: the head reads its mean over positions, and the layer
      before the mean is watched too, where the adapter watches layers (with channels first, if that is
      the framework's way);
    * ``(T, d)``, a sequence: the head reads every token, and labels have the shape (B, T).

    The network may be written as people write theirs, and the adapter is to find layers and head itself:

    * ``head_first``: the head is declared before the layer that passes the input on;
    * ``reversed``: two layers, of which the first to run doubles what it is given and the second halves it
      again; head and layers are declared in the reverse of the order in which they run;
    * ``two_heads``: the scores are the mean of two linear maps, of weight ``weight`` + 1/8 and
      ``weight`` - 1/8, each with the bias;
    * ``functional_tail``: the scores are the log-softmax of the head's output, by a function;
    * ``one_score``: ``weight`` has one row, and the score is the sigmoid of the head's output, by a function;
    * ``one_label``: a sequence ``(T, d)`` with one label: the head reads the mean over its positions;
    * ``repeated``: the layer that passes the input on is called twice, one call on the other's output.

    Attributes
    ----------
    num_classes : int
        C.
    shape : tuple of int
        Of one sample's features; the last is the width d.
    weight : (C, d), bias : (C,) float32 arrays
        Of the head; both are numbers that every dtype has.
    dtype : {"float32", "bfloat16", "float16"}
        What the network computes in. Features come as float32 that this dtype represents exactly.
    phase : {"live", "frozen-eval"}
        Whether batches are fed as training steps or as a pass with frozen weights. Under ``frozen-eval``
        only `Driver.feed`, `Driver.report` and `Driver.close` are called.
    options : mapping
        What the adapter is told besides ``num_classes``: arguments of `collapsemeter.adapter.settings.Settings`.
    form : str
        How the network is written. Unless it is ``plain``, the driver names neither layers nor head.

    Examples
    --------
    >>> spec = Spec(2, (3,), np.eye(2, 3, dtype=np.float32), np.zeros(2, np.float32))
    >>> spec.width, spec.settings.sample_rows, spec.dtype
    (3, 4096, 'float32')
    """

    num_classes: int
    shape: tuple[int, ...]
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    dtype: str = "float32"
    phase: Phase = "live"
    options: Mapping[str, Any] = field(default_factory=dict)
    form: Form = "plain"

    @property
    def pooled(self) -> bool:
        """Whether the head reads a mean over positions."""
        return len(self.shape) == 3 or self.form == "one_label"

    @property
    def width(self) -> int:
        """Features d that the head reads."""
        return self.shape[-1]

    @property
    def settings(self) -> Settings:
        """The options with every default filled in."""
        return Settings(self.num_classes, **self.options)


class Driver(Protocol):
    """An adapter at work on the model of a `Spec`. An author writes one class with these methods.

    The model's weights must not move while it is fed (no step, or a learning rate of zero on frozen
    weights: with a loss that is NaN, zero times its gradient is NaN).
    """

    def attach(self) -> None:
        """Attach the adapter to the model; before this the model is as its user made it."""

    def feed(self, features: Features, labels: Labels) -> None:
        """Run the model on one batch and have it counted.

        Features have the shape (B, *spec.shape). Labels are (B,) or (B, T) integers, (B, 1), or one-hot
        (B, C); pass them on as they are. Let the adapter's exceptions through.
        """

    def report(self) -> CollapseReport:
        """Return the report of what was fed; its last layer is what the head reads."""

    def moments(self) -> ClassMoments:
        """Return the moments of what the head reads; empty ones where nothing was fed."""

    def reset(self) -> None:
        """Forget what was fed."""

    def merge(self, other: Any) -> ClassMoments:
        """Return the moments of what was fed to both, in the way the adapter merges; neither changes."""

    def save(self, path: Path) -> None:
        """Write the state to a file of that name."""

    def load(self, path: Path) -> None:
        """Continue from a file that `save` wrote."""

    def fingerprint(self) -> Any:
        """Return what an adapter might change of the user's model, to be compared by ``==``.

        Attributes, hooks, methods put on an instance, weights as bytes.
        """

    def close(self) -> None:
        """Take the adapter off the model; `fingerprint` is asked for once more."""


Make = Callable[[Spec], Driver]
Case = Callable[[Make], None]


# Running a case


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


def turned_away(driver: Driver, batch: Batch) -> bool:
    """Feed a batch that may be refused; return whether it was."""
    try:
        driver.feed(*batch)
    except Exception:  # frameworks have exceptions of their own for shapes that do not fit
        return True
    return False


@contextmanager
def ignoring_warnings() -> Iterator[None]:
    """Let the warnings pass that a fault is meant to raise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
