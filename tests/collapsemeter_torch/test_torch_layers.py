"""Which blocks ``auto`` takes: those a person would name; and names, patterns, predicates."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from collapsemeter_torch import CollapseMeter
from collapsemeter_torch.layers import named_layers, select


def model(**parts: nn.Module) -> nn.Module:
    """A model whose forward does not matter: only its tree is looked at."""
    net = nn.Module()
    for name, part in parts.items():
        net.add_module(name, part)
    return net


class BasicBlock(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, padding=1), nn.BatchNorm2d(out)
        self.downsample = (
            None if into == out else nn.Sequential(nn.Conv2d(into, out, 1), nn.BatchNorm2d(out))
        )

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, w: int = 4) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, w, 3), nn.BatchNorm2d(w), nn.ReLU()
        self.maxpool = nn.MaxPool2d(2)
        self.layer1 = nn.Sequential(BasicBlock(w, w), BasicBlock(w, w))
        self.layer2 = nn.Sequential(BasicBlock(w, 2 * w), BasicBlock(2 * w, 2 * w))
        self.layer3 = nn.Sequential(BasicBlock(2 * w, 4 * w), BasicBlock(4 * w, 4 * w))
        self.layer4 = nn.Sequential(BasicBlock(4 * w, 8 * w), BasicBlock(8 * w, 8 * w))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8 * w, 10)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def vit_block(d: int = 8) -> nn.Module:
    mlp = model(fc1=nn.Linear(d, 2 * d), act=nn.GELU(), fc2=nn.Linear(2 * d, d))
    attention = model(qkv=nn.Linear(d, 3 * d), proj=nn.Linear(d, d))
    return model(norm1=nn.LayerNorm(d), attn=attention, norm2=nn.LayerNorm(d), mlp=mlp)


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, 8, 4, 4)


class Stage(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(BasicBlock(into, out), BasicBlock(out, out))


class Embeddings(Patches): ...


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList([vit_block(), vit_block()])


def headless() -> nn.Module:
    net = ResNet()
    net.fc = nn.Identity()
    return net


def blocks(kind: type) -> nn.Module:
    members = [vit_block() for _ in range(3)]
    return nn.Sequential(*members) if kind is nn.Sequential else nn.ModuleList(members)


def linears(*widths: int) -> list[nn.Module]:
    return [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]


STAGES = ["layer1", "layer2", "layer3", "layer4"]
MODELS = {
    "MLP": (
        lambda: nn.Sequential(
            nn.Flatten(),
            nn.Linear(4, 8),
            nn.ReLU(),
            nn.Linear(8, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(8, 3),
        ),
        ["2"],
        "7",
    ),
    "CNN": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout2d(),
            nn.Conv2d(8, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(8, 10),
        ),
        ["2"],
        "10",
    ),
    "LeNet": (
        lambda: model(
            conv1=nn.Conv2d(1, 6, 5),
            conv2=nn.Conv2d(6, 16, 5),
            drop=nn.Dropout(),
            fc1=nn.Linear(9, 9),
            fc2=nn.Linear(9, 9),
            fc3=nn.Linear(9, 9),
        ),
        ["conv1", "conv2", "fc1", "fc2"],
        "fc3",
    ),
    "ResNet": (ResNet, STAGES, "fc"),
    "WideResNet": (
        lambda: model(
            conv1=nn.Conv2d(3, 4, 3),
            block1=Stage(4, 4),
            block2=Stage(4, 8),
            block3=Stage(8, 8),
            bn=nn.BatchNorm2d(8),
            fc=nn.Linear(8, 3),
        ),
        ["block1", "block2", "block3"],
        "fc",
    ),
    "VGG": (
        lambda: model(
            features=nn.Sequential(
                nn.Conv2d(3, 8, 3),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(8, 8, 3),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ),
            avgpool=nn.AdaptiveAvgPool2d(1),
            classifier=nn.Sequential(
                nn.Linear(8, 16),
                nn.ReLU(),
                nn.Dropout(),
                nn.Linear(16, 16),
                nn.ReLU(),
                nn.Dropout(),
                nn.Linear(16, 10),
            ),
        ),
        ["features.3", "features.6", "classifier.1"],
        "classifier.6",
    ),
    "stages of Sequentials": (
        lambda: model(
            block1=nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()),
            block2=nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()),
            fc=nn.Linear(8, 10),
        ),
        ["block1", "block2"],
        "fc",
    ),
    "features and linear layers": (
        lambda: model(
            features=nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()),
            fc1=nn.Linear(8, 8),
            fc2=nn.Linear(8, 10),
        ),
        ["features.1", "features.3", "fc1"],
        "fc2",
    ),
    "residual blocks in a Sequential": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            BasicBlock(4, 4),
            BasicBlock(4, 8),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 10),
        ),
        ["2", "3"],
        "7",
    ),
    "ViT": (
        lambda: model(
            patch_embed=Patches(),
            blocks=blocks(nn.Sequential),
            norm=nn.LayerNorm(8),
            head=nn.Linear(8, 5),
        ),
        ["blocks.0", "blocks.1", "blocks.2"],
        "head",
    ),
    "ViT with a ModuleList": (
        lambda: model(
            patch_embed=Patches(),
            blocks=blocks(nn.ModuleList),
            norm=nn.LayerNorm(8),
            head=nn.Linear(8, 5),
        ),
        ["blocks.0", "blocks.1", "blocks.2"],
        "head",
    ),
    "ViT of torchvision": (
        lambda: model(
            conv_proj=nn.Conv2d(3, 8, 4, 4),
            encoder=model(layers=blocks(nn.Sequential), ln=nn.LayerNorm(8)),
            heads=nn.Sequential(nn.Linear(8, 5)),
        ),
        ["encoder.layers.0", "encoder.layers.1", "encoder.layers.2"],
        "heads.0",
    ),
    "TransformerEncoder": (
        lambda: model(
            emb=nn.Embedding(20, 8),
            encoder=nn.TransformerEncoder(
                nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
                2,
                enable_nested_tensor=False,
            ),
            fc=nn.Linear(8, 4),
        ),
        ["encoder.layers.0", "encoder.layers.1"],
        "fc",
    ),
    "BERT": (
        lambda: model(
            bert=model(embeddings=Embeddings(), encoder=Encoder()), classifier=nn.Linear(8, 2)
        ),
        ["bert.encoder.layer.0", "bert.encoder.layer.1"],
        "classifier",
    ),
    "GPT": (
        lambda: model(
            transformer=nn.ModuleDict(
                {
                    "wte": nn.Embedding(9, 8),
                    "h": nn.ModuleList([vit_block(), vit_block()]),
                    "ln_f": nn.LayerNorm(8),
                }
            ),
            lm_head=nn.Linear(8, 9),
        ),
        ["transformer.h.0", "transformer.h.1"],
        "lm_head",
    ),
    "backbone and head": (
        lambda: model(backbone=headless(), head=nn.Linear(32, 10)),
        [f"backbone.{s}" for s in STAGES],
        "head",
    ),
    "backbone, neck and head": (
        lambda: model(
            backbone=headless(),
            neck=nn.Sequential(nn.Linear(32, 16), nn.ReLU()),
            head=nn.Linear(16, 10),
        ),
        [*(f"backbone.{s}" for s in STAGES), "neck"],
        "head",
    ),
    "Sequential of backbone and head": (
        lambda: nn.Sequential(headless(), nn.Linear(32, 10)),
        [f"0.{s}" for s in STAGES],
        "1",
    ),
    "deep linear": (lambda: nn.Sequential(*linears(4, 4, 4, 4, 4, 4)), ["0", "1", "2"], "4"),
    "deep linear head": (
        lambda: nn.Sequential(
            nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Sequential(*linears(8, 8, 8, 8, 3))
        ),
        ["0.1", "1.0", "1.1"],
        "1.3",
    ),
    "list of linears": (
        lambda: model(layers=nn.ModuleList(linears(4, 8, 8, 3))),
        ["layers.0", "layers.1"],
        "layers.2",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_auto_takes_what_a_person_would_name(name):
    make, layers, head = MODELS[name]
    net = make()
    chosen = select(net, "auto", "auto", None)
    assert (list(chosen.layers), chosen.head) == (layers, head)
    assert chosen.watched == [*layers, head]
    assert all(chosen.modules[layer] is net.get_submodule(layer) for layer in layers)
    named = named_layers(net)
    assert {*chosen.watched, *chosen.skipped} == set(named)
    assert not set(chosen.watched) & set(chosen.skipped)
    assert all(chosen.skipped.values())


def test_a_resnet_runs_and_counts():
    net = ResNet()
    meter = CollapseMeter(net, verbose=False)
    with meter.batch(torch.arange(20) % 10):
        net(torch.randn(20, 3, 16, 16))
    report = meter.compute()
    assert [layer.provenance["width"] for layer in report.values()] == [4, 8, 16, 32, 32]
    assert not report.warnings


def test_every_module_that_is_skipped_has_its_reason():
    skipped = select(ResNet(), "auto", "auto", None).skipped
    assert skipped["conv1"] == "not the end of a block; name it in layers= to watch it"
    assert skipped["layer1.0"] == "inside layer1, which is watched"
    named = select(net := ResNet(), "layer1.*", "auto", None).skipped
    assert named["layer1"] == "its parts are watched"
    assert named["layer2"] == "not chosen by layers="
    assert (
        select(nn.Sequential(net), "0.layer1", None, None).skipped["0"] == "its parts are watched"
    )
    wrapped = select(
        nn.Sequential(headless(), nn.Sequential(nn.Dropout(), nn.Linear(32, 3))),
        "0.layer1",
        "auto",
        None,
    )
    assert wrapped.skipped["1"] == "it holds the head"
    assert wrapped.skipped["1.0"] == "passes its input on"
    inner = select(
        nn.Sequential(
            nn.Sequential(nn.Linear(4, 4), nn.ReLU()),
            BasicBlock(4, 4),
            nn.Flatten(),
            nn.Linear(4, 3),
        ),
        "auto",
        "auto",
        None,
    )
    assert inner.skipped["1"] == "its output is the input of 3"
    assert inner.skipped["1.conv1"] == "inside 1: its output is the input of 3"


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("layer1", ["layer1"]),
        (["layer4", "layer2"], ["layer2", "layer4"]),
        ("layer?", STAGES),
        (["layer[12]", "maxpool"], ["maxpool", "layer1", "layer2"]),
        (iter(["layer3"]), ["layer3"]),
        (lambda name, module: isinstance(module, nn.MaxPool2d), ["maxpool"]),
        ("fc", []),
    ],
)
def test_names_patterns_and_predicates(layers, expected):
    chosen = select(ResNet(), layers, "auto", None)
    assert list(chosen.layers) == expected
    assert chosen.head == "fc"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"layers": "layer9"},
            "layers=['layer9']: 'layer9' matches no module; the model has conv1, bn1, relu",
        ),
        (
            {"layers": ["layer1", "stage*"]},
            "layers=['layer1', 'stage*']: 'stage*' matches no module",
        ),
        (
            {"head": "classifier"},
            "head='classifier' is not a layer of the model; it has conv1, bn1",
        ),
        ({"head": "layer1"}, "head='layer1' is a Sequential: name an nn.Linear, or pass head=None"),
        (
            {"layers": lambda name, module: False, "head": None, "num_classes": 3},
            "selects nothing of ResNet; its modules: conv1, bn1, relu",
        ),
    ],
)
def test_an_error_repeats_what_was_passed(options, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 # the text follows
        CollapseMeter(ResNet(), verbose=False, **options)
    assert message in str(caught.value)


def test_the_head_is_the_linear_layer_with_one_output_a_class():
    net = model(fc=nn.Linear(8, 10), aux=nn.Linear(8, 4))
    assert select(net, "auto", "auto", 10).head == "fc"
    assert select(net, "auto", "auto", None).head == "aux"
    assert select(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1)), "auto", "auto", 2).head == "1"
    assert CollapseMeter(net, head="fc", verbose=False).num_classes == 10


def test_wrappers_are_left_out_of_names():
    net = nn.DataParallel(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    assert list(named_layers(net)) == ["0", "1", "2"]
    net = model(module=nn.Linear(4, 4), fc=nn.Linear(4, 3))  # the user's own attribute
    assert list(named_layers(net)) == ["module", "fc"]
