"""every_batch=, max_rows= and the measured overhead, in the compiled step of every backend."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from .networks import EAGER, WIDTH, Subclassed, data, frozen, sequential
from .test_faults import BACKEND, assert_counted, fit
from .test_faults import watch as meter_for

BATCH = 16  # of test_faults.fit
X, Y = data(9 * BATCH)


def chosen(batches: slice) -> tuple[np.ndarray, np.ndarray]:
    """Rows and labels of these batches alone."""
    x, y = X.reshape(-1, BATCH, WIDTH)[batches], Y.reshape(-1, BATCH)[batches]
    return x.reshape(-1, WIDTH), y.reshape(-1)


def same(found: dict, due: dict) -> None:
    """Bit for bit: every variable of both streams, but for the number of batches that were given."""
    assert found.keys() == due.keys()
    assert "train/collapsemeter_train_given" in due
    for name in due.keys() - {"train/collapsemeter_train_given"}:
        np.testing.assert_array_equal(found[name], due[name], err_msg=name)


CASES = {
    "tensorflow": [(sequential, True), (Subclassed, False)],  # XLA, and TensorFlow's own graph
    "jax": [(sequential, "auto")],
    "torch": [(Subclassed, False)],
}


@pytest.mark.parametrize(("make", "jit"), CASES[BACKEND])
def test_every_kth_batch_is_counted_and_no_other(make, jit):
    x, y = chosen(slice(0, None, 4))
    options = {"strict": True, "sample_rows": 20, "layers": ["one"]}
    checked = {} if jit is True else {"validation_data": (X, Y)}  # XLA compiles for twelve seconds
    model, meter = frozen(make(), jit_compile=jit), meter_for(every_batch=4, **options)
    fit(model, meter, x=X, y=Y, epochs=2, **checked)
    assert_counted(meter, model, x=x, y=y)
    if checked:
        assert_counted(meter, model, "validation", x=X, y=Y)
    found = meter.state_dict()
    meter.close()
    only = meter_for(**options)
    fit(model, only, x=x, y=y, epochs=2, **checked)
    same(found, only.state_dict())
    for _, report in meter.reports["train"]:
        assert not report.warnings
        assert {layer.provenance["rows"] for layer in report.values()} == {3 * BATCH}
        assert report.provenance["budget"] == {
            "every_batch": 4,
            "max_rows": None,
            "batches_left_out": 6,
        }
    if checked:
        assert not meter.reports["validation"][0].report.provenance.keys() & {"budget", "overhead"}


def test_rows_are_counted_up_to_a_limit():
    x, y = chosen(slice(0, 6, 2))  # 16 rows each: 40 are reached with the third that is counted
    options = {"strict": True, "sample_rows": 20}
    model = frozen(sequential())
    meter, only = meter_for(every_batch=2, max_rows=40, **options), meter_for(**options)
    fit(model, meter, x=X, y=Y, epochs=2)
    found = meter.state_dict()
    meter.close()
    fit(model, only, x=x, y=y, epochs=2)
    same(found, only.state_dict())
    for _, report in meter.reports["train"]:
        assert not report.warnings
        assert report.provenance["budget"]["batches_left_out"] == 6
        assert report.provenance["budget"]["max_rows_reached"] is True


def test_a_limit_beyond_what_is_counted_with():
    model, meter = frozen(sequential()), meter_for(max_rows=2**40, strict=True)
    fit(model, meter, x=X, y=Y)
    assert_counted(meter, model, x=X, y=Y)


def test_several_steps_in_one_call():
    if BACKEND == "torch":
        return  # Keras has one step in a call on this backend
    x, y = chosen(slice(0, None, 2))
    model, meter = frozen(sequential(), steps_per_execution=3), meter_for(every_batch=2)
    fit(model, meter, x=X, y=Y)
    assert_counted(meter, model, x=x, y=y)
    assert not meter.reports["train"][0].report.warnings


def test_a_watched_training_ends_with_the_weights_of_an_unwatched_one():
    weights = []
    for watched in (False, True):
        keras.utils.set_random_seed(1)
        model = frozen(sequential())
        model.optimizer.learning_rate = 1e-2
        meters = [meter_for(every_batch=3, max_rows=60, strict=True)] if watched else []
        fit(model, *meters, x=X, y=Y, epochs=2)
        weights.append(model.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_failure_in_a_counted_batch_leaves_training_alone():
    def broken(output):
        raise RuntimeError("a fault of ours")

    model = frozen(sequential())
    meter = meter_for(every_batch=2, reduction={"one": broken})
    with pytest.warns(RuntimeWarning, match="layer 'one'"):
        fit(model, meter, x=X, y=Y)
    x, y = chosen(slice(0, None, 2))
    assert_counted(meter, model, x=x, y=y)
    assert meter.reports["train"][0].report["one"].flags == ("degraded",)


def test_a_saved_meter_continues_in_its_phase_and_a_reset_begins_anew():
    model = frozen(sequential(), run_eagerly=EAGER)
    whole, resumed = (meter_for(every_batch=3, max_rows=60, strict=True) for _ in range(2))
    batches = [*zip(X.reshape(-1, BATCH, WIDTH), Y.reshape(-1, BATCH), strict=True)] * 2
    whole.set_model(model)
    for x, y in batches[:5]:
        model.train_on_batch(x, y)
    saved = whole.state_dict()
    resumed.set_model(model)
    resumed.load_state_dict(saved)
    for x, y in batches[5:]:
        model.train_on_batch(x, y)
    ours, theirs = whole.state_dict(), resumed.state_dict()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    report = resumed.compute()
    assert report.provenance["rows"] == 64
    assert report.provenance["budget"]["batches_left_out"] == len(batches) - 4
    whole.reset()
    for x, y in batches[:2]:
        model.train_on_batch(x, y)
    assert whole.compute().provenance["rows"] == BATCH


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_batch": 0}, "every_batch=0: pass a whole number from 1 up"),
        ({"every_batch": 1.5}, r"every_batch=1\.5: pass a whole number"),
        ({"max_rows": -1}, "max_rows=-1: pass a whole number from 1 up; or None"),
    ],
)
def test_a_wrong_budget_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        meter_for(**options)


def wide() -> keras.Model:
    parts = [keras.layers.Dense(width, name=name) for name, width in (("one", 900), ("two", 8))]
    head = keras.layers.Dense(4, name="fc")
    return frozen(
        keras.Sequential([keras.Input((WIDTH,)), *parts, head]), run_eagerly=BACKEND != "jax"
    )


def test_the_overhead_is_a_share_where_python_runs_the_steps_and_unknown_elsewhere():
    model, shares = wide(), []
    for every in (1, 9):
        meter = meter_for(every_batch=every, strict=True, scatter="pooled")
        fit(model, meter, x=np.tile(X, (2, 1)), y=np.tile(Y, 2))
        shares.append(meter.reports["train"][0].report.provenance)
        meter.close()
    if BACKEND == "jax":
        assert [share["overhead"] for share in shares] == [None, None]
        assert "the step that jax compiles" in shares[0]["overhead_note"]
        return
    assert 0 < shares[1]["overhead"] < shares[0]["overhead"] < 1
    assert "overhead_note" not in shares[0]


def test_the_overhead_of_a_compiled_step():
    model, meter = frozen(sequential()), meter_for()
    fit(model, meter, x=X, y=Y, epochs=2)
    for _, report in meter.reports["train"]:
        known = report.provenance["overhead"] is not None
        assert known == (BACKEND == "torch")  # which counts outside of what it compiles
        assert known or f"the step that {BACKEND} compiles" in report.provenance["overhead_note"]
