"""What ``collapsemeter dufm`` says agrees with the table below it and with what descent finds."""

import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from collapsemeter import compare
from collapsemeter.cli import main
from collapsemeter.dufm import DUFM, DoesNotApply, dnc, lower_bound, partial, solve, zero
from collapsemeter.dufm.closed.feasible import collapsed
from collapsemeter.dufm.overview import Sweep, overview, run_sweep
from collapsemeter.dufm.registry import names_of

COLLAPSED_NAMES = names_of("collapsed")
LOW_RANK_NAMES = names_of("low rank")
ROW = re.compile(
    r"(\S+) +(\d+\.\d{10}) +(-|[\d.e+]+) +(\S.*?)  +(theorem|best known|upper bound)  +\["
)


def model(classes, n, depth, decay, **more):
    return DUFM(classes, n, depth, feature_decay=decay, weight_decay=decay, **more)


def contradictions(text, classes):
    """Sentences of the command's text that its own table denies."""
    said = " ".join(text.split())
    rows = [ROW.match(line) for line in text.splitlines()]
    table = {row[1]: (float(row[2]), row[3], row[4], row[5]) for row in rows if row}
    full = [name for name in table if name in COLLAPSED_NAMES]
    actual = []

    def check(holds, words):
        if not holds:
            actual.append(words)

    check("nan" not in said.lower() and " inf" not in said, "a number without a value")
    check("zero" in table, "the zero network is missing")
    if "collapse exists" in said:
        check(full and table[full[0]][0] < table["zero"][0], "collapse exists")
    if "collapse does not exist here" in said or "there is no collapse" in said:
        check(not full, "collapse does not exist")
    ratios = [row[1] for row in table.values()]
    check(all(r == "-" for r in ratios) == ("there is no collapse" in said), "ratios")
    low = [n for n in table if n in LOW_RANK_NAMES and lowest_rank(table[n][2]) < classes - 1]
    if "no closed form of low rank" in said:
        check(not low, "no closed form of low rank")
    if "the low-rank" in said:
        name, loss = re.search(r"the low-rank (\S+) has loss ([\d.e-]+)", said).groups()
        check(name in low, "low-rank")
        if "not below collapse" in said:
            check(float(loss) >= table[full[0]][0] * (1 - 1e-5), "not below collapse")
    best = re.search(r"best closed form: (\S+), loss ([\d.e-]+);", said)
    lowest = min(loss for loss, *_ in table.values())
    check(abs(float(best[2]) - lowest) <= 1e-9, "best closed form")
    known = re.search(r"best known: (\S+), loss ([\d.e-]+)[,;]", said)
    check(known is None or float(known[2]) <= float(best[2]), "best known")
    if known is not None and known[1] == "zero" and "solved:" not in said:
        check(table["zero"][3] == "theorem", "zero is best known")
    bound = re.search(r"the proven lower bound is ([\d.e+-]+)", said)
    check(bound is None or float(bound[1]) <= lowest * (1 + 1e-5), "lower bound")
    return actual


def lowest_rank(ranks):
    """The least rank of hidden layers in a column such as "5x3 10"."""
    values = []
    for run in ranks.split():
        value, _, count = run.partition("x")
        values += [int(value)] * int(count or 1)
    return min(values[:-1], default=10**9)


WIDTHS = {"default": [], "narrow": ["--width", "3"], "wide enough": ["--width", "6"]}
DECAYS = ["1e-7", "1e-4", "1e-2", "6e-2", "3"]
KINDS = [
    *product(("mse", "ce"), ("relu", "linear"), ([], ["--bias"], ["--bias", "--bias-decay", "0.1"]))
]


SHAPES = [["--classes", "6"], ["--classes", "4", "--per-class", "4", "3", "2", "1"]]


@pytest.mark.parametrize("number", range(len(KINDS)))
def test_no_sentence_contradicts_the_table(number, capsys):
    loss, activation, bias = KINDS[number]
    grid = list(product(SHAPES, ("1", "2", "4"), WIDTHS.values(), DECAYS))
    for shape, depth, width, decay in grid[number % 11 :: 11]:  # others for every kind
        arguments = [
            "dufm", *shape, "--depth", depth, *width, "--weight-decay", decay,
            "--loss", loss, "--activation", activation, *bias,
        ]  # fmt: skip
        assert main(arguments) == 0, arguments
        printed = capsys.readouterr()
        assert printed.err == "", arguments
        assert max(map(len, printed.out.splitlines())) <= 80, arguments
        assert contradictions(printed.out, int(shape[1])) == [], arguments


@pytest.mark.parametrize(
    ("arguments", "said", "unsaid"),
    [
        (
            "--classes 10 --depth 4 --width 5",
            "too narrow: collapse does not exist here; dnc needs widths (5, 10, 10, 10), got",
            "collapse exists",
        ),
        ("--classes 10 --depth 4 --width 64 9 64 64", "dnc needs widths (10, 10, 10, 10)", "exists"),
        ("--classes 10 --depth 4 --width 64 64 64 9", "collapse does not exist here", "exists"),
        ("--classes 10 --depth 4 --width 4 64 64 64", "dnc needs widths (5, 10, 10", "exists and"),
        ("--classes 10 --depth 4 --width 5 10 10 10", "collapse exists and beats", "too narrow"),
        ("--classes 10 --depth 1 --width 9", "ufm_mse needs widths (10,)", "collapse exists"),
        ("--classes 10 --depth 1 --width 9 --bias", "collapse exists and beats", "too narrow"),
        ("--classes 10 --depth 1 --width 8 --bias", "ufm_mse needs widths (9,)", "collapse exists"),
        ("--classes 10 --depth 1 --width 9 --loss ce", "collapse exists and beats", "too narrow"),
        ("--classes 10 --depth 1 --width 8 --loss ce", "ufm_ce needs widths (9,)", "exists and"),
        ("--classes 10 --depth 3 --width 9 --loss ce", "dnc needs widths (5, 10, 10)", "exists and"),
        (
            "--classes 10 --depth 3 --width 9 --activation linear",
            "linear needs widths (10, 10, 10)",
            "collapse exists",
        ),
        (
            "--classes 10 --depth 3 --width 9 --activation linear --bias",
            "collapse exists and beats",
            "too narrow",
        ),
        (
            "--classes 10 --depth 3 --width 9 --activation linear --loss ce",
            "collapse exists and beats",
            "too narrow",
        ),
        (
            "--classes 10 --depth 3 --width 9 --bias --bias-decay 0.1",
            "dnc needs widths (5, 10, 10), got (9, 9, 9)",
            "collapse exists",
        ),
        (
            "--classes 10 --depth 4 --width 64 8 64 64",
            "low rank: the low-rank srg has loss 0.0102017; collapse does not exist here",
            "no closed form of low rank",
        ),
        (
            "--classes 200 --depth 12 --weight-decay 5e-4",
            "low rank: the low-rank blocks has loss",
            "no closed form of low rank",
        ),
        (
            "--classes 3 --per-class 3 2 1 --depth 2 --width 2",
            "in the frame gof: 2 of 3, the largest, since the narrowest layer has 2 neurons",
            "3 of 3",
        ),
    ],
)  # fmt: skip
def test_the_headline_follows_the_widths(arguments, said, unsaid, capsys):
    decay = "" if "--weight-decay" in arguments else "--weight-decay 5e-4"
    assert main(["dufm", *arguments.split(), *decay.split()]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert said in text
    assert unsaid not in text


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_collapse_fits_a_first_layer_of_half_the_classes(classes):
    half = (classes + 1) // 2
    problem = model(classes, 2, 3, 0.002, widths=[half, classes, classes])
    best, wide = dnc(problem), dnc(model(classes, 2, 3, 0.002))
    assert best.loss == wide.loss
    assert best.rank(1) == half
    if classes < 5:
        solution = solve(problem, restarts=1, structured=1, rng=0, steps=500)
        assert solution.loss == pytest.approx(best.loss, rel=1e-6)
    with pytest.raises(DoesNotApply, match=r"dnc needs widths \(\d, \d, \d\)"):
        dnc(model(classes, 2, 3, 0.002, widths=[half, classes, classes - 1]))
    if half > 1:
        with pytest.raises(DoesNotApply, match="widen the layers"):
            dnc(model(classes, 2, 3, 0.002, widths=[half - 1, classes, classes]))


def test_a_free_first_layer_is_infeasible_only_below_half_the_classes():
    reference = dnc(model(6, 2, 3, 0.002))
    statuses = {}
    for width in (2, 3, 5):
        narrow = dnc(model(6, 2, 3, 0.002, widths=[3, 6, 6])).moments()
        narrow[1] = partial(model(6, 2, 3, 0.002, widths=width), min(width, 5)).moments()[1]
        statuses[width] = compare(narrow, reference)["1"].status
    assert statuses[2] == "infeasible"
    assert "infeasible" not in (statuses[3], statuses[5])


BIASED = [
    model(10, 1, 3, 0.002, bias=True, bias_decay=0.01),
    model(4, 1, 2, 0.004, bias=True, bias_decay=0.1),
    model(3, [4, 2, 1], 2, 0.004, bias=True, bias_decay=0.1),
    model(3, [4, 2, 1], 3, 0.004, bias=True),
    model(3, [4, 2, 1], 2, 0.01, loss="ce", bias=True, bias_decay=0.1),
    model(4, 1, 3, 0.004, bias=True, bias_decay=0.1, activation="linear"),
    model(5, 1, 2, 0.004, widths=3, bias=True, bias_decay=0.3),
    model(12, 2, 4, 0.001, bias=True, bias_decay=1e-3),
]


@pytest.mark.parametrize("problem", BIASED, ids=range(len(BIASED)))
def test_what_is_feasible_without_a_bias_bounds_the_problem_with_one(problem):
    plain = DUFM(
        problem.num_classes, problem.per_class, problem.depth, problem.widths, loss=problem.loss,
        feature_decay=problem.feature_decay, weight_decay=problem.weight_decay,
        activation=problem.activation,
    )  # fmt: skip
    best = problem.optimum()
    assert best.name != "zero"
    assert best.loss <= plain.optimum().loss
    assert best.loss < zero(problem).loss
    assert best.status == "upper bound"


def test_equal_classes_bound_unequal_ones():
    skewed = model(3, [20, 5, 2], 2, 1e-3, loss="ce").optimum()
    assert (skewed.name, skewed.status) == ("dnc", "upper bound")
    assert skewed.loss == pytest.approx(model(3, 9, 2, 1e-3, loss="ce").optimum().loss, rel=1e-12)
    nearly = model(10, [5] * 9 + [4], 4, 5e-4).references()
    assert [reference.name for reference in nearly][:2] == ["srg", "gof"]


SMALL = [
    dict(loss=loss, activation=activation, **bias)
    for loss, activation, bias in product(
        ("mse", "ce"), ("relu", "linear"), ({}, {"bias": True}, {"bias": True, "bias_decay": 0.1})
    )
]


SMALL_SHAPES = [
    (2, 2, 2, 4, 0.03),
    (3, [3, 2, 1], 2, [2, 3], 0.01),
    (3, 1, 3, 2, 0.01),
    (3, 1, 1, 2, 0.2),
]


@pytest.mark.parametrize("number", range(2 * len(SMALL)))
def test_the_solver_finds_nothing_below_what_is_called_optimal(number):
    kind = SMALL[number // 2]
    # Two shapes for every kind, others for its neighbours.
    classes, counts, depth, widths, decay = SMALL_SHAPES[(number + number // 4) % 4]
    problem = model(classes, counts, depth, decay, widths=widths, **kind)
    known = overview(problem)
    solution = solve(problem, restarts=1, structured=1, rng=0, steps=300)
    assert solution.loss >= lower_bound(problem) * (1 - 1e-7)
    for reference in known.references:
        if reference.status != "upper bound":
            assert solution.loss >= reference.loss * (1 - 1e-7), reference.name
    name, loss = known.best_known(solution)
    assert loss <= min(solution.loss * (1 + 1e-9), known.best_closed_form.loss)
    assert name == "solved" or loss == known.best_closed_form.loss
    assert known.words(solution).startswith(f"best known: {name}, loss {loss:.10g}")


def test_zero_is_best_known_only_where_nothing_can_be_lower(capsys):
    # Just beyond the end of collapse a network of rank two survives.
    problem = model(3, 1, 4, 0.0705, widths=7)
    known = overview(problem)
    assert (known.best_closed_form.name, known.best_closed_form.status) == ("zero", "upper bound")
    assert known.best_known() is None
    assert known.words().startswith("best known: nothing, since no closed form is below")
    assert overview(model(3, 1, 4, 2.0)).best_known() == ("zero", 0.5)
    assert solve(problem, restarts=1, structured=3, rng=0, steps=500).loss < 0.499
    arguments = "--classes 3 --depth 4 --width 7 --weight-decay 0.0705 --quiet"
    sweep = "--sweep feature_decay=0.0705:0.070501:2"
    assert main(["dufm", *arguments.split(), *sweep.split()]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("no closed form below zero, loss 0.5")


def test_best_closed_form_and_best_known_are_two_labels(capsys):
    arguments = "dufm --classes 2 --depth 2 --bias --bias-decay 0.1 --weight-decay 0.02 --width 4"
    assert main([*arguments.split(), "--solve", "--restarts", "2"]) == 0
    printed = capsys.readouterr().out
    text = " ".join(printed.split())
    assert "best closed form: dnc, loss 0.0591" in text
    assert re.search(
        r"best known: solved, loss [\d.]+, [\d.]+ % below collapse \(dnc\); found", text
    )
    assert contradictions(printed, 2) == []


def test_collapse_of_each_kind_is_in_the_list_or_says_what_forbids_it():
    with pytest.raises(DoesNotApply, match="no collapsed network is known here"):
        collapsed(model(3, [3, 2, 1], 2, 0.01))
    with pytest.raises(DoesNotApply, match="too strong"):
        collapsed(model(3, 1, 2, 0.9, bias=True, bias_decay=0.1))
    for problem in BIASED[:2]:
        assert collapsed(problem).loss == overview(problem).collapsed.loss


def test_a_sweep_of_classes_keeps_the_widths_that_were_asked_for():
    problem = model(4, 1, 2, 0.01, widths=[64, 5])
    points = run_sweep(problem, Sweep("classes", (4.0, 6.0)))
    assert [point.known.problem.layer_widths for point in points] == [(64, 5), (64, 5)]
    assert [point.known.collapsed is None for point in points] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--weight-decay 0", "weight_decay of layer 1 must be positive and finite, got 0.0"),
        ("--weight-decay inf", "weight_decay of layer 1 must be positive and finite, got inf"),
        ("--weight-decay 1e-300", "weight_decay of layer 1 must be between 1e-100 and 1e+100"),
        ("--weight-decay x", "invalid float value: 'x'"),
        ("--width 5 6", "widths must be one value or 4, one per layer, got 2: [5, 6]"),
        ("--width 0", "width of layer 1 must be at least 1, got 0"),
        ("--width 1000000000", "--classes 10 of width 1000000000 needs"),
        ("--classes 100000000", "--classes 100000000 of width 100000000 needs"),
        ("--depth 100000000", "--depth 100000000: pass 1000 or less"),
        ("--per-class 99999999999999999999", "per_class of class 0 must be at most 1000000000000"),
        ("--width 20000 --solve", "have 1.2e+09 numbers, more than 5e+08: pass smaller widths"),
        ("--width 20000 --plot x.svg", "have 1.2e+09 numbers, more than 5e+08"),
        ("--bias --bias-decay nan", "bias_decay must not be negative, got nan"),
        ("--bias --bias-decay inf", "bias_decay must be finite, got inf"),
        ("--sweep depth=1:9:1000000000", "COUNT from 2 to 10000"),
        ("--sweep weight_decay=1e-3:inf:3", "with 0 < LOW < HIGH"),
        ("--sweep lr=1:2:3", "sweep one of weight_decay, feature_decay, classes, depth"),
        ("--width 5 6 7 8 --sweep depth=1:3:3", "a sweep of depth needs one --width for all, got"),
        ("--restarts 0", "restarts must be at least 1, got 0"),
        ("--solve --restarts 1000000000", "--restarts 1000000000: pass 1000000 or less"),
        ("--solve --seed=-1", "seed must not be negative, got -1"),
    ],
)
def test_honest_mistakes_get_one_sentence(arguments, said, capsys):
    defaults = {"--classes": "10", "--depth": "4", "--weight-decay": "4e-3"}
    base = [word for option in defaults.items() if option[0] not in arguments for word in option]
    try:
        status = main(["dufm", *base, *arguments.split()])
    except SystemExit as stop:
        status = int(str(stop.code))
    printed = capsys.readouterr()
    assert (status, printed.out) == (2, "")
    assert printed.err.count("\n") == 1
    assert said in printed.err


@pytest.mark.parametrize("decay", [1e-9, 2e-4, 0.3, 50.0])
def test_the_bias_of_the_zero_network_is_its_best(decay):
    # Plain Newton steps diverge here: nearly all samples are of one class.
    problem = model(10, [1, 2, 5, 5000, 2, 2, 2, 5, 2, 2], 2, 1.0, loss="ce", bias=True)
    problem = replace(problem, bias_decay=decay)
    bias, shares = zero(problem).bias, problem.counts / problem.num_samples
    chances = np.exp(bias) / np.exp(bias).sum()
    np.testing.assert_allclose(chances + decay * bias, shares, atol=1e-12)
    assert zero(problem).loss <= np.log(10)


def test_equal_classes_need_no_bias():
    assert zero(model(6, 1, 4, 3.0, loss="ce", bias=True)).ranks == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_classes": 10**8}, "num_classes must be at most 10000, got 100000000"),
        ({"depth": 10**8}, "depth must be at most 1000, got 100000000"),
        ({"widths": 10**9}, "width of layer 1 must be at most 1000000, got 1000000000"),
        ({"per_class": 10**20}, "per_class of class 0 must be at most 1000000000000, got 1000000"),
        (
            {"feature_decay": 1e-300},
            "feature_decay must be between 1e-100 and 1e\\+100, got 1e-300",
        ),
    ],
)
def test_absurd_problems_are_refused_before_anything_is_built(changes, said):
    with pytest.raises(ValueError, match=said):
        replace(model(3, 1, 2, 0.01), **changes)


def test_tiny_decays_keep_their_digits():
    # The loss is (L + 1) / 2 times the strength to first order; it must not be lost in 1 - t.
    for decay in (1e-12, 1e-20, 1e-90):
        assert dnc(model(5, 1, 3, decay)).loss == pytest.approx(2 * 5 * decay, rel=1e-9)
    assert overview(model(10, 1, 200, 1e-3)).thresholds[0].value == pytest.approx(1e-3)
