"""Patterns of layer names."""

from __future__ import annotations

import pytest

from collapsemeter.adapter.selection import matching
from collapsemeter.system.patterns import matches

NAMES = ["stem", "encoder", "encoder.0", "encoder.0.mlp", "encoder.1", "a[0]", "path/to/dense_3"]


@pytest.mark.parametrize(
    ("pattern", "selected"),
    [
        ("encoder.*", ["encoder.0", "encoder.1"]),
        ("encoder.**", ["encoder.0", "encoder.0.mlp", "encoder.1"]),
        ("**.mlp", ["encoder.0.mlp"]),
        ("*", ["stem", "encoder", "a[0]"]),
        ("**", NAMES),
        ("encoder.[!1]", ["encoder.0"]),
        ("encoder.?", ["encoder.0", "encoder.1"]),
        ("a[0]", ["a[0]"]),  # a name comes before the set of characters that it spells
        ("path/*/dense_[0-9]", ["path/to/dense_3"]),
        ("path/*", []),
    ],
)
def test_a_star_stays_within_one_part_of_a_name(pattern, selected):
    assert [name for name in NAMES if matches(pattern, name)] == selected
    if selected:
        assert matching(NAMES, [pattern]) == selected


def test_a_pattern_that_selects_nothing_is_an_error_that_says_what_may_be_meant():
    with pytest.raises(ValueError, match=r"layers=\['encodr'\]: 'encodr' matches no .*'encoder'\?"):
        matching(NAMES, ["encodr"])
    with pytest.raises(ValueError, match=r"`\*` stays within one part .* and 'path/\*\*' crosses"):
        matching(NAMES, ["path/*"])
    with pytest.raises(ValueError, match="3 is a int, and names are strings; the model has stem"):
        matching(NAMES, [3])
