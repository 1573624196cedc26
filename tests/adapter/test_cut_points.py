"""Cut points against their definition: remove a node, and no path is left."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collapsemeter.adapter.cut_points import cut_points, spread


def leads(graph: dict[int, list[int]], start: int, sources: set[int], removed: int | None) -> bool:
    """Whether a path goes from a node back to a source without one node."""
    if start == removed:
        return False
    return start in sources or any(leads(graph, n, sources, removed) for n in graph[start])


@st.composite
def graphs(draw):
    size = draw(st.integers(1, 9))
    graph = {
        node: draw(st.lists(st.integers(0, node - 1), max_size=3, unique=True)) if node else []
        for node in range(size)
    }
    return graph, draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=2))


@given(graphs())
def test_a_cut_point_is_what_no_path_avoids(drawn):
    graph, sources = drawn
    graph = {node: [] if node in sources else before for node, before in graph.items()}
    last = len(graph) - 1
    points = cut_points(last, graph.__getitem__, sources.__contains__)
    through = [n for n in graph if leads(graph, last, sources, None)]
    assert points == [n for n in through if not leads(graph, last, sources, n)]


def test_the_branches_of_a_residual_sum_are_no_cut_points():
    graph = {
        "scores": ["fc"],
        "fc": ["sum", "weight"],
        "sum": ["conv2", "stem"],
        "conv2": ["conv1"],
    }
    graph |= {"conv1": ["stem"], "stem": ["x"], "x": [], "weight": []}
    points = cut_points("scores", graph.__getitem__, lambda node: node == "x")
    assert points == ["x", "stem", "sum", "fc", "scores"]
    assert cut_points("scores", graph.__getitem__, lambda node: node == "nowhere") == []


def test_a_chain_as_long_as_a_deep_network_needs_no_recursion():
    points = cut_points(20_000, lambda n: [n - 1, max(n - 2, 0)][: 1 + n % 2], lambda n: n == 0)
    assert points[0] == 0
    assert points[-1] == 20_000


@pytest.mark.parametrize("most", range(1, 12))
def test_names_are_spread_over_the_depth_and_the_last_stays(most):
    names = [str(number) for number in range(10)]
    chosen = spread(names, most)
    assert len(chosen) == len(set(chosen)) == min(most, 10)
    assert chosen[-1] == "9"
    gaps = [int(b) - int(a) for a, b in zip(["-1", *chosen], chosen, strict=False)]
    assert max(gaps) - min(gaps) <= 1
    assert spread(names, 0) == []
