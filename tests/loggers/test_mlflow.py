"""MLflow itself, with a store in a file and one in a folder: what arrives, and that no NaN does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import mlflow
import pytest

from collapsemeter import METRICS, CollapseReport, LayerReport
from collapsemeter.sinks import Fan

# Of MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


@pytest.fixture(scope="module", params=["sqlite", "files"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:  # fmt: skip
    folder = tmp_path_factory.mktemp(request.param)
    address = f"sqlite:///{folder}/mlflow.db" if request.param == "sqlite" else folder.as_uri()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow.set_tracking_uri(address)
        if request.param == "sqlite":  # artefacts would go to the working directory
            mlflow.create_experiment("test", artifact_location=(folder / "artefacts").as_uri())
            mlflow.set_experiment("test")
        else:
            mlflow.set_experiment("Default")
        yield


def log(*reports: tuple[int, CollapseReport]) -> Any:
    """Write reports to a run, and return it as MLflow gives it back."""
    with mlflow.start_run() as run:
        sink = Fan(mlflow)
        for step, report in reports:
            sink.write(step, report)
    assert sink.failures == 0
    return mlflow.MlflowClient().get_run(run.info.run_id)


def curves_of(run: Any) -> dict[str, list[tuple[int, float]]]:
    client = mlflow.MlflowClient()
    return {
        key: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics
    }


def of(**values: float) -> CollapseReport:
    return CollapseReport({"layer1.0.relu#0": LayerReport(values)})


@pytest.mark.usefixtures("store")
def test_what_is_undefined_absent_or_infinite_is_not_logged() -> None:
    absent = CollapseReport({"other": LayerReport({"nc1_pinv": 0.125})})
    run = log(
        (1, of(nc1_pinv=0.5, nc2_etf_error=math.nan)),
        (2, of(nc1_pinv=0.4, nc2_etf_error=0.2, nc1_vci=math.inf)),
        (3, absent),
        (4, CollapseReport({"other": LayerReport({"nc1_pinv": math.nan})})),
    )
    assert curves_of(run) == {
        "nc1_pinv/layer1.0.relu_0": [(1, 0.5), (2, 0.4)],
        "nc2_etf_error/layer1.0.relu_0": [(2, 0.2)],
        "nc1_pinv/other": [(3, 0.125)],
    }


@pytest.mark.usefixtures("store")
def test_every_name_and_step_is_taken() -> None:
    names = ("", "a#0", "a_0", "../b", "b//c", "b/c", "b", "\x1b[31m", "\ud800", "ü:=", "x" * 400)
    layers = {name: LayerReport({"nc1_pinv": float(i)}) for i, name in enumerate(names)}
    steps = (-1, 0, 2**40, 3)
    curves = curves_of(log(*((step, CollapseReport(layers)) for step in steps)))
    assert len(curves) == len(names)
    assert sorted(points[0][1] for points in curves.values()) == list(range(len(names)))
    for points in curves.values():
        assert sorted(step for step, _ in points) == sorted(steps)


@pytest.mark.usefixtures("store")
def test_more_metrics_than_one_batch_of_mlflow_holds() -> None:
    layers: dict[str, Any] = {f"l{i}": LayerReport(dict.fromkeys(METRICS, 0.5)) for i in range(40)}
    run = log((0, CollapseReport(layers)))
    assert len(run.data.metrics) == 41 * len(METRICS) > 1000  # the final layer has two tags
