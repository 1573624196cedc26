"""Every form of model, way to compile and kind of fit, against NumPy on the network's own weights."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from collapsemeter import ClassMoments, Head, decide, measure, testing
from collapsemeter_keras import CollapseMeter

from .conftest import ONE_BACKEND
from .networks import ARCHITECTURES, CLASSES, data, forward, frozen, parts

ROWS, HELD_OUT, BATCH = 96, 48, 16
RAGGED = "functional-jit_True"  # whose last batches are smaller: every shape is compiled
# A float32 forward of a dozen terms per unit rounds at 1e-6 of the features; metrics are ratios of them.
METRIC, SCATTER = 1e-4, 2e-6
JIT = ("auto", True, False)

CASES = {
    **{
        f"{name}-jit_{jit}": (name, {"jit_compile": jit}, {})
        for name in ARCHITECTURES
        for jit in JIT
    },
    "eager": ("subclassed_unbuilt", {"run_eagerly": True}, {}),
    "no_validation": ("functional", {}, {"validation": False}),
    "fitted_before": ("nested_subclassed", {}, {"fitted": True}),
    "steps_per_execution": ("sequential", {"steps_per_execution": 3}, {}),
}


# Nightly runs all of them. By default PyTorch, which compiles nothing unless it is told to, runs whatever
# does not; the others, where XLA compiles every step, run the corners.
CORNERS = {
    "functional-jit_True",
    "subclassed_unbuilt-jit_auto",
    "nested_subclassed-jit_auto",
    "eager",
    "steps_per_execution",
}
EAGER = {name for name in CASES if not name.endswith("jit_True")}


def test_there_are_twenty_two_cases():
    assert len(CASES) == 22
    assert RAGGED in CORNERS
    assert CORNERS.issubset(CASES)
    assert len(EAGER) == 16


def test_what_runs_on_one_backend_is_there():
    for part, names in ONE_BACKEND.items():
        source = Path(__file__).with_name(f"test_{part}.py").read_text()
        for name in names:
            function, _, case = name.removesuffix("]").partition("[")
            assert f"def {function}(" in source, name
            assert not case or case in {kit.__name__ for kit in testing.CASES}, name


def cases():
    daily = EAGER if keras.backend.backend() == "torch" else CORNERS
    if keras.backend.backend() == "jax":
        daily = daily - {"eager"}  # every operation of an eager step is compiled alone
    for case in CASES:
        yield case if case in daily else pytest.param(case, marks=pytest.mark.nightly)


def check(report, moments_of, model, x, labels, phase):
    """Hold a report, and the moments of its layers, to NumPy."""
    outputs = forward(model, x)
    weight, bias = (np.asarray(w, np.float64) for w in parts(model)["fc"].get_weights())
    assert not report.warnings
    assert report.phase == phase
    assert report.provenance["rows"] == len(labels)
    for name, layer in report.items():
        own = name.rpartition("/")[2]
        truth = ClassMoments.from_batch(outputs[own], labels, CLASSES, phase=phase)
        found = moments_of(name)
        np.testing.assert_array_equal(found.counts, truth.counts)
        size = np.abs(truth.scatter).max()
        np.testing.assert_allclose(found.scatter, truth.scatter, rtol=0, atol=SCATTER * size)
        decided = decide(truth, outputs[own], labels, predictions=outputs["logits"].argmax(1))
        head = Head(weight.T, bias) if own == "fc" else None
        expected = measure(truth, head=head, decisions=decided)
        assert set(layer) == set(expected)
        for metric, value in expected.items():
            assert layer[metric] == pytest.approx(value, rel=METRIC, nan_ok=True), (name, metric)


@pytest.mark.parametrize("case", [*cases()])
def test_matrix(case, backend):
    name, compiled, kind = CASES[case]
    fewer = 8 if case == RAGGED or backend == "torch" else 0
    x, y = data(ROWS - fewer)
    held_out, held_labels = data(HELD_OUT - fewer, seed=1)
    model = ARCHITECTURES[name]()
    if case == "steps_per_execution" and backend == "torch":
        # Keras' own refusal on this backend, and the reason why it has one case less.
        with pytest.raises(ValueError, match="steps_per_execution"):
            frozen(model, **compiled).fit(x, y, BATCH, verbose=0)
        return
    frozen(model, **compiled)
    if kind.get("fitted"):
        model.fit(x, y, BATCH, verbose=0)
    meter = CollapseMeter(
        ["one", "two"] if "nested" not in name else ["body/*"], verbose=False, strict=True
    )
    validation = (held_out, held_labels) if kind.get("validation", True) else None
    if backend == "torch" and compiled.get("jit_compile") is True and name != "sequential":
        validation = None  # a second function would take another twenty seconds to compile
    model.fit(
        x,
        y,
        BATCH,
        epochs=2,
        verbose=0,
        shuffle=False,
        validation_data=validation,
        callbacks=[meter],
    )
    assert [entry.epoch for entry in meter.reports["train"]] == [0, 1]
    live = meter.reports["train"][-1].report
    assert [layer.rpartition("/")[2] for layer in live] == ["one", "two", "fc"]
    check(live, lambda layer: meter.moments(layer), model, x, y, "live")
    if validation is None:
        assert meter.reports["validation"] == []
        return
    checked = meter.reports["validation"][-1].report
    check(
        checked,
        lambda layer: meter.moments(layer, "validation"),
        model,
        held_out,
        held_labels,
        "frozen-eval",
    )
    assert len(meter.reports["validation"]) == 2


def test_evaluate_alone_is_reported():
    x, y = data(ROWS)
    model = frozen(ARCHITECTURES["functional"]())
    meter = CollapseMeter(["one"], verbose=False, strict=True)
    for number in (1, 2):  # a second time starts anew
        model.evaluate(x, y, BATCH, verbose=0, callbacks=[meter])
        assert len(meter.reports["validation"]) == number
        report = meter.reports["validation"][-1].report
        check(report, lambda n: meter.moments(n, "validation"), model, x, y, "frozen-eval")
    assert keras.backend.backend() in report.provenance["framework"]
