"""Loops and training steps that people write themselves: `with meter.batch(labels)` around their forward."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from collapsemeter import ClassMoments
from collapsemeter_keras import CollapseMeter, watch

from .networks import CLASSES, NO_XLA, Subclassed, data, forward, functional, subclassed_built

ROWS, BATCH = 40, 16
X, Y = data(ROWS)
BACKEND = keras.backend.backend()
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
BATCHES = [(X[n : n + BATCH], Y[n : n + BATCH]) for n in range(0, ROWS, BATCH)]
OPTIONS = {"layers": ["one"], "verbose": False}


def run_in_block(meter, run, *inputs, labels=Y):
    with meter.batch(labels):
        for x in inputs:
            run(x)


def assert_counted(meter, model, stream="train", y=Y):
    truth = ClassMoments.from_batch(forward(model, X)["fc"], y, CLASSES)
    counted = meter.moments("fc", stream)
    np.testing.assert_array_equal(counted.counts, truth.counts)
    np.testing.assert_allclose(counted.means, truth.means, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(counted.scatter, truth.scatter, rtol=1e-4, atol=1e-5)


def eager_step(model, meter, optimizer):
    """A step as the guides of each backend write it, not compiled."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        def step(x, y):
            with tf.GradientTape() as tape:
                with meter.batch(y):
                    logits = model(x, training=True)
                loss = LOSS(y, logits)
            gradients = tape.gradient(loss, model.trainable_weights)
            optimizer.apply(gradients, model.trainable_weights)

        return step
    if BACKEND == "torch":
        import torch

        def step(x, y):
            with meter.batch(torch.from_numpy(y)):
                logits = model(torch.from_numpy(x))
            model.zero_grad()
            LOSS(torch.from_numpy(y), logits).backward()
            with torch.no_grad():
                weights = list(model.trainable_weights)
                optimizer.apply([weight.value.grad for weight in weights], weights)

        return step
    import jax

    def loss_of(trainable, others, x, y):
        with meter.batch(y):
            logits, others = model.stateless_call(trainable, others, x)
        return LOSS(y, logits), others

    def step(x, y):
        trainable = [variable.value for variable in model.trainable_variables]
        others = [variable.value for variable in model.non_trainable_variables]
        _, gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable, others, x, y)
        optimizer.apply(gradients, model.trainable_variables)

    return step


def test_an_eager_loop_is_counted_and_not_disturbed():
    class NoMeter:
        def batch(self, labels):
            return keras.name_scope("nothing")

    weights = []
    for meter_of in (lambda model: watch(model, **OPTIONS), lambda model: NoMeter()):
        keras.utils.set_random_seed(0)
        model = functional()
        meter, optimizer = meter_of(model), keras.optimizers.SGD(0.1)
        optimizer.build(model.trainable_variables)
        step = eager_step(model, meter, optimizer)
        for x, y in BATCHES:
            step(x, y)
        weights.append(model.get_weights())
        if isinstance(meter, CollapseMeter):
            report = meter.compute()
            assert (report.phase, report.provenance["rows"]) == ("live", ROWS)
            assert np.isfinite(report["fc"]["nc1_pinv"])
            meter.close()
            assert "call" not in model.__dict__
    for with_meter, without in zip(*weights, strict=True):
        np.testing.assert_array_equal(with_meter, without)


@pytest.mark.parametrize("make", [functional, Subclassed])
def test_frozen_weights_give_the_moments_of_the_data(make):
    model = make()
    if BACKEND == "jax" and not model.built:
        model(X[:1])  # `stateless_call` asks for it
    meter = watch(model, **OPTIONS)
    optimizer = keras.optimizers.SGD(0.0)
    step = eager_step(model, meter, optimizer)
    for x, y in BATCHES:
        step(x, y)
    for x, y in BATCHES:
        with meter.batch(y, stream="validation"):
            model(x, training=False)
    assert_counted(meter, model)
    assert_counted(meter, model, "validation")
    meter.reset()
    assert meter.compute("validation").provenance["rows"] == 0


if BACKEND == "tensorflow":

    @pytest.mark.parametrize("make", [functional, Subclassed])
    def test_a_tf_function_is_traced_once_and_counts_every_call(make):
        import tensorflow as tf

        model, traces = make(), []
        meter, optimizer = watch(model, **OPTIONS), keras.optimizers.SGD(0.0)
        signature = [tf.TensorSpec((None, X.shape[1])), tf.TensorSpec((None,), "int32")]

        @tf.function(input_signature=signature)
        def step(x, y):
            traces.append(x)
            with tf.GradientTape() as tape, meter.batch(y):
                loss = LOSS(y, model(x, training=True))
            optimizer.apply(tape.gradient(loss, model.trainable_weights), model.trainable_weights)

        for x, y in [*BATCHES, *BATCHES]:
            step(x, y)
        assert len(traces) <= 2  # the first trace may make variables
        moments = meter.moments("fc")
        truth = ClassMoments.from_batch(forward(model, X)["fc"], Y, CLASSES)
        np.testing.assert_array_equal(moments.counts, 2 * truth.counts)
        np.testing.assert_allclose(moments.means, truth.means, rtol=1e-5, atol=1e-6)


def stateless_loop(model, meter, given):
    """The loop of the JAX guide, with one state more; weights stay."""
    import jax

    optimizer = keras.optimizers.SGD(0.0)
    optimizer.build(model.trainable_variables)
    traces = []

    def loss_of(trainable, others, statistics, x, y):
        traces.append(x)
        with meter.batch(y, statistics) as batch:
            logits, others = model.stateless_call(trainable, others, x)
        return LOSS(y, logits), (others, batch.statistics)

    def step(state, x, y):
        trainable, others, of_optimizer, statistics = state
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (_, (others, statistics)), gradients = gradient(trainable, others, statistics, x, y)
        trainable, of_optimizer = optimizer.stateless_apply(of_optimizer, gradients, trainable)
        return trainable, others, of_optimizer, statistics

    step = jax.jit(step, donate_argnums=0)
    state = [
        [jax.numpy.copy(variable.value) for variable in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            optimizer.variables,
        )
    ]
    state = (*state, given)
    for x, y in BATCHES:
        state = step(state, x, y)
    return state[-1], traces


if BACKEND == "jax":

    def test_a_stateless_loop_carries_the_statistics():
        model = functional()
        meter = watch(model, **OPTIONS)
        statistics, traces = stateless_loop(model, meter, meter.statistics())
        assert len(traces) == 2  # whole batches, and the last
        assert meter.compute().provenance["rows"] == 0
        assert meter.compute(statistics=statistics).provenance["rows"] == ROWS
        assert_counted(meter, model)
        # What was reported may be donated all the same, and a new epoch begins.
        statistics, _ = stateless_loop(model, meter, statistics)
        assert meter.compute(statistics=statistics).provenance["rows"] == 2 * ROWS
        meter.reset()
        statistics, _ = stateless_loop(model, meter, meter.statistics())
        meter.compute(statistics=statistics)
        assert_counted(meter, model)


if BACKEND == "jax":

    def test_a_stateless_loop_without_the_statistics_is_told_of_them():
        model = functional()
        meter = watch(model, **OPTIONS)
        with pytest.raises(
            ValueError, match=r"take `statistics = meter\.statistics\(\)`, pass it thr"
        ):
            stateless_loop(model, meter, None)
        with pytest.raises(
            ValueError, match=r"statistics= has 2 tensors that are not those of this m"
        ):
            meter.compute(statistics=meter.statistics()[:2])
        unbuilt = CollapseMeter(**OPTIONS)
        unbuilt.set_model(Subclassed())
        with pytest.raises(ValueError, match="no layers are chosen yet"):
            unbuilt.statistics()


def compiled(function):
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    import jax

    return jax.jit(function)


if BACKEND != "torch":

    def test_a_block_around_a_compiled_function_is_refused():
        model = functional()
        meter = watch(model, **OPTIONS)
        function = compiled(lambda x: model(x))
        with pytest.raises(ValueError, match="the model ran inside a compiled function in a `wi"):
            run_in_block(meter, function, X)
        with pytest.raises(ValueError, match="the model did not run inside `with meter"):
            run_in_block(meter, function, X)
        assert meter.compute().provenance["rows"] == 0


def test_blocks_that_are_not_one_forward():
    model = subclassed_built()
    meter = watch(model, **OPTIONS)
    with pytest.raises(ValueError, match="the model did not run inside `with meter"):
        run_in_block(meter, model)
    with pytest.raises(ValueError, match="labels arrive while labels wait for their forward"):
        run_in_block(meter, lambda x: run_in_block(meter, model, x), X)
    with pytest.raises(ValueError, match="pass a label for every row of the batch"):
        run_in_block(meter, model, X, labels=Y[:7])
    with pytest.raises(ZeroDivisionError):
        run_in_block(meter, lambda x: 1 / 0, X)
    model(X)  # outside of any block
    assert meter.compute().provenance["rows"] == 0
    with pytest.warns(RuntimeWarning, match=r"more than once in one `with meter\.batch"):
        run_in_block(meter, model, X, X[::-1].copy())
    assert_counted(meter, model)


def test_a_block_needs_a_model_and_a_stream_that_there_is():
    with pytest.raises(ValueError, match=r"no model: make it by `meter = collapsemeter_keras\.wa"):
        CollapseMeter().batch(Y)
    meter = watch(functional(), **OPTIONS)
    with pytest.raises(ValueError, match="stream='test': choose 'train' or 'validation'"):
        meter.batch(Y, stream="test")
    with pytest.raises(ValueError, match="labels are None"):
        meter.batch(None)
    if BACKEND != "jax":
        with pytest.raises(ValueError, match="statistics= is for steps of JAX"):
            meter.batch(Y, [])


# A training step of the user's own, inside of `fit`


class OwnLoss(Subclassed):
    """A step with a loss of its own, as the guides' lower-level examples have it."""

    meter = None
    calls_compute_loss = False

    def loss_of(self, x, y):
        if self.meter is None:
            logits = self(x)
        else:
            with self.meter.batch(y):
                logits = self(x)
        return self.compute_loss(x, y, logits) if self.calls_compute_loss else LOSS(y, logits)

    def train_step(self, *args):
        if BACKEND == "jax":
            return self.stateless_step(*args)
        x, y = args[0]
        if BACKEND == "tensorflow":
            import tensorflow as tf

            with tf.GradientTape() as tape:
                loss = self.loss_of(x, y)
            gradients = tape.gradient(loss, self.trainable_weights)
            self.optimizer.apply(gradients, self.trainable_weights)
        else:
            self.zero_grad()
            loss = self.loss_of(x, y)
            loss.backward()
        return {"loss": loss}

    def stateless_step(self, state, data):
        import jax

        x, y = data
        trainable, *rest = state

        def loss_of(trainable):
            variables = zip(self.trainable_variables, trainable, strict=True)
            with keras.StatelessScope(state_mapping=variables):
                return self.loss_of(x, y)

        loss, _ = jax.value_and_grad(loss_of)(trainable)
        return {"loss": loss}, (trainable, *rest)


def fitted(model, meter):
    model.compile(keras.optimizers.SGD(0.0), LOSS, **NO_XLA)
    model.fit(X, Y, BATCH, verbose=0, shuffle=False, callbacks=[meter])


@pytest.mark.parametrize("calls_compute_loss", [False, True])
def test_a_block_in_a_train_step_counts_once(calls_compute_loss):
    model, meter = OwnLoss(), CollapseMeter(strict=True, **OPTIONS)
    object.__setattr__(model, "meter", meter)
    model.calls_compute_loss = calls_compute_loss
    fitted(model, meter)
    assert meter.reports["train"][0].report.provenance["rows"] == ROWS
    assert_counted(meter, model)


def test_a_loss_outside_of_every_scope_is_counted():
    """An older guide of JAX calls `compute_loss` where the model's variables have no value."""
    model, meter = OwnLoss(), CollapseMeter(strict=True, **OPTIONS)
    model.calls_compute_loss = True
    fitted(model, meter)
    assert_counted(meter, model)


if BACKEND == "jax":

    def test_a_step_that_drops_the_metrics_variables_is_named():
        class Dropping(Subclassed):
            def train_step(self, state, data):
                _, new = super().train_step(state, data)
                return {}, (*new[:3], state[3])

        model, meter = Dropping(), CollapseMeter(**OPTIONS)
        with pytest.warns(
            RuntimeWarning, match=r"Dropping\.train_step does not return the metrics v"
        ):
            fitted(model, meter)
        assert meter.reports["train"][0].report["fc"].flags == ("never_fired",)
