"""A reference beside itself has no gap, however it is rotated, scaled in order or renamed."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

import collapsemeter as cm
from collapsemeter.dufm import DUFM, blocks, convex, dnc, partial, solve, srg, ufm_mse, zero

ROUND_OFF = 1e-9  # metrics magnify the round-off of a rotation of 32 to 180 dimensions


def model(classes, per_class, depth, decay, **options):
    return DUFM(classes, per_class, depth, feature_decay=decay, weight_decay=decay, **options)


PROBLEMS = {
    "mse K=2 L=3": model(2, 10, 3, 0.01),
    "mse K=3 L=2": model(3, 5, 2, 0.02),
    "mse K=4 L=1": model(4, 3, 1, 0.02),
    "mse K=4 L=1 bias": model(4, 3, 1, 0.02, bias=True),
    "mse K=6 L=5": model(6, 1, 5, 0.002),
    "mse K=10 L=4": model(10, 50, 4, 0.004),
    "mse K=12 L=4": model(12, 1, 4, 0.002),
    "mse K=15 L=3": model(15, 1, 3, 0.001),
    "mse K=5 L=3 bias": model(5, 1, 3, 0.002, bias=True),
    "ce K=10 L=1": model(10, 2, 1, 0.001, loss="ce"),
    "ce K=16 L=4": model(16, 1, 4, 0.001, loss="ce"),
    "linear K=5 L=3": model(5, 2, 3, 0.002, activation="linear"),
    "linear bias K=9 L=2": model(9, 2, 2, 0.002, activation="linear", bias=True),
    "linear ce K=7 L=3": model(7, 1, 3, 0.003, activation="linear", loss="ce"),
    "linear ce K=8 L=2": model(8, 1, 2, 0.003, activation="linear", loss="ce"),
    "skewed L=2": model(4, [8, 4, 2, 1], 2, 0.008),
    "skewed linear L=3": model(9, [9, 8, 7, 6, 5, 4, 3, 2, 1], 3, 0.002, activation="linear"),
    "skewed ce L=1": model(3, [20, 5, 2], 1, 1e-4, loss="ce"),
    "strong decay": model(3, 1, 3, 1.0),
}


def families():
    for title, problem in PROBLEMS.items():
        for reference in problem.references():
            if reference.name.startswith("partial") and reference.name not in (
                "partial(1)",
                f"partial({problem.num_classes - 1})",
            ):
                continue
            yield pytest.param(reference, id=f"{title}: {reference.name}")
    skewed = PROBLEMS["skewed ce L=1"]
    yield pytest.param(convex(skewed), id="skewed ce L=1: convex itself")


def rotated(moments, rng):
    rotation = np.linalg.qr(rng.standard_normal((moments.width, moments.width)))[0]
    return replace(moments, means=moments.means @ rotation, means_low=None)


def permuted(moments, order):
    return replace(
        moments, counts=moments.counts[order], means=moments.means[order], means_low=None
    )


def assert_no_gap(comparison, tolerance=ROUND_OFF):
    for layer in comparison.values():
        assert layer.worst_gap <= tolerance, layer.to_dict()
        assert layer.status in ("collapsed", "nothing learned", "free"), layer.verdict
        assert math.isfinite(layer.gram_distance) == (layer.status != "free")
        for gap in layer.metrics.values():  # both defined, or both not
            assert math.isfinite(gap.measured) == math.isfinite(gap.reference)


@pytest.mark.parametrize("reference", list(families()))
def test_a_reference_beside_itself_has_no_gap(reference):
    rng = np.random.default_rng(0)
    moments = reference.moments()
    beside_itself = cm.compare(moments, reference)
    assert len(beside_itself) == reference.problem.depth + 1
    assert_no_gap(beside_itself, 0.0 if reference.problem.num_classes <= 7 else 1e-12)
    turned = {layer: rotated(m, rng) for layer, m in moments.items()}
    assert_no_gap(cm.compare(turned, reference))
    order = rng.permutation(reference.problem.num_classes)
    renamed = {layer: permuted(m, order) for layer, m in turned.items()}
    assert_no_gap(cm.compare(renamed, reference))


@pytest.mark.parametrize(
    "reference", [dnc(PROBLEMS["mse K=10 L=4"]), srg(PROBLEMS["mse K=10 L=4"])]
)
def test_weights_are_compared_too_when_the_optimum_itself_is_given(reference):
    comparison = cm.compare(reference, reference)
    assert comparison["2"].metrics["dnc3_sine"].gap == 0.0
    assert comparison["4"].metrics["nc3_cosine"].gap == 0.0
    assert_no_gap(comparison, 1e-12)


@pytest.mark.parametrize("first_layer", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_no_gap_where_the_theory_leaves_the_frame_free(first_layer, classes):
    problem = model(classes, 4, 3, 0.004)
    comparison = cm.compare(dnc(problem, first_layer), dnc(problem))
    assert comparison["1"].status == "free"
    assert math.isnan(comparison["1"].gram_distance)
    assert set(comparison["1"].metrics) == {m for m in cm.METRICS if m.startswith("nc1_")}
    assert_no_gap(comparison, 1e-12)
    before = cm.compare(dnc(problem, first_layer), dnc(problem), before_activation=True)
    assert [layer.status for layer in before.values()] == ["free", "free", "collapsed", "collapsed"]
    assert before["2"].scale.gap == pytest.approx(0.0, abs=1e-12)  # the nuclear norm
    assert_no_gap(before, 1e-12)


def test_a_frame_that_is_not_free_does_have_a_gap():
    problem = model(3, 4, 1, 0.004, activation="linear")
    another = model(3, 4, 1, 0.004, bias=True)
    comparison = cm.compare(another.optimum(), problem.optimum())
    assert comparison["1"].status == "below DNC rank"
    assert comparison["1"].gram_distance == pytest.approx(math.sqrt(2 - 2 * math.sqrt(2 / 3)))


def test_a_solution_is_measured_and_is_a_reference():
    problem = model(2, 10, 2, 0.01, widths=8)
    solution = solve(problem, restarts=2)
    assert solution.free_layers == (1,)
    comparison = cm.compare(solution, problem.optimum())
    assert max(layer.worst_gap for layer in comparison.values()) < 1e-3
    assert_no_gap(cm.compare(solution, solution), 1e-12)
    assert "proven optimum" in cm.compare(solution, solution).reference
    descended = solve(problem, method="gd", steps=300)
    assert descended.moments(before_activation=True)[2].means.min() < 0
    assert descended.moments()[2].means.min() >= 0


def test_a_low_rank_solution_has_no_free_layer():
    solution = solve(model(3, 1, 1, 0.01, activation="linear", widths=4), restarts=1)
    assert solution.free_layers == ()


def test_the_low_rank_structure_is_named_and_seen():
    problem = PROBLEMS["mse K=10 L=4"]
    comparison = cm.compare(srg(problem), dnc(problem))
    third = comparison["3"]
    assert third.status == "below DNC rank"
    assert "rank 5 of 10 classes (dnc has 10)" in third.verdict
    assert (third.ranks.counted, third.ranks.classes) == (5, 10)
    assert third.ranks.reference == pytest.approx(10)
    assert third.ranks.measured == pytest.approx(third.ranks.low_rank)
    assert comparison.low_rank == "srg"
    beside_itself = cm.compare(srg(problem), srg(problem))["3"]
    assert beside_itself.verdict.startswith("collapsed to srg, below DNC rank (5 of 10 classes)")
    assert cm.compare(blocks(PROBLEMS["mse K=12 L=4"]), dnc(PROBLEMS["mse K=12 L=4"])).low_rank


def network(layers, spread=0.0, classes=4, seed=0):
    """A report of layers at an orthogonal frame, with noise of the given size."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), 20)
    reports = {}
    for name, width in layers.items():
        rows = np.eye(classes, width)[labels] + spread * rng.standard_normal((len(labels), width))
        reports[name] = cm.measure(cm.ClassMoments.from_batch(rows, labels, classes))
    return cm.CollapseReport(reports)


def test_layers_are_paired_from_the_end_and_the_output_says_so():
    problem = model(4, 20, 3, 0.002)
    report = network({"stem": 8, "block1": 8, "block2": 8, "fc1": 8, "fc2": 8}, 0.001)
    comparison = cm.compare(report, problem.optimum())
    assert list(comparison) == ["block2", "fc1", "fc2"]
    assert comparison["fc2"].reference_layer == "3"
    assert comparison.unmatched == ("stem", "block1")
    assert comparison.mapping == (
        "layers, in order from the end: block2 to 1, fc1 to 2, fc2 to 3; not compared: stem, block1"
    )
    assert comparison.summary().startswith("fc2 (reference layer 3): collapsed to dnc: 0.001 % of ")
    short = cm.compare(network({"fc2": 8}), problem.optimum())
    assert short["fc2"].reference_layer == "3"
    asked = cm.compare(report, problem.optimum(), {"fc1": 3, "fc2": 4})
    assert asked.mapping.startswith("layers, as asked: fc1 to 3, fc2 to 4; not compared: stem")
    assert asked.summary().startswith("fc1 (reference layer 3)")


def test_verdicts_of_a_network():
    problem = model(4, 20, 2, 0.002)
    loose = cm.compare(network({"fc": 8}, 0.5), problem.optimum())["fc"]
    assert loose.status == "not collapsed"
    assert loose.verdict == (
        "not collapsed: 67 % of the variance is within classes (est. 70 %, 63 % to 76 %)"
    )
    rows = np.diag([1.0, 2.0, 3.0, 4.0])
    skewed = {"fc": cm.ClassMoments.from_batch(np.repeat(rows, 3, 0), np.repeat(range(4), 3), 4)}
    another = cm.compare(skewed, problem.optimum())["fc"]
    assert another.status == "other geometry"
    assert (
        "in another geometry than dnc: class means are 83 % as far from dnc as" in another.verdict
    )
    equal = {"fc": cm.ClassMoments.from_batch(np.ones((4, 3)), range(4), 4)}
    undefined = cm.compare(equal, zero(problem))["fc"]
    assert undefined.status == "not judged"
    assert undefined.verdict == "NC1 not judged: all class means are equal"
    nothing = cm.compare(zero(problem), zero(problem))["2"]
    assert nothing.verdict == "nothing is learned here, as at zero"
    assert nothing.status == "nothing learned"


def test_a_reference_that_cannot_exist_is_called_infeasible():
    best = model(4, 20, 2, 0.002).optimum()
    narrow = cm.compare(network({"fc": 3}), best)["fc"]
    assert narrow.status == "infeasible"
    assert narrow.verdict == (
        "reference infeasible: the class means of dnc have rank 4, this layer has 3 features"
    )
    assert narrow.worst_gap == 0.0
    assert math.isnan(narrow.gram_distance)
    fewer = cm.compare(network({"fc": 8}, classes=3), best)["fc"]
    assert fewer.verdict == "reference infeasible: 3 classes are present, dnc has 4"


def test_network_against_network():
    first = network({"a": 8, "fc": 8}, 0.01)
    second = network({"x": 6, "y": 6, "z": 6}, 0.01, seed=1)
    comparison = cm.compare(first, second)
    assert comparison.mapping == "layers, in order from the end: a to y, fc to z"
    assert comparison.reference == "another network"
    assert comparison["fc"].gram_distance < 0.02
    assert all(layer.worst_gap == 0 for layer in cm.compare(first, first).values())


def test_the_convention_of_the_report_is_that_of_the_reference():
    skewed = PROBLEMS["skewed linear L=3"].optimum()
    moments = skewed.moments()
    report = cm.CollapseReport(
        {str(l): cm.measure(moments[l], convention="zhu2021") for l in (1, 2, 3)}  # noqa: E741
    )
    assert_no_gap(cm.compare(report, skewed), 1e-12)


def test_beyond_200_classes_spectra_are_compared_and_the_verdict_says_what_is_missing():
    best = ufm_mse(model(201, 1, 1, 1e-4))
    comparison = cm.compare(best.moments(), best)
    assert comparison["1"].status == "unmeasured"
    assert "no Gram matrix is kept to compare with ufm_mse" in comparison["1"].verdict
    assert comparison["1"].spectrum_distance == 0.0
    deep = dnc(model(201, 1, 2, 1e-7))
    assert math.isnan(cm.compare(deep, deep)["1"].scale.gap)


def test_a_report_keeps_gram_matrices_out_of_its_dictionary():
    layer = network({"fc": 8})["fc"]
    np.testing.assert_allclose(layer.matrices["means_gram"], np.eye(4))
    np.testing.assert_allclose(layer.matrices["means_gram_centred"], np.eye(4) - 0.25)
    assert "matrices" not in layer.to_dict()


def test_tables_fit_and_json_is_strict():
    problem = PROBLEMS["mse K=10 L=4"]
    long = "backbone.stage4.residual_block2.normalisation"
    report = network({long: 16, "head.fc": 16}, 0.003, classes=10)
    comparison = cm.compare(report, dnc(problem))
    for text in (comparison.table(), comparison.table(["nc1_pinv", "features_effective_rank"])):
        assert max(map(len, text.splitlines())) <= 80
    read = json.loads(comparison.to_json())
    assert read["layers"]["head.fc"]["status"] == "collapsed"
    assert read["layers"]["head.fc"]["metrics"]["nc1_pinv"]["reference"] == 0.0
    assert (
        json.loads(cm.compare(dnc(problem), dnc(problem)).to_json())["layers"]["1"]["gram_distance"]
        is None
    )
    assert repr(comparison).startswith("<Comparison head.fc (reference layer 4): collapsed to dnc")
    assert comparison.low_rank == read["low_rank_structure"] == "srg"


@pytest.mark.parametrize("metrics", [[], ["nc1_pinv"]])
def test_a_narrow_terminal_gets_the_whole_table(metrics):
    best = model(4, 20, 2, 0.002).optimum()
    comparison = cm.compare(network({"backbone.fc": 8}), best)
    lines = comparison.table(metrics, width=40).splitlines()
    assert any(line.startswith("…e.fc ") for line in lines)


def test_bad_input_is_one_sentence():
    problem = model(4, 20, 2, 0.002)
    best, report = problem.optimum(), network({"fc": 8})
    with pytest.raises(
        ValueError, match=r"layers=\{'conv': 2\}: no measured layer 'conv'; there are fc"
    ):
        cm.compare(report, best, {"conv": 2})
    with pytest.raises(ValueError, match="no reference layer '7'; there are 1, 2, 3"):
        cm.compare(report, best, {"fc": 7})
    with pytest.raises(ValueError, match="name at least one layer, or leave it out"):
        cm.compare(report, best, {})
    with pytest.raises(ValueError, match="the report has no layer"):
        cm.compare(cm.CollapseReport({}), best)
    with pytest.raises(ValueError, match="the reference has no layer"):
        cm.compare(report, cm.CollapseReport({}))
    with pytest.raises(ValueError, match="tolerance=0: pass a positive number"):
        cm.compare(report, best, tolerance=0)
    with pytest.raises(KeyError, match="no layer 'conv' was compared; compared: fc"):
        cm.compare(report, best)["conv"]


def test_nothing_learned_in_part_is_compared_as_it_is():
    problem = PROBLEMS["mse K=12 L=4"]
    assert_no_gap(cm.compare(partial(problem, 5), partial(problem, 5)), 1e-12)


def noisy(rows, seed, apart=1.0):
    """A report of six classes about the same means, with unit noise and so many rows a class."""
    means = apart * np.random.default_rng(9).standard_normal((6, 20))
    labels = np.repeat(np.arange(6), rows)
    features = means[labels] + np.random.default_rng(seed).standard_normal((len(labels), 20))
    return cm.CollapseReport({"fc": cm.measure(cm.ClassMoments.from_batch(features, labels, 6))})


def test_few_rows_are_no_gap_and_another_network_is():
    few, many, another = noisy(8, 0), noisy(60, 1), noisy(60, 1, 3.0)
    same, apart = (cm.compare(few, reference)["fc"] for reference in (many, another))
    name = "nc1_trace_ratio"
    assert few["fc"][name] < 0.9 * many["fc"][name]  # noise in the means makes it smaller
    assert same.metrics[name].beyond_noise is False
    assert apart.metrics[name].beyond_noise is True
    assert apart.metrics["nc1_pinv"].beyond_noise is None  # it has no interval
    record = same.to_dict()["metrics"][name]
    assert record["beyond_noise"] is False
    assert record["interval"] == list(few["fc"].intervals[name])
    assert record["reference_interval"] == list(many["fc"].intervals[name])


def test_a_table_marks_what_noise_explains():
    text = cm.compare(noisy(8, 0), noisy(60, 1)).table(["nc1_trace_ratio", "nc1_pinv"])
    _, _, ratio, pinv, words = text.splitlines()
    assert ratio.endswith(" ~")
    assert not pinv.endswith("~")
    assert words == "~: no gap beyond noise, as the 95 % intervals meet"
    assert "~" not in cm.compare(noisy(8, 0), noisy(60, 1, 3.0)).table(["nc1_trace_ratio"])


def test_an_optimum_is_a_point():
    best = model(6, 20, 2, 0.002).optimum()
    gap = cm.compare(noisy(8, 0), best, {"fc": 2})["fc"].metrics["nc1_trace_ratio"]
    assert gap.reference_interval == (0.0, 0.0)
    assert gap.beyond_noise is True


def test_what_noise_explains_is_no_worst_gap():
    layer = cm.compare(noisy(8, 0), noisy(60, 1))["fc"]
    left = [gap for gap in layer.metrics.values() if gap.beyond_noise is False]
    assert left
    remaining = [gap.gap for gap in layer.metrics.values() if gap.beyond_noise is not False]
    distances = (layer.gram_distance, layer.gram_distance_centred, layer.spectrum_distance)
    scale = layer.scale.gap / layer.scale.reference
    finite = [abs(value) for value in (*remaining, *distances, scale) if math.isfinite(value)]
    assert layer.worst_gap == max(finite)
