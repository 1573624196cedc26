"""Reports read back: nothing is lost, and what is no report is refused in one sentence."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import collapsemeter as cm
from collapsemeter import METRICS, CollapseReport, LayerReport
from collapsemeter.report.history import read_history
from collapsemeter.sinks import JsonlSink
from collapsemeter.stats.undefined import REASONS

NAMES = st.text(st.characters(exclude_categories=[]), max_size=12)
NUMBERS = st.floats(allow_infinity=False)
ARRAYS = st.lists(NUMBERS, max_size=5).map(lambda values: np.array(values, np.float64))
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def layers(draw: Any) -> LayerReport:
    classes = draw(st.integers(0, 4))
    of_class = st.lists(NUMBERS, min_size=classes, max_size=classes).map(
        lambda values: np.array(values, np.float64)
    )
    counts = np.array(
        draw(st.lists(st.integers(0, 2**62), min_size=classes, max_size=classes)), np.int64
    )
    nearest = draw(st.lists(st.integers(-1, classes - 1), min_size=classes, max_size=classes))
    present = int((counts > 0).sum())
    square = st.lists(st.floats(-1e9, 1e9), min_size=present**2, max_size=present**2).map(
        lambda values: np.array(values, np.float64).reshape(present, present)
    )
    return LayerReport(
        draw(st.dictionaries(st.sampled_from(list(METRICS)), NUMBERS)),
        draw(st.dictionaries(st.sampled_from(list(METRICS)), st.sampled_from(list(REASONS)))),
        tuple(draw(st.lists(NAMES, max_size=2))),
        {"count": counts, "nearest_class": np.array(nearest, np.int64), "variance": draw(of_class)},
        draw(st.dictionaries(NAMES, ARRAYS, max_size=2)),
        draw(st.dictionaries(NAMES, square, max_size=2)),
        draw(
            st.dictionaries(st.sampled_from(list(METRICS)), st.tuples(NUMBERS, NUMBERS), max_size=2)
        ),
        draw(st.dictionaries(NAMES, PLAIN, max_size=3)),
        draw(st.dictionaries(st.sampled_from(list(METRICS)), NUMBERS, max_size=2)),
    )


REPORTS = st.builds(
    CollapseReport,
    st.dictionaries(NAMES, layers(), max_size=3),
    phase=NAMES,
    skipped=st.dictionaries(NAMES, NAMES, max_size=2),
    warnings=st.lists(NAMES, max_size=2).map(tuple),
    provenance=st.dictionaries(NAMES, PLAIN, max_size=3),
)


def assert_same(found: CollapseReport, due: CollapseReport) -> None:
    assert (list(found), found.phase) == (list(due), due.phase)
    assert (found.skipped, found.warnings) == (due.skipped, due.warnings)
    assert found.provenance == due.provenance
    for name, layer in due.items():
        back = found[name]
        np.testing.assert_equal(dict(back), dict(layer))  # NaN equals NaN here
        assert (back.reasons, back.flags) == (layer.reasons, layer.flags)
        np.testing.assert_equal(back.intervals, layer.intervals)
        np.testing.assert_equal(back.standard_errors, layer.standard_errors)
        assert back.provenance == layer.provenance
        for part in ("per_class", "vectors", "matrices"):
            arrays = getattr(layer, part)
            assert list(getattr(back, part)) == list(arrays)
            for key, values in arrays.items():
                read = getattr(back, part)[key]
                assert (read.dtype, read.shape) == (values.dtype, values.shape) or not values.size
                np.testing.assert_array_equal(read, values)


@given(REPORTS)
def test_what_was_written_is_read(report: CollapseReport) -> None:
    text = report.to_json(matrices=True)
    back = CollapseReport.from_dict(json.loads(text))
    assert_same(back, report)
    assert back.to_json(matrices=True) == text


def test_a_measured_report_survives_a_file(tmp_path, make_case) -> None:
    report = CollapseReport(
        {"a/<b>": make_case("imbalanced").measure(), "fc": make_case("binary").measure()}
    )
    path = tmp_path / "report.json"
    path.write_text(report.to_json(indent=2, matrices=True))
    back = CollapseReport.load(path)
    assert back.to_json(matrices=True) == report.to_json(matrices=True)
    assert back.summary() == report.summary()
    assert back.table() == report.table()
    assert back["fc"].per_class["nearest_class"].dtype == np.int64
    assert cm.compare(back, report).to_json() == cm.compare(report, report).to_json()


def test_matrices_are_written_on_demand(make_case) -> None:
    report = CollapseReport({"fc": make_case("binary").measure()})
    assert "matrices" not in report.to_dict()["layers"]["fc"]
    assert set(report.to_dict(matrices=True)["layers"]["fc"]["matrices"]) == {
        "means_gram",
        "means_gram_centred",
        "head_means_cosine",
    }
    assert CollapseReport.from_dict(report.to_dict())["fc"].matrices == {}


def test_a_history_is_read_with_every_kind_of_gap(tmp_path) -> None:
    path = tmp_path / "run.jsonl"
    values = {
        "nc1_pinv": 1e-46,
        "nc2_equinorm": math.nan,
        "gnc2_log_mean": math.inf,
        "nc3_bias": math.nan,
    }
    layer = LayerReport(
        values, {"nc2_equinorm": "one_class", "nc3_cosine": "no_head"}, ("absent_classes",)
    )
    sink = JsonlSink(path)
    sink.write(3, CollapseReport({"fc": layer}, "live", warnings=("mind",)))
    sink.write(5, CollapseReport({}, "live"))
    (step, report), (last, empty) = read_history(path)
    assert (step, last, report.phase, report.warnings, len(empty)) == (3, 5, "live", ("mind",), 0)
    np.testing.assert_equal(dict(report["fc"]), values)
    assert report["fc"].reasons == {"nc2_equinorm": "one_class", "nc3_cosine": "no_head"}
    assert report["fc"].flags == ("absent_classes",)


def test_the_line_that_a_crash_cut_is_left_out(tmp_path) -> None:
    path = tmp_path / "run.jsonl"
    JsonlSink(path).write(0, CollapseReport({}))
    path.write_text(path.read_text() + '{"step": 1, "pha')
    assert [step for step, _ in read_history(path)] == [0]
    path.write_text(
        '{"step": 1, "phase": "live", "layers": {}}'
    )  # by hand, without the end of the line
    assert [step for step, _ in read_history(path)] == [1]


def record(**changes: Any) -> dict[str, Any]:
    layer = LayerReport({"nc1_pinv": 0.5}, per_class={"count": np.array([1, 2])})
    return CollapseReport({"fc": layer}).to_dict() | changes


def layer_record(**changes: Any) -> dict[str, Any]:
    whole = record()
    whole["layers"]["fc"] |= changes
    return whole


NO_REPORT = r"; pass a file that report.to_json\(\) or `collapsemeter audit --json` wrote$"
BAD = [
    ([], "^not a collapsemeter report but a list, expected an object" + NO_REPORT),
    ("a", "^not a collapsemeter report but a text, expected"),
    (None, "^not a collapsemeter report but null, expected"),
    (3, "^not a collapsemeter report but a number, expected"),
    ({}, "^not a collapsemeter report: format is null, expected 'collapsemeter.CollapseReport'" + NO_REPORT),
    (record(format="x" * 999), "format is 'x{58}…, expected"),
    (record(format={"a": 1}), "format is an object of 1, expected"),
    (record(version="1"), "^version is '1', expected a whole number$"),
    (record(version=True), "^version is True, expected a whole number$"),
    (record(version=2, collapsemeter="9.0"), "^the report has version 2, of a newer collapsemeter '9.0'; this one reads up to 1: install a newer collapsemeter$"),
    (record(phase=None), "^phase is null, expected a text$"),
    (record(warnings="a"), "^warnings is 'a', expected a list of texts$"),
    (record(warnings=[1]), "^warnings is 1, expected a text$"),
    (record(skipped={"a": []}), r"^skipped\['a'\] is a list of 0, expected a text$"),
    (record(provenance=[]), "^provenance is a list of 0, expected an object$"),
    (record(layers=[1, 2]), "^layers is a list of 2, expected an object$"),
    (record(layers={"fc": 1}), r"^layers\['fc'\] is 1, expected an object$"),
    (record(layers={"fc": {}}), r"^layers\['fc'\].metrics is null, expected an object$"),
    (layer_record(metrics={"nc9": 1.0}), r"^layers\['fc'\] has the metric 'nc9', which this version does not know: it is mistyped, or install a newer collapsemeter$"),
    (layer_record(metrics={"nc1_pinv": "a"}), r"^layers\['fc'\].metrics.nc1_pinv is 'a', expected a finite number or null$"),
    (layer_record(metrics={"nc1_pinv": True}), "nc1_pinv is True, expected a finite number or null$"),
    (layer_record(metrics={"nc1_pinv": 10**999}), "nc1_pinv is a number beyond 1e40, expected a finite number"),
    (layer_record(metrics={"nc1_pinv": math.inf}), "nc1_pinv is inf, expected a finite number or null$"),
    (layer_record(reasons={"nc1_pinv": "because"}), r"^layers\['fc'\].reasons\['nc1_pinv'\] is 'because', expected a code of collapsemeter.REASONS$"),
    (layer_record(flags=[None]), r"^layers\['fc'\].flags is null, expected a text$"),
    (layer_record(intervals={"nc4_mismatch": [0.5]}), r"intervals\['nc4_mismatch'\] is a list of 1, expected two numbers$"),
    (layer_record(vectors={"s": 1}), r"vectors\['s'\] is 1, expected a list of numbers$"),
    (layer_record(vectors={"s": [[1]]}), r"vectors\['s'\] is a list of 1, expected a finite number or null$"),
    (layer_record(vectors={"s": [2**63]}), r"vectors\['s'\] holds a whole number beyond 2\^63$"),
    (layer_record(matrices={"g": [[1.0], [2.0]]}), r"matrices\['g'\] is a list of 2, expected a square matrix as a list of rows$"),
    (layer_record(matrices={"g": [[1.0, 0.0], [0.0, None]]}), r"matrices\['g'\] holds null: every entry must be a number$"),
    (layer_record(matrices={"g": [[1.0]]}), r"matrices\['g'\] is 1 x 1, but 2 classes are present in per_class\['count'\]$"),
    (layer_record(per_class={"count": [1, 2], "variance": [1.0]}), r"^layers\['fc'\].per_class has columns of different length: {'count': 2, 'variance': 1}$"),
    (layer_record(per_class={"count": [0.5]}), r"per_class\['count'\] must hold whole numbers from 0 on$"),
    (layer_record(per_class={"nearest_class": [-2]}), r"per_class\['nearest_class'\] must hold whole numbers from -1 on$"),
    (layer_record(per_class={"nearest_class": [1]}), r"per_class\['nearest_class'\] names a class beyond the 1 there are$"),
    (layer_record(provenance={"width": "wide"}), r"provenance.width is 'wide', expected a whole number$"),
    (layer_record(provenance={"convention": 1}), r"provenance.convention is 1, expected an object$"),
    (layer_record(provenance={"convention": {"center": "no"}}), "provenance.convention does not read: center='no': choose 'class' or 'sample'$"),
    (layer_record(provenance={"convention": {"what": 1}}), "provenance.convention does not read: .*unexpected keyword argument 'what'$"),
    (layer_record(provenance={"dtype_floor": 1}), "provenance.dtype_floor is 1, expected an object$"),
    (layer_record(provenance={"dtype_floor": {"nc1_pinv": "a"}}), "provenance.dtype_floor.nc1_pinv is 'a', expected a finite number or null$"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "message"), BAD)
def test_what_is_no_report_is_refused_in_one_sentence(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        CollapseReport.from_dict(value)
    assert "\n" not in str(caught.value)


NESTED = "[" * 100_000 + "]" * 100_000
TEXTS = [
    (b"", r"is not JSON \(Expecting value"),
    (b"hello", r"is not JSON \(Expecting value: line 1 column 1"),
    (b"\xff\xfe\x00", "is not JSON, but binary: pass a file"),
    (b'{"a": NaN}', r"is not JSON \(NaN is not JSON, an undefined value is null\)"),
    (b'{"a": -Infinity}', r"is not JSON \(-Infinity is not JSON"),
    (b"1" * 5000, r"is not JSON \(Exceeds the limit"),
    (NESTED.encode(), "is nested too deeply to be a report: pass a file"),
    (b"[]", "report.json: not a collapsemeter report but a list"),
]


@pytest.mark.parametrize(("data", "message"), TEXTS)
def test_a_file_that_is_no_report_is_refused_with_its_path(tmp_path, data, message) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        CollapseReport.load(path)
    assert str(caught.value).startswith(str(path))


def test_provenance_nested_too_deeply_is_refused(tmp_path) -> None:
    path = tmp_path / "report.json"
    deep = '{"a":' * 60 + "1" + "}" * 60
    path.write_text(json.dumps(record()).replace('"provenance": {}', f'"provenance": {deep}', 1))
    with pytest.raises(ValueError, match="provenance is nested more than 32 levels deep"):
        CollapseReport.load(path)


def test_a_file_that_is_not_there_is_an_os_error(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        CollapseReport.load(tmp_path / "none.json")


LINES = [
    ("{", r"line 1 is not JSON \(Expecting property name"),
    ("[]", "line 1: not a line of a history: it has no step, phase and layers; pass a file that"),
    (
        '{"step": 1.5, "phase": "live", "layers": {}}',
        "line 1: step is 1.5, expected a whole number$",
    ),
    ('{"step": 1, "phase": 2, "layers": {}}', "line 1: phase is 2, expected a text$"),
]


@pytest.mark.parametrize(("line", "message"), LINES)
def test_a_line_that_is_no_report_is_refused_with_its_number(tmp_path, line, message) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=message) as caught:
        read_history(path)
    assert str(caught.value).startswith(f"{path}, line 1")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_what_tools_of_windows_have_saved_is_read(tmp_path, encoding) -> None:
    """PowerShell redirects into UTF-16, and editors put a byte order mark before UTF-8."""
    report = CollapseReport({"ü": LayerReport({"nc1_pinv": 0.5})})
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    path = tmp_path / "report.json"
    path.write_bytes((mark + report.to_json()).encode(encoding))
    assert CollapseReport.load(path).to_json() == report.to_json()
    lines = tmp_path / "runs.jsonl"
    for step in range(3):
        JsonlSink(lines, run="a").write(step, report)
    lines.write_bytes((mark + lines.read_text("utf-8").replace("\n", "\r\n")).encode(encoding))
    history = read_history(lines)
    assert ([step for step, _ in history], history.notes) == ([0, 1, 2], ())


def test_an_empty_history_is_refused(tmp_path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no report: pass a history that JsonlSink wrote"):
        read_history(path)
