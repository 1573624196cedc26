"""TensorBoard files, read back with TensorBoard's own reader."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from collapsemeter import CollapseReport, LayerReport
from collapsemeter.report.tags import safe_name
from collapsemeter.sinks import TensorBoardSink


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = read(folder)
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def expected(report: CollapseReport) -> dict[str, float]:
    values = {}
    for name, layer in [*report.items(), ("head", report["fc"])]:
        values |= {f"{metric}/{name}": value for metric, value in layer.items()}
        for metric, (low, high) in layer.intervals.items():
            values |= {f"{metric}.low/{name}": low, f"{metric}.high/{name}": high}
            values[f"{metric}.estimate/{name}"] = layer.estimates.get(metric, math.nan)
    return {tag: float(np.float32(value)) for tag, value in values.items() if math.isfinite(value)}


def layout(folder: Path) -> dict[str, dict[str, list[str]]]:
    tensor = read(folder).Tensors("custom_scalars__config__")
    assert len(tensor) == 1
    page = layout_pb2.Layout.FromString(tensor[0].tensor_proto.string_val[0])
    return {
        category.title: {chart.title: list(chart.multiline.tag) for chart in category.chart}
        for category in page.category
    }


def open_torch(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def open_tensorboardx(folder: Path) -> Any:
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder))


def test_a_folder_holds_every_value_when_write_returns(tmp_path: Path, make_report: Any) -> None:
    reports = {step: make_report(step) for step in (1, 5)}
    sink = TensorBoardSink(tmp_path)
    for step, report in reports.items():
        sink.write(step, report)
    actual = scalars(tmp_path)  # before close: flushed at each write
    sink.close()
    truth: dict[str, list[tuple[int, float]]] = {}
    for step, report in reports.items():
        for tag, value in expected(report).items():
            truth.setdefault(tag, []).append((step, value))
    assert actual == truth
    assert len(truth["nc1_pinv/fc"]) == len(reports)
    assert sink.failures == 0


@pytest.mark.parametrize("open_writer", [open_torch, open_tensorboardx])
def test_an_existing_writer_is_used_and_stays_open(
    tmp_path: Path, report: CollapseReport, open_writer: Any
) -> None:
    writer = open_writer(tmp_path)
    with TensorBoardSink(writer) as sink:
        sink.write(np.int64(2**40), report)  # type: ignore[arg-type]
    writer.add_scalar("still/open", 1.0, 3)
    writer.close()
    actual = scalars(tmp_path)
    assert actual.pop("still/open") == [(3, 1.0)]
    assert actual == {tag: [(2**40, value)] for tag, value in expected(report).items()}
    assert len(list(tmp_path.iterdir())) == 1  # no file per curve
    assert len(layout(tmp_path)) == 6


def test_the_layout_is_written_once_and_follows_the_paper(
    tmp_path: Path, report: CollapseReport
) -> None:
    with TensorBoardSink(tmp_path) as sink:
        sink.write(1, report)
        sink.write(2, report)
    actual = layout(tmp_path)
    assert actual == {
        "figure 2: equinorm": {
            "means": ["nc2_equinorm/conv1", "nc2_equinorm/fc"],
            "head": ["nc2_equinorm_head/fc"],
        },
        "figure 3: equiangularity": {
            "means": ["nc2_equiangular/conv1", "nc2_equiangular/fc"],
            "head": ["nc2_equiangular_head/fc"],
        },
        "figure 4: maximal angle": {
            "means": ["nc2_max_angle/conv1", "nc2_max_angle/fc"],
            "head": ["nc2_max_angle_head/fc"],
        },
        "figure 5: self-duality": {"head and means": ["nc3_self_duality/fc"]},
        "figure 6: within-class variation": {"NC1": ["nc1_pinv/conv1", "nc1_pinv/fc"]},
        "figure 7: nearest class centre": {"mismatch": ["nc4_mismatch/fc"]},
    }
    drawn = {tag for charts in actual.values() for tags in charts.values() for tag in tags}
    assert drawn <= set(scalars(tmp_path))


def test_a_run_with_a_layout_of_its_own_keeps_it(tmp_path: Path, report: CollapseReport) -> None:
    with TensorBoardSink(tmp_path, layout=False) as sink:
        sink.write(1, report)
    assert read(tmp_path).Tags()["tensors"] == []


class Plain:
    """No more than the contract asks for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float, int]] = []

    def add_scalar(self, name: str, data: float, where: int, /) -> None:
        self.calls.append((name, data, where))


def test_a_plain_object_gets_python_numbers_by_position(report: CollapseReport) -> None:
    writer = Plain()
    TensorBoardSink(writer).write(np.int64(7), report)  # type: ignore[arg-type]
    assert {tag for tag, _, _ in writer.calls} == set(expected(report))
    assert {(type(value), type(step)) for _, value, step in writer.calls} == {(float, int)}
    by_tag = {tag: value for tag, value, _ in writer.calls}
    assert by_tag["nc1_pinv/fc"] == report["fc"]["nc1_pinv"]


def test_what_is_not_finite_is_a_gap(tmp_path: Path) -> None:
    values = {"nc1_pinv": math.nan, "nc1_vci": math.inf, "nc1_cdnv": 0.5}
    with TensorBoardSink(tmp_path) as sink:
        sink.write(1, CollapseReport({"fc": LayerReport(values)}))
    assert scalars(tmp_path) == {"nc1_cdnv/fc": [(1, 0.5)]}


def test_odd_names_give_safe_distinct_tags_that_the_layout_finds(
    tmp_path: Path, odd_report: CollapseReport
) -> None:
    with TensorBoardSink(tmp_path) as sink:
        sink.write(1, odd_report)
    tags = set(scalars(tmp_path))
    assert sum(tag.startswith("nc1_pinv/") for tag in tags) == len(odd_report)
    for tag in tags:
        assert re.fullmatch(r"[\w.\-]+(/[\w.\-]+)+", tag, re.ASCII), tag
        assert not {"", ".", ".."} & set(tag.split("/")), tag
        assert len(tag) <= 250
    assert set(layout(tmp_path)["figure 6: within-class variation"]["NC1"]) <= tags
    assert {"nc1_pinv/a_0", "nc1_pinv/a_0_2"} <= tags


def test_two_sinks_of_one_second_do_not_overwrite_each_other(
    tmp_path: Path, make_report: Any
) -> None:
    for step in (1, 2):
        with TensorBoardSink(tmp_path, layout=False) as sink:
            sink.write(step, make_report(step))
    assert len(list(tmp_path.iterdir())) == 2


class Failing(Plain):
    def add_scalar(self, name: str, data: float, where: int, /) -> None:
        raise ConnectionError("the server\nis gone")


def test_a_writer_that_raises_warns_once_and_is_counted(
    report: CollapseReport, recwarn: pytest.WarningsRecorder
) -> None:
    sink = TensorBoardSink(Failing())
    for step in (3, 4, 5):
        sink.write(step, report)
    assert sink.failures == 3
    (warning,) = recwarn.list
    assert warning.category is RuntimeWarning
    assert warning.filename == __file__
    assert str(warning.message) == (
        "TensorBoardSink(Failing) could not write step 3: ConnectionError: the server is gone. "
        "Training goes on and the values remain in the report; later failures of this sink are "
        "counted in its `failures`, not shown"
    )


class NoPage(Plain):
    def add_custom_scalars(self, layout: object) -> None:
        raise NotImplementedError("no such page")


def test_a_writer_that_cannot_take_the_layout_has_the_curves(report: CollapseReport) -> None:
    writer = NoPage()
    sink = TensorBoardSink(writer)
    with pytest.warns(
        RuntimeWarning, match="could not write step 1: NotImplementedError: no such page"
    ):
        sink.write(1, report)
    sink.write(2, report)
    assert sink.failures == 1
    assert {step for _, _, step in writer.calls} == {1, 2}


def test_writing_after_close_warns(tmp_path: Path, report: CollapseReport) -> None:
    sink = TensorBoardSink(tmp_path)
    sink.close()
    sink.close()
    with pytest.warns(
        RuntimeWarning, match="could not write step 1: ValueError: write to closed file"
    ):
        sink.write(1, report)


def test_a_full_disk_neither_stops_nor_blocks_training(tmp_path: Path) -> None:
    """A file size limit is a full disk that needs no privileges; tensorboardX's own writer hangs here."""
    script = textwrap.dedent(
        """
        import resource, signal, sys, warnings
        from collapsemeter import CollapseReport, LayerReport
        from collapsemeter.sinks import TensorBoardSink
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        sink = TensorBoardSink(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        layers = {f"l{i}": LayerReport({"nc1_pinv": 0.5, "nc1_cdnv": 0.5}) for i in range(100)}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step in range(20):
                sink.write(step, CollapseReport(layers))
        print(sink.failures, *(w.message for w in caught))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "events")],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ,
        check=True,
    )
    assert re.match(
        r"20 TensorBoardSink\(\S+\) could not write step 0: OSError: .*File too large", done.stdout
    )
    assert done.stdout.count("could not") == 1


def test_tensorboardx_missing_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError) as caught:
        TensorBoardSink(tmp_path / "runs")
    assert str(caught.value) == (
        f"writing TensorBoard events to '{tmp_path / 'runs'}' needs tensorboardX: "
        "pip install 'collapsemeter[tensorboard]', or pass a writer that you have"
    )
    TensorBoardSink(Plain())  # a writer needs no tensorboardX


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OSError, match=r"cannot write in .*taken/events: Not a directory"):
        TensorBoardSink(tmp_path / "taken" / "events")


def test_an_object_without_add_scalar_is_refused() -> None:
    with pytest.raises(TypeError, match=r"takes a folder or a writer with add_scalar, got 3"):
        TensorBoardSink(3)  # type: ignore[arg-type]


def test_a_phase_that_changes_is_said_once(
    make_report: Any, recwarn: pytest.WarningsRecorder
) -> None:
    writer = Plain()
    sink = TensorBoardSink(writer)
    for step, phase in enumerate(("live", "frozen-eval", "live", "frozen-eval")):
        sink.write(step, make_report(phase=phase))
    assert sink.failures == 0
    steps = {}
    for tag, _, step in writer.calls:
        steps.setdefault(tag, []).append(step)
    assert steps["nc1_pinv/fc"] == [0, 2]  # two quantities are two curves
    assert steps["nc1_pinv/frozen-eval/fc"] == [1, 3]
    assert [str(w.message) for w in recwarn.list] == [
        "TensorBoardSink(Plain) got a frozen-eval report after live ones: these are different "
        "quantities, and their curves are nc1_pinv/frozen-eval/... and so on"
    ]


def curve(folder: Path) -> list[tuple[int, float]]:
    return scalars(folder)["nc1_pinv/fc"]


def of(value: float) -> CollapseReport:
    return CollapseReport({"fc": LayerReport({"nc1_pinv": value})})


def write(folder: Path, run: str | None, points: dict[int, float]) -> None:
    with TensorBoardSink(folder, run=run) as sink:
        for step, value in points.items():
            sink.write(step, of(value))
    assert sink.failures == 0


def test_another_run_is_another_folder_and_no_line_joins_them(tmp_path: Path) -> None:
    write(tmp_path, "a/../1", {0: 1.0, 1: 0.5})
    write(tmp_path, "b", {0: 0.25})
    write(tmp_path, None, {0: 0.125})
    assert curve(tmp_path) == [(0, 1.0), (1, 0.5)]
    assert curve(tmp_path / "b") == [(0, 0.25)]
    (third,) = (path for path in tmp_path.iterdir() if path.is_dir() and path.name != "b")
    assert curve(third) == [(0, 0.125)]


def test_the_last_record_of_a_step_wins_when_a_run_is_resumed(tmp_path: Path) -> None:
    write(tmp_path, "a", {0: 1.0, 1: 0.5, 2: 0.25})
    write(tmp_path, "b", {0: 8.0, 1: 4.0})
    write(tmp_path, "a", {1: 0.75, 2: 0.375})
    write(tmp_path, "b", {1: 2.0})
    assert curve(tmp_path) == [(0, 1.0), (1, 0.75), (2, 0.375)]
    assert curve(tmp_path / "b") == [(0, 8.0), (1, 2.0)]


def test_event_files_of_an_earlier_version_are_another_run(tmp_path: Path) -> None:
    write(tmp_path, "a", {0: 1.0})
    (file,) = tmp_path.iterdir()
    file.rename(tmp_path / re.sub(r"\.run-a", "", file.name))
    write(tmp_path, "a", {0: 0.5})
    assert curve(tmp_path) == [(0, 1.0)]
    assert curve(tmp_path / "a") == [(0, 0.5)]


@pytest.mark.parametrize("open_writer", [open_torch, open_tensorboardx])
def test_curves_stand_beside_those_of_the_users_own_writer(
    tmp_path: Path, open_writer: Any
) -> None:
    """A writer that logs the loss to the same folder is no other run of ours."""
    writer = open_writer(tmp_path)
    writer.add_scalar("loss", 1.0, 0)
    writer.close()
    write(tmp_path, None, {0: 0.5})
    assert curve(tmp_path) == [(0, 0.5)]


def test_a_tag_holds_no_empty_segment_and_no_step_upwards() -> None:
    names = [safe_name(name) for name in ("blocks/3.attn", "../<b>", "")]
    assert names == ["blocks/3.attn", "_/_b_", "_"]
