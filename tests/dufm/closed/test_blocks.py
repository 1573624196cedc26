"""Low-rank structures: effective class counts, thresholds, compositions."""

import math

import numpy as np
import pytest

from collapsemeter.dufm import (
    DUFM,
    Block,
    best_blocks,
    blocks,
    dnc,
    loss_and_gradient,
    srg,
    srg_effective_classes,
)
from collapsemeter.dufm.graphs import best_subset_size, inclusion_spectrum

# Ratio of effective to actual classes, depth 3 to 6, at subset size 2 and at the best size.
TABLE = {
    3: ([1.075, 1.059, 1.049, 1.042], [1.075, 1.059, 1.049, 1.042]),
    4: ([1.056, 0.9633, 0.9060, 0.8671], [1.056, 0.9633, 0.9060, 0.8671]),
    5: ([1.044, 0.9014, 0.8170, 0.7617], [0.9234, 0.8168, 0.7527, 0.7099]),
    6: ([1.037, 0.8569, 0.7547, 0.6893], [0.8636, 0.7404, 0.6682, 0.6209]),
    7: ([1.031, 0.8227, 0.7077, 0.6355], [0.8191, 0.6843, 0.6070, 0.5572]),
    8: ([1.027, 0.7952, 0.6705, 0.5936], [0.7722, 0.6329, 0.5544, 0.5043]),
    10: ([1.022, 0.7529, 0.6144, 0.5313], [0.7043, 0.5592, 0.4795, 0.4296]),
}


def model(classes, depth, decay, **more):
    return DUFM(classes, 1, depth, feature_decay=decay, weight_decay=decay, **more)


@pytest.mark.parametrize("order", sorted(TABLE))
def test_effective_class_counts_of_the_table(order):
    classes = order * (order - 1) // 2
    for index, depth in enumerate(range(3, 7)):
        two = srg_effective_classes(order, 2, depth) / classes
        size = best_subset_size(order, depth)
        best = srg_effective_classes(order, size, depth) / classes
        for actual, printed in ((two, TABLE[order][0][index]), (best, TABLE[order][1][index])):
            assert (
                abs(actual - printed) <= 5.1e-4 if printed > 1 else abs(actual - printed) <= 5.1e-5
            )


@pytest.mark.parametrize(
    ("order", "size"), [(3, 2), (4, 2), (5, 2), (5, 3), (6, 3), (6, 4), (7, 5)]
)
@pytest.mark.parametrize("depth", [3, 4, 6])
def test_effective_classes_are_the_norms_of_the_matrices(order, size, depth):
    chain = Block(order * (order - 1) // 2, order, size).chain(depth)
    outputs = chain[1] @ chain[0]
    for weight in chain[2:]:
        outputs = weight @ np.maximum(outputs, 0)
    np.testing.assert_allclose(outputs, np.eye(outputs.shape[0]), atol=1e-12)
    norms = [math.log(np.sum(factor**2)) for factor in chain]
    expected = math.exp(math.fsum(norms) / (depth + 1))
    np.testing.assert_allclose(srg_effective_classes(order, size, depth), expected, rtol=1e-12)


@pytest.mark.parametrize("order", [3, 4, 5])
def test_effective_classes_of_a_thousand_layers(order):
    """The factors' product is beyond floats, its root is not."""
    norms = [
        math.log(np.sum(factor**2))
        for factor in Block(order * (order - 1) // 2, order, 2).chain(1000)
    ]
    expected = math.exp(math.fsum(norms) / 1001)
    np.testing.assert_allclose(srg_effective_classes(order, 2, 1000), expected, rtol=1e-10)
    assert len(model(order * (order - 1) // 2, 1000, 1e-6).references()) > 1


@pytest.mark.parametrize(("order", "size"), [(4, 2), (5, 3), (7, 3), (8, 4)])
def test_the_inclusion_spectrum(order, size):
    features, first, second, _ = Block(order * (order - 1) // 2, order, size).chain(3)
    hidden = np.maximum(second @ np.maximum(first @ features, 0), 0)
    values, counts = inclusion_spectrum(order, size)
    expected = np.sort(np.repeat(values, counts.astype(int)))
    np.testing.assert_allclose(np.linalg.eigvalsh(hidden.T @ hidden), expected, atol=1e-10)


@pytest.mark.parametrize("depth", [3, 4, 5])
@pytest.mark.parametrize("order", [3, 4, 5, 6, 7])
def test_the_graph_beats_collapse_where_published(order, depth):
    classes = order * (order - 1) // 2
    problem = model(classes, depth, 0.02 / classes)
    beats = srg(problem).loss < dnc(problem).loss
    assert beats is ((depth == 3 and classes >= 10) or (depth >= 4 and classes >= 6))


def test_ranks_of_the_graph_solution():
    best = srg(model(10, 4, 0.002))
    assert [best.rank(layer, before_activation=True) for layer in range(1, 6)] == [5, 5, 5, 5, 10]
    assert [best.rank(layer) for layer in range(1, 6)] == [5, 5, 5, 10, 10]
    rows = best.variables.weights[2][:10]
    assert set(np.sum(np.abs(rows) > 1e-9, axis=1)) == {5}


def partitions(total, parts):
    """All multisets of parts that sum to the total."""
    if total == 0:
        yield ()
        return
    for index, part in enumerate(parts):
        if part <= total:
            for rest in partitions(total - part, parts[index:]):
                yield (part, *rest)


@pytest.mark.parametrize("depth", [3, 4, 5])
@pytest.mark.parametrize("classes", [5, 6, 7, 9, 12, 13, 16, 21])
@pytest.mark.parametrize("strength", [0.02, 0.12])
def test_the_best_split_against_all_splits(classes, depth, strength):
    problem = model(classes, depth, strength / classes, widths=200)
    chosen = best_blocks(problem)
    assert sum(block.classes for block in chosen) == classes
    from collapsemeter.dufm import ell

    triangular = {r * (r - 1) // 2: r for r in range(3, 8) if r * (r - 1) // 2 <= classes}

    def cost(part):
        kappa = 1.0
        if part in triangular:
            order = triangular[part]
            kappa = min(
                srg_effective_classes(order, s, depth) / part
                for s in range(2, max(2, order - 2) + 1)
            )
        return part / classes * ell(strength * kappa, depth)

    best = min(sum(map(cost, split)) for split in partitions(classes, [1, *triangular]))
    actual = sum(
        b.classes / classes * ell(strength * b.effective_classes(depth) / b.classes, depth)
        for b in chosen
    )
    np.testing.assert_allclose(actual, best, rtol=1e-12)


@pytest.mark.parametrize("classes", [7, 8, 9, 11, 17])
@pytest.mark.parametrize("depth", [4, 5])
def test_blocks_beat_collapse_for_every_number_of_classes(classes, depth):
    problem = model(classes, depth, 0.05 / classes)
    best = blocks(problem)
    assert best.loss < dnc(problem).loss
    assert abs(loss_and_gradient(problem, best.samples())[0] - best.loss) < 1e-12


def test_a_split_may_be_given():
    problem = model(9, 4, 0.002)
    best = blocks(problem, [Block(6, 4, 2), Block(3)])
    assert best.rank(3) == 4 + 3
    with pytest.raises(ValueError, match="blocks needs 9 classes in all, got 8: change the split"):
        blocks(problem, [Block(6, 4, 2), Block(2)])


def test_blocks_share_the_width_of_the_last_layer():
    losses = []
    for room in (22, 30, 60, 200):
        problem = model(22, 4, 1e-3, widths=[22, 22, 22, room])
        losses.append(blocks(problem).loss)
        assert losses[-1] < dnc(problem).loss
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
