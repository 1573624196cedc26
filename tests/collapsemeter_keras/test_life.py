"""Saving, copying and leaving: the model is the user's, and the meter a guest."""

from __future__ import annotations

import copy
import gc
import io
import json
import pickle
import weakref
import zipfile

import h5py
import keras
import numpy as np
import pytest

from collapsemeter import ClassMoments
from collapsemeter_keras import CollapseMeter, watch

from .networks import ARCHITECTURES, CLASSES, EAGER, WIDTH, data, forward, frozen, sequential
from .test_faults import assert_counted, fit, snapshot
from .test_faults import watch as meter_for

X, Y = data(48)


def contents(path) -> dict:
    """Every array of a .keras file by name, and its configuration."""
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
        with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
            file.visititems(
                lambda name, item: (
                    arrays.__setitem__(name, np.asarray(item))
                    if isinstance(item, h5py.Dataset)
                    else None
                )
            )
    return {"config": config, "arrays": arrays}


def test_files_of_a_watched_model_are_those_of_the_model(tmp_path):
    model = frozen(sequential())
    fit(model)
    model.save(tmp_path / "alone.keras")
    model.save_weights(tmp_path / "alone.weights.h5")
    meter = meter_for(strict=True)
    fit(model, meter)
    model.save(tmp_path / "watched.keras")
    model.save_weights(tmp_path / "watched.weights.h5")
    alone, watched = (contents(tmp_path / f"{name}.keras") for name in ("alone", "watched"))
    assert watched["config"] == alone["config"]
    assert watched["arrays"].keys() == alone["arrays"].keys()
    loaded = keras.models.load_model(tmp_path / "watched.keras")
    for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert unwatched(loaded)
    other = sequential()
    other.load_weights(tmp_path / "watched.weights.h5")
    for a, b in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def unwatched(model) -> bool:
    ours = {"compute_loss", "train_step", "test_step", "call", "make_train_function"}
    return not any(ours & vars(layer).keys() for layer in model._flatten_layers()) and not any(
        metric.name.startswith("collapsemeter") for metric in model.metrics
    )


@pytest.mark.parametrize(
    "duplicate",
    [keras.models.clone_model, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["clone", "deepcopy", "pickle"],
)
def test_copies_are_not_watched(duplicate):
    model, meter = frozen(sequential(), run_eagerly=EAGER), meter_for(strict=True)
    fit(model, meter)
    twin = duplicate(model)
    assert unwatched(twin)
    frozen(twin, run_eagerly=EAGER)
    fit(twin)
    assert meter.compute().provenance["rows"] == len(X)
    assert_counted(meter, model)


def test_checkpoints_and_backups(tmp_path):
    model, meter = frozen(sequential()), meter_for(strict=True)
    callbacks = [
        keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", monitor="nc1_pinv/fc", mode="min"),
        keras.callbacks.BackupAndRestore(tmp_path / "backup"),
    ]
    fit(model, meter, *callbacks, epochs=2)
    assert_counted(meter, model)
    assert unwatched(keras.models.load_model(tmp_path / "best.keras"))


@pytest.mark.parametrize("name", ["functional", "subclassed_unbuilt", "nested_subclassed"])
def test_close_leaves_the_model_as_it_was(name):
    model = frozen(ARCHITECTURES[name](), run_eagerly=EAGER)
    fit(model, validation_data=(X, Y))  # after which Keras keeps what it needs for the next fit
    before = snapshot(model)
    meter = meter_for(layers="auto", strict=True)
    fit(model, meter, validation_data=(X, Y))
    assert not unwatched(model)
    meter.close()
    meter.close()
    assert unwatched(model)
    assert snapshot(model) == before
    with pytest.raises(
        ValueError, match="choose 'train' or 'validation', of a meter that is attach"
    ):
        meter.compute()
    fit(model)


def test_a_meter_that_is_dropped_leaves_nothing():
    model = frozen(sequential(), run_eagerly=EAGER)
    fit(model, meter_for(strict=True))
    gc.collect()
    assert unwatched(model)
    meter = watch(model, verbose=False)
    gone = weakref.ref(meter)
    meter.observe(model, (X, Y), progress=False)
    del meter
    gc.collect()
    assert gone() is None
    assert unwatched(model)


def test_a_model_that_is_dropped_is_collected():
    model = frozen(sequential(), run_eagerly=EAGER)
    fit(model, meter_for(strict=True))
    gone = weakref.ref(model)
    del model
    keras.backend.clear_session()
    gc.collect()
    assert gone() is None


def test_a_run_goes_on_from_a_saved_state(tmp_path):
    model, meter = frozen(sequential()), meter_for(strict=True, sample_rows=20)
    meter.set_model(model)
    for start in (0, 16):
        model.train_on_batch(X[start : start + 16], Y[start : start + 16])
    np.savez(tmp_path / "state.npz", **meter.state_dict())
    model.train_on_batch(X[32:], Y[32:])
    whole = meter.compute()
    meter.close()
    resumed = watch(model, layers=["one"], sample_rows=20, verbose=False, strict=True)
    with np.load(tmp_path / "state.npz") as state:
        resumed.load_state_dict(state)
    model.train_on_batch(X[32:], Y[32:])
    again = resumed.compute()
    for layer in whole:
        # Bit by bit: the same sums, in the same order.
        assert dict(again[layer]) == dict(whole[layer])


def test_states_of_something_else_are_refused():
    model = frozen(sequential(), run_eagerly=EAGER)
    meter = watch(model, layers=["one", "two"], verbose=False)
    model.train_on_batch(X, Y)
    state = meter.state_dict()
    meter.close()
    few = watch(model, layers=["one"], verbose=False)
    with pytest.raises(
        ValueError, match="nothing was loaded: it has layers one, two, fc, this meter one, fc"
    ):
        few.load_state_dict(state)
    few.close()
    small = watch(model, layers=["one", "two"], sample_rows=7, verbose=False)
    with pytest.raises(ValueError, match="it has sample_rows 4096, this meter 7"):
        small.load_state_dict(state)


@pytest.mark.parametrize("option", ["seed", "sketch_rows"])
def test_rows_to_come_are_sketched_as_those_before(option):
    model = frozen(sequential(), run_eagerly=EAGER)
    meter = watch(model, layers=["one"], scatter="sketch", verbose=False)
    model.train_on_batch(X, Y)
    state = meter.state_dict()
    due = ClassMoments.from_batch(forward(model, X)["one"], Y, CLASSES, scatter="sketch")
    found = meter.moments("one")
    np.testing.assert_array_equal(found.signs, due.signs)
    assert found.seeds == {0}
    meter.close()
    other = watch(model, layers=["one"], scatter="sketch", verbose=False, **{option: 64})
    with pytest.raises(ValueError, match=f"it has {option} .*, this meter 64"):
        other.load_state_dict(state)


def test_moments_merge_to_the_whole():
    model = frozen(sequential())
    meter = watch(model, layers=["one", "two"], verbose=False, strict=True)
    halves = []
    for part in (slice(0, 24), slice(24, 48)):
        meter.reset()
        model.train_on_batch(X[part], Y[part])
        halves.append(meter.moments("fc"))
    meter.reset()
    model.train_on_batch(X, Y)
    whole, merged = meter.moments("fc"), halves[0].merge(halves[1])
    np.testing.assert_array_equal(merged.counts, whole.counts)
    np.testing.assert_allclose(merged.scatter, whole.scatter, rtol=0, atol=1e-4)
    assert isinstance(merged, ClassMoments)
    with pytest.raises(ValueError, match="layer 'three' has counted nothing"):
        meter.moments("three")


def test_memory_does_not_grow():
    model = frozen(sequential())
    meter = watch(model, layers=["one", "two"], verbose=False, strict=True)

    def objects_after(steps):
        for _ in range(steps):
            model.train_on_batch(X[:16], Y[:16])
        gc.collect()
        return len(gc.get_objects())

    objects_after(5)
    before, after = objects_after(5), objects_after(100)
    # Keras and its backends keep a handful of objects for themselves; a tensor a step would be 100.
    assert after - before < 100
    assert meter._attachment.instrument.stash.notes == []


def test_attaching_needs_a_model():
    with pytest.raises(ValueError, match=r"the meter has no model: pass it to fit\(callbacks="):
        CollapseMeter().attach()
    meter = CollapseMeter()
    meter.close()
    with pytest.raises(ValueError, match=r"observe needs a model: pass observe\(model, dataset\)"):
        meter.observe(dataset=(X, Y))
    assert X.shape[1] == WIDTH
