"""Features of unmodified models, inside every transformation, and nothing left on them."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import collapsemeter_flax as cf
from collapsemeter_flax.calls import in_order

X = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype(np.float32)
FLAT = X.reshape(6, -1)[:, :8]
# Two programs of one function may fuse differently: float32 round-off of values of order one.
ROUND_OFF = {"rtol": 1e-5, "atol": 1e-5}


def shapes(features):
    # A step of linen's scan gives a carry and an output: the first is meant.
    return {name: jax.tree.leaves(value)[0].shape for name, value in features.items()}


# NNX models


class Mlp(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(8, 16, rngs=rngs)
        self.second = nnx.Linear(16, 12, rngs=rngs)
        self.fc = nnx.Linear(12, 4, rngs=rngs)

    def __call__(self, x):
        return self.fc(nnx.relu(self.second(nnx.relu(self.first(x)))))


class ConvBlock(nnx.Module):
    def __init__(self, inputs, outputs, rngs):
        self.conv = nnx.Conv(inputs, outputs, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(outputs, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        return self.drop(nnx.relu(self.norm(self.conv(x))))


class Cnn(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.blocks = nnx.List([ConvBlock(4, 4, rngs), ConvBlock(4, 6, rngs)])
        self.hidden = nnx.Linear(6, 10, rngs=rngs)
        self.head = nnx.Linear(10, 4, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(nnx.relu(self.hidden(x.mean((1, 2)))))


class Encoder(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.mlp = nnx.Sequential(
            nnx.Linear(8, 16, rngs=rngs), nnx.gelu, nnx.Linear(16, 8, rngs=rngs)
        )

    def __call__(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.mlp(x)


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Conv(3, 8, (4, 4), strides=4, rngs=rngs)
        self.token = nnx.Param(jnp.zeros((1, 1, 8)))
        self.encoders = nnx.List([Encoder(rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x).reshape(len(x), -1, 8)
        x = jnp.concatenate([jnp.broadcast_to(self.token[...], (len(x), 1, 8)), x], 1)
        for encoder in self.encoders:
            x = encoder(x)
        return self.head(self.norm(x)[:, 0])


class Scanned(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Linear(8, 8, rngs=rngs)

        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(rngs):
            return nnx.Linear(8, 8, rngs=rngs)

        self.stack = make(rngs)
        self.fc = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def run(layer, x):
            return nnx.tanh(layer(x))

        return self.fc(run(self.stack, self.stem(x)))


class Remat(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(2)])
        self.fc = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = nnx.remat(lambda block, x: nnx.relu(block(x)))(block, x)
        return self.fc(x)


class Shared(nnx.Module):
    def __init__(self, rngs):
        self.again = nnx.Linear(8, 8, rngs=rngs)
        self.unused = nnx.Linear(8, 8, rngs=rngs)
        self.fc = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.fc(self.again(self.again(self.again(x))))


class Own(nnx.Module):
    """A layer of the user's own, which inherits its call and sows something itself."""

    def __init__(self, rngs):
        self.kernel = nnx.Param(rngs.params.normal((8, 5)))

    def __call__(self, x):
        self.sow(nnx.Intermediate, "mine", x)
        return x @ self.kernel[...], {"other": x}


class Inherits(Own):
    pass


class Custom(nnx.Module):
    def __init__(self, rngs):
        self.own = Inherits(rngs)
        self.fc = nnx.Linear(5, 4, rngs=rngs)

    def __call__(self, x, scale=1.0):
        return self.fc(self.own(x)[0] * scale)


NNX = {
    "mlp": (Mlp, FLAT, {"first": (6, 16), "second": (6, 12), "fc": (6, 12)}),
    "cnn": (
        Cnn,
        X,
        {
            "stem": (6, 8, 8, 4),
            "blocks.0": (6, 8, 8, 4),
            "blocks.1": (6, 8, 8, 6),
            "hidden": (6, 10),
            "head": (6, 10),
        },
    ),
    "transformer": (
        Transformer,
        X,
        {
            "embed": (6, 2, 2, 8),
            "encoders.0": (6, 5, 8),
            "encoders.1": (6, 5, 8),
            "norm": (6, 5, 8),
            "head": (6, 8),
        },
    ),
    "scanned": (
        Scanned,
        FLAT,
        {"stem": (6, 8), "stack#0": (6, 8), "stack#1": (6, 8), "stack#2": (6, 8), "fc": (6, 8)},
    ),
    "remat": (Remat, FLAT, {"blocks.0": (6, 8), "blocks.1": (6, 8), "fc": (6, 8)}),
}


# Every operation that no jit is around is compiled by itself: the others are named below, in a step.
@pytest.mark.parametrize("name", ["mlp", "scanned", "remat"])
def test_the_blocks_a_person_would_name(name):
    kind, x, expected = NNX[name]
    model = kind(nnx.Rngs(0))
    before = nnx.split(model)
    outputs, features = cf.capture(model, x)
    assert shapes(features) == expected
    assert list(features) == list(expected)  # in the order they run
    assert outputs.shape == (6, 4)
    graph, state = nnx.split(model)
    assert graph == before[0]
    assert jax.tree.structure(state) == jax.tree.structure(before[1])


@pytest.mark.parametrize("name", NNX)
def test_inside_nnx_transformations_the_same_features_and_gradients(name):
    kind, x, expected = NNX[name]
    model, twin = kind(nnx.Rngs(0)), kind(nnx.Rngs(0))

    named = []

    def loss(model, x, watch):
        outputs, features = cf.capture(model, x) if watch else (model(x), {})
        named.extend(features)
        return (outputs**2).mean(), (outputs, features)

    step = nnx.jit(nnx.value_and_grad(loss, has_aux=True), static_argnums=2)
    (_, (plain, _)), gradient = step(twin, x, False)
    (_, (outputs, features)), watched = step(model, x, True)
    assert shapes(features) == expected
    assert named == list(expected)  # in the order they run
    assert outputs.shape == (6, 4)
    np.testing.assert_allclose(outputs, plain, **ROUND_OFF)
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(watched), strict=True):
        np.testing.assert_allclose(one, other, **ROUND_OFF)
    # The model's own state, batch statistics and random counts, moves on as it would.
    for one, other in zip(
        jax.tree.leaves(nnx.state(model)), jax.tree.leaves(nnx.state(twin)), strict=True
    ):
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_allclose(one, other, **ROUND_OFF)
    assert nnx.graphdef(model) == nnx.graphdef(twin)


def test_the_features_are_what_the_layers_compute():
    model = Mlp(nnx.Rngs(0))
    logits, features = cf.capture(model, FLAT)
    first = model.first(FLAT)
    second = model.second(nnx.relu(first))
    np.testing.assert_allclose(features["first"], first, **ROUND_OFF)
    np.testing.assert_allclose(features["second"], second, **ROUND_OFF)
    # The head's input, behind a functional activation that no module shows.
    np.testing.assert_allclose(features["fc"], nnx.relu(second), **ROUND_OFF)
    np.testing.assert_allclose(model.fc(features["fc"]), logits, **ROUND_OFF)


def test_a_scanned_stack_gives_every_layer():
    model = Scanned(nnx.Rngs(0))
    _, features = cf.capture(model, FLAT)
    x = model.stem(FLAT)
    for number in range(3):
        x = x @ model.stack.kernel[...][number] + model.stack.bias[...][number]
        np.testing.assert_allclose(features[f"stack#{number}"], x, **ROUND_OFF)
        x = nnx.tanh(x)


def test_a_module_called_again_gives_every_call():
    model = Shared(nnx.Rngs(0))
    _, features = cf.capture(model, FLAT, layers="again")
    assert list(features) == ["again#0", "again#1", "again#2", "fc"]
    np.testing.assert_allclose(features["again#1"], model.again(features["again#0"]), **ROUND_OFF)
    _, features = cf.capture(model, FLAT)
    assert list(features) == ["again#0", "again#1", "again#2", "fc"]


def test_own_modules_their_sows_and_keywords_are_left_alone():
    model = Custom(nnx.Rngs(0))
    # The capture around ours is for what the model sows itself.
    forward = nnx.capture(lambda m: cf.capture(m, FLAT, scale=2.0), nnx.Intermediate)
    (outputs, features), sown = forward(model)
    assert len(sown["own"]["mine"].get_value()) == 1
    assert features["fc"].shape == (6, 5)
    rows, rest = features["own"]
    np.testing.assert_allclose(rows * 2, features["fc"], **ROUND_OFF)
    assert rest["other"].shape == (6, 8)
    # A tuple counts as its first entry.
    cf.update(cf.init({"own": 5, "fc": 5}, 4), features, np.arange(6) % 4)
    assert outputs.shape == (6, 4)


def test_around_a_model_that_jit_has_compiled_already():
    model = Mlp(nnx.Rngs(0))

    class Wrapped(nnx.Module):
        def __init__(self):
            self.inner = model

        def __call__(self, x):
            return run(self.inner, x)

    run = nnx.jit(lambda inner, x: inner(x))
    wrapped = Wrapped()
    wrapped(FLAT)  # compiled before anything was captured
    _, features = cf.capture(wrapped, FLAT)
    assert shapes(features) == {
        "inner.first": (6, 16),
        "inner.second": (6, 12),
        "inner.fc": (6, 12),
    }


def test_a_model_closed_over_by_jit_is_captured_from_a_copy():
    model = Remat(nnx.Rngs(0))
    _, features = jax.jit(lambda x: cf.capture(model, x))(FLAT)
    assert features["fc"].shape == (6, 8)
    _, features = jax.vmap(lambda x: cf.capture(model, x))(FLAT)
    assert features["fc"].shape == (6, 8)


def test_a_model_that_raises_keeps_no_trace():
    model = Mlp(nnx.Rngs(0))
    before = nnx.graphdef(model)
    meter = cf.CollapseMeter(model, num_classes=4, verbose=False)
    meter.init(FLAT)
    with pytest.raises(TypeError, match="dot_general requires contracting dimensions"):
        meter.capture(model, np.ones((2, 3), np.float32))
    assert nnx.graphdef(model) == before
    assert type(model.fc) is nnx.Linear


def test_two_captures_in_one_step_do_not_meet():
    model = Mlp(nnx.Rngs(0))
    _, one = cf.capture(model, FLAT)
    _, other = cf.capture(model, 2 * FLAT)
    assert not np.allclose(one["fc"], other["fc"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"layers": "conv*"},
            "layers=['conv*']: 'conv*' matches no module; the model has first, second",
        ),
        ({"head": "out"}, "head='out' is not a layer of the model; it has first, second, fc"),
        (
            {"layers": lambda name, kind: False, "head": None},
            "selects nothing of Mlp; its modules: first",
        ),
    ],
)
def test_a_selection_that_fits_nothing_is_named(options, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 # the text follows
        cf.capture(Mlp(nnx.Rngs(0)), FLAT, **options)
    assert message in str(caught.value)


def test_layers_by_predicate_and_name_and_no_head():
    model = Cnn(nnx.Rngs(0))
    _, features = cf.capture(model, X, layers=lambda name, kind: issubclass(kind, nnx.Conv))
    assert list(features) == ["stem", "blocks.0.conv", "blocks.1.conv", "head"]
    _, features = cf.capture(model, X, layers=["hidden", "stem"], head=None)
    assert list(features) == ["stem", "hidden"]
    with pytest.raises(ValueError, match=r"head='blocks.0' is a ConvBlock: name an nnx.Linear or"):
        cf.capture(model, X, head="blocks.0")


def test_a_layer_that_never_runs_is_named():
    with pytest.raises(ValueError, match="layer 'unused' gave nothing: its __call__ did not run"):
        cf.capture(Shared(nnx.Rngs(0)), FLAT, layers=["unused"])


def test_what_is_no_model_is_named():
    with pytest.raises(
        ValueError, match=r"model is a builtins.int: pass an nnx.Module or a linen.Module"
    ):
        cf.capture(3, FLAT)


# Linen models


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(16, name="first")(x))
        x = nn.relu(nn.Dense(12, name="second")(x))
        return nn.Dense(4, name="fc")(x)


class Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(self.width, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dropout(0.3, deterministic=not train)(x)


class Conv(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Conv(4, (3, 3), name="stem")(x)
        for width in (4, 6):
            x = nn.remat(Block, static_argnums=(2,))(width)(x, train)
        self.sow("intermediates", "mine", x)
        return nn.Dense(4, name="fc")(x.mean((1, 2)))


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.tanh(nn.Dense(8)(x)), None


class Stack(nn.Module):
    carried: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, name="stem")(x)
        axes = {"params": 0, "intermediates": 0} if self.carried else {"params": 0}
        stack = nn.scan(Step, variable_axes=axes, split_rngs={"params": True}, length=3)
        x, _ = stack(name="stack")(x, None)
        return nn.Dense(4, name="fc")(x)


class Again(nn.Module):
    def setup(self):
        self.shared = nn.Dense(8)
        self.blocks = [nn.Dense(8) for _ in range(2)]
        self.fc = nn.Dense(4)

    def __call__(self, x):
        x = self.shared(nn.relu(self.shared(x)))
        for block in self.blocks:
            x = nn.relu(block(x))
        return self.fc(x)

    def encode(self, x):
        return self.fc(self.blocks[0](x))


LINEN = {
    "dense": (Dense(), FLAT, {"first": (6, 16), "second": (6, 12), "fc": (6, 12)}),
    "stack": (
        Stack(),
        FLAT,
        {"stem": (6, 8), "stack#0": (6, 8), "stack#1": (6, 8), "stack#2": (6, 8), "fc": (6, 8)},
    ),
    "again": (
        Again(),
        FLAT,
        {
            "shared#0": (6, 8),
            "shared#1": (6, 8),
            "blocks_0": (6, 8),
            "blocks_1": (6, 8),
            "fc": (6, 8),
        },
    ),
}


@pytest.mark.parametrize("name", LINEN)
def test_linen_blocks_inside_grad(name):
    model, x, expected = LINEN[name]
    variables = model.init(jax.random.key(0), x)

    def loss(params, watch):
        outputs, features = (
            cf.capture(model, {"params": params}, x)
            if watch
            else (model.apply({"params": params}, x), {})
        )
        return (outputs**2).mean(), (outputs, features)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (_, (plain, _)), gradient = step(variables["params"], False)
    (_, (outputs, features)), watched = step(variables["params"], True)
    assert shapes(features) == expected
    np.testing.assert_allclose(outputs, plain, **ROUND_OFF)
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(watched), strict=True):
        np.testing.assert_allclose(one, other, **ROUND_OFF)
    assert list(cf.capture(model, variables, x)[1]) == list(expected)


def test_linen_with_batch_statistics_dropout_and_remat():
    model = Conv()
    variables = model.init(jax.random.key(0), X, train=False)
    variables = {name: variables[name] for name in ("params", "batch_stats")}
    rngs = {"dropout": jax.random.key(1)}
    expected, updated = model.apply(variables, X, rngs=rngs, mutable=["batch_stats"])

    (outputs, found), features = jax.jit(
        lambda v: cf.capture(model, v, X, rngs=rngs, mutable=["batch_stats"])
    )(variables)
    np.testing.assert_allclose(outputs, expected, **ROUND_OFF)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **ROUND_OFF), found, updated)
    assert set(shapes(features)) == {"stem", "CheckpointBlock_0", "CheckpointBlock_1", "fc"}
    # What the model sows itself is given back where it is asked for, ours never.
    (_, found), _ = cf.capture(
        model, variables, X, rngs=rngs, mutable=["batch_stats", "intermediates"]
    )
    assert set(found["intermediates"]) == {"mine"}
    outputs, _ = cf.capture(model, variables, X, train=False)
    np.testing.assert_allclose(outputs, model.apply(variables, X, train=False), **ROUND_OFF)


def test_a_scan_that_does_not_carry_intermediates_is_a_named_error():
    model = Stack(carried=False)
    variables = model.init(jax.random.key(0), FLAT)
    with pytest.raises(
        ValueError, match=r"layer 'stack' ran where what it gives cannot get out.*variable_axes"
    ):
        cf.capture(model, variables, FLAT, layers=["stack"])
    _, features = cf.capture(model, variables, FLAT)
    assert list(features) == ["stem", "fc"]


def test_linen_after_apply_was_compiled_and_by_another_method():
    model = Again()
    variables = model.init(jax.random.key(0), FLAT)
    jax.jit(model.apply)(variables, FLAT)  # an interceptor would never be called again
    _, features = jax.jit(lambda v: cf.capture(model, v, FLAT))(variables)
    assert len(features) == 5
    _, features = cf.capture(model, variables, FLAT, method="encode", layers=["blocks_0"])
    assert list(features) == ["blocks_0", "fc"]
    with pytest.raises(
        ValueError, match=r"'blocks_1' matches no module; the model has blocks_0, fc"
    ):
        cf.capture(model, variables, FLAT, method=Again.encode, layers=["blocks_1"])


def test_linen_without_variables_is_named():
    with pytest.raises(
        ValueError, match=r"Dense is a linen module and was given a ndarray: pass its variables"
    ):
        cf.capture(Dense(), FLAT)
    with pytest.raises(ValueError, match="Dense is a linen module and was given nothing"):
        cf.capture(Dense())


def test_a_stack_along_another_axis_is_told_by_its_shape():
    stacked = np.arange(24).reshape(2, 4, 3)
    (first, *_) = calls = in_order({(0, (2, 3)): stacked})
    assert len(calls) == 4
    np.testing.assert_array_equal(first, stacked[:, 0])
    assert len(in_order({(0, (3,)): stacked})) == 8  # scan in scan


# Importing


@pytest.mark.parametrize("module", ["jax", "flax"])
def test_without_flax_the_extra_is_named(module):
    code = f"import sys; sys.modules[{module!r}] = None; import collapsemeter_flax"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ImportError: the flax adapter needs flax and jax" in done.stderr
    assert "pip install 'collapsemeter[flax]'" in done.stderr


def test_a_flax_that_is_too_old_is_named():
    code = "from flax import nnx; del nnx.capture; import collapsemeter_flax"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (
        "ImportError: the flax adapter needs flax>=0.12.6, whose nnx.capture it uses, and found flax 0."
        in done.stderr
    )
