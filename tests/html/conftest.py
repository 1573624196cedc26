"""Pages without their figures, for tests of the words on them."""

from __future__ import annotations

from unittest.mock import MagicMock

import pytest

from collapsemeter.html import picture


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figure is drawn, which takes most of the time of a page."""
    monkeypatch.setattr(picture, "canvas", lambda width, height: MagicMock())
