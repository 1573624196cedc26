"""The HTML report: what is on it, that it is one safe file, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

import collapsemeter as cm
from collapsemeter import METRICS, CollapseReport, LayerReport
from collapsemeter.dufm import DUFM
from collapsemeter.html import page, render, write_html
from collapsemeter.html.tables import MARKS
from collapsemeter.metrics.measure import undefined_report
from collapsemeter.report.criteria import PROPERTIES
from collapsemeter.report.figure import PANELS
from collapsemeter.report.history import read_history
from collapsemeter.sinks import JsonlSink
from collapsemeter.system.escaping import printable

from .pages import HOSTILE, Page, history, layer, report

IMAGE = "data:image/svg+xml;base64,"


@pytest.fixture(scope="module")
def run() -> str:
    return render(history(), title="LeNet")


@pytest.fixture(scope="module")
def single() -> str:
    return render([(0, report())])


def embedded(text: str) -> dict:
    (data,) = re.findall(
        r'<script type="application/json" id="report">(.*?)</script>', text, re.DOTALL
    )
    return json.loads(data)


def test_the_page_is_well_formed_and_has_one_of_each_id(run: str, single: str) -> None:
    for text in (run, single):
        parsed = Page(text)
        assert text.startswith('<!doctype html>\n<html lang="en">')
        assert parsed.open == []
        assert parsed.comments == []
        ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        targets = [
            a["href"][1:] for _, a in parsed.elements if (a.get("href") or "").startswith("#")
        ]
        assert targets
        assert set(targets) <= set(ids)


def test_nothing_is_fetched(run: str) -> None:
    parsed = Page(run)
    for tag, attributes in parsed.elements:
        for name in ("srcset", "action", "data", "background", "poster"):
            assert name not in attributes, (tag, attributes)
        assert (attributes.get("src") or IMAGE).startswith(IMAGE), (tag, attributes)
        assert (attributes.get("href") or "#").startswith(("#", "https://")), (tag, attributes)
    assert not parsed.all("link") + parsed.all("iframe") + parsed.all("base")
    assert "@import" not in run
    assert not re.findall(r"url\((?!#)", run)


def test_the_policy_allows_what_is_in_the_page_and_nothing_else(run: str) -> None:
    metas = Page(run).all("meta")
    (policy,) = (m["content"] for m in metas if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", run, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert "unsafe-inline" not in policy
    assert not [a for _, a in Page(run).elements if "style" in a]
    assert not [a for _, a in Page(run).elements for name in a if name.startswith("on")]


def test_the_same_input_gives_the_same_bytes(run: str) -> None:
    assert render(history(), title="LeNet") == run
    import matplotlib

    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": None, "image.cmap": "jet"}):
        assert render(history()[::-1], title="LeNet") == run


def test_hostile_names_are_text() -> None:
    measured = report(
        HOSTILE,
        warnings=HOSTILE,
        skipped={HOSTILE[0]: HOSTILE[1]},
        provenance={HOSTILE[0]: [HOSTILE[3]]},
    )
    comparison = cm.compare(measured, measured)
    text = render([(0, measured), (1, measured)], comparison=comparison, title=HOSTILE[3])
    parsed = Page(text)
    assert parsed.open == []
    assert [a.get("type") for a in parsed.all("script")] == ["application/json", None]
    assert all((a["src"] or "").startswith(IMAGE) for a in parsed.all("img"))
    assert parsed.comments == []
    assert not [a for _, a in parsed.elements for name in a if name.startswith("on")]
    for name in HOSTILE[:3]:
        assert " ".join(printable(name).split()) in parsed.text
    assert not any(character in text for character in "\u202e\ud800")
    assert "\\ud800xxx" in parsed.text
    assert parsed.within("title") == [HOSTILE[3]]
    assert list(embedded(text)["layers"]) == list(HOSTILE)
    text.encode()


def test_the_strip_says_value_target_trend_floor_and_interval(run: str) -> None:
    last, first = history()[-1][1].final, history()[0][1].final
    text = Page(run).text
    for name, judgement in cm.Criteria().judge(last).items():
        assert judgement.band != "not judged"
        shown = f"{judgement.figure} 0 % at collapse"
        assert f"{shown} {MARKS[judgement.band]} {judgement.band} {judgement.words}" in text, name
        assert f"{PROPERTIES[name]} {last[PROPERTIES[name]]:.3g}" in text
    assert f"nc1_pinv = tr(S_W S_B^+)/C = {last['nc1_pinv']:.3g}" in text
    fell, start = first["nc1_trace_ratio"] / last["nc1_trace_ratio"], first["nc1_trace_ratio"]
    assert f"▼ fell {fell:.0f} times since epoch 0, from {start:.3g}" in text
    floor = last.provenance["dtype_floor"]["nc1_trace_ratio"]
    assert f"rounding of float32 alone gives {floor:.3g}" in text
    assert "● collapsed: at most 1 %, ◕ nearly collapsed: at most 10 %, ◑ partly" in text
    assert history()[-1][1].summary() in text
    assert "Epochs 0 to 15, 4 reports." in text


@pytest.mark.usefixtures("undrawn")
def test_cards_and_captions_say_what_is_known_of_noise() -> None:
    measured = CollapseReport({"fc": layer(6, 12, 0.5)})
    text = Page(render([(0, measured)])).text
    final = measured.final
    low, high = (f"{end:.3g}" for end in final.intervals["nc1_trace_ratio"])
    estimate = f"{final.estimates['nc1_trace_ratio']:.3g}"
    assert f"{estimate} without the noise in class means, 95 % interval {low} to {high}" in text
    low, high = (f"{end:.3g}" for end in final.intervals["nc2_equinorm"])
    estimate = f"{final.estimates['nc2_equinorm']:.3g}"
    shown = f"nc2_equinorm {final['nc2_equinorm']:.3g} (est. {estimate}, {low} to {high})"
    assert shown in text
    assert "Wilson interval" not in text  # nothing was sampled


@pytest.mark.usefixtures("undrawn")
def test_a_sampled_value_has_its_interval() -> None:
    moments = cm.ClassMoments.from_batch(np.eye(4).repeat(3, 0), np.arange(4).repeat(3), 4)
    decisions = cm.Decisions(np.full(4, 20), np.full(4, 19), np.full(4, 18), True)
    measured = CollapseReport(
        {"fc": cm.measure(moments, head=cm.Head(np.eye(4)), decisions=decisions)}
    )
    low, high = measured.final.intervals["nc4_mismatch"]
    expected = f"95 % Wilson interval {low:.2%} to {high:.2%}: sampled on 80 rows".replace(
        "%", " %"
    )
    assert expected.replace("95  %", "95 %") in Page(render([(0, measured)])).text


@pytest.mark.usefixtures("undrawn")
def test_what_has_no_value_says_why_in_words() -> None:
    moments = cm.ClassMoments.from_batch(np.eye(2), [0, 0], 3)
    measured = CollapseReport({"fc": cm.measure(moments)}, warnings=("the layer saw too little",))
    text = Page(render([(0, measured)])).text
    for words in (
        "NC1 within-class variability – 0 % at collapse – not judged only one class is present",
        "NC3 distance of head and means – 0 % at collapse – not judged no classifier head",
    ):
        assert words in text
    assert "⚠ the layer saw too little" in text
    assert "⚠ classes without a row are left out of every mean over classes (fc)" in text
    titles = {a.get("title") for a in Page(render([(0, measured)])).all("td")}
    assert {"only one class is present"} <= titles


def test_six_panels_against_epochs_or_depth(run: str, single: str) -> None:
    for text, words in ((run, "Six panels over epochs"), (single, "Six panels over depth")):
        parsed = Page(text)
        assert words in parsed.text
        assert [t for t in parsed.within("strong") if "·" in t] == [panel.title for panel in PANELS]
        assert "r = " in parsed.text
    assert "NC1 over epochs" in Page(run).text
    assert "NC1 over epochs" not in Page(single).text


def test_every_figure_has_a_caption_and_a_text_for_those_who_cannot_see_it(run: str) -> None:
    parsed = Page(run)
    plots = parsed.all("img")
    assert len(plots) == len(parsed.all("figure")) == len(parsed.all("figcaption")) == 15
    assert all(len(a["alt"] or "") > 20 for a in plots)
    for plot in plots:
        image = base64.b64decode((plot["src"] or "").removeprefix(IMAGE))
        assert ElementTree.fromstring(image).tag == "{http://www.w3.org/2000/svg}svg"
    assert all(a.get("scope") in ("col", "row") for a in parsed.all("th"))
    levels = [int(tag[1]) for tag, _ in parsed.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


@pytest.mark.parametrize(("classes", "drawn"), [(5, True), (201, False)])
def test_matrices_are_drawn_up_to_200_classes_and_a_histogram_always(
    classes: int, drawn: bool
) -> None:
    measured = CollapseReport({"fc": layer(classes, 12, 0.1, head=True, rows=2)})
    text = Page(render([(0, measured)])).text
    assert (
        "Cosines of the centred class means At a simplex ETF: 1 on the diagonal" in text
    ) == drawn
    assert ("Cosines of the head's rows with" in text) == drawn
    assert ("Rows per class 2 to 2" in text) == drawn
    assert f"{classes * (classes - 1) // 2:,} pairs; at a simplex ETF all are" in text
    assert f"−1/(C−1) = {-1 / (classes - 1):.3g}" in text


def rows_of(text: str, caption: str) -> list[list[str]]:
    (table,) = re.findall(rf"<caption>{caption}</caption>(.*?)</table>", text, re.DOTALL)
    lines = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line, re.DOTALL) for line in lines]


def test_classes_are_listed_worst_first(single: str) -> None:
    columns = report().final.per_class
    head, *rows = rows_of(single, "Classes by relative spread, the largest first")
    assert len(head) == 8
    relative = columns["variance"] / columns["mean_norm"] ** 2
    assert [int(row[0]) for row in rows] == np.argsort(-relative).tolist()
    for row in rows:
        c = int(row[0])
        assert [cell.split(" (")[0] for cell in row[1:7]] == [
            "6", f"{columns['variance'][c]:.3g}", f"{columns['mean_norm'][c]:.3g}",
            f"{relative[c]:.3g}", f"{columns['worst_cosine'][c]:.3g}",
            str(columns["nearest_class"][c]),
        ]  # fmt: skip
        ends = [f"{columns[f'variance_{end}'][c]:.3g}" for end in ("low", "high")]
        assert row[2].endswith(f" ({ends[0]} to {ends[1]})")


@pytest.mark.usefixtures("undrawn")
def test_at_most_fifty_classes_are_listed() -> None:
    measured = CollapseReport({"fc": layer(53, 6, 0.3, rows=2)})
    text = render([(0, measured)])
    assert len(rows_of(text, "Classes by relative spread, the largest first")) == 51
    assert "3 more classes, less spread than these, are left out." in text


@pytest.mark.usefixtures("undrawn")
def test_pairs_are_listed_once_with_the_largest_cosine_first() -> None:
    measured = CollapseReport({"fc": layer(30, 6, 0.3)})
    _, *rows = rows_of(
        render([(0, measured)]), "Pairs of centred class means with the largest cosines"
    )
    gram = measured.final.matrices["means_gram_centred"]
    norms = np.sqrt(np.diag(gram))
    cos = gram / np.outer(norms, norms)
    expected = sorted(((cos[a, b], a, b) for a in range(30) for b in range(a)), reverse=True)
    assert rows[0][0] == f"{expected[0][2]} and {expected[0][1]}"
    shown = [float(row[1]) for row in rows]
    assert len(shown) == 10
    assert shown == sorted(shown, reverse=True)
    assert math.isclose(shown[0], expected[0][0], abs_tol=5e-4)
    assert len({row[0] for row in rows}) == 10


def test_all_metrics_of_all_layers_are_there(single: str) -> None:
    head, *rows = rows_of(single, "Every layer")
    measured = report()
    assert head == ["metric", *measured]
    assert [row[0] for row in rows] == list(measured.final)
    for row, (name, value) in zip(rows, measured.final.items(), strict=True):
        shown = f"{value * 100:.2f}" if name.startswith(("nc4", "ncc")) else f"{value:.3g}"
        if math.isnan(value):  # a dash, with its footnote
            assert row[-1].startswith("–<sup>")
        else:
            assert row[-1].partition(" (")[0].replace(" %", "") == shown
    estimates, ends = measured.final.estimates, measured.final.intervals
    for name in ("nc1_trace_ratio", "nc2_etf_error"):
        cell = next(row[-1] for row in rows if row[0] == name)
        low, high = (f"{end:.3g}" for end in ends[name])
        assert cell.endswith(f" (est. {estimates[name]:.3g}, {low} to {high})")
    assert "no classifier head belongs to this layer" in Page(single).within("li")
    meanings = rows_of(single, "Every metric: one name, one formula")
    assert [row[0] for row in meanings[1:]] == list(METRICS)
    assert meanings[1 + list(METRICS).index("nc4_agreement")][2:4] == [
        METRICS["nc4_agreement"].formula,
        "100 %",
    ]


@pytest.mark.usefixtures("undrawn")
def test_many_layers_are_several_tables_that_a_page_holds() -> None:
    names = [f"block.{i}" for i in range(19)]
    measured = CollapseReport({name: LayerReport({"nc1_pinv": 0.5}) for name in names})
    text = render([(0, measured)])
    heads = [rows_of(text, f"Layers {a} to {b} of 19")[0] for a, b in ((1, 8), (9, 16), (17, 19))]
    assert [name for head in heads for name in head[1:]] == [f"block.<wbr>{i}" for i in range(19)]


def test_the_reference_is_beside_the_network() -> None:
    measured = report(classes=4)
    optimum = DUFM(4, 6, 2, feature_decay=1e-3, weight_decay=1e-3).optimum()
    comparison = cm.compare(measured, optimum)
    text = render([(0, measured)], comparison=comparison)
    rows = rows_of(text, "Layers beside the reference")[1:]
    assert [row[0] for row in rows] == list(comparison)
    for row, compared in zip(rows, comparison.values(), strict=True):
        assert row[2].endswith(compared.status)
        assert row[3] == compared.verdict
    words = Page(text).text
    assert comparison.mapping in words
    assert "Dashed: the reference, at the measured norm." in words
    assert "Beside the reference" not in Page(render([(0, measured)])).text


@pytest.mark.usefixtures("undrawn")
def test_provenance_is_shown_as_json_and_folded_where_it_is_long() -> None:
    origin = {
        "rows": 50_000,
        "labels": None,
        "deep": {"a": [1, {"b": "<层>"}]},
        HOSTILE[2]: HOSTILE[1],
    }
    files = [{"path": f"acts/{i:04d}.npy", "bytes": 10**9 + i} for i in range(30)]
    for provenance, folded in ((origin, 0), (origin | {"files": files}, 1)):
        text = render([(0, report(("fc",), provenance=provenance))])
        parsed = Page(text)
        assert parsed.within("summary").count("The whole record") == folded
        (shown,) = parsed.within("pre")
        assert json.loads(shown) == provenance
        assert '"b": "<层>"' in shown
    assert "layer rows ignored rows nonfinite rows classes present width" in parsed.text


@pytest.mark.usefixtures("undrawn")
def test_the_report_is_in_the_page_and_reads_back() -> None:
    steps = history()
    actual = embedded(render(steps))
    back = CollapseReport.from_dict(actual)
    assert back.to_json(matrices=True) == steps[-1][1].to_json(matrices=True)
    assert [entry["step"] for entry in actual["history"]] == [0, 5, 10, 15]
    for entry, (_, past) in zip(actual["history"], steps, strict=True):
        assert entry["layers"]["fc"] == past.final.to_dict()["metrics"]


@pytest.mark.usefixtures("undrawn")
def test_matrices_that_would_swell_the_page_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MOST_EMBEDDED", 3 * 25 + 1)
    text = render([(0, report())])
    assert "matrices" not in embedded(text)["layers"]["fc"]
    assert "The Gram matrices are too many for this page" in text


@pytest.mark.usefixtures("undrawn")
def test_a_history_from_json_lines_is_a_page_without_classes(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "run.jsonl")
    for step, built in history():
        sink.write(step, built)
    text = Page(render(read_history(tmp_path / "run.jsonl"))).text
    assert "This report holds no values per class" in text
    assert "Six panels over epochs" in text


ODD = {
    "two classes": lambda: report(classes=2),
    "no head": lambda: report(head=False),
    "one layer": lambda: report(("fc",)),
    "thirty layers": lambda: CollapseReport(
        {f"encoder.{i}.{'x' * 40}": layer(3, 4, 0.5, i, rows=2) for i in range(30)}
    ),
    "no metric": lambda: CollapseReport({"fc": LayerReport({})}),
    "all NaN": lambda: CollapseReport({"fc": LayerReport(dict.fromkeys(METRICS, math.nan))}),
    "all zero": lambda: CollapseReport({"fc": LayerReport(dict.fromkeys(METRICS, 0.0))}),
    "infinite": lambda: CollapseReport({"fc": LayerReport(dict.fromkeys(METRICS, math.inf))}),
    "huge": lambda: CollapseReport({"a": LayerReport({"nc1_pinv": 1e308}), "b": LayerReport({"nc1_pinv": 1e-308})}),
    "never fired": lambda: CollapseReport({"fc": undefined_report("never_fired", True)}),
    "absent classes": lambda: CollapseReport({"fc": cm.measure(cm.ClassMoments.from_batch(np.eye(3), [0, 4, 7], 9))}),
}  # fmt: skip


SINGLE = [(name, 1) for name in ODD]
SEVERAL = [(name, 3) for name in ("two classes", "no metric", "all NaN", "huge")]


@pytest.mark.parametrize(("name", "epochs"), SINGLE + SEVERAL)
def test_odd_reports_are_pages(name: str, epochs: int) -> None:
    built = ODD[name]()
    parsed = Page(render([(epoch, built) for epoch in range(epochs)]))
    assert parsed.open == []
    assert "nan" not in parsed.text.split()


@pytest.mark.usefixtures("undrawn")
def test_a_past_report_without_the_final_layer_is_no_obstacle() -> None:
    steps = [
        (0, report(("conv1",))),
        (1, report()),
        (2, CollapseReport({}, phase="frozen-train")),
        (3, report()),
    ]
    text = Page(render(steps)).text
    assert "since epoch 1" in text


@pytest.mark.usefixtures("undrawn")
def test_the_file_is_written_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "report.html"
    write_html(target, [(0, report())])
    assert target.read_bytes() == render([(0, report())]).encode()
    assert list(target.parent.iterdir()) == [target]


def test_an_empty_history_is_refused() -> None:
    with pytest.raises(ValueError, match="there is nothing to draw: the history holds no layer"):
        render([])
    with pytest.raises(
        ValueError, match="the last report, of epoch 7, holds no layer: leave it out"
    ):
        render([(0, report()), (7, CollapseReport({}, phase="frozen-train"))])


def test_mixed_phases_are_refused() -> None:
    mixed = [(0, report()), (1, CollapseReport(report().layers, phase="live"))]
    with pytest.raises(ValueError, match="the history mixes the phases frozen-train, live"):
        render(mixed)


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_what_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError) as caught:
        render([(0, report())])
    expected = "the HTML report needs Jinja and matplotlib: pip install 'collapsemeter[report]'"
    assert str(caught.value) == expected


def test_the_helper_notices_what_is_not_well_formed() -> None:
    with pytest.raises(AssertionError, match="</b> closes another element"):
        Page("<b><i></b></i>")
    with pytest.raises(AssertionError, match="</p> closes nothing"):
        Page("</p>")
    assert Page("<b>").open == ["b"]
