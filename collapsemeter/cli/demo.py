"""``collapsemeter demo``: train on real images past zero error, and watch every block collapse."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..report.criteria import Band, Criteria, Judgement, pinv_words, worst
from ..report.report import CollapseReport
from ..system.terminal import say

TRAINERS = {
    "torch": "collapsemeter_torch.demo",
    "keras": "collapsemeter_keras.demo",
    "flax": "collapsemeter_flax.demo",
}
EPOCHS = 60
HEADLINES: dict[Band, str] = {
    "collapsed": "Neural collapse",
    "nearly collapsed": "Nearly neural collapse",
    "partly collapsed": "Partial neural collapse",
    "not collapsed": "No neural collapse yet",
    "not judged": "Nothing can be judged",
}


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
        start, end = (layer.get("nc1_pinv", math.nan) for layer in (first, last))
        return start / end if end != 0 else math.inf

    @property
    def band(self) -> Band:
        """The worst band of NC1 to NC4 of the final layer at the end, of those that are judged."""
        judged = Criteria().judge(self.history[-1].frozen.final).values()
        return worst(judgement.band for judgement in judged)


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

    from ..report.figure import plot
    from ..sinks import Fan
    from .demo_report import agreement, audited_report, write_report

    if epochs < 1:
        raise ValueError(f"epochs={epochs}: train for at least one")
    train = _trainer(framework)
    images, labels = digits()
    target = _fresh(Path(folder))
    console = Console(highlight=False, soft_wrap=True, markup=False)
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
    say(f"\n{verdict(outcome)}\n{agreement(history[-1].frozen, audited)}")
    page = write_report(target, [*reports[:-1], (history[-1].number, audited)], _TITLE)
    say(f"Report: {page}")
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
    zero = outcome.zero_error_epoch
    error = (
        f"zero training error from epoch {zero}" if zero else "training error never reached zero"
    )
    slope, r = last.separation_law()
    criteria = Criteria()
    before, after = criteria.judge(first.final), criteria.judge(last.final)
    return "\n".join(
        [
            f"{HEADLINES[outcome.band]} after {outcome.history[-1].number} epochs; {error}. "
            f"At the input of {list(last)[-1]!r}:",
            *(f"  {_moved(before[name], after[name])}" for name in after),
            *_fell(outcome),
            f"  In depth, separation fuzziness shrinks {math.exp(-slope):.1f} times a block "
            f"(r = {r:.3f}); least collapsed digits: {', '.join(map(str, last.final.worst_classes()))}",
            f"Figure: {outcome.folder / 'collapse.png'}   Curves: tensorboard --logdir {outcome.folder}",
        ]
    )


def _fell(outcome: Outcome) -> list[str]:
    words = pinv_words(outcome.history[-1].frozen.final)
    if math.isnan(outcome.fall):
        return []
    return [f"  {words}, {outcome.fall:.0f} times less than before training"]


def _moved(before: Judgement, after: Judgement) -> str:
    return str(after) + (f"; {before.figure} before" if before.figure else "")
