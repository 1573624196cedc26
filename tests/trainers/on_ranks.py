"""What one rank of `torchrun` does for test_ranks.py: both trainers over uneven data, with weights that stay."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from collapsemeter_torch.lightning import CollapseCallback as ForLightning
from collapsemeter_torch.transformers import CollapseCallback as ForTransformers

TRAIN, HELD_OUT = 50, 33  # of neither have two ranks as many


def bert_config(**more: Any) -> BertConfig:
    return BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
        **more,
    )


class Module(L.LightningModule):
    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    validation_step = training_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.rate)


def with_lightning(folder: Path) -> dict[str, list[Any]]:
    callback = ForLightning(verbose=False)
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(TRAIN, 8), torch.arange(TRAIN) % 3)
    held_out = TensorDataset(*(part[:HELD_OUT] for part in data.tensors))
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(Module(), DataLoader(data, 8), DataLoader(held_out, 8))
    return callback.reports


def with_transformers(folder: Path) -> dict[str, list[Any]]:
    torch.manual_seed(0)
    config = bert_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = BertForSequenceClassification(config)
    rows = [{"input_ids": torch.randint(0, 50, (8,)), "labels": i % 3} for i in range(TRAIN)]
    callback = ForTransformers(verbose=False)
    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=1,
        learning_rate=0.0,
        label_smoothing_factor=0.1,
        eval_strategy="epoch",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    Trainer(
        model, arguments, train_dataset=rows, eval_dataset=rows[:HELD_OUT], callbacks=[callback]
    ).train()
    return callback.reports


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    found = {
        "transformers": with_transformers(folder),
        "lightning": with_lightning(folder),
    }
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else "alone"
    record = {
        trainer: {name: reports[-1].report.to_dict() for name, reports in streams.items()}
        for trainer, streams in found.items()
    }
    (folder / f"{rank}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
