"""The update alone: what a batch costs beside a bare product X^T X of the same rows.

    python benchmarks/update.py
    python benchmarks/update.py --shapes 100x2048 --frameworks torch --rounds 31

The product is of the same rows, in the same framework, dtype and threads, into memory that is there
already: the least that any scatter costs. The update is what a hook calls: class-shifted sums, and with
`row sample` what it keeps for NC4, of batches that wait until they make a block. NumPy's is
`collapsemeter.Accumulator`, which sums in float64. With 20,000
classes and more PyTorch's update is timed beside the generic form, in which every class operation is a product
with one-hot labels, and beside the least one-hot form: one such product, and X^T X.

`passes 1 and 2` of the textbook make the same statistics as the updates of all batches: class means,
then covariances and variances about them, in float32 as well. The two agree, which is checked: in counts
exactly, in means and scatter to 1e-4 of the largest entry. They need every class in the batches. Rows are in memory, so that no forward is timed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import published
import textbook
import torch
from pairwise import Seconds, Sheet, device, in_turn, options, ratio, wait_for_device
from torch import Tensor

from collapsemeter import Accumulator, ClassMoments
from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.sums import init, update
from collapsemeter_torch.device_sums import DeviceSums
from collapsemeter_torch.namespace import TorchNamespace

SAMPLE, MANY = 4096, 20_000
AGREE = 1e-4  # relative: float32 sums of at most 1e4 rows, in another order


class OneHot(TorchNamespace):
    """The generic form: every class operation as a product with one-hot labels."""

    def rows_of(self, table: Tensor, labels: Tensor) -> Tensor:
        """Return the entry of each label."""
        return (self.one_hot(labels, len(table)) @ table.to(self.dtype)).to(table.dtype)

    def residuals(self, rows: Tensor, table: Tensor, labels: Tensor, used: Tensor) -> Tensor:
        """Return rows less those of their classes."""
        return torch.where(used[:, None], rows - self.one_hot(labels, len(table)) @ table, 0.0)

    def add_counts(self, total: Tensor, labels: Tensor, flags: Tensor) -> Tensor:
        """Count the flags of each class."""
        return total.add_((self.one_hot(labels, len(total)) * flags[:, None]).sum(0).long())

    def add_class_sum(self, total: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        """Sum the rows of each class."""
        return total.add_(self.one_hot(labels, len(total)).T @ rows)


def data(classes: int, width: int, batch: int, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return batches of float32 rows; every class is there when they are enough."""
    rng = np.random.default_rng(0)
    means = rng.standard_normal((classes, width), np.float32)
    labels = rng.permutation(np.arange(batch * count) % classes).reshape(count, batch)
    return [
        (means[y] + 0.3 * rng.standard_normal((batch, width), np.float32), y.astype(np.int64))
        for y in labels
    ]


def in_torch(sheet: Sheet, classes: int, width: int, given: Any) -> None:
    """Time PyTorch's update."""
    rows = [(torch.tensor(x).to(device()), torch.tensor(y).to(device())) for x, y in given]
    calls, sampled = torch_calls(rows, classes, width)
    # Whole blocks: of a hook's batches most only wait, and one adds the block that they make.
    block = max(1, sampled.waiting.room // len(rows[0][0]))
    steps = math.lcm(block, len(rows))
    seconds = in_turn(calls, sheet.rounds, steps=steps, clock=sheet.clock, wait=wait_for_device)
    shape = f"torch, C = {classes}, d = {width}"
    target = "<= 1.6" if classes >= MANY else "<= 1.3"
    sheet.add(ratio(f"{shape}: update / X^T X", seconds, "update", "X^T X", target))
    sheet.add(ratio(f"{shape}: with row sample / X^T X", seconds, "sampled", "X^T X"))
    if classes >= MANY:
        sheet.add(
            ratio(f"{shape}: generic one-hot / update", seconds, "one-hot", "update", ">= 30")
        )
        sheet.add(ratio(f"{shape}: least one-hot / update", seconds, "least one-hot", "update"))


def torch_calls(
    rows: list[tuple[Tensor, Tensor]], classes: int, width: int
) -> tuple[dict[str, Callable[[], object]], DeviceSums]:
    """Return calls that take one batch after the other, and the state of those that sample."""
    states = {
        name: DeviceSums(rows[0][0], Settings(classes, groups=0), "pooled", SAMPLE)
        for name in ("update", "sampled", "one-hot")
    }
    total = rows[0][0].new_zeros(width, width)
    sums = rows[0][0].new_zeros(classes, width)
    numbers = range(10 * SAMPLE, 10 * SAMPLE + len(rows[0][0]))
    batches = itertools.cycle(rows)

    def of_sums(name: str, namespace: TorchNamespace) -> Callable[[], object]:
        return lambda: update(states[name].sums, *next(batches), namespace)

    def least() -> None:
        x, y = next(batches)
        sums.addmm_((y[:, None] == torch.arange(classes, device=y.device)).to(x.dtype).T, x)
        total.addmm_(x.T, x)

    def product() -> None:
        x, _ = next(batches)
        torch.mm(x.T, x, out=total)

    def sampled() -> None:
        states["sampled"].update(*next(batches), numbers)

    calls = {
        "X^T X": product,
        "update": of_sums("update", TorchNamespace(torch.float32)),
        "sampled": sampled,
    }
    if classes >= MANY:
        calls |= {"one-hot": of_sums("one-hot", OneHot(torch.float32)), "least one-hot": least}
    return calls, states["sampled"]


def in_numpy(sheet: Sheet, classes: int, width: int, given: Any) -> None:
    """Time the accumulator, which keeps float64, beside NumPy's product in float64."""
    wide = itertools.cycle([x.astype(np.float64) for x, _ in given])
    batches = itertools.cycle(given)
    accumulator = Accumulator(classes, width, "pooled")
    total = np.empty((width, width))

    def product() -> None:
        x = next(wide)
        np.matmul(x.T, x, out=total)

    calls = {
        "X^T X": product,
        "update": lambda: accumulator.update(*next(batches)),
    }
    seconds = in_turn(calls, sheet.rounds, steps=len(given), clock=sheet.clock)
    shape = f"numpy float64, C = {classes}, d = {width}"
    target = "<= 1.6" if classes >= MANY else "<= 1.3"
    sheet.add(ratio(f"{shape}: update / X^T X", seconds, "update", "X^T X", target))


def in_jax(sheet: Sheet, classes: int, width: int, given: Any) -> None:
    """Time JAX's update, compiled and with its state donated."""
    import jax

    import collapsemeter_flax.state  # noqa: F401  # makes a pytree of the sums
    from collapsemeter_flax.namespace import JaxNamespace, product

    batches = itertools.cycle([tuple(map(jax.numpy.asarray, pair)) for pair in given])
    kept = jax.tree.map(jax.numpy.asarray, init(classes, width, "pooled", np.float32))
    for name in ("counts", "ignored", "nonfinite", "invalid"):
        setattr(kept, name, getattr(kept, name).astype(jax.numpy.uint32))
    namespace = JaxNamespace(np.float32)
    step = jax.jit(lambda sums, x, y: update(sums, x, y, namespace), donate_argnums=0)
    bare = jax.jit(lambda x: product(x.T, x))
    held = [kept]

    def updated() -> None:
        held[0] = jax.block_until_ready(step(held[0], *next(batches)))

    calls = {"X^T X": lambda: jax.block_until_ready(bare(next(batches)[0])), "update": updated}
    seconds = in_turn(calls, sheet.rounds, steps=len(given), clock=sheet.clock)
    shape = f"jax, C = {classes}, d = {width}"
    target = "<= 1.6" if classes >= MANY else "<= 1.3"
    sheet.add(ratio(f"{shape}: update / X^T X", seconds, "update", "X^T X", target))


def beside_textbook(sheet: Sheet, classes: int, width: int, given: Any) -> None:
    """Time passes 1 and 2 of the textbook beside the updates of the same batches."""
    rows = [(torch.tensor(x).to(device()), torch.tensor(y).to(device())) for x, y in given]
    shape = f"torch, C = {classes}, d = {width}"

    def updates() -> DeviceSums:
        state = DeviceSums(rows[0][0], Settings(classes, groups=0), "pooled", SAMPLE)
        for x, y in rows:
            update(state.sums, x, y, TorchNamespace(torch.float32))
        return state

    def forward(x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return {"": x}, x

    def two_passes() -> textbook.Layer:
        n, mu = textbook.class_means(rows, forward, classes)
        return textbook.covariances(rows, forward, n, mu)[""]

    check(ClassMoments.from_sums(updates().host_sums(), "float32", "frozen-eval"), two_passes())
    calls: dict[str, Callable[[], object]] = {"updates": updates, "passes 1 and 2": two_passes}
    theirs = "published tool's passes"
    if published.is_there():
        calls[theirs] = lambda: published.passes(rows, classes, width, device())
    seconds: Seconds = in_turn(
        calls, max(3, sheet.rounds // 3), clock=sheet.clock, wait=wait_for_device
    )
    sheet.add(ratio(f"{shape}: passes 1 and 2 / updates", seconds, "passes 1 and 2", "updates"))
    if theirs in calls:
        sheet.add(ratio(f"{shape}: {theirs} / updates", seconds, theirs, "updates"))


def check(ours: ClassMoments, theirs: textbook.Layer) -> None:
    """Raise unless counts are equal, and means and scatter agree to `AGREE` of their largest entry."""
    np.testing.assert_array_equal(ours.counts, theirs.n.cpu().numpy())
    assert ours.scatter is not None
    scatter = theirs.S_W.double().cpu().numpy() * ours.rows
    for mine, other in ((ours.means, theirs.mu.double().cpu().numpy()), (ours.scatter, scatter)):
        np.testing.assert_allclose(mine, other, rtol=0, atol=AGREE * np.abs(mine).max())


def shapes(texts: list[str]) -> Iterator[tuple[int, int]]:
    """Read CxD."""
    for text in texts:
        classes, width = text.split("x")
        yield int(classes), int(width)


def main() -> None:
    """Time every framework at every shape."""
    parser = options(__doc__, rounds=9)
    parser.add_argument("--shapes", nargs="+", default=["100x2048", "1000x2048", "20000x768"])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--batches", type=int, default=4, help="of rows that differ")
    known = {"torch": in_torch, "numpy": in_numpy, "jax": in_jax, "textbook": beside_textbook}
    parser.add_argument("--frameworks", nargs="+", choices=known, default=[*known])
    chosen = parser.parse_args()
    if "jax" in chosen.frameworks:
        import jax  # noqa: F401  # so that the sheet names its version
    sheet = Sheet(f"The update alone, batches of {chosen.batch} rows", chosen)
    for classes, width in shapes(chosen.shapes):
        given = data(classes, width, chosen.batch, chosen.batches)
        for name in chosen.frameworks:
            if (
                name != "textbook" or classes <= chosen.batch * chosen.batches
            ):  # which needs all classes
                known[name](sheet, classes, width, given)
    sheet.save()


if __name__ == "__main__":
    main()
