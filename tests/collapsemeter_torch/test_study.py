"""What the forward tells: the layers that all of the signal passes, the head that makes the scores, C."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from collapsemeter_torch import CollapseMeter
from collapsemeter_torch.layers import named_layers

from . import running_networks as networks
from .running_networks import ResNet, images, tokens, vectors

STAGES = ["layer1.0", "layer1", "layer2.0", "layer2", "layer3.0", "layer3", "layer4.0", "layer4"]
LEARNT = {
    "MLP": (networks.mlp, vectors, ["2"], "7"),
    "CNN": (networks.cnn, images, ["2"], "10"),
    "ResNet": (ResNet, images, ["maxpool", *STAGES], "fc"),
    "VGG": (networks.vgg, images, ["0.3", "1", "3.1"], "3.6"),
    "deep linear": (networks.deep_linear, vectors, ["0", "1", "2"], "4"),
    "ViT": (
        networks.VisionTransformer,
        images,
        ["patches", "blocks.0", "blocks.1", "blocks.2", "norm"],
        "head",
    ),
    "TransformerEncoder": (networks.Tokens, tokens, ["encoder.layers.0", "encoder"], "fc"),
    "LSTM": (networks.Recurrent, tokens, ["encoder"], "fc"),
    "SqueezeNet": (networks.SqueezeNet, images, ["features.1"], "classifier.1"),
    "head declared first": (networks.PlainNet, vectors, ["first", "second"], "classifier"),
    "temperature": (networks.Scaled, vectors, ["first", "second"], "classifier"),
    "capped": (networks.Capped, vectors, ["first", "second"], "classifier"),
    "repeated": (networks.Repeated, vectors, ["first", "second"], "classifier"),
    "probability": (networks.Probability, vectors, ["first", "second"], "classifier"),
    "depends on data": (networks.DependsOnData, vectors, ["first", "second"], "classifier"),
    "a single layer": (lambda: nn.Linear(4, 3), vectors, [], "Linear"),
}


def learnt(make, inputs, **options):
    net = make().eval()
    return net, CollapseMeter(net, example=inputs(), verbose=False, **options)


@pytest.mark.parametrize("name", LEARNT)
def test_auto_takes_what_all_of_the_signal_passes(name):
    make, inputs, layers, head = LEARNT[name]
    net, meter = learnt(make, inputs)
    chosen = meter.selection
    assert (list(chosen.layers), chosen.head) == (layers, head)
    named = named_layers(net)
    assert all(chosen.modules[layer] is named[layer] for layer in chosen.watched)
    assert {*chosen.watched, *chosen.skipped} == set(named)
    assert not set(chosen.watched) & set(chosen.skipped)
    assert all(chosen.skipped.values())


@pytest.mark.parametrize(
    ("make", "options", "reason", "layers"),
    [
        (networks.Averaged, {}, "no_single_head", ["first", "second"]),
        (networks.Adjusted, {}, "scores_are_not_the_heads", ["first", "second", "classifier"]),
        (networks.Permuted, {}, "scores_are_not_the_heads", ["first", "second", "classifier"]),
        (networks.Functional, {}, "scores_are_not_the_heads", ["first", "second"]),
        (
            lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), networks.Cosine(8, 3)),
            {},
            "scores_are_not_the_heads",
            ["1"],
        ),
        (networks.PlainNet, {"head": None}, "no_head", ["first", "second"]),
    ],
)
def test_where_no_map_alone_makes_the_scores_nc3_is_absent_and_nc4_is_right(
    make, options, reason, layers
):
    net, meter = learnt(make, vectors, **options)
    net.train()
    rows = []
    net.get_submodule(layers[0]).register_forward_hook(lambda *call: rows.append(call[-1].detach()))
    x, y = torch.randn(30, 4), torch.arange(30) % 3
    with meter.batch(y):
        scores = net(x)
    report = meter.compute()
    assert list(report) == layers
    assert report[layers[-1]].reason("nc3_cosine") == reason
    means = torch.stack([rows[0][y == label].mean(0) for label in range(3)])
    nearest = torch.cdist(rows[0], means).argmin(1)
    disagree = float((nearest != scores.argmax(1)).double().mean())
    assert report[layers[0]]["nc4_mismatch"] == pytest.approx(disagree)


def test_scores_chooses_among_several_and_its_own_head_follows():
    for scores, head in ((0, "distilled"), (1, "classifier"), (lambda out: out[1], "classifier")):
        _, meter = learnt(networks.Exits, vectors, scores=scores)
        assert meter.selection.head == head
    with pytest.raises(ValueError, match=r"of which several may be the scores: pass scores="):
        learnt(networks.Exits, vectors)


@pytest.mark.parametrize("make", [networks.PlainNet, ResNet, networks.VisionTransformer])
def test_the_order_of_declaration_changes_nothing(make):
    inputs = vectors if make is networks.PlainNet else images
    reports = []
    for turn in (1, -1):
        torch.manual_seed(0)
        net = make()
        for module in net.modules():
            items = list(module._modules.items())[::turn]
            if not isinstance(module, nn.Sequential | nn.ModuleList):
                module._modules.clear()
                module._modules.update(items)
        meter = CollapseMeter(net, verbose=False)
        torch.manual_seed(1)
        with meter.batch(torch.arange(6) % 3):
            net(inputs())
        reports.append(meter.compute())
    first, second = reports
    assert list(first) == list(second)
    assert first.to_dict()["layers"] == second.to_dict()["layers"]


class Counting(networks.PlainNet):
    """A network that remembers, draws and writes while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout()
        self.register_buffer("steps", torch.zeros(1))
        self.runs, self.seen = 0, []

    def forward(self, x):
        self.runs += 1
        self.seen.append(x.shape)
        self.steps += 1
        self.steps = self.steps + torch.rand(1)
        x = x.mul_(2)
        return self.classifier(self.drop(self.norm(self.features(x))))


class CountingOnData(Counting):
    def forward(self, x):
        return super().forward(x if x.sum().item() < 1e9 else -x)


@pytest.mark.parametrize("make", [Counting, CountingOnData])
def test_nothing_remains_of_the_study(make):
    net, x = make(), vectors()
    net.drop.eval()
    fired = []
    net.second.register_forward_hook(lambda *_: fired.append(1))
    net(x.clone()).sum().backward()
    parts = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    before = {name: (part, part.clone(), part._version) for name, part in parts.items()}
    gradients = {name: (p.grad, p.grad.clone()) for name, p in net.named_parameters()}
    modes = [module.training for module in net.modules()]
    attributes = [set(module.__dict__) for module in net.modules()]
    fired.clear()
    x_before, rng = x.clone(), torch.get_rng_state()
    meter = CollapseMeter(net, example=x, verbose=False)
    meter.close()
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(x, x_before)
    assert not x.requires_grad
    assert (net.runs, len(net.seen), fired) == (1, 1, [])
    assert [module.training for module in net.modules()] == modes
    assert [set(module.__dict__) for module in net.modules()] == attributes
    after = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    for name, (part, value, version) in before.items():
        assert after[name] is part
        assert torch.equal(part, value)
        assert part._version == version
    for name, (gradient, value) in gradients.items():
        assert net.get_parameter(name).grad is gradient
        assert torch.equal(gradient, value)


def test_a_resnet_runs_and_counts():
    net = ResNet()
    meter = CollapseMeter(net, verbose=False)
    with meter.batch(torch.arange(20) % 10):
        net(torch.randn(20, 3, 16, 16))
    report = meter.compute()
    widths = [4, 4, 4, 8, 8, 16, 16, 32, 32, 32]
    assert [layer.provenance["width"] for layer in report.values()] == widths
    assert not report.warnings


def test_every_module_that_is_skipped_has_its_reason():
    skipped = learnt(ResNet, images)[1].skipped
    assert skipped["conv1"] == "not the end of a block; name it in layers= to watch it"
    assert skipped["layer1.0.conv1"] == "inside layer1.0, which is watched"
    assert skipped["avgpool"] == "its output is the input of fc"
    named = learnt(ResNet, images, layers="layer1.*")[1].skipped
    assert named["layer1"] == "its parts are watched"
    assert named["layer2"] == "not chosen by layers="
    assert learnt(networks.mlp, vectors)[1].skipped["6"] == "passes its input on"
    assert learnt(networks.SqueezeNet, images)[1].skipped["classifier"] == "it holds the head"


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("layer1", ["layer1"]),
        (["layer4", "layer2"], ["layer2", "layer4"]),
        ("layer?", ["layer1", "layer2", "layer3", "layer4"]),
        (["layer[12]", "maxpool"], ["maxpool", "layer1", "layer2"]),
        (iter(["layer3"]), ["layer3"]),
        (lambda name, module: isinstance(module, nn.MaxPool2d), ["maxpool"]),
        ("fc", []),
    ],
)
def test_names_patterns_and_predicates(layers, expected):
    chosen = learnt(ResNet, images, layers=layers)[1].selection
    assert list(chosen.layers) == expected
    assert chosen.head == "fc"


def test_at_most_so_many_layers_are_chosen_and_the_last_is_among_them():
    chosen = learnt(ResNet, images, max_layers=4)[1].selection
    assert len(chosen.watched) == 4
    assert chosen.layers[-1] == "layer4"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"layers": "layer9"},
            "layers=['layer9']: 'layer9' matches no module; the model has fc, avgpool, layer4",
        ),
        (
            {"layers": ["layer1", "stage*"]},
            "layers=['layer1', 'stage*']: 'stage*' matches no module",
        ),
        ({"head": "classifier"}, "head='classifier' is not a layer of the model; it has fc"),
        ({"head": "layer1"}, "head='layer1' is a Sequential: name an nn.Linear, or pass head=None"),
        (
            {"layers": lambda name, module: False, "head": None, "num_classes": 10},
            "selects nothing of ResNet; its modules: fc",
        ),
        ({"num_classes": 4}, "the output holds scores of width 10 and num_classes=4"),
    ],
)
def test_an_error_repeats_what_was_passed(options, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 # the text follows
        learnt(ResNet, images, **options)
    assert message in str(caught.value)


def test_a_head_must_make_the_scores():
    with pytest.raises(
        ValueError, match=r"head='distilled' does not make output.1., but classifier"
    ):
        CollapseMeter(
            networks.Exits(), head="distilled", scores=1, example=vectors(), verbose=False
        )


def test_a_head_with_weights_of_its_own():
    def weights(head):
        return nn.functional.normalize(head.weight)

    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), networks.Cosine(8, 3))
    meter = CollapseMeter(net, head=(net[2], weights), verbose=False)
    with meter.batch(torch.arange(6) % 3):
        net(vectors())
    assert list(meter.compute()) == ["1", "2"]
    assert meter.compute()["2"]["nc3_self_duality"] > 0


def test_wrappers_are_left_out_of_names():
    net = nn.DataParallel(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    assert list(named_layers(net)) == ["0", "1", "2"]
    net = nn.Module()
    net.module, net.fc = nn.Linear(4, 4), nn.Linear(4, 3)  # the user's own attribute
    assert list(named_layers(net)) == ["module", "fc"]
