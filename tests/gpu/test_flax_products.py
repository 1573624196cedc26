"""JAX's default precision on a GPU, which is TF32, does not reach the numbers."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import collapsemeter_flax as cf


@pytest.fixture(scope="module", autouse=True)
def _jax_has_the_gpu(device):
    if jax.default_backend() != device.type.replace("cuda", "gpu"):
        pytest.fail(f"these tests need a GPU, and jax {jax.__version__} finds none")


@functools.partial(jax.jit, donate_argnums=0)
def step(state, rows, labels, weight, bias):
    """Count in a jitted step, whose own product is of the default precision."""
    return cf.update(state, {"fc": rows}, labels, logits=rows @ weight.T + bias)


@pytest.mark.parametrize("kind", ["class", "pooled", "sketch"])
@pytest.mark.parametrize("shape", [(10, 16, 16), (30, 4, 6), (120, 48, 2)])
@pytest.mark.parametrize("precision", [None, "tensorfloat32", "bfloat16"])
def test_every_metric_is_that_of_float64(collapsed, precision, shape, kind):
    data = collapsed(*shape)
    state = cf.init({"fc": data.rows.shape[1]}, data.classes, scatter=kind)
    with jax.default_matmul_precision(precision):
        for rows, labels in zip(
            np.array_split(data.rows, 2), np.array_split(data.labels, 2), strict=True
        ):
            state = step(state, rows, labels, data.head.weight, data.head.bias)
        assert jax.config.jax_default_matmul_precision == precision
    head = {"kernel": data.head.weight.T, "bias": data.head.bias}
    data.check(cf.report(state, head)["fc"], kind)


def test_without_the_guard_it_would(collapsed):
    data = collapsed(100, 48, 2)
    truth = data.moments("pooled")
    residuals = (data.rows - truth.means[data.labels]).astype(np.float32)
    bare = np.asarray(jax.jit(lambda r: jnp.matmul(r.T, r))(residuals))
    off = np.abs(np.diag(bare) / np.diag(truth.scatter) - 1)
    assert np.median(off) > 5e-4 > 5 * data.tolerance
