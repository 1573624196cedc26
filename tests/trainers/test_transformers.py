"""The Trainer of Hugging Face's transformers, as it is, with one callback more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F
from transformers import (
    BertForSequenceClassification,
    BertForTokenClassification,
    EarlyStoppingCallback,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from collapsemeter_torch import CollapseMeter
from collapsemeter_torch.transformers import STATE, CollapseCallback

from .on_ranks import bert_config

ROWS = 48


def bert(kind: type = BertForSequenceClassification) -> Any:
    torch.manual_seed(0)
    return kind(bert_config(max_position_embeddings=16))


def sentences(labels: Any = lambda i: i % 3) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(1)
    return [
        {
            "input_ids": torch.randint(0, 50, (8,), generator=draw),
            "attention_mask": torch.ones(8, dtype=torch.long),
            "labels": labels(i),
        }
        for i in range(ROWS)
    ]


def arguments(folder: Path, **more: Any) -> TrainingArguments:
    return TrainingArguments(
        str(folder),
        **{
            "num_train_epochs": 2,
            "per_device_train_batch_size": 16,
            "report_to": [],
            "use_cpu": True,
            "save_strategy": "no",
            "disable_tqdm": True,
            **more,
        },
    )


def trained(folder: Path, callbacks: list[Any], trainer: type = Trainer, **more: Any) -> Trainer:
    loss = more.pop("compute_loss_func", None)
    made = trainer(
        bert(),
        arguments(folder, **more),
        train_dataset=sentences(),
        eval_dataset=sentences()[:30],
        compute_loss_func=loss,
        callbacks=callbacks,
    )
    made.train()
    return made


class Weighted(Trainer):
    """A loss of one's own, as the documentation of transformers writes it."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs.logits, labels, weight=torch.tensor([1.0, 2.0, 3.0]))
        return (loss, outputs) if return_outputs else loss


def cross_entropy(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    return F.cross_entropy(outputs.logits, labels)


OPTIONS: dict[str, dict[str, Any]] = {
    "stock": {},
    "smoothing": {"label_smoothing_factor": 0.1},
    "loss function": {"compute_loss_func": cross_entropy},
    "own loss": {"trainer": Weighted},
    "accumulation": {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 4},
    "checkpointing": {"gradient_checkpointing": True},
    "bf16": {"bf16": True},
}


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what torch.compile is asked for, in place of which graphs run as they are."""
    asked: list[Any] = []
    compiled = torch.compile

    def eager(*args: Any, **options: Any) -> Any:
        asked.append(options.pop("backend", "inductor"))
        return compiled(*args, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", eager)
    return asked


def test_a_compiled_training(backends: list[Any], tmp_path: Path) -> None:
    torch.compiler.reset()
    test_options_of_the_trainer({"torch_compile": True}, tmp_path)
    assert backends == ["inductor"] * 2
    torch.compiler.reset()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_of_the_trainer(options: dict[str, Any], tmp_path: Path) -> None:
    callback = CollapseCallback(verbose=False)
    trainer = trained(tmp_path / "watched", [callback], eval_strategy="epoch", **options)
    plain = trained(tmp_path / "plain", [], eval_strategy="epoch", **options)
    for name, rows in (("train", ROWS), ("eval", 30)):
        reports = [report for _, report in callback.reports[name]]
        assert [report.provenance["rows"] for report in reports] == [rows, rows]
        assert [report.warnings for report in reports] == [(), ()]
        assert all(np.isfinite(report["classifier"]["nc3_self_duality"]) for report in reports)
    assert [report.phase for _, report in callback.reports["train"]] == ["live", "live"]
    assert [report.phase for _, report in callback.reports["eval"]] == ["frozen-eval"] * 2
    for a, b in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_evaluation_is_what_observe_measures(tmp_path: Path) -> None:
    callback = CollapseCallback(verbose=False)
    trainer = trained(tmp_path, [callback])
    metrics = trainer.evaluate()
    with CollapseMeter(trainer.model, verbose=False) as meter:
        rows = sentences()[:30]
        batch = {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}
        truth = meter.observe([batch], progress=False)
    report = callback.reports["eval"][-1].report
    assert list(report) == list(truth)
    for layer, values in truth.items():
        for metric, value in values.items():
            assert report[layer][metric] == pytest.approx(
                value, rel=1e-9, abs=1e-12, nan_ok=True
            ), (
                layer,
                metric,
            )
    assert metrics["eval_nc1_pinv/head"] == report["classifier"]["nc1_pinv"]
    assert "eval_nc1_cdnv/head" not in metrics  # of five metrics the table is made


def test_a_best_model_and_early_stopping(tmp_path: Path) -> None:
    trainer = trained(
        tmp_path,
        [EarlyStoppingCallback(1), CollapseCallback(verbose=False)],
        num_train_epochs=4,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="nc1_pinv/head",
        greater_is_better=False,
    )
    found = [log["eval_nc1_pinv/head"] for log in trainer.state.log_history if "eval_loss" in log]
    assert trainer.state.best_metric == min(found)


def test_an_undefined_value_that_is_monitored_stops_nothing(tmp_path: Path) -> None:
    trainer = Trainer(
        bert(),
        arguments(
            tmp_path,
            eval_strategy="epoch",
            save_strategy="epoch",
            metric_for_best_model="nc1_pinv/head",
            greater_is_better=False,
        ),
        train_dataset=sentences(),
        eval_dataset=sentences(lambda i: 0)[:8],  # one class has no NC1
        callbacks=[CollapseCallback(verbose=False)],
    )
    trainer.train()
    assert trainer.state.global_step == 6


def test_tensorboard_and_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    callback = CollapseCallback(verbose=False, log_metrics=["nc4_mismatch"])
    trained(tmp_path, [callback], report_to="tensorboard", eval_strategy="epoch")
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    for tag, name in (("train/nc4_mismatch/head", "train"), ("eval/nc4_mismatch/head", "eval")):
        written = [(event.step, event.value) for event in events.Scalars(tag)]
        said = [
            (step, np.float32(r["classifier"]["nc4_mismatch"]))
            for step, r in callback.reports[name]
        ]
        assert written == said
    assert not [tag for tag in events.Tags()["scalars"] if "nc1_pinv" in tag]


def test_reports_after_steps_and_after_every_second_epoch(tmp_path: Path) -> None:
    steps = CollapseCallback(verbose=False, every_steps=2)
    trained(tmp_path, [steps], max_steps=5)
    assert [(step, r.provenance["rows"]) for step, r in steps.reports["train"]] == [
        (2, 32),
        (4, 32),
        (5, 16),
    ]
    epochs = CollapseCallback(verbose=False, every=2)
    trained(tmp_path, [epochs], num_train_epochs=4)
    assert [(step, r.provenance["rows"]) for step, r in epochs.reports["train"]] == [
        (3, 48),
        (9, 48),
        (12, 48),
    ]


def test_what_was_counted_is_in_the_checkpoint(tmp_path: Path) -> None:
    whole = CollapseCallback(verbose=False)
    trained(tmp_path / "whole", [whole], save_strategy="steps", save_steps=2, num_train_epochs=1)
    assert (tmp_path / "whole" / "checkpoint-2" / STATE).exists()
    resumed = CollapseCallback(verbose=False)
    trainer = Trainer(
        bert(),
        arguments(tmp_path / "whole", num_train_epochs=1),
        train_dataset=sentences(),
        callbacks=[resumed],
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    (_, first), (_, second) = whole.reports["train"][0], resumed.reports["train"][0]
    assert second.provenance["rows"] == first.provenance["rows"] == ROWS
    assert dict(second["classifier"]) == pytest.approx(
        dict(first["classifier"]), rel=1e-6, nan_ok=True
    )


def test_tokens_next_tokens_and_images(tmp_path: Path) -> None:
    tokens = sentences(lambda i: torch.tensor([-100, 0, 1, 2, 0, 1, 2, -100]))
    callback = CollapseCallback(verbose=False)
    Trainer(
        bert(BertForTokenClassification),
        arguments(tmp_path),
        train_dataset=tokens,
        callbacks=[callback],
    ).train()
    report = callback.reports["train"][0].report
    assert report.final.provenance["rows"] == 6 * ROWS

    texts = [row | {"labels": row["input_ids"]} for row in sentences()]
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    callback = CollapseCallback(verbose=False)
    Trainer(
        GPT2LMHeadModel(config), arguments(tmp_path), train_dataset=texts, callbacks=[callback]
    ).train()
    report = callback.reports["train"][0].report
    assert report.final.provenance["rows"] == 7 * ROWS
    assert np.isfinite(report.final["nc3_self_duality"])

    images = [{"pixel_values": torch.randn(3, 8, 8), "labels": i % 3} for i in range(ROWS)]
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
    )
    callback = CollapseCallback(verbose=False)
    Trainer(
        ViTForImageClassification(config),
        arguments(tmp_path, label_smoothing_factor=0.1),
        train_dataset=images,
        callbacks=[callback],
    ).train()
    report = callback.reports["train"][0].report
    assert report.provenance["rows"] == ROWS
    assert list(report)[-1] == "classifier"


def test_a_callback_that_is_added_later_and_one_that_is_a_class(tmp_path: Path) -> None:
    trainer = Trainer(bert(), arguments(tmp_path), eval_dataset=sentences(), callbacks=[])
    callback = CollapseCallback(trainer, verbose=False)
    trainer.add_callback(callback)
    assert trainer.evaluate()["eval_nc4_mismatch/head"] >= 0
    predicted = trainer.predict(sentences()[:20])
    assert "test_nc1_pinv/head" in predicted.metrics
    assert callback.reports["test"][0].report.provenance["rows"] == 20
    callback.close()
    assert not trainer.model._forward_hooks
    assert not trainer.model._forward_pre_hooks

    trainer = trained(tmp_path, [CollapseCallback])
    assert any("nc1_pinv/head" in log for log in trainer.state.log_history)


def test_a_meter_alone_counts_labels_that_a_trainer_takes_out(tmp_path: Path) -> None:
    for options in ({"label_smoothing_factor": 0.1}, {"trainer": Weighted}, {}):
        model = bert()
        meter = CollapseMeter(model, verbose=False)
        kind = options.pop("trainer", Trainer)
        args = arguments(tmp_path, num_train_epochs=1, **options)
        kind(model, args, train_dataset=sentences()).train()
        assert meter.compute().provenance["rows"] == ROWS


def test_what_cannot_be_counted_is_said_and_the_training_goes_on(tmp_path: Path) -> None:
    callback = CollapseCallback(verbose=False, labels="label")
    missing = (
        "labels='label' is not in the batch, a dict of 'input_ids', 'attention_mask', 'labels'"
    )
    with pytest.warns(RuntimeWarning, match=missing):
        trainer = trained(tmp_path, [callback])
    assert trainer.state.global_step == 6
    with pytest.raises(ValueError, match=r"layer= is no option .*; did you mean 'layers'\?"):
        CollapseCallback(layer="classifier")
    with pytest.raises(ValueError, match=r"log_metrics='nc1': no metric has that name"):
        CollapseCallback(log_metrics="nc1")
    with pytest.raises(ValueError, match=r"every=0: it must be a whole number from 1 on"):
        CollapseCallback(every=0)
