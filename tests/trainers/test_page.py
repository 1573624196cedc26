"""The code of docs/trainers.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from accelerate import Accelerator
from lightning.pytorch.callbacks import EarlyStopping
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertForSequenceClassification, Trainer, TrainingArguments

from collapsemeter_torch import CollapseMeter

from .on_ranks import Module, bert_config

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"
LIGHTNING, TRANSFORMERS, ACCELERATE = re.findall(
    r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL
)


def loader() -> DataLoader[Any]:
    torch.manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(60, 8), torch.arange(60) % 3), batch_size=20)


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_lightning() -> None:
    names = {
        "L": L,
        "EarlyStopping": EarlyStopping,
        "module": Module(0.1),
        "train_loader": loader(),
        "val_loader": loader(),
    }
    exec(LIGHTNING, names)
    assert names["report"].provenance["rows"] == 60


def test_transformers(tmp_path: Path) -> None:
    rows = [{"input_ids": torch.randint(0, 20, (5,)), "labels": i % 3} for i in range(24)]
    names: dict[str, Any] = {
        "Trainer": Trainer,
        "model": BertForSequenceClassification(bert_config()),
        "args": TrainingArguments(str(tmp_path), max_steps=3, report_to=[], use_cpu=True),
        "train": rows,
        "held_out": rows,
    }
    exec(TRANSFORMERS, names)
    assert names["report"].provenance["rows"] == 24


def test_accelerate(tmp_path: Path) -> None:
    model = Module(0.1).net
    names: dict[str, Any] = {
        "Accelerator": Accelerator,
        "CollapseMeter": CollapseMeter,
        "model": model,
        "loader": loader(),
        "criterion": nn.CrossEntropyLoss(),
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
    }
    exec(ACCELERATE, names)
    events = EventAccumulator(str(tmp_path / "runs" / "collapse")).Reload()
    assert [event.step for event in events.Scalars("train/nc1_pinv/head")] == [0, 1]
