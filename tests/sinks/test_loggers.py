"""Loggers, as tiny objects with the exact signatures of the libraries they stand for."""

from __future__ import annotations

import logging
import math
import types
from collections.abc import Mapping
from typing import Any

import pytest

from collapsemeter import METRICS, CollapseReport, LayerReport
from collapsemeter.sinks import LoggerSink

Calls = list[tuple[dict[str, float], Any]]


class Lightning:
    """lightning.pytorch.loggers.Logger."""

    def __init__(self) -> None:
        self.calls: Calls = []

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.calls.append((dict(metrics), step))


class Comet:
    """comet_ml.Experiment: the second parameter is no step."""

    def __init__(self) -> None:
        self.calls: Calls = []

    def log_metrics(
        self, dic: Any, prefix: Any = None, step: Any = None, epoch: Any = None
    ) -> None:
        assert prefix is None
        self.calls.append((dic, step))


class WandbRun:
    """wandb.Run."""

    def __init__(self) -> None:
        self.calls: Calls = []

    def log(
        self, data: dict[str, Any], step: int | None = None, commit: bool | None = None
    ) -> None:
        self.calls.append((data, step))


class Trainer:
    """transformers.Trainer: two methods of these names, neither with a step, one of another meaning."""

    def __init__(self) -> None:
        self.calls: Calls = []

    def log_metrics(self, split: str, metrics: dict[str, float]) -> None:
        raise AssertionError("prints a table of a split")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        assert start_time is None
        self.calls.append((logs, "own"))


class Clu:
    """clu.metric_writers.MetricWriter."""

    def __init__(self) -> None:
        self.calls: Calls = []

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        self.calls.append((dict(scalars), step))


class Aim:
    """aim.Run."""

    def __init__(self) -> None:
        self.values: dict[int, dict[str, float]] = {}

    @property
    def calls(self) -> Calls:
        return [(scalars, step) for step, scalars in self.values.items()]

    def track(
        self,
        value: float,
        name: str | None = None,
        step: int | None = None,
        epoch: int | None = None,
        *,
        context: Any = None,
    ) -> None:
        assert epoch is context is None
        assert isinstance(step, int)
        self.values.setdefault(step, {})[str(name)] = value


class ClearML(Aim):
    """clearml.Logger."""

    track = None  # type: ignore[assignment]

    def report_scalar(self, title: str, series: str, value: float, iteration: int) -> None:
        self.values.setdefault(iteration, {})[f"{title}/{series}"] = value


class Neptune(Aim):
    """neptune.Run."""

    track = None  # type: ignore[assignment]
    __module__ = "neptune.metadata_containers.run"

    def __getitem__(self, name: str) -> Any:
        def append(value: float, *, step: int) -> None:
            self.values.setdefault(step, {})[name] = value

        return types.SimpleNamespace(append=append)


def mlflow_module() -> Any:
    module = types.ModuleType("mlflow")
    calls: Calls = []

    def log_metrics(
        metrics: dict[str, float],
        step: int | None = None,
        synchronous: bool | None = None,
        run_id: str | None = None,
        timestamp: int | None = None,
    ) -> None:
        assert synchronous is run_id is timestamp is None
        calls.append((metrics, step))

    module.log_metrics, module.calls = log_metrics, calls  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize(
    ("make", "step"),
    [
        (Lightning, 7),
        (Comet, 7),
        (WandbRun, 7),
        (mlflow_module, 7),
        (Clu, 7),
        (Trainer, "own"),
        (Aim, 7),
        (ClearML, 7),
        (Neptune, 7),
    ],
)
def test_each_library_is_called_its_own_way(report: CollapseReport, make: Any, step: Any) -> None:
    logger = make()
    sink = LoggerSink(logger)
    sink.write(7, report)
    assert sink.failures == 0
    ((scalars, seen),) = logger.calls
    assert seen == step
    assert scalars["nc1_pinv/fc"] == report["fc"]["nc1_pinv"]
    assert {type(value) for value in scalars.values()} == {float}
    named = [
        *report.items(),
        ("head", report["fc"]),
    ]  # the last layer's tags are the same in every run
    assert scalars == {
        f"{metric}/{name}": value
        for name, layer in named
        for metric, value in layer.items()
        if math.isfinite(value)
    }


def test_wandb_as_a_module_is_looked_up_at_each_write(report: CollapseReport) -> None:
    """wandb.log is replaced by wandb.init()."""
    wandb: Any = types.ModuleType("wandb")

    def before_init(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("You must call wandb.init() before wandb.log()")

    wandb.log = before_init
    sink = LoggerSink(wandb)
    run = WandbRun()
    wandb.log = run.log
    sink.write(1, report)
    assert [step for _, step in run.calls] == [1]


@pytest.mark.parametrize(
    "make", [Lightning, Comet, Trainer, Clu, mlflow_module, Aim, ClearML, Neptune]
)
def test_what_is_undefined_or_absent_is_a_gap_everywhere(
    undefined_report: CollapseReport, report: CollapseReport, make: Any
) -> None:
    logger = make()
    sink = LoggerSink(logger)
    infinite = CollapseReport({"fc": LayerReport({"nc1_pinv": math.inf, "nc1_vci": -math.inf})})
    for step, each in enumerate((undefined_report, report, infinite, CollapseReport({}))):
        sink.write(step, each)
    first, second = (scalars for scalars, _ in logger.calls)  # the others held nothing to log
    assert "nc1_pinv/conv1" not in first
    assert second["nc1_pinv/conv1"] == report["conv1"]["nc1_pinv"]
    assert all(map(math.isfinite, [*first.values(), *second.values()]))
    assert sink.failures == 0


def test_a_metric_of_ones_own_comes_after_the_known_ones() -> None:
    logger = Lightning()
    layer = LayerReport({"my metric#1": 1.0, "nc1_vci": 0.25, "nc1_pinv": 0.5})
    LoggerSink(logger).write(1, CollapseReport({"fc": layer}))
    assert list(logger.calls[0][0]) == ["nc1_pinv/fc", "nc1_vci/fc", "my_metric_1/fc"]
    assert "my metric#1" not in METRICS


def test_no_layer_is_the_folder_of_another_where_metrics_are_files() -> None:
    names = ("block", "block/conv", "top/conv", "top", "block.conv")
    layers = {name: LayerReport({"nc1_pinv": float(i)}) for i, name in enumerate(names)}
    logger = Lightning()
    LoggerSink(logger).write(1, CollapseReport(layers))
    ((scalars, _),) = logger.calls
    assert list(scalars.values()) == [0.0, 1.0, 2.0, 3.0, 4.0]
    for tag in scalars:
        assert not any(another.startswith(f"{tag}/") for another in scalars)


def test_a_callable_gets_the_report(report: CollapseReport) -> None:
    seen: list[Any] = []
    LoggerSink(lambda step, report: seen.append((step, report))).write(3, report)
    assert seen == [(3, report)]


@pytest.mark.parametrize(
    "error", [RuntimeError("no run"), KeyError("x"), OSError(28, "No space left")]
)
def test_a_logger_that_raises_warns_once(
    report: CollapseReport, error: Exception, recwarn: pytest.WarningsRecorder
) -> None:
    class Broken:
        def log(self, data: dict[str, Any], step: int | None = None) -> None:
            raise error

    sink = LoggerSink(Broken())
    for step in range(4):
        sink.write(step, report)
    assert sink.failures == 4
    (warning,) = recwarn.list
    assert str(warning.message).startswith(
        f"LoggerSink(Broken) could not write step 0: {type(error).__name__}: {error}. Training goes on"
    )


def test_an_interrupt_is_not_swallowed(report: CollapseReport) -> None:
    def interrupted(step: int, report: CollapseReport) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LoggerSink(interrupted).write(1, report)


@pytest.mark.parametrize(
    "logger", [logging.getLogger("x"), logging, logging.LoggerAdapter(logging.getLogger("x"), {})]
)
def test_the_standard_logger_is_refused_with_what_to_do(logger: Any) -> None:
    with pytest.raises(TypeError) as caught:
        LoggerSink(logger)
    assert str(caught.value).endswith(
        "of the standard library logs text, not metrics: pass a callable, for example "
        "lambda step, report: logger.info('step %s: %s', step, report.summary())"
    )


def test_a_subclass_of_the_standard_logger_is_refused_too() -> None:
    class Own(logging.Logger):
        pass

    with pytest.raises(TypeError, match="Own of the standard library logs text"):
        LoggerSink(Own("x"))


class LightningModule:
    """lightning.pytorch.LightningModule: its log takes one name and one value."""

    logger = Lightning()

    def log(self, name: str, value: float, prog_bar: bool = False) -> None:
        raise AssertionError


def test_a_log_of_another_meaning_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"LightningModule cannot be written to: pass its `logger`; expected"
    ):
        LoggerSink(LightningModule())


@pytest.mark.parametrize("thing", [3, None, LightningModule, lambda: None])
def test_what_cannot_be_called_is_refused(thing: Any) -> None:
    with pytest.raises(
        TypeError, match=r"cannot be written to.* expected log_metrics\(metrics, step=...\)"
    ):
        LoggerSink(thing)


def test_a_callable_without_a_signature_is_given_the_benefit_of_the_doubt(
    report: CollapseReport,
) -> None:
    sink = LoggerSink(max)  # a builtin that inspect cannot read
    with pytest.warns(RuntimeWarning, match=r"LoggerSink\(max\) could not write step 1: TypeError"):
        sink.write(1, report)


@pytest.mark.parametrize("name", ["dense_7", "dense_9"])
def test_the_layer_that_the_head_reads_has_a_tag_that_no_run_changes(name: str) -> None:
    layers = {"body": LayerReport({"nc1_pinv": 1.0}), name: LayerReport({"nc3_cosine": 0.5})}
    logger = Trainer()
    LoggerSink(logger).write(0, CollapseReport(layers))
    ((scalars, _),) = logger.calls
    assert scalars == {"nc1_pinv/body": 1.0, f"nc3_cosine/{name}": 0.5, "nc3_cosine/head": 0.5}


def test_a_layer_of_that_name_keeps_its_tag_alone() -> None:
    layers = {name: LayerReport({"nc3_cosine": 0.5}) for name in ("head", "head/out")}
    logger = Trainer()
    LoggerSink(logger).write(0, CollapseReport(layers))
    ((scalars, _),) = logger.calls
    assert list(scalars) == ["nc3_cosine/head", "nc3_cosine/head.out"]


def test_a_part_of_an_epoch_is_not_cut_to_a_whole_one(report: CollapseReport) -> None:
    logger = Lightning()
    sink = LoggerSink(logger)
    sink.write(3.0, report)  # type: ignore[arg-type]
    with pytest.warns(
        RuntimeWarning, match=r"could not write step 3.5: .* 3.5 is not a whole number"
    ):
        sink.write(3.5, report)  # type: ignore[arg-type]
    assert [step for _, step in logger.calls] == [3]
    assert sink.failures == 1
