"""Every network of the zoo against its reviewed row; ``--write`` makes the rows anew, to be reviewed."""

from __future__ import annotations

import numpy as np
import pytest

from .measuring import differences, mismatch, pooled

# A handful of rows of noise: warnings about few rows say nothing of the network.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_network_as_it_runs(network, measured, reviewed):
    name, make = network
    reviewed(name, measured(make()))


def test_a_changed_row_is_noticed():
    assert differences({"head": "a"}, {"head": "b"}) == ["head: 'a', reviewed: 'b'"]


def test_brute_force_by_hand():
    rows = [[0.0, 0], [1, 0], [4, 0], [9, 0]]
    labels = np.array([0, 0, 1, 1])
    assert mismatch(np.array(rows), labels, np.array([[1, 0], [1, 0], [1, 0], [0, 1]])) == 0.25
    maps = np.arange(24.0).reshape(2, 3, 2, 2)
    assert pooled(maps, np.arange(2), 3).tolist() == maps.mean((2, 3)).tolist()
