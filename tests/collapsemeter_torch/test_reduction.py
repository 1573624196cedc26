"""From what modules return to one row per label, or an error that names layer and shape."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from collapsemeter import ClassMoments, Head, decide, measure
from collapsemeter.adapter.reduction import BatchError, Layout
from collapsemeter_torch import CollapseMeter
from collapsemeter_torch.reduction import feature_rows, layout_of, tensor_of

B, T, D = 6, 5, 8
Y = torch.arange(B) % 3
CONV, LINEAR = layout_of(nn.Conv2d(3, D, 1)), layout_of(nn.Linear(3, D))


def rows_of(output, labels=Y, mask=None, layout=None, reduction="auto"):
    return feature_rows(output, labels, mask, layer="lay", layout=layout, reduction=reduction)


def refused(output, message, **options):
    with pytest.raises(BatchError) as caught:
        rows_of(output, **options)
    assert "layer 'lay' gave " in str(caught.value)
    assert message in str(caught.value)


@dataclasses.dataclass
class NotAMapping:
    last_hidden_state: torch.Tensor


class ModelOutput(OrderedDict):  # as in transformers: a mapping with attributes
    pass


def test_features_are_found_in_what_a_module_returned():
    x, other = torch.randn(B, D), torch.randn(B, 2)
    for output in (
        x,
        (x, other),
        [x],
        {"only": x, "none": None},
        ModelOutput(loss=other, last_hidden_state=x),
    ):
        assert torch.equal(rows_of(output), x)
    refused(
        {"a": x, "b": other},
        "a dict of tensors a, b and labels have shape (6,): pass reduction={'lay': ...}, a callable",
    )
    refused(NotAMapping(x), "a NotAMapping")
    refused((), "a tuple")
    refused(((x, x), x), "a tuple")
    nested = torch.nested.as_nested_tensor(
        [torch.randn(2, D), torch.randn(3, D)], layout=torch.jagged
    )
    refused(nested, "a nested or distributed tensor")
    assert tensor_of((x, None), "lay", Y) is x


def test_maps_are_averaged_over_their_positions():
    x = torch.randn(B, D, 3, 4)
    torch.testing.assert_close(rows_of(x, layout=CONV), x.mean((2, 3)))
    torch.testing.assert_close(rows_of(x), x.mean((2, 3)))
    last = x.permute(0, 2, 3, 1)
    torch.testing.assert_close(rows_of(last, layout=LINEAR), x.mean((2, 3)))
    torch.testing.assert_close(rows_of(last, layout=CONV), x.mean((2, 3)))  # a block that permutes
    torch.testing.assert_close(rows_of(x, reduction="mean"), x.mean((2, 3)))
    torch.testing.assert_close(rows_of(last, reduction="mean_last"), x.mean((2, 3)))
    torch.testing.assert_close(rows_of(x, reduction="flatten"), x.flatten(1))
    wide = torch.randn(B, D, 2, 3, 4)
    torch.testing.assert_close(
        rows_of(wide, layout=layout_of(nn.Conv3d(3, D, 1))), wide.mean((2, 3, 4))
    )
    signal = torch.randn(B, D, 7)
    torch.testing.assert_close(
        rows_of(signal, layout=layout_of(nn.Conv1d(3, D, 1))), signal.mean(2)
    )


def test_half_precision_maps_are_averaged_in_float32():
    x = torch.full((B, D, 64, 64), 60000.0, dtype=torch.float16)
    assert torch.equal(rows_of(x), torch.full((B, D), 60000.0 - 60000.0 % 32))


def test_a_sequence_with_one_label_is_averaged_over_its_positions():
    x = torch.randn(B, T, D)
    for layout in (LINEAR, Layout(False, D), CONV):  # CONV: permuted, its channels are last
        torch.testing.assert_close(rows_of(x, layout=layout), x.mean(1))
    mask = torch.tensor([[1, 1, 0, 0, 0]] * B)
    torch.testing.assert_close(rows_of(x, layout=LINEAR, mask=mask), x[:, :2].mean(1))
    signal = x.movedim(-1, 1)
    torch.testing.assert_close(
        rows_of(signal, layout=CONV, mask=mask, reduction="mean"), x[:, :2].mean(1)
    )
    for layout in (None, Layout(False, T)):  # nothing tells which axis is the positions
        refused(
            x,
            "features of shape (6, 5, 8) and labels have shape (6,): say which row of the sequence",
            layout=layout,
        )
    refused(x.movedim(0, 1), "say which row of the sequence", layout=LINEAR)  # (T, B, D)
    assert torch.equal(rows_of(x, reduction="first"), x[:, 0])
    assert torch.equal(rows_of(x, reduction="last"), x[:, -1])
    torch.testing.assert_close(rows_of(x, reduction="mean_last"), x.mean(1))
    assert torch.equal(rows_of(x, reduction=lambda out: out[:, 2]), x[:, 2])


def test_a_map_among_tokens_is_not_averaged_over_its_channels():
    maps = torch.randn(B, D, 3, 4)
    for reduction in ("auto", "mean_last"):
        rows = rows_of(maps, layout=CONV, reduction=reduction, mask=torch.ones(B, T))
        torch.testing.assert_close(rows, maps.mean((2, 3)))


def test_rows_are_rows_whatever_reduction_is_asked_for():
    x = torch.randn(B, D)
    for name in ("auto", "flatten", "mean", "mean_last", "first", "last", "tokens"):
        assert torch.equal(rows_of(x, reduction=name), x)
        assert torch.equal(rows_of(x, reduction=name, mask=torch.ones(B, T)), x)


def test_masks_choose_the_tokens():
    x = torch.randn(B, T, D)
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 3 + [[0, 0, 1, 1, 1]] * 3)  # padded right, padded left
    x[0, 4] = float("nan")  # a padded position
    expected = torch.cat([x[:3, :3].mean(1), x[3:, 2:].mean(1)])
    torch.testing.assert_close(rows_of(x, mask=mask, reduction="mean_last"), expected)
    assert torch.equal(rows_of(x, mask=mask, reduction="last"), torch.cat([x[:3, 2], x[3:, 4]]))
    for name in ("mean_last", "last"):
        refused(
            x,
            "a mask must have the shape (batch, positions) of the sequence",
            mask=mask[:, :4],
            reduction=name,
        )


def test_tokens_pair_with_labels_of_their_shape():
    labels = torch.randint(0, 3, (B, T))
    x = torch.randn(B, T, D)
    assert torch.equal(rows_of(x, labels), x.flatten(0, 1))
    signal = x.movedim(-1, 1)
    assert torch.equal(
        rows_of(signal, labels, layout=layout_of(nn.Conv1d(3, D, 1))), x.flatten(0, 1)
    )
    segmented = torch.randint(0, 3, (B, 3, 4))
    maps = torch.randn(B, D, 3, 4)
    assert torch.equal(rows_of(maps, segmented, layout=CONV), maps.movedim(1, -1).flatten(0, -2))
    refused(
        torch.randn(B, D, 2, 4),
        "features of shape (6, 8, 2, 4) and labels have shape (6, 3, 4): no rule pairs them",
        labels=segmented,
    )
    refused(torch.randn(B, D), "no rule pairs them", labels=labels)


def test_where_both_orders_fit_the_labels_the_layer_decides():
    labels, x = torch.randint(0, 3, (B, T)), torch.randn(B, T, T)
    assert torch.equal(rows_of(x, labels, layout=LINEAR), x.flatten(0, 1))
    assert torch.equal(
        rows_of(x, labels, layout=layout_of(nn.Conv1d(3, T, 1))), x.movedim(1, -1).flatten(0, 1)
    )


def test_what_cannot_be_rows_is_refused():
    refused(
        torch.randn(B),
        "features of shape (6,) and labels have shape (6,): no rule",
    )
    refused(
        torch.randn(B + 1, D),
        "features of shape (7, 8) and labels have shape (6,): the layer ran on a batch of 7 and there are labels for 6",
    )
    refused(torch.zeros(B, D, dtype=torch.long), "features that are not floats")
    refused(torch.randn(B, D), "a list", reduction=lambda x: [x])
    refused(torch.randn(B, 2, 2, 2, 2, 2), "no rule pairs them")
    refused(torch.randn(B, D, 2, 2), "no rule pairs them", reduction="first")


def test_layouts_are_read_from_modules():
    assert layout_of(nn.BatchNorm2d(4)) == (True, 4)
    assert layout_of(nn.MaxPool2d(2)) == (True, None)
    assert layout_of(nn.GroupNorm(2, 6)) == (True, 6)
    assert layout_of(nn.LayerNorm(7)) == (False, 7)
    assert layout_of(nn.Embedding(9, 5)) == (False, 5)
    assert layout_of(nn.ReLU()) is None
    assert layout_of(nn.Sequential(nn.Conv2d(3, 4, 1))) is None


# Through real modules


def measured(net, x, labels=Y, mask=None, **options):
    meter = CollapseMeter(net, verbose=False, **options)
    with meter.batch(labels, mask):
        net(x)
    return meter.compute()


def test_convolutions_over_a_signal_need_nothing_said():
    net = nn.Sequential(
        nn.Conv1d(2, 4, 3),
        nn.ReLU(),
        nn.Conv1d(4, 5, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    )
    assert measured(net, torch.randn(B, 2, 20))["1"].provenance["width"] == 4


class Tagger(nn.Module):
    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.lstm, self.fc, self.pooled = nn.LSTM(4, D, batch_first=True), nn.Linear(D, 3), pooled

    def forward(self, x):
        h, _ = self.lstm(x)
        return self.fc(h[:, -1] if self.pooled else h)


def test_an_lstm_returns_a_tuple():
    x = torch.randn(B, T, 4)
    report = measured(Tagger(pooled=True), x, layers="lstm", reduction={"lstm": "last"})
    assert report["lstm"]["nc1_pinv"] == pytest.approx(report["fc"]["nc1_pinv"], rel=1e-6)
    labels = torch.randint(0, 3, (B, T))
    labels[:, -2:] = -100
    report = measured(Tagger(pooled=False), x, labels, layers="lstm")
    assert {layer.provenance["rows"] for layer in report.values()} == {B * (T - 2)}
    assert report["fc"].provenance["ignored_rows"] == 2 * B
    assert report["fc"].provenance["nc4_rows"] == B * (T - 2)
    net = Tagger(pooled=True)
    report = measured(net, x, layers="lstm")
    mean = ClassMoments.from_batch(net.lstm(x)[0].mean(1).detach().numpy(), Y.numpy(), 3)
    assert report["lstm"]["nc1_pinv"] == pytest.approx(measure(mean)["nc1_pinv"], rel=1e-4)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(D, 2, 16, dropout=0.0, batch_first=True)
        self.encoder, self.fc = nn.TransformerEncoder(layer, 2), nn.Linear(D, 3)

    def forward(self, x, mask):
        return self.fc(self.encoder(x, src_key_padding_mask=~mask.bool())[:, 0])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_a_transformer_with_padding():
    net, x = Encoder(), torch.randn(B, T, D)
    mask = torch.ones(B, T)
    mask[:3, 3:] = 0
    meter = CollapseMeter(net, reduction="first", verbose=False)
    with meter.batch(Y, mask):
        net(x, mask)
    assert {layer.provenance["width"] for layer in meter.compute().values()} == {D}
    with pytest.warns(RuntimeWarning, match=r"'encoder.layers.0'.* nested or distributed tensor"):
        report = meter.observe([((x, mask), Y)], progress=False)  # PyTorch's fast path
    assert report["encoder.layers.0"].reason("nc1_pinv") == "unpaired_rows"
    assert report["fc"].provenance["rows"] == B


class Swin(nn.Module):
    """Channels last inside, as in Swin and ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, D, 1)
        self.block = nn.Sequential(
            nn.LayerNorm(D), nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, D)
        )
        self.fc = nn.Linear(D, 3)

    def forward(self, x):
        return self.fc(self.block(self.stem(x).permute(0, 2, 3, 1)).mean((1, 2)))


def test_channels_last_blocks_are_averaged_over_positions():
    report = measured(Swin(), torch.randn(B, 3, 4, 4), layers=["stem", "block"])
    assert [layer.provenance["width"] for layer in report.values()] == [D, D, D]
    assert report["block"]["nc1_pinv"] == pytest.approx(report["fc"]["nc1_pinv"], rel=1e-4)


def test_a_head_that_is_given_as_many_positions_as_classes_is_still_a_sequence():
    class Mean(Tagger):
        def forward(self, x):
            return super().forward(x).mean(1)

    torch.manual_seed(0)
    net, x = Mean(pooled=False), torch.randn(B, 3, 4)
    given = []
    net.fc.register_forward_pre_hook(lambda module, args: given.append(args[0].detach()))
    layer = measured(net, x, layers="fc")["fc"]
    expected = measure(ClassMoments.from_batch(given[0].mean(1).numpy(), Y.numpy(), 3))
    assert layer["nc1_cdnv"] == pytest.approx(expected["nc1_cdnv"], rel=1e-5)


def test_segmentation_counts_pixels():
    net = nn.Sequential(nn.Conv2d(3, D, 1), nn.ReLU(), nn.Conv2d(D, 3, 1))
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 3, (B, 4, 5)))
    report = measured(net, torch.randn(B, 3, 4, 5), labels, layers="1", num_classes=3, head=None)
    assert report["1"].provenance["rows"] == B * 20


def test_the_classes_of_a_segmentation_are_the_channels_of_a_pixel():
    net = nn.Sequential(nn.Conv2d(3, D, 1), nn.ReLU(), nn.Conv2d(D, 3, 1))
    x, labels = torch.randn(B, 3, 4, 5), torch.arange(B * 20).reshape(B, 4, 5) % 3
    report = measured(net, x, labels)
    assert list(report) == ["2"]
    rows, y = net[:2](x).detach().movedim(1, -1).reshape(-1, D).numpy(), labels.flatten().numpy()
    head = Head(net[2].weight.detach().numpy()[:, :, 0, 0], net[2].bias.detach().numpy())
    moments = ClassMoments.from_batch(rows, y, 3)
    expected = measure(moments, head=head, decisions=decide(moments, rows, y, head=head))
    for name in ("nc1_cdnv", "nc3_self_duality", "nc4_mismatch"):
        assert report["2"][name] == pytest.approx(expected[name], rel=1e-4)
