"""The row sample, and what a saved meter continues from."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from collapsemeter import ClassMoments, CollapseReport, decide, measure
from collapsemeter.stats.sampling import reservoir_slots
from collapsemeter_torch import CollapseMeter, StateOfRanks
from collapsemeter_torch.ranks import Numbering

Y = torch.arange(12) % 3


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


def kept(batches: list[np.ndarray], size: int, seed: int) -> list[int]:
    """Row numbers in the sample after batches of flags that say which rows may be kept."""
    slots, start = np.full(size + 1, -1), 0
    for usable in batches:
        numbers = np.where(usable, start + np.cumsum(usable) - 1, -1)
        slots[reservoir_slots(numbers, size, seed)] = numbers
        start += int(usable.sum())
    return sorted(slots[:-1])


def test_the_sample_is_uniform():
    # 40 rows in ragged batches, 10 kept: each with probability 1/4. Of 2000 seeds a count has variance
    # 2000 * 3/16, and counts of a fixed-size sample sum to a constant: chi-square with 39 degrees of
    # freedom times (1 - 1/4) * 40/39. Its 0.999 quantile is 72.
    batches = [np.ones(n, bool) for n in (3, 12, 1, 17, 7)]
    counts = np.zeros(40)
    for seed in range(2000):
        rows = kept(batches, 10, seed)
        assert len(set(rows)) == 10
        counts[rows] += 1
    statistic = ((counts - 500) ** 2 / (2000 * 3 / 16 * 40 / 39)).sum()
    assert statistic < 72


def test_rows_that_may_not_be_kept_do_not_bias_the_sample():
    # First all rows are labelled, then one in ten: the sample must not prefer the first.
    rng = np.random.default_rng(0)
    batches = [np.ones(50, bool)] + [rng.random(50) < 0.1 for _ in range(10)]
    total = sum(int(usable.sum()) for usable in batches)
    early = [sum(row < 50 for row in kept(batches, 20, seed)) for seed in range(600)]
    # Hypergeometric: mean 20 * 50 / total, variance below 5; the mean of 600 is within 4 sigma.
    assert abs(np.mean(early) - 20 * 50 / total) < 4 * np.sqrt(5 / 600)


def test_uncounted_and_ignored_batches_leave_the_sample_as_it_is():
    def run(noise: bool) -> torch.Tensor:
        net = mlp()
        meter = CollapseMeter(net, sample_rows=16, verbose=False)
        for step in range(6):
            x = torch.randn(12, 4, generator=torch.Generator().manual_seed(step))
            with meter.batch(Y):
                net(x)
            if noise:
                with torch.no_grad(), meter.batch(Y):
                    net(x)
                with meter.batch(torch.full((12,), -100)):
                    net(x)
                with pytest.raises(ZeroDivisionError), meter.batch(Y):
                    raise ZeroDivisionError
        meter._recorder.live.flush()
        return meter._recorder.live.layers["4", 0].sample_rows[:-1]

    assert torch.equal(run(noise=False), run(noise=True))


def test_the_sample_is_bounded_the_same_rows_in_every_layer_and_aligned():
    net = mlp()
    meter = CollapseMeter(net, layers=["1", "3"], sample_rows=20, verbose=False)
    xs = [torch.randn(n, 4) for n in (12, 12, 9, 30, 40)]
    for x in xs:
        with meter.batch(torch.arange(len(x)) % 3):
            net(x)
    x, y = torch.cat(xs), torch.cat([torch.arange(len(x)) % 3 for x in xs])
    meter._recorder.live.flush()
    states = [meter._recorder.live.layers[name, 0] for name in ("1", "3", "4")]
    ids = states[0].sample_ids[:-1]
    assert len(set(ids.tolist())) == 20
    for state, rows in zip(states, (net[:2](x), net[:4](x), net[:4](x)), strict=True):
        assert torch.equal(state.sample_ids[:-1], ids)
        torch.testing.assert_close(state.sample_rows[:-1], rows[ids].detach())
        assert torch.equal(state.sample_labels[:-1], y[ids])
    decisions = meter._recorder.live.predictions[0, 20]
    assert torch.equal(decisions.predictions[:-1], net(x).argmax(1)[ids])
    report = meter.compute()
    rows = net[:4](x).detach().numpy()
    truth = ClassMoments.from_batch(rows, y.numpy(), 3)
    chosen = decide(truth, rows[ids], y[ids].numpy(), predictions=net(x).argmax(1)[ids].numpy())
    assert report["4"]["nc4_mismatch"] == measure(truth, decisions=chosen)["nc4_mismatch"]
    low, high = report["4"].intervals["nc4_mismatch"]
    assert low <= report["4"]["nc4_mismatch"] <= high
    assert report["4"].provenance["nc4_rows"] == 20


def test_rows_of_a_rank_are_numbered_among_those_of_all():
    net = mlp()
    meter = CollapseMeter(net, verbose=False)
    store = meter._recorder.live
    store.place = lambda: Numbering(rank=1, ranks=3)
    labels = Y.clone()
    labels[5] = -100
    for rows in (Y, labels, Y):
        with meter.batch(rows):
            net(torch.randn(12, 4))
    store.flush()
    ids = store.layers["4", 0].sample_ids
    assert sorted(ids[ids >= 0].tolist()) == [1 + 3 * row for row in range(35)]


def test_a_sample_of_all_rows_has_no_interval():
    net = mlp()
    meter = CollapseMeter(net, verbose=False)
    with meter.batch(Y):
        net(torch.randn(12, 4))
    assert not {"nc4_mismatch", "nc4_agreement"} & meter.compute()["4"].intervals.keys()


def test_exact_decisions_are_those_of_brute_force():
    net = mlp()
    meter = CollapseMeter(net, exact=True, sample_rows=4, verbose=False)
    xs = [torch.randn(12, 4) for _ in range(5)]
    labels = Y.clone()
    labels[[2, 5]] = -100
    for x in xs:
        with meter.batch(labels):
            net(x)
    report = meter.compute()
    x, y = torch.cat(xs), labels.repeat(5).numpy()
    rows = net[:4](x).detach().double().numpy()
    used = y >= 0
    centres = np.stack([rows[y == c].mean(0) for c in range(3)])
    nearest = ((rows[:, None] - centres) ** 2).sum(2).argmin(1)
    decided = net(x).argmax(1).numpy()
    assert report["4"]["nc4_mismatch"] == (nearest != decided)[used].mean()
    assert report["4"]["ncc_accuracy"] == (nearest == y)[used].mean()
    assert not {"nc4_mismatch", "ncc_accuracy"} & report["4"].intervals.keys()
    assert report["4"].provenance["nc4_rows"] == used.sum()


def timeless(report: CollapseReport) -> str:
    """A report without the time that measuring took."""
    kept = {key: value for key, value in report.provenance.items() if key != "overhead"}
    return replace(report, provenance=kept).to_json()


def batches(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(12, 4, generator=generator) for _ in range(count)]


@pytest.mark.parametrize(
    "options",
    [
        {"sample_rows": 16},
        {"exact": True, "sample_rows": 8},
        {"scatter": "trace"},
        {"scatter": "sketch", "seed": 3},
    ],
)
def test_a_saved_meter_continues_bit_for_bit(options):
    net = mlp()
    whole = CollapseMeter(net, verbose=False, **options)
    first = CollapseMeter(net, verbose=False, **options)
    for x in batches(8)[:4]:
        with whole.batch(Y), first.batch(Y):
            net(x)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    first.close()
    buffer.seek(0)
    resumed = CollapseMeter(net, verbose=False, **options)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    for x in batches(8)[4:]:
        with whole.batch(Y), resumed.batch(Y):
            net(x)
    assert timeless(whole.compute()) == timeless(resumed.compute())


def test_rows_to_come_are_sketched_as_those_before():
    net = mlp()
    meter = CollapseMeter(net, scatter="sketch", verbose=False)
    with meter.batch(Y):
        net(torch.randn(12, 4))
    for option, value in (("seed", 1), ("sketch_rows", 64)):
        other = CollapseMeter(net, scatter="sketch", verbose=False, **{option: value})
        with pytest.raises(
            ValueError, match=f"keeps sketches of {option}=.*, this meter of {value}"
        ):
            other.load_state_dict(meter.state_dict())


def test_a_saved_state_does_not_change_when_counting_goes_on():
    net = mlp()
    meter = CollapseMeter(net, exact=True, verbose=False)
    with meter.batch(Y):
        net(torch.randn(12, 4))
    expected = meter.compute().to_json()
    state = meter.state_dict()
    for _ in range(2):
        with meter.batch(Y):
            net(torch.randn(12, 4))
    meter.load_state_dict(state)
    assert meter.compute().to_json() == expected
    with meter.batch(Y):
        net(torch.randn(12, 4))
    meter.load_state_dict(state)
    assert meter.compute().to_json() == expected


def test_what_went_wrong_is_saved_too():
    net = mlp()
    meter = CollapseMeter(net, reduction={"1": lambda x: 1 / 0}, verbose=False)
    with pytest.warns(RuntimeWarning, match="ZeroDivisionError"), meter.batch(Y):
        net(torch.randn(12, 4))
    resumed = CollapseMeter(net, verbose=False)
    resumed.load_state_dict(meter.state_dict())
    with pytest.warns(RuntimeWarning, match="layer '1' failed: ZeroDivisionError"):
        assert resumed.compute()["1"].flags == ("degraded",)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            {"version": 99},
            {},
            "the state has version 99, this collapsemeter reads 1: upgrade collapsemeter",
        ),
        ({"num_classes": 5}, {}, "nothing was loaded: it has classes 5, this meter 3"),
        (
            {},
            {"sample_rows": 32},
            "the state keeps samples of [16] rows, this meter of [2, 32]: pass the same sample_rows=",
        ),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, options, message):
    net = mlp()
    meter = CollapseMeter(net, sample_rows=16, verbose=False)
    with meter.batch(Y):
        net(torch.randn(12, 4))
    other = CollapseMeter(net, **({"sample_rows": 16} | options), verbose=False)
    with other.batch(Y):
        net(torch.randn(12, 4))
    before = other.compute().to_json()
    with pytest.raises(ValueError) as caught:  # noqa: PT011 # the text follows
        other.load_state_dict(meter.state_dict() | change)
    assert message in str(caught.value)
    assert other.compute().to_json() == before


def test_reset_forgets_everything_and_keeps_the_memory():
    net = mlp()
    meter = CollapseMeter(net, exact=True, sample_rows=16, verbose=False)
    with meter.batch(Y):
        net(torch.randn(12, 4))
    pointers = [
        t.data_ptr() for s in meter._recorder.live.layers.values() for t in s.tensors().values()
    ]
    meter.reset()
    with pytest.warns(RuntimeWarning, match="no labelled batch was counted"):
        assert meter.compute()["4"].reason("nc1_pinv") == "never_fired"
    x = torch.randn(12, 4)
    with meter.batch(Y):
        net(x)
    fresh = CollapseMeter(net, exact=True, sample_rows=16, verbose=False)
    with fresh.batch(Y):
        net(x)
    assert [
        t.data_ptr() for s in meter._recorder.live.layers.values() for t in s.tensors().values()
    ] == pointers
    assert dict(meter.compute()["4"]) == dict(fresh.compute()["4"])


# Copies of a meter, which go with the module that holds it


class Holder(nn.Module):
    """A module that holds its own meter, as a LightningModule may."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        self.meter = CollapseMeter(self.net, verbose=False)

    def forward(self, x):
        return self.net(x)


def pickled(module):
    return pickle.loads(pickle.dumps(module))


def saved(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def averaged(module):
    return torch.optim.swa_utils.AveragedModel(module).module


@pytest.mark.parametrize("how", [copy.deepcopy, copy.copy, pickled, saved, averaged])
def test_a_copy_of_a_meter_is_inert_and_counts_travel_by_state(how):
    holder = Holder()
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    with holder.meter.batch(y):
        holder(x)
    twin = how(holder)
    copied = twin.meter if how is not copy.copy else copy.copy(holder.meter)
    assert isinstance(copied, CollapseMeter)
    assert copied is not holder.meter
    for use in (
        copied.compute,
        copied.state_dict,
        lambda: copied.batch(y),
        lambda: copied.load_state_dict({}),
    ):
        with pytest.raises(ValueError, match=r"copy of a meter and measures nothing.*state_dict"):
            use()
    assert not hasattr(copied, "anything")
    copied.close()
    twin(x)
    assert holder.meter.compute().provenance["rows"] == 6
    counting = CollapseMeter(copy.deepcopy(twin).net, verbose=False)
    counting.load_state_dict(holder.meter.state_dict())
    assert counting.compute().provenance["rows"] == 6


def test_the_state_of_ranks_is_that_of_a_meter():
    model = nn.Linear(4, 3)
    with pytest.raises(TypeError, match=r"^StateOfRanks\(Linear.*\): pass the CollapseMeter"):
        StateOfRanks(model)
