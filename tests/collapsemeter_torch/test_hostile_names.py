"""A layer's name is text of somebody else: what the meter says of it moves no cursor."""

from __future__ import annotations

import io
import sys
import warnings

import pytest
import torch
from torch import nn

from collapsemeter_torch import CollapseMeter

from ..hostile_names import HOSTILE, unsafe


@pytest.mark.parametrize("kind", sorted(HOSTILE))
def test_what_a_verbose_meter_says_of_its_layers(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = HOSTILE[kind].replace(".", "")
    model = nn.Sequential()
    for part, module in ((name, nn.Linear(4, 6)), (f"{name}2", nn.ReLU()), ("fc", nn.Linear(6, 3))):
        model.add_module(part, module)
    meter = CollapseMeter(model, num_classes=3, verbose=True)
    with meter.batch(torch.arange(8) % 3):
        model(torch.randn(8, 4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = meter.compute()
    out, error = capsys.readouterr()
    said = [out, error, report.table(), report.summary(), *(str(w.message) for w in caught)]
    assert [unsafe(text) for text in said] == [[]] * len(said)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    CollapseMeter(model, num_classes=3, verbose=True)  # a pipe of ASCII stops no training
