"""The PyTorch adapter passes the conformance kit on a GPU, with labels that come from the host."""

from __future__ import annotations

import pytest

from collapsemeter import testing

from ..collapsemeter_torch.test_conformance import TorchDriver


@pytest.mark.parametrize("case", testing.CASES)
def test_on_the_device(case, device):
    case(type("OnDevice", (TorchDriver,), {"device": device}))
