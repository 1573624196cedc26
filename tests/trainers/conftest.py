"""Trainers of other people: their own warnings are theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            # The last holds: what we say is a RuntimeWarning.
            item.add_marker(pytest.mark.filterwarnings("ignore", "error::RuntimeWarning"))
