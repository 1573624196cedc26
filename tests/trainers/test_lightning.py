"""Lightning's Trainer, as it is, with one callback more."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from collapsemeter_torch import CollapseMeter
from collapsemeter_torch.lightning import CollapseCallback

torch.manual_seed(0)
ROWS = 600
Y = torch.arange(ROWS) % 4
X = torch.randn(ROWS, 8) + 2 * torch.randn(4, 8)[Y]
DATA = TensorDataset(X, Y)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


class Base(L.LightningModule):
    def __init__(self, rate: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rate = rate
        self.augment = nn.Dropout(0.1)  # without parameters, and called first
        self.unused = nn.Linear(3, 3)
        self.net = net()

    def scores(self, batch: Any) -> Any:
        return self.net(self.augment(batch[0]))

    def loss(self, batch: Any) -> torch.Tensor:
        return F.cross_entropy(self.scores(batch), batch[1])

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:
        self.log("loss", self.loss(batch))

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.rate)


class CallsItself(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def scores(self, batch: Any) -> Any:
        return self(batch[0])


class InParts(CallsItself):
    """Features and a classifier, which the module's own forward puts together."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net[3](self.net[2](self.net[1](self.net[0](x))))


class Dictionaries(Base):
    def loss(self, batch: Any) -> torch.Tensor:
        return F.cross_entropy(self.net(batch["image"]), batch["label"])


class ByKeyword(Base):
    """A model of transformers inside: labels are handed on, and the loss is made there."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.body(x)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    def __init__(self) -> None:
        super().__init__()
        self.net = self.Inner()

    def loss(self, batch: Any) -> torch.Tensor:
        return self.net(batch[0], labels=batch[1])["loss"]


class ByHand(Base):
    automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:
        loss = self.loss(batch)
        self.optimizers().zero_grad()
        self.manual_backward(loss)
        self.optimizers().step()


def as_dictionaries() -> list[dict[str, torch.Tensor]]:
    return [{"image": x, "label": y} for x, y in DATA]


def trainer(folder: Path, callbacks: list[Any], **more: Any) -> L.Trainer:
    options = {"max_epochs": 2, "logger": False, "enable_checkpointing": False} | more
    return L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )


def fitted(
    folder: Path, module: L.LightningModule, callbacks: list[Any], data: Any = DATA, **more: Any
) -> L.Trainer:
    made = trainer(folder, callbacks, **more)
    torch.manual_seed(1)
    made.fit(module, DataLoader(data, 64, shuffle=True), DataLoader(data, 100))
    return made


@pytest.fixture(autouse=True)
def no_process_group_remains() -> Iterator[None]:
    before = dict(os.environ)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


CASES = {
    "stock": (Base, {}),
    "calls itself": (CallsItself, {}),
    "dictionaries": (Dictionaries, {"data": as_dictionaries()}),
    "by keyword": (ByKeyword, {}),
    "by hand": (ByHand, {}),
    "accumulation": (Base, {"accumulate_grad_batches": 3}),
    "bf16": (Base, {"precision": "bf16-mixed"}),
    "strategy that calls the step": (
        CallsItself,
        {"strategy": "ddp_find_unused_parameters_true", "devices": 1},
    ),
    "strategy and parts": (
        InParts,
        {"strategy": "ddp_find_unused_parameters_true", "devices": 1},
    ),
}


@pytest.mark.parametrize(("kind", "options"), CASES.values(), ids=CASES)
def test_modules_as_people_write_them(kind: type, options: dict[str, Any], tmp_path: Path) -> None:
    callback, watched, plain = CollapseCallback(verbose=False), kind(), kind()
    made = fitted(tmp_path, watched, [callback], **options)
    for name in ("train", "val"):
        reports = [report for _, report in callback.reports[name]]
        assert [report.provenance["rows"] for report in reports] == [ROWS, ROWS]
        assert [report.warnings for report in reports] == [(), ()]
        logged = made.callback_metrics[f"{name}/nc1_pinv/head"]
        assert logged == pytest.approx(reports[-1].final["nc1_pinv"], rel=1e-6)
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in watched.modules()
    )
    fitted(tmp_path, plain, [], **options)
    for a, b in zip(watched.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


def test_values_are_those_of_a_pass(tmp_path: Path) -> None:
    callback, module = CollapseCallback(verbose=False), Base(rate=0.0)
    made = trainer(tmp_path, [callback], max_epochs=1)
    made.fit(module, DataLoader(DATA, 64), DataLoader(DATA, 100))
    made.test(module, DataLoader(DATA, 100), verbose=False)
    with CollapseMeter(module.net, verbose=False) as meter:
        truth = meter.observe(DataLoader(DATA, 100), progress=False)
    # Validation and test come after the epoch has moved the running statistics of BatchNorm.
    for name in ("val", "test"):
        report = callback.reports[name][-1].report
        assert list(report) == list(truth)
        assert dict(report.final) == pytest.approx(dict(truth.final), rel=1e-9, nan_ok=True)


def test_early_stopping_and_the_best_checkpoint(tmp_path: Path) -> None:
    callbacks = [
        EarlyStopping("train/nc4_mismatch/head", patience=1, min_delta=2.0),
        ModelCheckpoint(tmp_path, monitor="val/nc1_pinv/head", filename="best"),
        CollapseCallback(verbose=False),
    ]
    made = fitted(tmp_path, Base(), callbacks, max_epochs=9, enable_checkpointing=True)
    assert made.current_epoch == 2
    best = min(report.final["nc1_pinv"] for _, report in callbacks[2].reports["val"])
    assert callbacks[1].best_model_score == pytest.approx(best, rel=1e-6)


def test_logger_every_epoch_prefix_and_two_loaders(tmp_path: Path) -> None:
    callback = CollapseCallback(
        verbose=False, every=2, prefix="nc/", log_metrics=["nc1_pinv"], max_rows=100
    )
    made = trainer(tmp_path, [callback], max_epochs=4, logger=CSVLogger(tmp_path))
    loaders = [DataLoader(DATA, 100), DataLoader(TensorDataset(X[:200], Y[:200]), 100)]
    made.fit(Base(), DataLoader(DATA, 64), loaders)
    assert [step for step, _ in callback.reports["train"]] == [10, 30, 40]
    assert [r.provenance["rows"] for _, r in callback.reports["train"]] == [128, 128, 128]
    rows = {
        name: {report.provenance["rows"] for _, report in reports}
        for name, reports in callback.reports.items()
    }
    assert rows == {"train": {128}, "val_0": {600}, "val_1": {200}}
    header = (Path(made.logger.log_dir) / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"nc/train/nc1_pinv/head", "nc/val_1/nc1_pinv/head"} <= set(header)
    assert not [name for name in header if "nc4" in name]


def test_a_run_goes_on_from_a_checkpoint_within_an_epoch(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=4, filename="{step}", save_top_k=-1)
    whole = CollapseCallback(verbose=False)
    made = trainer(tmp_path, [whole, saving], max_epochs=1, enable_checkpointing=True)
    made.fit(Base(), DataLoader(DATA, 64))
    resumed = CollapseCallback(verbose=False)
    again = trainer(tmp_path, [resumed], max_epochs=1)
    again.fit(Base(), DataLoader(DATA, 64), ckpt_path=tmp_path / "step=8.ckpt", weights_only=True)
    (_, first), (_, second) = whole.reports["train"][0], resumed.reports["train"][0]
    assert first.provenance["rows"] == ROWS
    # A loader that cannot resume begins anew: the last two batches are its first two.
    assert second.provenance["rows"] == 10 * 64
    assert second.provenance["last_step"] == 9


def test_a_network_that_is_named(tmp_path: Path) -> None:
    class Two(Base):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = net()

        def scores(self, batch: Any) -> Any:
            with torch.no_grad():
                self.teacher(batch[0])
            return self.net(batch[0])

    callback = CollapseCallback(verbose=False, model="net")
    module = Two()
    fitted(tmp_path, module, [callback])
    assert [r.provenance["rows"] for _, r in callback.reports["train"]] == [ROWS, ROWS]


def test_a_network_with_a_forward_of_its_own(tmp_path: Path) -> None:
    # Accelerate's hooks and torch.compile put one on the instance, as strategies do on the LightningModule.
    module, callback = Base(), CollapseCallback(verbose=False)
    plain = module.net.forward
    module.net.forward = lambda x: plain(x)  # type: ignore[method-assign]
    fitted(tmp_path, module, [callback], max_epochs=1)
    (_, report), *_ = callback.reports["train"]
    assert list(report.layers) == ["3"]  # of the whole network, as without a forward of its own
    assert report.provenance["rows"] == ROWS


@pytest.mark.nightly
@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_network(tmp_path: Path, in_place: bool) -> None:
    callback, module = CollapseCallback(verbose=False), Base()
    if in_place:
        module.net.compile(backend="aot_eager")
        compiled = module.net._compiled_call_impl
    else:
        module.net = torch.compile(module.net, backend="aot_eager")
    fitted(tmp_path, module, [callback], max_epochs=1)
    if in_place:
        assert module.net._compiled_call_impl is compiled
    assert callback.reports["train"][0].report.provenance["rows"] == ROWS


def test_what_cannot_be_counted_is_said_and_the_training_goes_on(tmp_path: Path) -> None:
    callback = CollapseCallback(verbose=False, labels="target")
    with pytest.warns(RuntimeWarning, match="labels='target' is not in the batch, a list of 2"):
        made = fitted(tmp_path, Base(), [callback])
    assert made.global_step == 20

    class NoForward(Base):
        def loss(self, batch: Any) -> torch.Tensor:
            return (self.unused.weight**2).sum()

    callback = CollapseCallback(verbose=False)
    with pytest.warns(RuntimeWarning, match="no module with parameters was called"):
        fitted(tmp_path, NoForward(), [callback], max_epochs=1)
    with pytest.raises(ValueError, match=r"reductio= is no option .*; did you mean 'reduction'\?"):
        CollapseCallback(reductio="mean")
    with pytest.raises(ValueError, match="model='nett': the LightningModule has no such module"):
        fitted(tmp_path, Base(), [CollapseCallback(model="nett")])


def test_a_callback_is_copied_and_pickled(tmp_path: Path) -> None:
    callback = CollapseCallback(verbose=False, every=2)
    for twin in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        fitted(tmp_path, Base(), [twin])
        assert twin.reports["val"][0].report.provenance["rows"] == ROWS


@pytest.mark.parametrize("watched", ["prepared", "bare"])
def test_fabric(watched: str) -> None:
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    module = net()
    prepared, optimizer = fabric.setup(module, torch.optim.SGD(module.parameters(), 0.0))
    loader = fabric.setup_dataloaders(DataLoader(DATA, 64))
    meter = CollapseMeter(prepared if watched == "prepared" else module, verbose=False)
    for x, y in loader:
        with meter.batch(y):
            scores = prepared(x)
        fabric.backward(F.cross_entropy(scores, y))
        optimizer.step()
    live, frozen = meter.compute(), meter.observe(loader, progress=False)
    assert (
        list(live)
        == list(frozen)
        == list(CollapseMeter(module, verbose=False, example=X[:9]).selection.watched)
    )
    assert live.provenance["rows"] == frozen.provenance["rows"] == ROWS


OLD_NAME = """
import sys
import pytorch_lightning as pl, torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from collapsemeter_torch.lightning import CollapseCallback
assert "lightning.pytorch" not in sys.modules
assert issubclass(CollapseCallback, pl.Callback)

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 3)
    def training_step(self, batch, index):
        return F.cross_entropy(self.net(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

data = DataLoader(TensorDataset(torch.randn(30, 4), torch.arange(30) % 3), 10)
callback = CollapseCallback(verbose=False)
options = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=[callback], **options).fit(Module(), data)
assert callback.reports["train"][0].report.provenance["rows"] == 30
"""


@pytest.mark.nightly
def test_the_package_of_the_old_name() -> None:
    done = subprocess.run([sys.executable, "-c", OLD_NAME], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
