"""What one rank of `torchrun` does for test_ranks.py: trainers over uneven data, with weights that stay."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from collapsemeter_torch import CollapseMeter, StateOfRanks
from collapsemeter_torch.lightning import CollapseCallback as ForLightning
from collapsemeter_torch.streams import Entry
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


def fitted(
    folder: Path,
    callback: ForLightning,
    held_out: Callable[[Any], Any] = lambda rows: rows,
    more: Sequence[Any] = (),
    checkpoint: str | None = None,
    **options: Any,
) -> None:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(TRAIN, 8), torch.arange(TRAIN) % 3)
    rows = TensorDataset(*(part[:HELD_OUT] for part in data.tensors))
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        callbacks=[callback, *more],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(Module(), DataLoader(data, 8), DataLoader(held_out(rows), 8), ckpt_path=checkpoint)


def with_lightning(
    folder: Path, held_out: Callable[[Any], Any] = lambda rows: rows
) -> dict[str, list[Any]]:
    callback = ForLightning(verbose=False)
    fitted(folder, callback, held_out)
    return callback.reports


def with_transformers(folder: Path) -> dict[str, list[Any]]:
    callback = ForTransformers(verbose=False)
    trained(folder, callback, eval_strategy="epoch")
    return callback.reports


def with_resumed_transformers(folder: Path) -> dict[str, list[Any]]:
    """Go on from the second of four steps of an epoch; beside it the run that was not cut short."""
    whole, resumed = ForTransformers(verbose=False), ForTransformers(verbose=False)
    trained(folder, whole, save_strategy="steps", save_steps=2)
    trained(folder, resumed, folder / "checkpoint-2")
    return {"whole": whole.reports["train"], "resumed": resumed.reports["train"]}


def trained(
    folder: Path, callback: ForTransformers, checkpoint: Path | None = None, **options: Any
) -> None:
    torch.manual_seed(0)
    config = bert_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = BertForSequenceClassification(config)
    rows = [{"input_ids": torch.randint(0, 50, (8,)), "labels": i % 3} for i in range(TRAIN)]
    arguments = TrainingArguments(
        str(folder),
        **{
            "num_train_epochs": 1,
            "learning_rate": 0.0,
            "label_smoothing_factor": 0.1,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            **options,
        },
    )
    trainer = Trainer(
        model, arguments, train_dataset=rows, eval_dataset=rows[:HELD_OUT], callbacks=[callback]
    )
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


class OnRank0(IterableDataset):
    """Rows that rank 0 alone is given."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data if os.environ.get("RANK") == "0" else [])


def with_idle_rank(folder: Path) -> dict[str, list[Any]]:
    return with_lightning(folder, OnRank0)


class Stops(L.Callback):
    """Saves a checkpoint within an epoch, and ends the run."""

    def on_train_batch_end(self, trainer: Any, *unused: Any) -> None:
        if trainer.global_step == 2:
            trainer.save_checkpoint(trainer.default_root_dir + "/within.ckpt")
            trainer.should_stop = True
            trainer.limit_train_batches = 0


def with_resumption(folder: Path) -> dict[str, list[Any]]:
    """Of Lightning, whose loader begins anew after it; elsewhere than where it was saved, too."""
    fitted(folder, ForLightning(verbose=False), more=[Stops()], max_steps=2)
    callback = ForLightning(verbose=False)
    fitted(folder, callback, checkpoint=f"{folder}/within.ckpt")
    return callback.reports


def with_other_processes(folder: Path) -> dict[str, list[Any]]:
    """Go on alone from what several processes have saved."""
    resumed = [ForLightning(verbose=False), ForTransformers(verbose=False)]
    fitted(folder, resumed[0], checkpoint=f"{folder}/within.ckpt")
    trained(folder, resumed[1], folder / "checkpoint-2")
    return {
        name: c.reports["train"]
        for name, c in zip(("lightning", "transformers"), resumed, strict=True)
    }


def with_accelerate(folder: Path) -> dict[str, list[Any]]:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(TRAIN, 8), torch.arange(TRAIN) % 3)
    held_out = TensorDataset(*(part[:HELD_OUT] for part in data.tensors))
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    accelerator = Accelerator(cpu=True)
    model, optimizer, loader, evaluated = accelerator.prepare(
        model,
        torch.optim.SGD(model.parameters(), 0.0),
        DataLoader(data, 8),
        DataLoader(held_out, 8),
    )
    meter = CollapseMeter(model, verbose=False)
    accelerator.register_for_checkpointing(StateOfRanks(meter))
    for step, (x, y) in enumerate(loader):
        with meter.batch(y):
            scores = model(x)
        accelerator.backward(F.cross_entropy(scores, y))
        optimizer.step()
        optimizer.zero_grad()
        if step == 1:
            accelerator.save_state(str(folder / "saved"))
    reports = {"train": meter.compute(), "eval": meter.observe(evaluated, progress=False)}
    accelerator.load_state(str(folder / "saved"))
    for x, y in accelerator.skip_first_batches(loader, 2):
        with meter.batch(y):
            model(x)
    reports["resumed"] = meter.compute()
    return {name: [Entry(0, report)] for name, report in reports.items()}


CASES = {
    "transformers": with_transformers,
    "lightning": with_lightning,
    "idle rank": with_idle_rank,
    "resumption": with_resumption,
    "resumed transformers": with_resumed_transformers,
    "other processes": with_other_processes,
    "accelerate": with_accelerate,
}


def main(folder: Path, *names: str) -> None:
    torch.set_num_threads(1)
    streams_of = {name: CASES[name](folder) for name in names}
    record = {
        trainer: {name: reports[-1].report.to_dict() for name, reports in streams.items()}
        for trainer, streams in streams_of.items()
    }
    (folder / f"{os.environ.get('RANK', 'alone')}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
