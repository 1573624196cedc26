"""Products are those of NumPy, by whichever BLAS; and while a layer is measured, only one has threads at work."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collapsemeter.stats.blas import ALONE, ALONE_WITH_VECTOR, gram, inner, norm, product

# Below and above what is left to NumPy; one row or column is a product with a vector.
SHAPES = [(5, 7, 9), (70, 90, 110), (300, 1, 600), (1, 300, 400), (300, 400, 1)]


def matrix(shape: tuple[int, int], order: str, dtype: type, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((2 * shape[0], 2 * shape[1])).astype(dtype)
    if order == "strided":
        return values[::2, ::2]
    return np.array(values[: shape[0], : shape[1]], order=order)


def bound(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What rounding may take of each entry of a product: an inner product of length k loses at most k eps."""
    k, eps = a.shape[-1], np.finfo(a.dtype).eps
    return (k + 2) * eps * (np.abs(a).astype(float) @ np.abs(b).astype(float))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("orders", [(a, b) for a in ("C", "F", "strided") for b in ("C", "F")])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_is_that_of_the_rows_and_columns(shape, orders, dtype):
    n, k, m = shape
    a, b = matrix((n, k), orders[0], dtype, 1), matrix((k, m), orders[1], dtype, 2)
    due = a.astype(float) @ b.astype(float)
    for found, expected, error in (
        (product(a, b), due, bound(a, b)),
        (product(a, b[:, 0]), due[:, 0], bound(a, b)[:, 0]),
        (product(a[0], b), due[0], bound(a, b)[0]),
    ):
        assert found.dtype == dtype
        assert found.shape == expected.shape
        assert (np.abs(found - expected) <= error).all()


@pytest.mark.parametrize("columns", [110, 113])
def test_a_product_may_be_given_memory(columns):
    a, b = matrix((70, 90), "C", np.float64), matrix((90, 110), "C", np.float64)
    memory = np.full((70, columns), np.nan)[:, :110]
    found = product(a, b, out=memory)
    np.testing.assert_array_equal(found, product(a, b))
    assert np.shares_memory(found, memory) == (columns == 110)  # of other memory BLAS makes a copy


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(["C", "F", "strided"]))
def test_inner_products_are_symmetric(n, d, order):
    rows = matrix((n, d), order, np.float64)
    found = gram(rows)
    assert (found == found.T).all()
    assert (np.abs(found - rows @ rows.T) <= 2 * bound(rows, rows.T)).all()


def test_norms_and_inner_products_of_matrices():
    a, b = matrix((70, 90), "C", np.float64, 1), matrix((70, 90), "C", np.float64, 2)
    assert norm(a) == pytest.approx(np.sqrt((a**2).sum()), rel=1e-14)
    assert inner(a, b) == pytest.approx((a * b).sum(), abs=1e-10)


def test_empty_matrices_have_products():
    assert product(np.ones((0, 3)), np.ones((3, 2))).shape == (0, 2)
    np.testing.assert_array_equal(product(np.ones((2, 0)), np.ones((0, 3))), np.zeros((2, 3)))


WORK_OF_NUMPY = """
import os, time
import numpy as np
def work():
    paths = [f"/proc/self/task/{thread}/schedstat" for thread in own]
    return sum(int(open(path).read().split()[0]) for path in paths) / 1e9
own = set(os.listdir("/proc/self/task")) - {str(os.getpid())}
from collapsemeter import ClassMoments, Head, decide, measure
rng = np.random.default_rng(0)
labels = np.arange(3000) % CLASSES
rows = rng.standard_normal((CLASSES, 300))[labels] + rng.standard_normal((3000, 300))
head = Head(rng.standard_normal((CLASSES, 300)))
before = -1.0
while before != work():  # until the threads that were started sleep
    before = work()
    time.sleep(0.2)
np.ones((500, 500)) @ np.ones((500, 500)) if PRODUCT else None
moments = ClassMoments.from_batch(rows, labels, CLASSES, scatter="pooled")
for convention in ("papyan2020", "he_su2023"):
    measure(moments, head=head, decisions=decide(moments, rows, labels, head=head), convention=convention)
time.sleep(0.1)
print(len(own), work() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("classes", [10, 150, 700])
def test_a_layer_is_measured_without_threads_of_numpys_blas(classes):
    """They would go on spinning beside SciPy's, and measuring would take several times as long."""

    def seconds(product: bool) -> tuple[int, float]:
        code = WORK_OF_NUMPY.replace("CLASSES", str(classes)).replace("PRODUCT", str(product))
        # Threads there must be, whatever the environment says; a machine of one core has none.
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PATH": "", "PYTHONPATH": ":".join(sys.path), "OPENBLAS_NUM_THREADS": "2"},
        )
        threads, spent = done.stdout.split()
        return int(threads), float(spent)

    threads, spent = seconds(product=True)
    assert threads == 1
    assert spent > 0.001  # this is what their work looks like
    assert seconds(product=False)[1] == 0.0


def test_small_products_do_not_import_scipy():
    code = (
        "import sys, numpy as np; from collapsemeter.stats.blas import product, gram; n = 40;"
        "product(np.ones((n, n)), np.ones((n, n))); gram(np.ones((n, n)));"
        "product(np.ones((80, 90)), np.ones(90)); sys.exit('scipy' in sys.modules)"
    )
    assert ALONE > 40**3
    assert ALONE_WITH_VECTOR > 80 * 90
    subprocess.run([sys.executable, "-c", code], check=True)
