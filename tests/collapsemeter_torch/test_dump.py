"""What `dump` writes, the audit measures as `observe` does."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from collapsemeter import CollapseReport
from collapsemeter.activations import open_arrays
from collapsemeter.activations.manifest import Manifest
from collapsemeter.audit import Options, Running, audit
from collapsemeter_torch import CollapseMeter
from collapsemeter_torch.frozen import exact_array

from .dumped_networks import NETWORKS, Twice, Watched, digits, twice, vectors

EPS64 = float(np.finfo(np.float64).eps)
COUNTED = ("nc4_agreement", "nc4_mismatch", "ncc_accuracy")


def assert_same(observed: CollapseReport, audited: CollapseReport) -> None:
    """Every metric to 1e-6, what is counted exactly, and what is undefined for the same reason."""
    assert list(audited) == list(observed)
    assert audited.phase == observed.phase
    for name, layer in observed.items():
        found = audited[name]
        assert list(found) == list(layer)
        assert found.reasons == layer.reasons
        for metric, value in layer.items():
            if metric in COUNTED:
                assert found[metric] == value or math.isnan(value), (name, metric)
            # What is zero is zero to the rounding of a cosine.
            assert found[metric] == pytest.approx(value, rel=1e-6, abs=8 * EPS64, nan_ok=True), (
                name,
                metric,
            )
        for key in ("rows", "ignored_rows", "nonfinite_rows", "feature_dtype", "nc4_rows"):
            assert found.provenance.get(key) == layer.provenance.get(key), (name, key)


@pytest.fixture(scope="module")
def trained() -> Watched:
    return digits(torch.float32, epochs=2)


@pytest.fixture(scope="module")
def hundred(trained: Watched, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a hundred shards: every batch is one."""
    batches = [
        pair for x, y in trained.batches for pair in zip(x.split(18), y.split(18), strict=True)
    ]
    folder = tmp_path_factory.mktemp("dump") / "hundred"
    trained.meter.dump(batches, folder, shard_bytes=1, progress=False)
    assert len(list(folder.glob("shard-*"))) == len(batches) >= 100
    return folder


@pytest.mark.parametrize("name", NETWORKS)
def test_the_audit_of_a_dump_is_what_observe_measures(name: str, tmp_path: Path) -> None:
    meter, batches = NETWORKS[name]()
    observed = meter.observe(batches, progress=False)
    manifest = meter.dump(batches, tmp_path / "dump", step=3, progress=False)
    assert manifest == tmp_path / "dump" / "manifest.json"
    assert_same(observed, audit(str(manifest)))
    written = Manifest.load(manifest)
    assert (written.phase, written.step) == ("frozen-eval", 3)
    assert written.layers == tuple(observed)
    assert (written.head is None) == (meter.selection.head is None)


def test_a_hundred_shards(trained: Watched, hundred: Path) -> None:
    observed = trained.meter.observe(trained.batches, progress=False)
    assert_same(observed, audit(str(hundred)))


@pytest.mark.nightly
def test_two_processes(trained: Watched, hundred: Path) -> None:
    observed = trained.meter.observe(trained.batches, progress=False)
    assert_same(observed, audit(str(hundred), Options(), Running(jobs=2)))


@pytest.mark.nightly
def test_a_dask_cluster(trained: Watched, hundred: Path) -> None:
    import distributed  # the default environment has no cluster

    observed = trained.meter.observe(trained.batches, progress=False)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        audited = audit(str(hundred), Options(), Running(dask=cluster.scheduler_address))
    assert_same(observed, audited)


def test_rows_are_those_of_the_network_bit_for_bit(tmp_path: Path) -> None:
    meter, batches = NETWORKS["bfloat16"]()
    meter.dump(batches, tmp_path, progress=False)
    net = meter._model.eval()
    x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    with torch.no_grad(), open_arrays(tmp_path / "shard-00000.safetensors") as shard:
        given = torch.cat(
            [net.features(net.hidden(net.conv3(net.conv2(net.conv1(part))))) for part, _ in batches]
        )
        assert shard.arrays["fc"].dtype.name == "bfloat16"
        saved = shard.read("fc", 0, len(x))
        assert np.array_equal(saved.view(np.int16), given.view(torch.int16).numpy())
        assert np.array_equal(shard.read("labels", 0, len(x)), y)
        assert np.array_equal(shard.read("predictions", 0, len(x)), net.fc(given).argmax(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float64])
def test_every_value_of_a_dtype_is_kept(dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, -0.0, 1.5, -2.0, torch.inf, 2.0**-14]).to(dtype)
    found = exact_array(values)
    assert found.dtype.name == str(dtype).removeprefix("torch.")
    assert np.array_equal(found.astype(np.float64), values.double().numpy())


def test_what_the_network_writes_over_later_is_kept_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))
    meter = CollapseMeter(net, layers=["0"], num_classes=3, verbose=False)
    observed = meter.observe(vectors(), progress=False)
    meter.dump(vectors(), tmp_path, progress=False)
    assert_same(observed, audit(str(tmp_path)))
    with open_arrays(tmp_path / "shard-00000.safetensors") as shard:
        assert (shard.read("0", 0, 90) < 0).any()


def test_a_dump_may_be_moved(tmp_path: Path) -> None:
    meter, batches = twice()
    meter.dump(batches, tmp_path / "here", phase="frozen-train", progress=False)
    shutil.move(tmp_path / "here", tmp_path / "there")
    observed = meter.observe(batches, phase="frozen-train", progress=False)
    assert_same(observed, audit(str(tmp_path / "there")))


def test_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    meter, batches = twice()
    meter.dump(batches, tmp_path, progress=False)
    shard = tmp_path / "shard-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=r"the manifest says \w+\.\.\.: it was changed or damaged"):
        audit(str(tmp_path))


def test_a_second_dump_into_one_folder_is_refused(tmp_path: Path) -> None:
    meter, batches = twice()
    meter.dump(batches, tmp_path, progress=False)
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match="holds a dump already: choose another folder"):
        meter.dump(batches, tmp_path, progress=False)
    assert (tmp_path / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("the disk went away")])
@pytest.mark.parametrize("attached", [True, False])
def test_a_dump_that_is_interrupted_leaves_nothing(error, attached: bool, tmp_path: Path) -> None:
    meter, batches = twice()
    net = meter._model
    net.block.eval()  # a part that its owner froze
    if not attached:
        meter.close()

    def interrupted():
        yield from batches[:2]
        raise error

    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        meter.dump(interrupted(), tmp_path, shard_bytes=1, progress=False)
    assert not (tmp_path / "manifest.json").exists()
    assert (net.training, net.block.training, net.fc.training) == (True, False, True)
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert hooked == attached
    assert not torch.is_inference_mode_enabled()
    # The folder can be used again, and what the first attempt left in it goes.
    meter.dump(batches, tmp_path, progress=False)
    assert len(list(tmp_path.glob("shard-*"))) == 1


class Skipping(Twice):
    """Runs its block as often as the batch's first value says."""

    def forward(self, x):
        x, runs = torch.tanh(self.stem(x[:, :6])), int(x[0, 6])
        for _ in range(runs):
            x = torch.tanh(self.block(x))
        return self.fc(x)


def counted(*runs: int):
    for count, (x, y) in zip(runs, vectors(), strict=False):
        yield torch.cat([x, torch.full((len(x), 1), float(count))], 1), y


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ((1, 0), "layer 'block' was not called in batch 2, so nothing can be written of it"),
        ((0, 1), "layer 'block' was not called in batch 1, so nothing can be written of it"),
        (
            (1, 1, 2),
            "layer 'block' was called 2 times in batch 3 and 1 times in those before: every batch",
        ),
        ((), "observe got no batch from generator: what it held was taken before; make a new one"),
    ],
)
def test_calls_that_differ_are_refused(runs, message: str, tmp_path: Path) -> None:
    net = Skipping()
    meter = CollapseMeter(net, layers=["stem", "block"], num_classes=3, verbose=False)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 # the text follows
        meter.dump(counted(*runs), tmp_path, progress=False)
    assert message in str(caught.value)
    assert not (tmp_path / "manifest.json").exists()
    assert net.training


class TwoHeaded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(x) + self.fc(-x)


def test_a_head_that_is_called_twice_is_refused(tmp_path: Path) -> None:
    meter = CollapseMeter(TwoHeaded(), head="fc", num_classes=3, verbose=False)
    with pytest.raises(ValueError, match=r"head 'fc' was called 2 times .* pass head=None"):
        meter.dump(vectors(), tmp_path, progress=False)


def test_a_layer_that_fails_is_named(tmp_path: Path) -> None:
    def failing(output):
        raise ArithmeticError("no such thing")

    meter = CollapseMeter(
        Twice(), layers=["stem"], num_classes=3, verbose=False, reduction={"stem": failing}
    )
    with pytest.raises(
        ValueError, match="layer 'stem' cannot be written: ArithmeticError: no such"
    ):
        meter.dump(vectors(), tmp_path, progress=False)
    assert not (tmp_path / "manifest.json").exists()


def test_rows_that_do_not_fit_the_labels_are_refused_as_by_observe(tmp_path: Path) -> None:
    meter, batches = twice()
    wrong = [(x, y[:5]) for x, y in batches]
    with pytest.raises(ValueError, match=r"labels have shape \(5,\)"):
        meter.dump(wrong, tmp_path, progress=False)
    assert not (tmp_path / "manifest.json").exists()


def test_the_phase_is_that_of_a_frozen_pass(tmp_path: Path) -> None:
    meter, batches = twice()
    with pytest.raises(ValueError, match="phase='live': choose 'frozen-eval' or 'frozen-train'"):
        meter.dump(batches, tmp_path, phase="live", progress=False)
