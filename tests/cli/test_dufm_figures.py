"""``collapsemeter dufm --plot``: figures are written, and the same run writes the same bytes."""

from pathlib import Path

import pytest

from collapsemeter.cli import main

TEN = ["dufm", "--classes", "10", "--depth", "4", "--per-class", "50", "--weight-decay", "4e-3"]
TWO = ["dufm", "--classes", "2", "--depth", "3", "--per-class", "10", "--weight-decay", "1e-2"]


def plotted(*arguments: str) -> None:
    assert main(list(arguments)) == 0


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_figures_are_written(ending: str, tmp_path: Path) -> None:
    single, many, alone = (tmp_path / f"{name}.{ending}" for name in ("one", "many", "alone"))
    plotted(*TWO, "--width", "6", "--solve", "--restarts", "1", "--plot", str(single))
    plotted(*TEN, "--sweep", "weight_decay=1e-3:1e-1:5", "--plot", str(many))
    plotted(*TWO, "--sweep", "depth=1:3:3", "--plot", str(alone))
    again = tmp_path / f"again.{ending}"
    plotted(*TEN, "--sweep", "weight_decay=1e-3:1e-1:5", "--plot", str(again))
    assert single.stat().st_size > 10_000
    assert alone.stat().st_size > 5_000
    assert many.read_bytes() == again.read_bytes()
