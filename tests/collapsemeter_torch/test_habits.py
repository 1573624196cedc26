"""Networks and loops with habits of their own: weights that are computed, state that a forward writes, hooks of others."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from collapsemeter import ClassMoments, Head, measure
from collapsemeter_torch import CollapseMeter

Y = torch.arange(30) % 3
METRICS = ("nc1_pinv", "nc2_etf_error", "nc3_self_duality")


def batches(number: int = 4, *shape: int) -> list[Tensor]:
    draws = torch.Generator().manual_seed(3)
    return [torch.randn(30, *(shape or (6,)), generator=draws) for _ in range(number)]


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def due(features: list[Tensor], weight: Tensor | None = None, bias: Tensor | None = None):
    """What NumPy makes in float64 of features that a hook of our own has kept."""
    rows = torch.cat(features).detach().double().numpy()
    head = None
    if weight is not None:
        head = Head(*(p.detach().double().numpy() for p in (weight, bias) if p is not None))
    labels = np.tile(Y.numpy(), len(features))
    return measure(ClassMoments.from_batch(rows, labels, 3), head=head)


def kept(layer: nn.Module) -> list[Tensor]:
    """Keep what a layer is given from here on."""
    seen: list[Tensor] = []
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    return seen


# The study and the reports change nothing


class Dropped(nn.Module):
    def forward(self, weight):
        return F.dropout(weight, 0.3, self.training)


class Remembering(nn.Module):
    """Averages of weights and features that every forward moves, in a parameter, an attribute and an array."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(6, 8), nn.Linear(8, 3)
        self.slow = nn.Linear(6, 8).requires_grad_(False)
        self.centre, self.forwards = torch.zeros(8), np.zeros(1)

    def forward(self, x):
        with torch.no_grad():
            self.slow.weight.mul_(0.9).add_(self.body.weight, alpha=0.1)
        features = (self.body(x) + self.slow(x)).relu()
        self.centre.mul_(0.9).add_(features.detach().mean(0))
        self.forwards += 1
        return self.fc(features - self.centre) / float(self.forwards[0])


class Graphs:
    """A batch of a library of its own."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


class OnObjects(nn.Sequential):
    def forward(self, batch):
        batch.x.mul_(2)
        for layer in self:
            batch.x = layer(batch.x)
        return batch.x


def with_spectral_norm() -> nn.Module:
    net = plain()
    for layer in (net[0], net[2]):
        parametrizations.spectral_norm(layer)
    return net


def with_random_weights() -> nn.Module:
    net = plain()
    parametrize.register_parametrization(net[2], "weight", Dropped())
    return net


def on_objects() -> nn.Module:
    return OnObjects(*plain(), nn.Linear(3, 3))


def with_script() -> nn.Module:
    layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout())
    return nn.Sequential(torch.jit.script(layers), nn.Linear(8, 3))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "make", [with_spectral_norm, with_random_weights, Remembering, on_objects, with_script]
)
def test_training_is_bit_for_bit_that_without_the_meter(make):
    ends = []
    for watched in (True, False):
        torch.manual_seed(0)
        net = make()
        meter = CollapseMeter(net, verbose=False) if watched else None
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for x in batches():
            with contextlib.nullcontext() if meter is None else meter.batch(Y):
                scores = net(Graphs(x) if isinstance(net, OnObjects) else x)
            optimizer.zero_grad()
            F.cross_entropy(scores, Y).backward()
            optimizer.step()
            if meter is not None:
                assert meter.compute().provenance["rows"] == meter.rows
        ends.append([*net.state_dict().values(), torch.get_rng_state()])
    for with_meter, without in zip(*ends, strict=True):
        assert torch.equal(with_meter, without)


def test_attributes_of_a_forward_are_as_before_the_study():
    net = Remembering()
    CollapseMeter(net, example=batches()[0], verbose=False).close()
    assert net.forwards[0] == 0
    assert not net.centre.any()


# Weights that are computed


def pruned(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", 0.3)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("computed", [weight_norm, spectral_norm, pruned])
def test_the_heads_weights_are_those_after_the_last_step(computed):
    net = plain()
    computed(net[2])
    meter = CollapseMeter(net, verbose=False)
    features = kept(net[2])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for x in batches():
        with meter.batch(Y):
            scores = net(x)
        optimizer.zero_grad()
        F.cross_entropy(scores, Y).backward()
        optimizer.step()
    report, trained = meter.compute()["2"], features[:]
    net.eval()
    net(batches()[0])  # which computes the weight
    expected = due(trained, net[2].weight, net[2].bias)
    for metric in METRICS:
        assert report[metric] == pytest.approx(expected[metric], rel=1e-4)


class Adapted(nn.Linear):
    """As in loralib: the adapter is in the weight in eval mode, and beside it in training."""

    def __init__(self) -> None:
        super().__init__(8, 3)
        self.first, self.second = nn.Linear(8, 2, bias=False), nn.Linear(2, 3, bias=False)
        self.merged = False

    def train(self, mode: bool = True):
        if mode == self.merged:
            change = self.second.weight @ self.first.weight
            self.weight.data += -change if mode else change
            self.merged = not mode
        return super().train(mode)

    def forward(self, x):
        scores = F.linear(x, self.weight, self.bias)
        return scores if self.merged else scores + self.second(self.first(x))


def test_a_head_with_an_adapter_beside_it_has_no_nc3():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Adapted()).eval()
    meter = CollapseMeter(net, verbose=False)
    merged = meter.observe([(batches()[0], Y)], progress=False)
    assert "nc3_self_duality" in merged["2"]
    net.train()
    with meter.batch(Y):
        net(batches()[0])
    assert meter.compute()["2"].reasons["nc3_self_duality"] == "scores_are_not_the_heads"


@pytest.mark.filterwarnings("ignore")
def test_layers_that_are_quantised_later_are_counted():
    quantization = torch.ao.quantization
    net = plain()
    meter = CollapseMeter(net, layers=["0"], example=batches()[0], verbose=False)
    net.qconfig = quantization.get_default_qat_qconfig("x86")
    quantization.prepare_qat(net, inplace=True)
    features = kept(net[2])
    for x in batches():
        with meter.batch(Y):
            net(x)
    report = meter.compute()["2"]
    assert report["nc1_pinv"] == pytest.approx(due(features)["nc1_pinv"], rel=1e-4)
    assert report.reasons["nc3_self_duality"] == "scores_are_not_the_heads"


# Hooks of others


def test_what_later_hooks_of_others_change_is_what_is_counted():
    net = plain()
    meter = CollapseMeter(net, layers=["0"], example=batches()[0], verbose=False)
    net[2].register_forward_pre_hook(lambda _, args: (F.normalize(args[0]),))
    net[0].register_forward_hook(lambda *call: call[-1] * torch.arange(8.0))
    first, last = kept(net[1]), kept(net[2])
    other = CollapseMeter(net, layers=["0"], example=batches()[0], verbose=False)
    for x in batches():
        with meter.batch(Y), other.batch(Y):
            net(x)
    for report in (meter.compute(), other.compute()):
        expected = due(last, net[2].weight, net[2].bias)
        for metric in METRICS:
            assert report["2"][metric] == pytest.approx(expected[metric], rel=1e-4)
        assert report["0"]["nc1_pinv"] == pytest.approx(due(first)["nc1_pinv"], rel=1e-4)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_torch_jit_script_is_told_to_detach():
    net = plain()
    meter = CollapseMeter(net, verbose=False)
    with pytest.raises(AttributeError, match=r"call meter\.detach\(\)"):
        torch.jit.script(net)
    meter.detach()
    x = batches()[0]
    assert torch.equal(torch.jit.script(net)(x), net(x))


def test_a_head_that_was_replaced_is_named():
    net = plain()
    meter = CollapseMeter(net, layers=["0"], example=batches()[0], verbose=False)
    net[2] = nn.Linear(8, 3)
    with meter.batch(Y):
        net(batches()[0])
    with pytest.warns(RuntimeWarning) as caught:
        report = meter.compute()
    assert "'2' was replaced by another module" in str(caught[0].message)
    assert report["2"].reason("nc1_pinv") == "never_fired"
    assert report["0"]["nc1_pinv"] > 0


def test_a_head_that_has_grown_by_a_class_is_told_to_make_a_new_meter():
    net = plain()
    meter = CollapseMeter(net, verbose=False)
    with meter.batch(Y):
        net(batches()[0])
    net[2] = nn.Linear(8, 4)
    with pytest.raises(ValueError, match="make a new CollapseMeter"), meter.batch(Y):
        net(batches()[0])


# Several forwards


@pytest.mark.parametrize("mode", ["no_grad", "eval"])
def test_a_forward_that_does_not_count_takes_no_labels(mode):
    net = plain()
    meter = CollapseMeter(net, verbose=False)
    features = kept(net[2])
    for x in batches():
        with meter.batch(Y):
            net.train(mode != "eval")
            with torch.no_grad():
                net(x + 1)  # pseudo labels, say
            net.train()
            net(x)
    report = meter.compute()
    assert report.provenance["rows"] == 120
    expected = due(features[1::2])
    assert report["2"]["nc1_pinv"] == pytest.approx(expected["nc1_pinv"], rel=1e-4)


class Student(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.fc = body, nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.body(x).relu())


@pytest.mark.parametrize("example", [False, True])
def test_a_teacher_with_layers_of_its_student_is_not_counted(example):
    torch.manual_seed(0)
    body = nn.Linear(6, 8)
    student, teacher = Student(body), Student(body)
    first = batches()[0] if example else None
    meter = CollapseMeter(student, layers=["body"], example=first, verbose=False)
    outputs = []
    body.register_forward_hook(lambda *call: outputs.append(call[-1].detach()))
    with contextlib.ExitStack() as stack:
        if example:  # until the student itself was called, nobody knows that it ever will be
            stack.enter_context(pytest.warns(RuntimeWarning, match="before the network itself"))
        for x in batches():
            with meter.batch(Y):
                teacher(x + 1)
                student(x)
        report = meter.compute()
    assert next(iter(report)).startswith("body")
    if example:
        assert report["body#0"].reason("nc1_pinv") == "unpaired_rows"
        meter.reset()
        outputs.clear()
        for x in batches():
            with meter.batch(Y):
                teacher(x + 1)
                student(x)
        report = meter.compute()
    expected = due(outputs[1::2])
    assert report["body"]["nc1_pinv"] == pytest.approx(expected["nc1_pinv"], rel=1e-4)


@pytest.mark.parametrize("learnt", [False, True])
@pytest.mark.parametrize("transform", ["grad", "vmap"])
def test_a_transform_of_torch_func_is_named(transform, learnt):
    net, x = plain(), batches()[0]
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(parameters):
        return F.cross_entropy(torch.func.functional_call(net, parameters, (x,)), Y)

    meter = CollapseMeter(net, example=x if learnt else None, verbose=False)
    stacked = {name: p[None] for name, p in parameters.items()}
    run = torch.func.grad(loss) if transform == "grad" else torch.func.vmap(loss)
    with pytest.raises(ValueError, match=r"transform of torch\.func"), meter.batch(Y):
        run(parameters if transform == "grad" else stacked)
    with meter.batch(Y):
        net(x)
    assert meter.compute().provenance["rows"] == 30


def test_an_export_in_a_block_is_not_counted():
    net, x = plain(), batches()[0]
    meter = CollapseMeter(net, example=x, verbose=False)
    with meter.batch(Y):
        torch.export.export(net, (x,))
    with pytest.warns(RuntimeWarning, match="saw 0 of 30 label rows"):
        assert meter.compute()["2"].reason("nc1_pinv") == "never_fired"
    meter.reset()
    with meter.batch(Y):
        net(x)
    assert meter.compute()["2"]["nc1_pinv"] > 0


def test_a_network_that_is_recomputed_as_a_whole_is_told_what_counts_it():
    net, x = plain(), batches()[0].requires_grad_()
    for count_eval in (False, True):
        meter = CollapseMeter(net, count_eval=count_eval, verbose=False)
        for _ in range(2):
            with meter.batch(Y):
                scores = torch.utils.checkpoint.checkpoint(net, x, use_reentrant=True)
                scores.sum().backward()
        if count_eval:
            assert meter.compute()["2"].provenance["rows"] == 60
        else:
            with pytest.warns(RuntimeWarning, match="without gradients.*count_eval=True"):
                meter.compute()
        meter.close()


class FeaturesInEval(Student):
    def forward(self, x):
        features = self.body(x).relu()
        return self.fc(features) if self.training else features


def test_scores_of_training_that_are_not_those_of_eval_mode_are_refused():
    net = FeaturesInEval(nn.Linear(6, 8))
    meter = CollapseMeter(net, verbose=False)
    with (
        pytest.raises(ValueError, match=r"scores of width 3, and of width 8 when .* in eval mode"),
        meter.batch(Y),
    ):
        net(batches()[0])
    meter.close()
    meter = CollapseMeter(net, layers=["body"], num_classes=3, head=None, verbose=False)
    with meter.batch(Y):
        net(batches()[0])
    assert meter.compute()["body"]["nc1_pinv"] > 0


class Sorted(Student):
    """Sorts samples, as for packing, and their features or scores back."""

    def __init__(self, what: str) -> None:
        super().__init__(nn.Linear(6, 8))
        self.what, self.after = what, nn.Linear(8, 8)

    def forward(self, x):
        order = x[:, 0].argsort()
        back = order.argsort()
        features = self.body(x[order])
        if self.what == "scores":
            return self.fc(self.after(features))[back]
        return self.fc(self.after(features.index_select(0, back)))


def test_layers_that_see_samples_in_another_order_are_not_measured():
    torch.manual_seed(0)
    net = Sorted("features")
    meter = CollapseMeter(net, layers=["body", "after"], verbose=False)
    features = kept(net.fc)
    with pytest.warns(RuntimeWarning, match="in another order after 'body'"), meter.batch(Y):
        net(batches()[0])
    with pytest.warns(RuntimeWarning, match="in another order after 'body'"):
        report = meter.compute()
    assert report["body"].reason("nc1_pinv") == "unpaired_rows"
    expected = due(features, net.fc.weight, net.fc.bias)
    for metric in METRICS:
        assert report["fc"][metric] == pytest.approx(expected[metric], rel=1e-4)


def test_a_network_that_sorts_its_scores_back_is_refused():
    meter = CollapseMeter(Sorted("scores"), layers=["body", "after"], verbose=False)
    assert meter._model(batches()[0]).shape == (30, 3)
    with pytest.raises(ValueError, match="in another order after 'body'"), meter.batch(Y):
        meter._model(batches()[0])


# Positions before samples


class PositionsFirst(nn.Module):
    """The default of nn.LSTM and nn.TransformerEncoder."""

    def __init__(self, tail: str) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 12, 0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.rnn, self.fc, self.tail = nn.LSTM(6, 8), nn.Linear(8, 3), tail

    def forward(self, x):
        features, _ = self.rnn(self.encoder(x.transpose(0, 1)))
        if self.tail == "last":
            return self.fc(features[-1])
        scores = self.fc(features)
        return scores[-1] if self.tail == "last scores" else scores.mean(0)


@pytest.mark.parametrize("positions", [30, 7])
@pytest.mark.parametrize("tail", ["last", "last scores", "mean"])
def test_a_layer_that_has_positions_first_is_averaged_over_them(tail, positions):
    torch.manual_seed(0)
    net = PositionsFirst(tail)
    outputs: dict[str, list[Tensor]] = {"encoder.layers.0": [], "rnn": []}
    for name, seen in outputs.items():

        def keep(module, args, output, seen=seen):
            seen.append((output[0] if isinstance(output, tuple) else output).detach().clone())

        net.get_submodule(name).register_forward_hook(keep)
    meter = CollapseMeter(net, layers=list(outputs), verbose=False)
    for x in batches(4, positions, 6):
        with meter.batch(Y):
            net(x)
    report = meter.compute()
    last = [o.mean(0) if tail == "mean" else o[-1] for o in outputs["rnn"]]
    for name, seen in outputs.items():
        expected = due([o.mean(0) for o in seen])
        assert report[name]["nc1_pinv"] == pytest.approx(expected["nc1_pinv"], rel=1e-4)
    expected = due(last, net.fc.weight, net.fc.bias)
    for metric in METRICS:
        assert report["fc"][metric] == pytest.approx(expected[metric], rel=1e-4)


# Masks


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x, attention_mask):
        return self.fc(self.body(x)[:, 0])


FORMS = {
    "flags": lambda keep: keep,
    "numbers": lambda keep: keep.double(),
    "of heads": lambda keep: keep[:, None, None].long(),
    "added": lambda keep: torch.where(keep, 0.0, -torch.inf),
    "added, of heads": lambda keep: torch.where(keep, 0.0, -1e9)[:, None, None],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_mean_leaves_out_what_a_mask_of_any_form_hides(form):
    torch.manual_seed(0)
    net = Masked()
    meter = CollapseMeter(net, layers=["body"], verbose=False)
    outputs, means = [], []
    net.body.register_forward_hook(lambda *call: outputs.append(call[-1].detach()))
    for shortest, x in enumerate(batches(4, 4, 6), 1):  # of the last none is padded
        lengths = torch.arange(30) % 4 + 1
        keep = torch.arange(4) < lengths.clamp(min=shortest)[:, None]
        with meter.batch(Y):
            net(x, attention_mask=FORMS[form](keep))
        weight = keep.double()[:, :, None]
        means.append((outputs[-1] * weight).sum(1) / weight.sum(1))
    report = meter.compute()["body"]
    assert report["nc1_pinv"] == pytest.approx(due(means)["nc1_pinv"], rel=1e-4)
