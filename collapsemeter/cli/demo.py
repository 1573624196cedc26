"""``collapsemeter demo``: train on real images past zero error, and watch every block collapse."""

import argparse
import importlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..adapter.epoch import Epoch
from ..report.criteria import Band, Criteria, pinv_words, worst
from ..report.report import CollapseReport
from ..system.files import write_atomically
from ..system.terminal import say

FRAMEWORKS = ("torch", "keras", "flax")
EPOCHS = 60
HEADLINES: dict[Band, str] = {
    "collapsed": "Neural collapse",
    "nearly collapsed": "Nearly neural collapse",
    "partly collapsed": "Partial neural collapse",
    "not collapsed": "No neural collapse yet",
    "not judged": "Nothing can be judged",
}
NC4 = ("nc4_agreement", "nc4_mismatch", "ncc_accuracy")
TOLERANCE = 1e-4  # what one network may differ by between frameworks that sum in float32
_TITLE = "Neural collapse on scikit-learn's digits"


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "demo",
        help="train on real images past zero error and watch every block collapse",
        description="Train a small convolutional network on scikit-learn's 1,797 digits past zero "
        "error, watch NC1 to NC4 of every block, and write TensorBoard events, JSON lines and a figure.",
        epilog="example: collapsemeter demo --epochs 40 --out runs/short",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.set_defaults(run=lambda o: run(o.framework, o.epochs, o.out, o.seed) and None)
    command.add_argument("--framework", default="torch", choices=FRAMEWORKS, help="what trains")
    command.add_argument("--epochs", type=int, default=EPOCHS, help="epochs to train")
    command.add_argument("--seed", type=int, default=0, help="of weights and batches")
    command.add_argument(
        "-o", "--out", default="runs/demo", help="folder to write to (never overwritten)"
    )
    command.writes(out="folder")


class Outcome(NamedTuple):
    """How the run ended; ``audited`` measures the last epoch once more, from the activations it wrote."""

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
    """Train, print a row an epoch, and write events, JSON lines, figure, activations and report into the folder, or a numbered one beside it where it exists."""
    from rich.console import Console
    from rich.progress import Progress

    from ..html.page import write_html
    from ..report.figure import plot
    from ..sinks.fan import Fan

    if epochs < 1:
        raise ValueError(f"epochs={epochs}: train for at least one")
    train = _trainer(framework)
    images, labels = digits()
    target = _fresh(Path(folder))
    console = Console(highlight=False, soft_wrap=True, markup=False)
    digits_words = f"{len(images)} scans of handwritten digits, 8 x 8"
    console.print(f"{digits_words}; training a network in {framework}")
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
            frozen.write(epoch.number, epoch.frozen.with_training_error(epoch.error))
            if epoch.live is not None:
                live.write(epoch.number, epoch.live.with_training_error(epoch.error))
            if zero is None and epoch.number > 0 and epoch.error == 0:
                zero = epoch.number
            progress.console.print(_row(epoch))
            progress.update(task, completed=epoch.number)
    reports = [(epoch.number, epoch.frozen.with_training_error(epoch.error)) for epoch in history]
    for name in ("collapse.svg", "collapse.png"):
        plot(reports, target / name, zero_error_epoch=zero, title=_TITLE)
    audited = audited_report(target)
    outcome = Outcome(history, zero, target, audited)
    say(f"\n{outcome_words(outcome)}\n{agreement(history[-1].frozen, audited)}")
    write_atomically(target / "report.json", audited.to_json(matrices=True).encode())
    reports[-1] = (history[-1].number, audited)
    write_html(target / "report.html", reports, title=_TITLE)
    say(f"Report: {target / 'report.html'}")
    return outcome


def digits() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return scikit-learn's 1,797 scans of digits (Alpaydin & Kaynak 1998), (N, 8, 8) in 0..1, and their classes."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the demo's images come with scikit-learn: pip install 'collapsemeter[demo]'"
        ) from error
    bunch = load_digits()
    return (bunch.images / 16).astype(np.float32), bunch.target.astype(np.int64)


def _trainer(framework: str) -> Any:
    if framework not in FRAMEWORKS:
        raise ValueError(f"framework={framework!r}: choose one of {', '.join(FRAMEWORKS)}")
    try:
        return importlib.import_module(f"collapsemeter_{framework}.demo").train
    except ImportError as error:
        raise ImportError(
            f"the demo cannot train in {framework} ({error}): "
            f"pip install 'collapsemeter[demo,{framework}]'"
        ) from error


def _fresh(folder: Path) -> Path:
    """Make the folder, or a numbered one beside it, that does not exist: no run is overwritten."""
    fresh, number = folder, 2
    while fresh.exists():
        fresh, number = folder.with_name(f"{folder.name}-{number}"), number + 1
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


def outcome_words(outcome: Outcome) -> str:
    """Return in words, with the run's own figures, whether the network collapsed."""
    first, last = outcome.history[0].frozen, outcome.history[-1].frozen
    zero = outcome.zero_error_epoch
    error = (
        f"zero training error from epoch {zero}" if zero else "training error never reached zero"
    )
    slope, r = last.separation_law()
    criteria = Criteria()
    before, after = criteria.judge(first.final), criteria.judge(last.final)
    lines = [
        f"{HEADLINES[outcome.band]} after {outcome.history[-1].number} epochs; {error}. "
        f"At the input of {list(last)[-1]!r}:",
    ]
    for name, judgement in after.items():
        figure = before[name].figure
        lines.append(f"  {judgement}" + (f"; {figure} before" if figure else ""))
    if not math.isnan(outcome.fall):
        lines.append(
            f"  {pinv_words(last.final)}, {outcome.fall:.0f} times less than before training"
        )
    lines += [
        f"  In depth, separation fuzziness shrinks {math.exp(-slope):.1f} times a block "
        f"(r = {r:.3f}); least collapsed digits: {', '.join(map(str, last.final.worst_classes()))}",
        f"Figure: {outcome.folder / 'collapse.png'}   Curves: tensorboard --logdir {outcome.folder}",
    ]
    return "\n".join(lines)


def audited_report(folder: Path) -> CollapseReport:
    """Measure the activations that the run wrote below its folder."""
    from ..audit.run import audit

    return audit(str(folder / "activations"))


def agreement(observed: CollapseReport, audited: CollapseReport) -> str:
    """Say how far the final layer's metrics from the files are from those of the network itself."""
    seen, measured = observed.final, audited.final
    largest = max(_difference(seen[name], measured[name]) for name in seen if name not in NC4)
    equal = all(_difference(seen[name], measured[name]) == 0 for name in NC4 if name in seen)
    agrees = "agrees" if equal and largest <= TOLERANCE else "does not agree"
    return (
        f"The audit of the files {agrees} with what was observed: metrics of {list(audited)[-1]!r} within "
        f"{largest:.1e}, NC4 {'equal' if equal else 'not equal'}"
    )


def _difference(a: float, b: float) -> float:
    """Return the relative difference; none between two values that do not exist."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    if math.isnan(a) or math.isnan(b):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b))
