"""What every reproduction shares: its options, its picture, and its file of figures.

A script gives three functions: `study` computes the figures, `report` says them in lines, and
`draw` makes a picture of nothing but these figures.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with every kind of colour blindness.
BLACK, ORANGE, SKY, GREEN = "#1A1A1A", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#767676"
COLOURS = (BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE)
# Where the colours alone would do, the markers say it again.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10.0,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}
PACKAGES = ("collapsemeter", "numpy", "scipy", "matplotlib", "torch", "scikit-learn")

Numbers = dict[str, Any]


class Options(NamedTuple):
    """What the command line asks for."""

    out: Path
    seed: int
    quick: bool

    def rng(self, *key: int) -> np.random.Generator:
        """A stream of random numbers of its own for every key."""
        return np.random.default_rng([self.seed, *key])


def main(
    claim: str,
    study: Callable[[Options], Numbers],
    report: Callable[[Numbers], Iterable[str]],
    draw: Callable[[Figure, Numbers], None],
) -> None:
    """Parse the options, study, print, and write the figures and the picture.

    Parameters
    ----------
    claim : str
        The script's docstring: its first line is what is reproduced.
    study : callable
        From the options to the figures, which JSON can hold.
    report : callable
        From the figures to the lines that are printed.
    draw : callable
        Draws the figures.
    """
    name = Path(sys.argv[0]).stem
    options = _options(claim)
    wall, cpu = time.perf_counter(), time.process_time()
    results = study(options)
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    # Through JSON and back, so that the picture shows what the file holds.
    document = json.loads(
        json.dumps(
            {
                "claim": claim.strip().splitlines()[0],
                "command": _command(name, options),
                "results": results,
                "seconds": seconds,
                "versions": _versions(),
            },
            allow_nan=False,
            default=_plain,
        )
    )
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / f"{name}.json"
    target.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    _picture(options.out / f"{name}.png", draw, document["results"])
    print(document["claim"])
    for line in report(document["results"]):
        print(line)
    print(f"{seconds['wall']:.0f} s, {seconds['cpu']:.0f} s of CPU; {target} and .png")


def _options(claim: str) -> Options:
    parser = argparse.ArgumentParser(description=claim.strip().splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"), help="folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it runs")
    return Options(**vars(parser.parse_args()))


def _command(name: str, options: Options) -> str:
    quick = " --quick" if options.quick else ""
    return f"python examples/reproduce/{name}.py --seed {options.seed}{quick}"


def _versions() -> dict[str, str]:
    used = [p for p in PACKAGES if {"scikit-learn": "sklearn"}.get(p, p) in sys.modules]
    return {"python": platform.python_version(), **{p: version(p) for p in used}}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"JSON cannot hold {type(value).__name__}: convert it in the study.")


def _picture(path: Path, draw: Callable[[Figure, Numbers], None], results: Numbers) -> None:
    # The caller's own style would make the same figures look different.
    style: Any = {
        k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")
    }
    with matplotlib.rc_context(style | STYLE):
        figure = Figure(figsize=(10, 4), layout="constrained")
        draw(figure, results)
        figure.savefig(path, dpi=110, metadata={"Software": None})


def legend_below(axes: Axes, columns: int) -> None:
    """Put the legend under the panel, where it hides nothing."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns)
