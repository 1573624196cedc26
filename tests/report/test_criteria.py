"""One layer, one verdict: what is collapsed, and that summary, card, comparison and demo say the same."""

from __future__ import annotations

import json
import math
import re
import runpy
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import collapsemeter as cm
from collapsemeter import CollapseReport, Criteria, LayerReport
from collapsemeter.adapter.epoch import Epoch
from collapsemeter.cli import demo, main
from collapsemeter.cli.fail_if import FailureCondition
from collapsemeter.dufm import DUFM, Optimum
from collapsemeter.html.verdicts import cards
from collapsemeter.metrics.measure import undefined_report
from collapsemeter.metrics.random_means import random_etf_error
from collapsemeter.report.criteria import PROPERTIES, worst
from collapsemeter.report.history import read_history
from collapsemeter.sinks import JsonlSink
from collapsemeter.stats.undefined import REASONS

BANDS = ("collapsed", "nearly collapsed", "partly collapsed", "not collapsed", "not judged")


def layer(
    classes: int = 6,
    width: int = 32,
    within: float = 0.01,
    frame: float = 0.0,
    turn: float = 0.0,
    dtype: str = "float64",
    scatter: str = "pooled",
    **options: bool,
) -> LayerReport:
    """A layer of so much noise within classes, about an ETF and a head that are disturbed so much."""
    rng = np.random.default_rng(0)
    etf = cm.simplex_etf(classes, max(width, classes - 1))[:, :width]
    means = etf + frame * rng.standard_normal(etf.shape)
    labels = np.arange(20 * classes) % classes
    rows = means[labels] + within * rng.standard_normal((len(labels), width))
    rows = rows.astype(dtype)
    moments = cm.ClassMoments.from_batch(rows, labels, classes, scatter=scatter)
    head = cm.Head(means + turn * rng.standard_normal(etf.shape))
    if not options.get("head", True):
        return cm.measure(moments)
    if not options.get("decisions", True):
        return cm.measure(moments, head=head)
    return cm.measure(moments, head=head, decisions=cm.decide(moments, rows, labels, head=head))


def without(made: LayerReport, *keys: str) -> LayerReport:
    """As in a file of a version that did not record these."""
    remaining = {key: value for key, value in made.provenance.items() if key not in keys}
    return replace(made, provenance=remaining)


def undefined(code: str) -> LayerReport:
    return LayerReport(dict.fromkeys(cm.METRICS, math.nan), dict.fromkeys(cm.METRICS, code))


LAYERS = {
    "collapsed": lambda: layer(within=1e-3),
    "nearly": lambda: layer(within=0.02, frame=0.003),
    "partly": lambda: layer(within=0.08, frame=0.02, turn=0.1),
    "not": lambda: layer(within=1.0, frame=1.0, turn=3.0),
    "noise of the issue": lambda: layer(10, 512, 0.07),
    "within collapsed, frame not": lambda: layer(within=1e-3, frame=1.0),
    "frame collapsed, within not": lambda: layer(within=1.0),
    "two classes": lambda: layer(2, 16),
    "three classes": lambda: layer(3, 50, frame=0.05),
    "three classes, near": lambda: layer(3, 50, 1e-3, frame=0.002),
    "more classes than features + 1": lambda: layer(7, 4, 0.3),
    "as many as features + 1": lambda: layer(7, 6, 1e-3),
    "so wide that random is an ETF": lambda: layer(5, 1024, 1e-4, scatter="trace"),
    "no head": lambda: layer(head=False),
    "no decisions": lambda: layer(decisions=False),
    "at the floor of float16": lambda: layer(within=1e-5, dtype="float16"),
    "at the floor of float64": lambda: layer(within=0.0),
    "one class": lambda: cm.measure(cm.ClassMoments.from_batch(np.eye(3), [0, 0, 0], 4)),
    "equal means": lambda: cm.measure(cm.ClassMoments.from_batch(np.ones((6, 3)), [0, 1, 2] * 2, 3)),
    "never fired": lambda: undefined_report("never_fired", True),
    "nothing": lambda: LayerReport({}),
    "infinite": lambda: LayerReport(dict.fromkeys(cm.METRICS, math.inf)),
    "negative": lambda: LayerReport(dict.fromkeys(cm.METRICS, -1.0)),
    "without classes": lambda: without(layer(), "classes_present"),
    "without width": lambda: without(layer(), "width"),
    "without provenance": lambda: replace(layer(), provenance={}),
    "absurd provenance": lambda: replace(layer(), provenance={"classes_present": True, "width": "4"}),
    "he_su2023": lambda: cm.measure(layer_moments(), convention="he_su2023"),
} | {f"undefined: {code}": lambda code=code: undefined(code) for code in REASONS}  # fmt: skip


def layer_moments() -> cm.ClassMoments:
    rows = np.random.default_rng(1).standard_normal((60, 8)) + 3 * np.eye(4, 8).repeat(15, 0)
    return cm.ClassMoments.from_batch(rows, np.arange(4).repeat(15), 4)


def said_by(text: str) -> dict[str, str]:
    """The band that a text gives each property, and that it gives one at most."""
    actual: dict[str, str] = {}
    for names, band in re.findall(
        rf"((?:NC\d(?:, | and )?)+) ({'|'.join(BANDS[1:] + BANDS[:1])}):", text
    ):
        for name in re.findall(r"NC\d", names):
            assert actual.setdefault(name, band) == band, text
    return actual


@cache
def optima(classes: int) -> tuple[Optimum, ...]:
    """At a simplex ETF and at an orthogonal frame."""
    decays = {"feature_decay": 1e-5, "weight_decay": 1e-5}
    return tuple(DUFM(classes, 20, 1, bias=bias, **decays).optimum() for bias in (True, False))


def references(made: LayerReport) -> list[CollapseReport | Optimum]:
    """Optima of this layer's size, and the layer itself."""
    classes = int((made.per_class.get("count", np.zeros(0)) > 0).sum())
    return [CollapseReport({"fc": made}), *(optima(classes) if classes > 1 else ())]


def rank_of(band: str) -> int:
    return BANDS.index(band)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("criteria", [Criteria(), Criteria(0.2, 0.3, 0.9)])
def test_nothing_contradicts_the_card(name: str, criteria: Criteria) -> None:
    built = LAYERS[name]()
    report = CollapseReport({"fc": built})
    judged = criteria.judge(built)
    bands = {key: judgement.band for key, judgement in judged.items()}
    assert list(bands) == ["NC1", "NC2", "NC3", "NC4"]

    summary = report.summary(criteria)
    assert said_by(summary) == bands
    assert not re.search(r"of between|\bnan\b|\binf\b", summary)

    strip = {card.property: card for card in cards([(0, report)], criteria)}
    assert {key: card.verdict for key, card in strip.items()} == bands
    for key, card in strip.items():
        assert card.notes[0] == judged[key].words
        assert judged[key].words in summary

    for reference in references(built) if "absurd" not in name else ():  # no file holds it
        beside = cm.compare(report, reference, criteria=criteria)["fc"]
        if beside.status in ("infeasible", "nothing learned"):
            continue
        told = said_by(beside.verdict)
        assert told.items() <= bands.items(), beside.verdict
        assert "NC1" in told or judged["NC1"].words in beside.verdict
        if beside.verdict.startswith("not collapsed"):
            assert bands["NC1"] == "not collapsed"
        if " to " in beside.verdict.split(":")[0]:  # collapsed to a reference
            assert rank_of(beside.status) >= rank_of(bands["NC1"])
            if isinstance(reference, Optimum) and bands["NC2"] != "not judged":
                assert rank_of(beside.status) >= rank_of(bands["NC2"])


@pytest.mark.parametrize("name", LAYERS)
def test_the_demo_says_of_a_layer_what_its_summary_does(name: str) -> None:
    built = LAYERS[name]()
    report = CollapseReport({"fc": built})
    epochs = [Epoch(n, 0.1, 0.0, None, report) for n in (0, 1)]
    text = demo.outcome_words(demo.Outcome(epochs, 1, Path("runs")))
    assert said_by(text) == said_by(report.summary())
    bands = [judgement.band for judgement in Criteria().judge(built).values()]
    assert text.startswith(f"{demo.HEADLINES[worst(bands)]} after 1 epochs; zero training error")


@pytest.mark.parametrize("name", LAYERS)
def test_a_file_is_judged_as_what_was_measured(name: str, tmp_path: Path, capsys) -> None:
    report = CollapseReport({"fc": LAYERS[name]()}, phase="frozen-train")
    path, lines = tmp_path / "report.json", tmp_path / "run.jsonl"
    path.write_text(report.to_json(matrices=True))
    if "absurd" in name:
        with pytest.raises(ValueError, match=r"provenance\.width is '4', expected a whole number"):
            CollapseReport.load(path)
        return
    if name != "infinite":  # which JSON cannot say
        assert CollapseReport.load(path).summary() == report.summary()
        assert main(["show", str(path), "--quiet"]) == 0
        assert capsys.readouterr().out.endswith(report.summary() + "\n")
    JsonlSink(lines).write(3, report)
    ((_, back),) = read_history(lines)
    assert said_by(back.summary()) == said_by(report.summary())


def test_files_of_before_load_and_say_what_is_not_judged(tmp_path: Path) -> None:
    record = json.loads(CollapseReport({"fc": layer(within=1e-3)}).to_json())
    for key in ("provenance", "flags"):
        del record["layers"]["fc"][key]
    (tmp_path / "old.json").write_text(json.dumps(record))
    old = CollapseReport.load(tmp_path / "old.json")
    why = "the report does not record how many classes and features were measured"
    assert f"NC2 and NC4 not judged: {why}" in old.summary()
    assert re.search("NC1 collapsed: [0-9.]+ % of the variance is within classes", old.summary())
    line = {"step": 1, "phase": "live", "layers": {"fc": {"metrics": {"nc1_trace_ratio": 1.0, "nc2_etf_error": 0.1}}}}  # fmt: skip
    (tmp_path / "old.jsonl").write_text(json.dumps(line) + "\n")
    ((_, before),) = read_history(tmp_path / "old.jsonl")
    assert "NC1 partly collapsed: 50 % of the variance is within classes" in before.summary()
    assert f"NC2 not judged: {why}" in before.summary()


def test_shares_are_those_of_brute_force() -> None:
    rng = np.random.default_rng(3)
    labels = np.arange(120) % 6
    x = rng.standard_normal((6, 20))[labels] + 0.3 * rng.standard_normal((120, 20))
    head = cm.Head(rng.standard_normal((6, 20)), rng.standard_normal(6))
    moments = cm.ClassMoments.from_batch(x, labels, 6)
    measured = cm.measure(moments, head=head, decisions=cm.decide(moments, x, labels, head=head))
    mu = np.array([x[labels == c].mean(axis=0) for c in range(6)])
    M = mu - mu.mean(axis=0)
    within = ((x - mu[labels]) ** 2).sum() / 120
    between = (M**2).sum() / 6
    G, W = M @ M.T, head.weight
    P = (np.eye(6) - 1 / 6) / math.sqrt(5)
    apart = np.linalg.norm(G / np.linalg.norm(G) - P)
    dual = np.linalg.norm(W / np.linalg.norm(W) - M / np.linalg.norm(M)) ** 2
    near = ((x[:, None] - mu) ** 2).sum(axis=2).argmin(axis=1)
    missed = (near != (x @ W.T + head.bias).argmax(axis=1)).mean()
    expected = (
        within / (within + between),
        apart / math.sqrt(2 - 2 * math.sqrt(20 / 26)),
        dual / 2,
        missed / (5 / 6),
    )
    actual = [judgement.share for judgement in Criteria().judge(measured).values()]
    np.testing.assert_allclose(actual, expected, rtol=1e-10)


@pytest.mark.parametrize(("classes", "width"), [(10, 64), (100, 128)])
def test_a_share_of_one_is_no_structure(classes: int, width: int) -> None:
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(10):
        means, head = rng.standard_normal((2, classes, width))
        moments = cm.ClassMoments.from_batch(means, np.arange(classes), classes)
        judged = Criteria().judge(cm.measure(moments, head=cm.Head(head)))
        shares.append([judged["NC2"].share, judged["NC3"].share])
    np.testing.assert_allclose(np.mean(shares, axis=0), 1, atol=0.06)


@given(share=st.floats(0, 3), edges=st.lists(st.floats(0, 1), min_size=3, max_size=3).map(sorted))
def test_a_band_reaches_to_its_edge_and_its_percentage_stays_in_it(share, edges) -> None:
    criteria = Criteria(*edges)
    band = criteria.band(share)
    above = [share > edge for edge in edges]
    assert band == BANDS[sum(above)]
    shown = float(criteria.percent(share).removesuffix(" %")) / 100
    assert math.isclose(shown, share, rel_tol=0.06)
    for edge in edges:
        assert criteria.band(edge) != "not collapsed"


def test_the_edges_of_the_default_bands() -> None:
    actual = [Criteria().band(share) for share in (0.01, 0.0101, 0.1, 0.101, 0.5, 0.501)]
    assert actual == [BANDS[0], BANDS[1], BANDS[1], BANDS[2], BANDS[2], BANDS[3]]
    assert Criteria().percent(0.010004) == "1.0004 %"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("two classes", "NC2 not judged: with two classes this is the same whatever the features"),
        ("more classes than features + 1", "NC2 not judged: there are more classes than features"),
        ("so wide that random is an ETF", "NC2 not judged: the layer is so wide that random class"),
        ("no head", "NC3 and NC4 not judged: no classifier head belongs to this layer"),
        ("no decisions", "NC4 not judged: no rows were kept to decide on"),
        ("at the floor of float16", "% of the variance is within classes, but rounding of the act"),
        ("equal means", "NC1 and NC2 not judged: all class means are equal"),
        ("infinite", "NC1, NC2, NC3 and NC4 not judged: infinite"),
        ("negative", "NC1 not judged: nc1_trace_ratio is -1, which no share can be"),
        ("he_su2023", "; nc1_pinv = tr(S_W S_B^+) = "),
    ],
)
def test_what_is_not_judged_says_why(name: str, words: str) -> None:
    assert words in CollapseReport({"fc": LAYERS[name]()}).summary()


def test_every_edge_of_what_can_be_judged() -> None:
    def nc2(classes: int, width: int) -> str:
        provenance = {"classes_present": classes, "width": width}
        measured = LayerReport({"nc2_etf_error": 0.001}, provenance=provenance)
        return Criteria().judge(measured)["NC2"].band

    assert nc2(12, 11) == "collapsed"
    assert nc2(12, 10) == nc2(2, 10) == "not judged"
    assert random_etf_error(10, 990) > 0.1 > random_etf_error(10, 1000)
    assert (nc2(10, 990), nc2(10, 1000)) == ("collapsed", "not judged")


@pytest.mark.parametrize(
    "edges",
    [(0.2, 0.1, 0.5), (0.01, 0.6, 0.5), (-0.1, 0.1, 0.5), (1, 10, 50), (0.01, 0.1, 1.5), (math.nan, 0.1, 0.5), ("1 %", 0.1, 0.5)],
)  # fmt: skip
def test_bands_out_of_order_are_refused(edges) -> None:
    with pytest.raises(
        ValueError, match=r"^Criteria\(collapsed=.*\): pass shares in ascending ord"
    ):
        Criteria(*edges)


def test_other_bands_change_every_verdict() -> None:
    report = CollapseReport({"fc": LAYERS["nearly"]()})
    loose = Criteria(collapsed=0.3, nearly=0.4)
    best = optima(6)[0]
    strict, wide = cm.compare(report, best), cm.compare(report, best, criteria=loose)
    assert strict["fc"].status == "nearly collapsed"
    assert wide["fc"].status == "collapsed"
    assert said_by(report.summary())["NC1"] == "nearly collapsed"
    assert set(said_by(report.summary(loose)).values()) == {"collapsed"}
    for call in (report.summary, lambda wrong: cm.compare(report, best, criteria=wrong)):
        with pytest.raises(ValueError, match=r"^criteria=0\.05: pass collapsemeter\.Criteria"):
            call(0.05)


def test_collapsed_to_a_frame_is_never_nearer_than_nc2() -> None:
    # Means whose Gram matrix leaves the orthogonal frame within the centred subspace only.
    v, w = np.array([1, -1, 0]) / math.sqrt(2), np.array([1, 1, -2]) / math.sqrt(6)
    away = 0.0095 * random_etf_error(3, 16) * math.sqrt(3 / 2)
    values, vectors = np.linalg.eigh(np.eye(3) + away * (np.outer(v, v) - np.outer(w, w)))
    means = (vectors * np.sqrt(values)) @ np.eye(3, 16)
    rows = means.repeat(20, 0) + 1e-4 * np.random.default_rng(0).standard_normal((60, 16))
    measured = cm.measure(cm.ClassMoments.from_batch(rows, np.arange(3).repeat(20), 3))
    beside = cm.compare(CollapseReport({"fc": measured}), optima(3)[1])["fc"]
    criteria = Criteria()
    assert criteria.beside("dnc", beside.gram_distance, measured).band == "collapsed"
    assert criteria.judge(measured)["NC2"].band == beside.status == "nearly collapsed"


def test_a_share_is_a_threshold() -> None:
    report = CollapseReport({"conv": LAYERS["not"](), "fc": LAYERS["partly"]()})
    words = str(Criteria().judge(report["fc"])["NC1"])
    share = Criteria().judge(report["fc"])["NC1"].share
    assert FailureCondition.parse("fc:NC1>10%").failures(report) == [
        f"layer 'fc': {words}: --fail-if 'fc:NC1>10%'"
    ]
    assert FailureCondition.parse("NC1>50%").failures(report) == []
    assert len(FailureCondition.parse("*:NC1>50%").failures(report)) == 1
    assert FailureCondition.parse(f"NC1>{share!r}").failures(report) == []
    assert len(FailureCondition.parse(f"NC1>={share!r}").failures(report)) == 1
    assert FailureCondition.parse("nc4_mismatch>=150%").failures(report) == []
    (missing,) = FailureCondition.parse("NC2<1%").failures(
        CollapseReport({"fc": LAYERS["two classes"]()})
    )
    assert missing.startswith("layer 'fc': NC2 not judged: with two classes this is the same")
    with pytest.raises(
        ValueError, match="no metric is named 'NC5'; there are NC1, NC2, NC3, NC4, "
    ):
        FailureCondition.parse("fc:NC5>10%")


def test_what_rounding_explains_is_below_a_threshold_all_the_same() -> None:
    report = CollapseReport({"fc": LAYERS["at the floor of float16"]()})
    assert Criteria().judge(report.final)["NC1"].band == "not judged"
    assert FailureCondition.parse("NC1>1%").failures(report) == []


def test_the_example_prints_what_the_documents_say(capsys) -> None:
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "criteria.py"))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.split(maxsplit=2)[1:] == [
        "0.039",
        "not collapsed: 71 % of the variance is within classes",
    ]


def test_every_property_has_a_metric() -> None:
    assert set(PROPERTIES.values()) <= set(cm.METRICS)
