"""The user's training is the same, bit for bit, and the demo and examples run."""

from __future__ import annotations

import runpy
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import collapsemeter_flax as cf
from collapsemeter import Criteria
from collapsemeter.cli import demo
from collapsemeter.cli.demo import agreement, audited_report
from collapsemeter_flax import demo as flax_demo

STEPS, BATCH = 20, 16
IMAGES = np.random.default_rng(0).normal(size=(STEPS, BATCH, 6, 6, 2)).astype(np.float32)
LABELS = np.arange(BATCH) % 4
# With the quick compiler of `conftest` any change of a program may change the order of its sums.
AS_USERS_DO = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
EXAMPLES = Path(__file__).parents[2] / "examples"


class Cnn(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(2, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.conv2 = nnx.Conv(8, 8, (3, 3), rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)
        self.fc = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv1(x)))
        return self.fc(self.drop(nnx.relu(self.conv2(x)).mean((1, 2))))


def train_nnx(kind, watched):
    model = kind(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    meter = cf.CollapseMeter(model, num_classes=4, verbose=False)

    @nnx.jit
    def step(model, optimizer, state, x, y):
        def loss(model):
            logits, features = meter.capture(model, x) if watched else (model(x), None)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return losses.mean(), (logits, features)

        (_, (logits, features)), gradient = nnx.value_and_grad(loss, has_aux=True)(model)
        optimizer.update(model, gradient)
        return meter.update(state, features, y, logits=logits) if watched else state

    state = meter.init(IMAGES[0]) if watched else None
    step = step.lower(model, optimizer, state, IMAGES[0], LABELS).compile(AS_USERS_DO)
    for x in IMAGES:
        state = step(model, optimizer, state, x, LABELS)
    return nnx.state((model, optimizer)), state


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Dense(32, name="first")(x.reshape(len(x), -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.3, deterministic=not train)(x)
        return nn.Dense(4, name="fc")(x)


def train_linen(kind, watched):
    model = kind()
    variables = model.init(jax.random.key(0), IMAGES[0], train=False)
    tx = optax.adam(1e-2)
    meter = cf.CollapseMeter(model, num_classes=4, verbose=False)
    options = {"mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(1)}}

    @jax.jit
    def step(variables, optimizer, state, x, y, key):
        def loss(params):
            given = {**variables, "params": params}
            options = {"mutable": ["batch_stats"], "rngs": {"dropout": key}}
            if watched:
                (logits, updated), features = meter.capture(model, given, x, **options)
            else:
                (logits, updated), features = model.apply(given, x, **options), None
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return losses.mean(), (logits, updated, features)

        (_, (logits, updated, features)), gradient = jax.value_and_grad(loss, has_aux=True)(
            variables["params"]
        )
        updates, optimizer = tx.update(gradient, optimizer, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        if watched:
            state = meter.update(state, features, y, logits=logits)
        return {"params": params, **updated}, optimizer, state

    state = meter.init(variables, IMAGES[0], **options) if watched else None
    optimizer = tx.init(variables["params"])
    keys = [jax.random.key(number) for number in range(STEPS)]
    step = step.lower(variables, optimizer, state, IMAGES[0], LABELS, keys[0]).compile(AS_USERS_DO)
    for x, key in zip(IMAGES, keys, strict=True):
        variables, optimizer, state = step(variables, optimizer, state, x, LABELS, key)
    return (variables, optimizer), state


@pytest.mark.parametrize(
    ("train", "kind"),
    [(train_nnx, Cnn), (train_linen, Linen)],
    ids=["nnx-cnn", "linen-mlp"],
)
def test_a_watched_run_ends_with_bit_identical_weights(train, kind):
    plain, _ = train(kind, watched=False)
    watched, state = train(kind, watched=True)
    assert jax.tree.structure(plain) == jax.tree.structure(watched)
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(watched), strict=True):
        if jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_array_equal(one, other)
    report = cf.report(state)
    assert report.provenance["rows"] == STEPS * BATCH
    assert report.provenance["batches"] == STEPS
    assert np.isfinite(report.final["nc1_pinv"])


@pytest.mark.parametrize("name", ["flax_nnx.py", "flax_linen.py"])
def test_the_example_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.count("epoch ") == 5
    assert "(frozen-train): NC1 " in printed
    assert list(tmp_path.glob("runs/*/reports.jsonl"))


@pytest.fixture(scope="module", params=[2, pytest.param(demo.EPOCHS, marks=pytest.mark.nightly)])
def outcome(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> demo.Outcome:
    images, labels = demo.digits()
    folder = tmp_path_factory.mktemp("demo")
    history = list(flax_demo.train(images, labels, request.param, 0, folder / "activations"))
    zero = next((epoch.number for epoch in history[1:] if epoch.error == 0), None)
    return demo.Outcome(history, zero, folder, audited_report(folder))


def test_the_demos_final_layer_collapses(outcome: demo.Outcome) -> None:
    epochs = outcome.history[-1].number
    judged = Criteria().judge(outcome.history[-1].frozen.final)
    bands = [judged[name].band for name in ("NC1", "NC4")]
    if epochs < demo.EPOCHS:  # on its way
        assert outcome.fall > 1.5
    else:
        assert outcome.fall >= 100
        assert outcome.zero_error_epoch is not None
        assert bands == ["collapsed", "collapsed"]
        assert outcome.history[-1].frozen.final["nc4_mismatch"] == 0
        assert "; zero training error from" in demo.outcome_words(outcome)
    assert demo.outcome_words(outcome).startswith(
        f"{demo.HEADLINES[outcome.band]} after {epochs} epochs"
    )


def test_the_audit_of_the_demo_is_what_was_observed(outcome: demo.Outcome) -> None:
    observed, audited = outcome.history[-1].frozen, outcome.audited
    assert audited is not None
    assert list(audited) == list(observed)
    assert audited.phase == "frozen-train"
    for name, layer in observed.items():
        for metric, value in layer.items():  # as near as float32 sums are
            found = audited[name][metric]
            assert found == pytest.approx(value, rel=1e-4, nan_ok=True), (name, metric)
    assert "agrees with what was observed" in agreement(observed, audited)


def test_every_block_of_the_demo_is_watched(outcome: demo.Outcome) -> None:
    for epoch in outcome.history:
        assert list(epoch.frozen) == ["conv1", "conv2", "conv3", "hidden", "fc"]
        assert not epoch.frozen.warnings
    assert epoch.frozen.phase == "frozen-train"
    assert epoch.live is not None
    assert epoch.live.phase == "live"
    assert epoch.live.provenance["rows"] == 1797
    assert list(epoch.live) == list(epoch.frozen)
