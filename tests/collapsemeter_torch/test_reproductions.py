"""Every reproduction runs, writes its picture and its figures, and its key claim holds in them."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "reproduce"
HELPER = "reproduction"
ROUNDING = 1e-12  # of losses of order one, summed in float64

Numbers = dict[str, Any]


def binary_theorem(results: Numbers) -> None:
    for row in results["random"]:
        assert min(*row["gaps"], row["best_gap"]) >= -ROUNDING
        assert row["best_gap"] < 1e-6
    for row in results["threshold"]:
        learned = (row["depth"] - 1) / row["depth"] if row["ratio"] < 1 else 0.0
        # A relative 1e-6 below the threshold the fit has moved by less than that.
        np.testing.assert_allclose(row["fit"], learned, atol=1e-6)


def gradient_descent_dnc(results: Numbers) -> None:
    last = results["runs"][0][-1]
    assert min(row["gap"] for row in results["runs"][0]) >= -ROUNDING
    assert last["gap"] < 1e-4
    assert max(last["dnc1"]) < 1e-6
    # The first layer may be anything from an orthogonal frame to a simplex.
    assert max(last["dnc2"][1:]) < 1.05
    assert max(last["dnc3"]) < 0.1


def low_rank(results: Numbers) -> None:
    points = {row["kind"]: row for row in results["points"]}
    assert points["best"]["loss"] <= points["srg"]["loss"] < points["dnc"]["loss"]
    assert points["best"]["ranks"][:2] == [5, 5]
    assert results["lower_bound"] < points["best"]["loss"]


def srg_ratio(results: Numbers) -> None:
    below = {(row["depth"], row["classes"]) for row in results["graphs"] if row["ratio"] < 1}
    assert below == {(3, 10), (4, 6), (4, 10), (5, 6), (5, 10)}
    assert max(row["network_error"] for row in results["graphs"]) < ROUNDING


def dnc_probability(results: Numbers) -> None:
    narrow, wide = (
        [row for row in results["runs"] if row["width"] == width]
        for width in sorted({row["width"] for row in results["runs"]})
    )
    assert any(row["below"] for row in narrow)
    assert all(row["collapsed"] for row in wide)


def imbalance(results: Numbers) -> None:
    for row in results["thresholds"]:
        np.testing.assert_allclose(row["below"], (row["depth"] - 1) / row["depth"], atol=1e-5)
        assert row["above"] == 0.0
    for row in results["minimised"]:
        assert -ROUNDING <= row["gap"] < 1e-8
    assert all(row["status"] == "theorem" for row in results["softmax"])
    assert (np.diff([row["cosine_means"] for row in results["softmax"]]) > 0).all()


def ce_pairs(results: Numbers) -> None:
    for row in results["linear"]:
        wins = row["classes"] >= (6 if row["depth"] == 2 else 4)
        assert (row["pairs"] < 1) == wins
    for row in results["minimised"]:
        assert row["loss"] <= min(row["dnc"], row["pairs"], row["polygon"]) + ROUNDING


def few_samples(results: Numbers) -> None:
    rows = {(row["kind"], row["rows"]): row for row in (*results["simulated"], *results["real"])}
    for kind in ("gaussian", "digits"):
        few, more = (rows[kind, n]["nc1_trace_ratio"] for n in (2, 8))
        assert few["plain"] < more["plain"] < 0.9  # the fewer rows, the more it looks collapsed
        assert abs(more["estimate"] - 1) < 0.1
    assert all(row["flagged"] >= 0.5 and row["ncc_accuracy"] > 0.9 for row in results["noise"])
    assert all(row["plain"] > row["estimate"] for row in results["needed"])


def real_network(results: Numbers) -> None:
    first, last = results["history"][0], results["history"][-1]
    assert results["reference"]["loss"] < last["loss"] < first["loss"]
    assert results["accuracy"] > 0.95
    assert all(last["dnc1"][name] < first["dnc1"][name] / 3 for name in last["dnc1"])


CLAIMS: dict[str, Callable[[Numbers], None]] = {
    claim.__name__: claim
    for claim in (
        binary_theorem,
        gradient_descent_dnc,
        low_rank,
        srg_ratio,
        dnc_probability,
        imbalance,
        ce_pairs,
        real_network,
        few_samples,
    )
}


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_every_script_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {*CLAIMS, HELPER}


@pytest.mark.parametrize("name", CLAIMS)
def test_reproduction(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # As from the command line, but for loading SciPy and matplotlib again.
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "--out", str(tmp_path)])
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    text = (tmp_path / f"{name}.json").read_text()
    document = json.loads(text, parse_constant=refuse)
    assert document["seconds"]["cpu"] > 0
    assert document["versions"]["collapsemeter"]
    assert "settings" in document["results"]
    CLAIMS[name](document["results"])
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert document["claim"] in capsys.readouterr().out
