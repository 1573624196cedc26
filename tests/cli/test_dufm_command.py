"""``collapsemeter dufm``: what it prints, draws and refuses."""

import json
import math

import pytest

from collapsemeter.cli import main
from collapsemeter.dufm import DUFM, collapse_threshold
from collapsemeter.dufm.overview import overview, parse_sweep, problem_at

TEN = ["dufm", "--classes", "10", "--depth", "4", "--per-class", "50", "--weight-decay", "4e-3"]
TWO = ["dufm", "--classes", "2", "--depth", "3", "--per-class", "10", "--weight-decay", "1e-2"]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    try:
        status = main(list(arguments))
    except SystemExit as stop:
        status = int(str(stop.code))
    captured = capsys.readouterr()
    assert (status, captured.out) == (2, "")
    assert captured.err.startswith("collapsemeter: ")
    assert captured.err.count("\n") == 1
    return captured.err


def once(command: str, given: list[str]) -> list[str]:
    """The words of a command without the options that are given besides: none may be twice."""
    first, *options = command.split(" --")
    names = {word.split("=")[0] for word in given if word.startswith("--")}
    remaining = [option for option in options if f"--{option.split()[0]}" not in names]
    return [first, *(word for option in remaining for word in f"--{option}".split())]


def test_the_table_of_the_issue(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "dufm", "--classes", "10", "--depth", "4", "--weight-decay", "5e-4")
    assert max(map(len, text.splitlines())) <= 80
    assert "dnc           0.0124874623   1.0000  10x4             upper bound" in text
    assert "best known: srg, loss 0.01020173972, 18.3 % below collapse (dnc)" in text
    assert "and partial(8) to partial(1): losses" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["--classes", "3", "--per-class", "20", "5", "2", "--depth", "1", "--loss", "ce"],
        ["--classes", "5", "--per-class", "9", "7", "5", "3", "1", "--depth", "3"],
        ["--classes", "16", "--depth", "4", "--loss", "ce"],
        ["--classes", "4", "--depth", "1", "--bias", "--bias-decay", "0.1"],
        ["--classes", "12", "--depth", "30"],
        ["--classes", "6", "--depth", "3", "--activation", "linear", "--loss", "ce", "--bias"],
        ["--classes", "300", "--depth", "2", "--width", "20"],
        ["--classes", "30", "--per-class", *map(str, range(1000, 1030)), "--depth", "2"],
    ],
)
def test_every_kind_of_problem_fits_80_columns(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(capsys, "dufm", "--weight-decay", "1e-3", *arguments)
    assert max(map(len, text.splitlines())) <= 80
    assert "best known: " in text


def test_json_is_strict_and_alone(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    read = json.loads(printed(capsys, *TEN, "--json"), parse_constant=refuse)
    assert read["best_closed_form"] == "srg"
    assert read["best_known"] == {"name": "srg", "loss": read["references"][0]["loss"]}
    assert read["references"][1]["loss"] == pytest.approx(0.214623323978, abs=1e-11)
    assert read["references"][0]["ranks"] == [5, 5, 5, 10]
    assert read["thresholds"]["collapse"]["threshold"] == collapse_threshold(10, 4)
    assert read["solution"] is None
    strong = json.loads(printed(capsys, *TWO[:-1], "9", "--json"), parse_constant=refuse)
    assert strong["references"][0]["ratio_to_collapse"] is None


def test_solve_says_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, *TWO, "--width", "8", "--solve", "--restarts", "2", "--seed", "1")
    assert "solved: loss 0.0704870543 is the proven optimum to 1e-06 (dnc)" in text
    assert max(map(len, text.splitlines())) <= 80
    arguments = [*TWO, "--width", "8", "--solve", "--restarts", "2"]
    read = json.loads(printed(capsys, *arguments, "--json"))
    assert read["solution"]["proven"] is True
    assert printed(capsys, *arguments, "--quiet").startswith("loss 0.0704870543 is the proven")


def test_quiet_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, *TWO, "--quiet")
    assert text.startswith("best known: dnc, loss 0.07048705429; theorem")
    assert text.count("\n") == 1
    swept = printed(capsys, *TWO, "--quiet", "--sweep", "depth=2:3:2")
    assert swept.splitlines()[0].startswith("depth = 2: dnc, loss ")


def test_a_sweep_crosses_the_threshold(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, *TWO, "--sweep", "weight_decay=1e-3:1:11")
    rows = text.splitlines()[2:]
    assert len(rows) == 11
    assert "dnc " in rows[0]
    assert "zero" in rows[-1]
    assert max(map(len, text.splitlines())) <= 80
    solved = printed(
        capsys, *TWO, "--width", "6", "--sweep", "feature_decay=1e-3:1e-2:2", "--solve",
        "--restarts", "1",
    )  # fmt: skip
    assert solved.splitlines()[0].endswith("solved")
    read = json.loads(printed(capsys, *TEN, "--sweep", "classes=6:10:3", "--json"))
    assert [point["value"] for point in read["points"]] == [6, 8, 10]
    assert read["points"][2]["best_closed_form"] == "srg"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--weight-decay=-1"], "weight_decay of layer 1 must be positive and finite, got -1.0"),
        (["--weight-decay", "1", "2"], "weight_decay must be one value or 4, one per layer, got 2"),
        (["--classes", "1"], "num_classes must be at least 2, got 1"),
        (["--loss", "hinge"], "invalid choice: 'hinge'"),
        (["--json", "--quiet"], "not allowed with argument --json"),
        (["--plot", "figure.pdf"], "the figure is written as .svg or .png, got 'figure.pdf'"),
        (
            ["--sweep", "width=1:2:3"],
            "--sweep width=1:2:3: sweep one of weight_decay, feature_decay",
        ),
        (["--sweep", "depth=2:1:3"], "write depth=LOW:HIGH:COUNT with 0 < LOW < HIGH"),
        (["--sweep", "depth=2:x:3"], "write depth=LOW:HIGH:COUNT with 0 < LOW < HIGH"),
        (["--bias-decay", "1"], "bias_decay 1.0 was given without a bias"),
        (["--solve", "--restarts", "0"], "restarts must be at least 1, got 0"),
        (["--solve", "--jobs", "0"], "jobs must be at least 1, got 0"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = once("dufm --classes 10 --depth 4 --weight-decay 4e-3", arguments)
    assert said in refused(capsys, *base, "--quiet" if "--json" not in arguments else "--json",
                           *[a for a in arguments if a != "--json"])  # fmt: skip


def test_a_sweep_of_the_depth_needs_what_fits_every_depth() -> None:
    problem = DUFM(3, 1, 2, feature_decay=0.01, weight_decay=[0.01, 0.02])
    with pytest.raises(ValueError, match="a sweep of depth needs one --per-class and one --weight"):
        problem_at(problem, "depth", 3.0)
    narrow = DUFM(3, 1, 2, 5, feature_decay=0.01, weight_decay=0.01)
    assert problem_at(narrow, "depth", 4.0).layer_widths == (5, 5, 5, 5)
    assert parse_sweep("feature_decay=1e-4:1e-2:3").values == pytest.approx((1e-4, 1e-3, 1e-2))


@pytest.mark.parametrize("options", [{"loss": "ce"}, {"bias": True}, {"loss": "ce", "bias": True}])
def test_collapse_ends_at_the_threshold_from_both_sides(options: dict[str, object]) -> None:
    def problem(decay: float) -> DUFM:
        return DUFM(4, 1, 3, feature_decay=decay, weight_decay=decay, **options)  # type: ignore[arg-type]

    actual = {t.name: t for t in overview(problem(1e-3)).thresholds}
    threshold = actual["collapse"].threshold
    below, above = (
        overview(problem(threshold * (1 - 1e-6))),
        overview(problem(threshold * (1 + 1e-6))),
    )
    assert below.collapsed is not None
    assert above.collapsed is None
    assert "not below" in above.thresholds[0].words
    assert math.isnan(above.ratio(1.0))


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["dufm", "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "collapsemeter dufm --classes 10 --depth 4 --per-class 50 --weight-decay 4e-3" in text
    assert max(map(len, text.splitlines())) <= 80
