"""``collapsemeter demo``: train on real images past zero error, and watch every block collapse."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .report import CollapseReport

TRAINERS = {
    "torch": "collapsemeter_torch.demo",
    "keras": "collapsemeter_keras.demo",
    "flax": "collapsemeter_flax.demo",
}
EPOCHS = 60
FALL = 100.0  # what the verdict calls collapse: NC1 of the final layer falls by this factor


class Epoch(NamedTuple):
    """One epoch of the demo: mean loss, share of misclassified images, and what was measured.

    ``live`` holds the statistics of the training stream (None before training), ``frozen`` those of a
    pass over the training images with frozen weights.
    """

    number: int
    loss: float
    error: float
    live: CollapseReport | None
    frozen: CollapseReport


class Outcome(NamedTuple):
    """How the run ended: the history, the epoch of zero training error, and where things are.

    ``audited`` holds the last epoch once more, measured from the activations that were written.
    """

    history: list[Epoch]
    zero_error_epoch: int | None
    folder: Path
    audited: CollapseReport | None = None

    @property
    def fall(self) -> float:
        """By what factor NC1 of the final layer fell from the untrained network to the end."""
        first, last = self.history[0].frozen.final, self.history[-1].frozen.final
        return first["nc1_pinv"] / last["nc1_pinv"] if last["nc1_pinv"] > 0 else math.inf

    @property
    def collapsed(self) -> bool:
        """Whether NC1 fell far enough and every row is decided by nearest class centre."""
        return self.fall >= FALL and self.history[-1].frozen.final["nc4_mismatch"] == 0


def run(
    framework: str = "torch", epochs: int = EPOCHS, folder: str = "runs/demo", seed: int = 0
) -> Outcome:
    """Train, print a table row an epoch, and write events, JSON lines, figure, activations and report.

    Parameters
    ----------
    framework : str
        A key of `TRAINERS`.
    epochs : int
    folder : str
        Where to write; where it exists, the first of ``folder-2``, ``folder-3``, ... that does not.
    seed : int

    Returns
    -------
    Outcome

    Raises
    ------
    ValueError
        If the framework is unknown or ``epochs`` is not positive.
    ImportError
        If something to install is missing; the message names the extra.
    """
    from rich.console import Console
    from rich.progress import Progress

    from .demo_report import agreement, audited_report, write_report
    from .figure import plot
    from .sinks import Fan

    if epochs < 1:
        raise ValueError(f"epochs={epochs}: train for at least one")
    train = _trainer(framework)
    images, labels = digits()
    target = _fresh(Path(folder))
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{len(images)} scans of handwritten digits, 8 x 8; training a network in {framework}"
    )
    history: list[Epoch] = []
    zero: int | None = None
    with (
        Fan(target / "frozen" / "events", target / "frozen" / "reports.jsonl") as frozen,
        Fan(target / "live" / "events", target / "live" / "reports.jsonl") as live,
        Progress(console=console) as progress,
    ):
        task = progress.add_task("training", total=epochs)
        for epoch in train(images, labels, epochs, seed, target / "activations"):
            if not history:
                progress.console.print(_header(epoch.frozen))
            history.append(epoch)
            frozen.write(epoch.number, epoch.frozen)
            if epoch.live is not None:
                live.write(epoch.number, epoch.live)
            if zero is None and epoch.number > 0 and epoch.error == 0:
                zero = epoch.number
            progress.console.print(_row(epoch))
            progress.update(task, completed=epoch.number)
    reports = [(epoch.number, epoch.frozen) for epoch in history]
    for name in ("collapse.svg", "collapse.png"):
        plot(reports, target / name, zero_error_epoch=zero, title=_TITLE)
    audited = audited_report(target)
    outcome = Outcome(history, zero, target, audited)
    console.print(f"\n{verdict(outcome)}\n{agreement(history[-1].frozen, audited)}")
    page = write_report(target, [*reports[:-1], (history[-1].number, audited)], _TITLE)
    console.print(f"Report: {page}")
    return outcome


_TITLE = "Neural collapse on scikit-learn's digits"


def digits() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return scikit-learn's 1,797 scans of digits, (N, 8, 8) in 0..1, and their classes.

    Raises
    ------
    ImportError
        If scikit-learn is not installed.

    References
    ----------
    Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the demo's images come with scikit-learn: pip install 'collapsemeter[demo]'"
        ) from error
    bunch = load_digits()
    return (bunch.images / 16).astype(np.float32), bunch.target.astype(np.int64)


def _trainer(framework: str) -> Any:
    if framework not in TRAINERS:
        raise ValueError(f"framework={framework!r}: choose one of {', '.join(TRAINERS)}")
    try:
        return importlib.import_module(TRAINERS[framework]).train
    except ImportError as error:
        raise ImportError(
            f"the demo cannot train in {framework} ({error}): "
            f"pip install 'collapsemeter[demo,{framework}]'"
        ) from error


def _fresh(folder: Path) -> Path:
    """Return the folder, or a numbered one beside it, that does not exist: no run is overwritten."""

    def candidates() -> Iterator[Path]:
        yield folder
        number = 2
        while True:
            yield folder.with_name(f"{folder.name}-{number}")
            number += 1

    fresh = next(path for path in candidates() if not path.exists())
    fresh.mkdir(parents=True)
    return fresh


def _header(report: CollapseReport) -> str:
    blocks = "".join(f"{name:>8.8}" for name in report)
    nc1 = " nc1_pinv of ".center(8 * len(report), "-")
    final = f" of {list(report)[-1]} ".center(24, "-")
    return (
        f"{'':20}  {nc1}  {final}\nepoch    loss  error  {blocks}  {'etf':>8}{'dual':>8}{'mis':>8}"
    )


def _row(epoch: Epoch) -> str:
    final = epoch.frozen.final
    blocks = "".join(f"{layer['nc1_pinv']:8.2g}" for layer in epoch.frozen.values())
    return (
        f"{epoch.number:5d} {epoch.loss:7.4f} {epoch.error:6.2%}  {blocks}  "
        f"{final['nc2_etf_error']:8.3f}{final['nc3_self_duality']:8.3f}{final['nc4_mismatch']:8.2%}"
    )


def verdict(outcome: Outcome) -> str:
    """Return in words, with the run's own figures, whether the network collapsed."""
    first, last = outcome.history[0].frozen, outcome.history[-1].frozen
    name, start, end = list(last)[-1], first.final, last.final
    happened = "Neural collapse" if outcome.collapsed else "No full collapse yet"
    zero = outcome.zero_error_epoch
    error = (
        f"zero training error from epoch {zero}" if zero else "training error never reached zero"
    )
    slope, r = last.separation_law()
    return "\n".join(
        [
            f"{happened} after {outcome.history[-1].number} epochs; {error}. At the input of {name!r}:",
            f"  NC1  within-class variability fell {outcome.fall:.0f} times, from "
            f"{start['nc1_pinv']:.3g} to {end['nc1_pinv']:.3g} (nc1_pinv)",
            f"  NC2  distance of the class means to a simplex ETF: {start['nc2_etf_error']:.3g} to "
            f"{end['nc2_etf_error']:.3g} (nc2_etf_error)",
            f"  NC3  distance of the head to the class means: {start['nc3_self_duality']:.3g} to "
            f"{end['nc3_self_duality']:.3g} (nc3_self_duality)",
            f"  NC4  images not decided as the nearest class centre: {start['nc4_mismatch']:.2%} to "
            f"{end['nc4_mismatch']:.2%} (nc4_mismatch)",
            f"  In depth, separation fuzziness shrinks {math.exp(-slope):.1f} times a block "
            f"(r = {r:.3f}); least collapsed digits: {', '.join(map(str, end.worst_classes()))}",
            f"Figure: {outcome.folder / 'collapse.png'}   Curves: tensorboard --logdir {outcome.folder}",
        ]
    )
