"""Weights & Biases itself, offline: its own file of a run is read back, record by record."""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from accelerate import Accelerator
from wandb.proto import wandb_internal_pb2

from collapsemeter import CollapseReport, LayerReport
from collapsemeter.sinks import Fan

STEP = "collapsemeter/step"


def of(value: float, phase: str = "frozen-eval", **more: float) -> CollapseReport:
    return CollapseReport({"fc": LayerReport({"nc1_pinv": value, **more})}, phase)


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: a LevelDB log in blocks of 32 KiB after a header of 7 bytes."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 2**15 - at % 2**15
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole = data[at + 7 : at + 7 + length] if kind in (1, 2) else whole + data[at + 7 : at + 7 + length]  # fmt: skip
        at += 7 + length
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(whole)


def finished(path: Path) -> list[Any]:
    """All records, once the last is there: W&B goes on writing for a moment after finish()."""
    for _ in range(600):
        found = list(records(path))
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        time.sleep(0.05)
    raise AssertionError(f"{path} was never finished")


def offline_in(folder: Path) -> Any:
    return wandb.Settings(
        mode="offline", silent=True, root_dir=str(folder), x_disable_stats=True, x_disable_meta=True
    )


def rows_of(found: list[Any]) -> list[dict[str, float]]:
    """The rows of a run in order, without their times."""
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in r.history.item}
        for r in found
        if r.WhichOneof("record_type") == "history"
    ]  # fmt: skip
    return [{k: v for k, v in row.items() if k not in ("_timestamp", "_runtime")} for row in rows]


class Offline:
    """A run, and what its file holds at the end."""

    def __init__(self, folder: Path) -> None:
        self.run = wandb.init(project="test", settings=offline_in(folder))
        (self.path,) = Path(self.run.dir).parent.glob("*.wandb")

    def finish(self) -> tuple[list[dict[str, float]], list[Any]]:
        """Return the rows, and the definitions of metrics."""
        self.run.finish()
        found = finished(self.path)
        return rows_of(found), [r.metric for r in found if r.WhichOneof("record_type") == "metric"]


@pytest.fixture
def offline(tmp_path: Path) -> Iterator[Offline]:
    one = Offline(tmp_path)
    yield one
    one.run.finish()


def reported(rows: list[dict[str, float]], tag: str = "nc1_pinv/fc") -> list[tuple[float, float]]:
    return [(row[STEP], row[tag]) for row in rows if tag in row]


def logs_of(rows: list[dict[str, float]], key: str) -> list[tuple[float, float]]:
    return [(row["_step"], row[key]) for row in rows if key in row]


Loop = Callable[[Any, int, int], None]


def implicit(run: Any, epoch: int, batch: int) -> None:
    run.log({"loss": float(epoch)})


def explicit(run: Any, epoch: int, batch: int) -> None:
    run.log({"loss": float(epoch)}, step=5 * epoch + batch)


@pytest.mark.parametrize("loop", [implicit, explicit])
@pytest.mark.parametrize("target", ["run", "module"])
def test_reports_of_epochs_arrive_beside_a_loop_that_logs_every_step(
    offline: Offline, loop: Loop, target: str
) -> None:
    sink = Fan(wandb if target == "module" else offline.run)
    for epoch in range(3):
        for batch in range(5):
            loop(offline.run, epoch, batch)
        sink.write(epoch, of(0.5**epoch, nc2_equinorm=math.nan))
        if loop is explicit:  # the step that is open stays open
            offline.run.log({"error": 0.25}, step=5 * epoch + 4)
    rows, metrics = offline.finish()
    assert reported(rows) == [(0, 1.0), (1, 0.5), (2, 0.25)]
    assert [row["loss"] for row in rows if "loss" in row] == [0.0] * 5 + [1.0] * 5 + [2.0] * 5
    if loop is explicit:
        assert logs_of(rows, "error") == [(4, 0.25), (9, 0.25), (14, 0.25)]
    assert not [row for row in rows for value in row.values() if value != value]  # no NaN
    defined = {m.name or m.glob_name: m.step_metric for m in metrics}
    assert defined == {STEP: "", "nc1_pinv/*": STEP}
    assert sink.failures == 0


def test_reports_without_a_log_between_them_all_arrive_in_any_order_of_steps(
    offline: Offline,
) -> None:
    sink = Fan(offline.run)
    for step in (7, 3, 3, 9):
        sink.write(step, of(float(step)))
    sink.write(9, of(0.5))
    rows, _ = offline.finish()
    assert reported(rows) == [(7, 7.0), (3, 3.0), (9, 9.0), (9, 0.5)]  # 3 twice, with one value
    assert sink.failures == 0


def test_two_phases_in_one_run_are_two_curves_and_move_no_step_of_the_loop(
    offline: Offline,
) -> None:
    live, frozen = Fan(offline.run), Fan(offline.run)
    for epoch in range(4):
        offline.run.log({"loss": 1.0}, step=epoch)
        live.write(epoch, of(0.5, "live"))
        frozen.write(epoch, of(0.25, "frozen-eval"))
    rows, _ = offline.finish()
    assert reported(rows) == [(epoch, 0.5) for epoch in range(4)]
    assert reported(rows, "nc1_pinv/frozen-eval/fc") == [(epoch, 0.25) for epoch in range(4)]
    assert logs_of(rows, "loss") == [(epoch, 1.0) for epoch in range(4)]
    assert live.failures + frozen.failures == 0


def test_the_module_may_be_passed_before_there_is_a_run(tmp_path: Path) -> None:
    sink = Fan(wandb)
    with pytest.warns(RuntimeWarning, match=r"call wandb.init\(\) before the first report"):
        sink.write(0, of(1.0))
    for _ in range(2):  # and it goes on with the next run
        offline = Offline(tmp_path)
        sink.write(1, of(0.5))
        rows, metrics = offline.finish()
        assert reported(rows) == [(1, 0.5)]
        assert len(metrics) == 2
    assert sink.failures == 1


def test_an_accelerator_hands_no_step_to_its_run(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True, log_with="wandb")
    sink = Fan(accelerator)
    with pytest.warns(
        RuntimeWarning, match=r"Accelerator has no tracker: call init_trackers\(\) first"
    ):
        sink.write(0, of(1.0))
    accelerator.init_trackers("test", init_kwargs={"wandb": {"settings": offline_in(tmp_path)}})
    run = accelerator.get_tracker("wandb", unwrap=True)
    (path,) = Path(run.dir).parent.glob("*.wandb")
    for epoch in range(3):
        for batch in range(5):
            accelerator.log({"loss": 1.0}, step=5 * epoch + batch)
        sink.write(epoch, of(0.5**epoch))
    accelerator.end_training()
    assert reported(rows_of(finished(path))) == [(0, 1.0), (1, 0.5), (2, 0.25)]
    assert sink.failures == 1


def test_hostile_names_arrive(offline: Offline) -> None:
    names = ("\x1b[31ma", "\ud800", "a#0", "a_0", "b", "b/c", "../d", "e.f*")
    report = CollapseReport({n: LayerReport({"nc1_pinv": float(i)}) for i, n in enumerate(names)})
    sink = Fan(offline.run)
    sink.write(0, report)
    (row,) = offline.finish()[0]
    assert sorted(v for tag, v in row.items() if tag.startswith("nc1_pinv/")) == list(range(8))
    assert sink.failures == 0


def test_a_run_that_is_finished_or_missing_is_a_failure_and_said(
    offline: Offline, recwarn: pytest.WarningsRecorder
) -> None:
    sink, module = Fan(offline.run), Fan(wandb)
    offline.run.finish()
    for step in (1, 2):
        sink.write(step, of(0.5))
        module.write(step, of(0.5))
    assert (sink.failures, module.failures) == (2, 2)
    said = [str(warning.message) for warning in recwarn.list if "could not write" in str(warning.message)]  # fmt: skip
    assert len(said) == 2
    assert "is finished" in said[0]
    assert "call wandb.init() before the first report" in said[1]
