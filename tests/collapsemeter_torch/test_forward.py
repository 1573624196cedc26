"""What is learnt before the first batch is counted, and what is made of the scores then."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import nn

from collapsemeter import ClassMoments, Head, measure
from collapsemeter_torch import CollapseMeter
from collapsemeter_torch.costs import OperationCounter

from . import running_networks as networks
from .running_networks import tokens, vectors

Y = torch.arange(6) % 3


def disagreement(features: torch.Tensor, labels: torch.Tensor, decided: torch.Tensor) -> float:
    """NC4 by brute force: the share of rows whose nearest class mean is not what the network decided on."""
    classes = labels.unique()
    means = torch.stack([features[labels == label].mean(0) for label in classes])
    nearest = classes[torch.cdist(features, means).argmin(1)]
    return float((nearest != decided).double().mean())


def test_a_model_compiled_in_place_is_learnt_from_its_first_call():
    torch.compiler.reset()
    net = networks.PlainNet()
    net.compile(backend="eager")
    run = net._compiled_call_impl
    meter = CollapseMeter(net, verbose=False)
    for _ in range(2):
        with meter.batch(Y):
            net(vectors())
    assert net._compiled_call_impl is run
    assert list(meter.compute()) == ["first", "second", "classifier"]
    assert meter.compute().provenance["rows"] == 12
    torch.compiler.reset()


def test_forwards_without_labels_and_in_eval_mode_teach_nothing():
    net = networks.PlainNet()
    meter = CollapseMeter(net, verbose=False)
    net(vectors())
    net.eval()
    with meter.batch(Y):
        net(vectors())
    assert "watches nothing yet" in meter.describe()
    with pytest.raises(ValueError, match="this is not known yet: the first batch, or example="):
        _ = meter.num_classes


def test_rows_of_a_block_in_which_nothing_ran_are_missed():
    net = networks.PlainNet()
    meter = CollapseMeter(net, verbose=False)
    with meter.batch(Y):
        pass
    with meter.batch(Y):
        net(vectors())
    with pytest.warns(RuntimeWarning, match="saw 6 of 12 label rows"):
        assert meter.compute()["classifier"].reason("nc1_pinv") == "rows_missing"


@pytest.mark.parametrize("sigmoid", ["function", "layer"])
def test_a_half_decides_wherever_the_sigmoid_stands(sigmoid):
    torch.manual_seed(0)
    if sigmoid == "function":
        net, layer = networks.Probability(), "second"
    else:
        net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())
        net.extend([nn.Linear(6, 1), nn.Sigmoid()])
        layer = "1"
    rows = []
    net.get_submodule(layer).register_forward_hook(lambda *call: rows.append(call[-1].detach()))
    meter = CollapseMeter(net, verbose=False)
    x, y = torch.randn(40, 4), torch.arange(40) % 2
    with meter.batch(y):
        scores = net(x).flatten()
    report = meter.compute()
    assert meter.num_classes == 2
    decided = (scores > 0.5).long()
    assert report[layer]["nc4_mismatch"] == pytest.approx(disagreement(rows[0], y, decided))


class Written(nn.Linear):
    def forward(self, x):
        return x @ self.weight.T + self.bias


def test_a_head_whose_product_is_written_out_is_a_head():
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), Written(8, 3))
    meter = CollapseMeter(net, verbose=False)
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    with meter.batch(y):
        decided = net(x).argmax(1)
    report = meter.compute()
    assert list(report) == ["2"]
    assert math.isfinite(report["2"]["nc3_self_duality"])
    assert report["2"]["nc4_mismatch"] == pytest.approx(
        disagreement(net[:2](x).detach(), y, decided)
    )


class Times(nn.Sequential):
    def __init__(self, factor, *layers) -> None:
        super().__init__(*layers)
        self.factor = factor

    def forward(self, x):
        return super().forward(x) * self.factor


@pytest.mark.parametrize(
    ("factor", "keeps"),
    [
        (2.0, True),
        (torch.tensor(2.0), True),
        (nn.Parameter(torch.tensor(1.0)), True),  # a temperature that is learnt
        (-2.0, False),
        (torch.tensor(-2.0), False),
    ],
)
def test_scores_are_the_heads_times_what_keeps_their_order(factor, keeps):
    net = Times(factor, nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    meter = CollapseMeter(net, verbose=False)
    with meter.batch(torch.arange(12) % 3):
        net(torch.randn(12, 4))
    report = meter.compute()
    assert list(report) == (["2"] if keeps else ["1", "2"])
    reason = report["2"].reasons.get("nc3_self_duality")
    assert reason == (None if keeps else "scores_are_not_the_heads")


class Prototypes(nn.Module):
    """Scores of a class for its distance: no layer is a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.centres = nn.Linear(4, 8), nn.Parameter(torch.randn(3, 8))

    def forward(self, x):
        return -torch.cdist(self.body(x), self.centres)


def test_scores_without_a_head_tell_the_number_of_classes():
    net = Prototypes()
    meter = CollapseMeter(net, verbose=False)
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    with meter.batch(y):
        decided = net(x).argmax(1)
    report = meter.compute()
    assert (meter.num_classes, list(report)) == (3, ["body"])
    expected = disagreement(net.body(x).detach(), y, decided)
    assert report["body"]["nc4_mismatch"] == pytest.approx(expected)


class Tempered(nn.Sequential):
    def forward(self, factor, x):
        return super().forward(x * factor).sigmoid()


@pytest.mark.parametrize("factor", [2, torch.tensor(2.0)], ids=["number", "no rows"])
def test_the_threshold_is_told_whatever_stands_before_the_rows(factor):
    net = Tempered(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
    meter = CollapseMeter(net, verbose=False)
    with meter.batch(torch.arange(12) % 2):
        net(factor, torch.randn(12, 4))
    assert meter.selection.threshold == pytest.approx(0.5, abs=1e-6)


class LastToken(networks.Tokens):
    """A head of every token, of which the last one of each sequence is returned."""

    def forward(self, ids, attention_mask=None):
        logits = self.fc(self.encoder(self.embedding(ids)))
        if attention_mask is None:
            return logits[:, -1]
        return logits[torch.arange(len(ids)), attention_mask.sum(1) - 1]


@pytest.mark.parametrize("masked", [False, True])
def test_the_heads_features_are_those_of_the_position_that_made_the_scores(masked):
    torch.manual_seed(0)
    net = LastToken().eval()
    ids, y = torch.randint(0, 20, (24, 5)), torch.arange(24) % 4
    mask = (torch.arange(5) <= torch.randint(1, 5, (24, 1))).long()
    meter = CollapseMeter(net, count_eval=True, verbose=False)
    seen = []
    for layer in net.encoder.layers:
        layer.register_forward_hook(lambda *call: seen.append(call[-1].detach().double()))
    with meter.batch(y):
        net(ids, **({"attention_mask": mask} if masked else {}))
    report = meter.compute()
    last = mask.sum(1) - 1 if masked else torch.full((24,), 4)
    rows = seen[-1][torch.arange(24), last]
    head = Head(*(p.detach().double().numpy() for p in (net.fc.weight, net.fc.bias)))
    due = measure(ClassMoments.from_batch(rows.numpy(), y.numpy(), 4), head=head)
    for metric in ("nc1_pinv", "nc2_etf_error", "nc3_self_duality"):
        assert report["fc"][metric] == pytest.approx(due[metric], rel=1e-4)
    weight = (mask if masked else torch.ones(24, 5)).double()[:, :, None]
    mean = (seen[-2] * weight).sum(1) / weight.sum(1)
    due = measure(ClassMoments.from_batch(mean.numpy(), y.numpy(), 4))
    assert report["encoder.layers.0"]["nc1_pinv"] == pytest.approx(due["nc1_pinv"], rel=1e-4)
    assert report.provenance["sequences"]["layers"] == ["encoder.layers.0"]
    assert "the mean over its positions is taken" in meter.describe().replace("\n    ", " ")


class NormalisedLastToken(LastToken):
    def forward(self, ids, attention_mask=None):
        return super().forward(ids, attention_mask).log_softmax(-1)


def test_where_the_scores_do_not_tell_which_position_made_them_there_is_no_head():
    torch.manual_seed(0)
    net = NormalisedLastToken().eval()
    ids, y = torch.randint(0, 20, (24, 5)), torch.arange(24) % 4
    seen = []
    net.encoder.register_forward_hook(lambda *call: seen.append(call[-1].detach()))
    meter = CollapseMeter(net, layers=["encoder"], count_eval=True, verbose=False)
    with meter.batch(y):
        scores = net(ids)
    report = meter.compute()["encoder"]
    assert report.reasons["nc3_self_duality"] == "scores_are_not_the_heads"
    assert report["nc4_mismatch"] == disagreement(seen[-1].mean(dim=1), y, scores.argmax(1))


def test_a_state_is_reported_before_the_network_runs_and_compared_when_it_does():
    net = networks.PlainNet()
    meter = CollapseMeter(net, verbose=False)
    empty = meter.state_dict()
    with meter.batch(Y):
        net(vectors())
    buffer = io.BytesIO()
    torch.save(meter.state_dict(), buffer)
    buffer.seek(0)
    resumed = CollapseMeter(net, verbose=False)
    resumed.load_state_dict(empty)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    first, second = meter.compute(), resumed.compute()
    assert {name: dict(layer) for name, layer in second.items()} == {
        name: dict(layer) for name, layer in first.items()
    }
    with resumed.batch(Y):
        net(vectors())
    assert resumed.compute().provenance["rows"] == 12
    other = CollapseMeter(networks.Repeated(), layers=["second"], verbose=False)
    other.load_state_dict(meter.state_dict())
    with (
        pytest.raises(ValueError, match=r"the state is of another meter.*layers"),
        other.batch(Y),
    ):
        other._model(vectors())


def test_a_model_that_returns_a_tuple_in_training_alone():
    class Auxiliary(networks.Exits):
        def forward(self, x):
            both = super().forward(x)
            return both[::-1] if self.training else both[1]

    net = Auxiliary()
    meter = CollapseMeter(net, verbose=False)
    message = r"several may be the scores of 3 classes: pass scores="
    with pytest.raises(ValueError, match=message), meter.batch(Y):
        net(vectors())
    meter.close()
    meter = CollapseMeter(net, scores=0, verbose=False)
    rows = []
    net.first.register_forward_hook(lambda *call: rows.append(call[-1].detach()))
    with meter.batch(Y):
        scores = net(vectors())[0]
    report = meter.compute()
    assert list(report) == ["first", "second", "classifier"]
    nc4 = disagreement(rows[-1], Y, scores.argmax(1))
    assert report["first"]["nc4_mismatch"] == pytest.approx(nc4)


def test_hidden_layers_give_way_to_the_memory_that_is_allowed():
    net = nn.Sequential(
        nn.Linear(4, 600), nn.Tanh(), nn.Linear(600, 50), nn.Tanh(), nn.Linear(50, 3)
    )
    held = {}
    for memory in (None, 2):
        meter = CollapseMeter(net, memory=memory, verbose=False)
        with meter.batch(Y):
            net(vectors())
        states = meter._recorder.live.layers.values()
        held[memory] = sum(t.nbytes for state in states for t in state.tensors().values())
        held[memory] += sum(state.waiting.nbytes for state in states)
        assert "memory: " in meter.describe()
    assert held[2] < 2.01 * 2**20 < held[None]


def test_what_share_of_a_step_the_products_are_is_said_and_how_often_to_count():
    net = nn.Sequential(nn.Linear(4, 100), nn.Tanh(), nn.Linear(100, 100), nn.Tanh())
    net.append(nn.Linear(100, 3))
    meter = CollapseMeter(net, example=vectors(), verbose=False)
    share = 2 * 100**2 / (3 * (4 * 100 + 100**2 + 100 * 3))  # two layers, both of width 100
    expected = (
        f"products X'X are {100 * share:.0f} % of a step's operations; every=13 brings them under"
    )
    assert expected in meter.describe()


def test_attention_is_part_of_a_step():
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    with OperationCounter() as operations:
        layer(torch.randn(3, 5, 8))
    maps, attention = 4 * 8 * 8 + 2 * 8 * 16, 2 * 5 * 8
    assert operations.total == 2 * 3 * 5 * (maps + attention)


@pytest.mark.parametrize(
    ("layer", "shapes", "products"),
    [
        (nn.RNN(8, 6, batch_first=True), [(3, 5, 8)], 3 * 5 * 6 * (8 + 6)),
        (nn.LSTM(8, 6, batch_first=True), [(3, 5, 8)], 3 * 5 * 4 * 6 * (8 + 6)),
        (
            nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True),
            [(3, 5, 8)],
            3 * 5 * 2 * 4 * 6 * (8 + 6 + 12 + 6),
        ),
        (nn.GRU(8, 6, batch_first=True), [(3, 5, 8)], 3 * 5 * 3 * 6 * (8 + 6)),
        (nn.Bilinear(4, 5, 6), [(3, 4), (3, 5)], 3 * 4 * 5 * 6),
        (nn.Conv2d(4, 6, 3, groups=2), [(3, 4, 8, 8)], 3 * 6 * 6 * 6 * 9 * 2),
        (nn.ConvTranspose2d(3, 5, 2, 2), [(3, 3, 4, 4)], 3 * 4 * 4 * 3 * 5 * 2 * 2),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
@pytest.mark.parametrize("gradients", [True, False])
def test_operations_are_two_for_each_product_of_a_weight(layer, shapes, products, gradients):
    inputs = [torch.randn(shape) for shape in shapes]
    with torch.set_grad_enabled(gradients), OperationCounter() as operations:
        layer(*inputs)
    assert operations.total == 2 * products


def test_a_head_of_every_token_pairs_with_labels_of_every_token():
    class Tagger(networks.Tokens):
        def forward(self, ids):
            return self.fc(self.encoder(self.embedding(ids)))

    net, ids = Tagger(), tokens()
    meter = CollapseMeter(net, verbose=False)
    y = torch.arange(30).view(6, 5) % 4
    with meter.batch(y):
        net(ids)
    report = meter.compute()
    assert report["fc"].provenance["rows"] == 30
    assert report["fc"].provenance["nc4_rows"] == 30


TAILS = {
    "logit": (lambda x: x, 0.0),
    "temperature": (lambda x: 0.5 * x - 3, 0.0),
    "squeezed": (lambda x: x.sigmoid().squeeze(-1), 0.5),
    "clamped": (lambda x: (x / 2).sigmoid().clamp(1e-6, 1 - 1e-6), 0.5),
    "written": (lambda x: 1 / (1 + torch.exp(-x)), 0.5),
    "complement": (lambda x: 1 - torch.sigmoid(-x), 0.5),
    "hard": (nn.functional.hardsigmoid, 0.5),
    "tanh": (lambda x: (x.tanh() + 1) / 2, 0.5),
    "log": (nn.functional.logsigmoid, math.log(0.5)),
    "softplus": (lambda x: -nn.functional.softplus(-x), math.log(0.5)),
}


@pytest.mark.parametrize("tail", TAILS)
def test_one_score_decides_where_a_logit_of_zero_would_be(tail):
    function, threshold = TAILS[tail]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.fc = nn.Linear(4, 8), nn.Linear(8, 1)

        def forward(self, x):
            return function(self.fc(self.body(x).relu()))

    torch.manual_seed(0)
    net, x, labels = Net(), 3 * torch.randn(40, 4), torch.arange(40) % 2
    meter = CollapseMeter(net, layers=["body"], verbose=False)
    report = meter.observe([(x, labels)], progress=False)
    assert meter.selection.threshold == pytest.approx(threshold, abs=1e-6)
    decided = (net(x).reshape(-1) > threshold).long()
    expected = disagreement(net.body(x).detach(), labels, decided)
    assert report["body"]["nc4_mismatch"] == expected
