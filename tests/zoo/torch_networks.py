"""PyTorch networks of other people's libraries, small and with random weights: a new one is one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

C = 5
_operators: Any = None


class Given(NamedTuple):
    """A model, a batch of its inputs as arguments, the shape of its labels, and classes among them."""

    model: nn.Module
    inputs: dict[str, Any] | tuple[Any, ...]
    labels: tuple[int, ...] = (6,)
    classes: int = C


def images(size: int = 64) -> tuple[torch.Tensor]:
    return (torch.randn(6, 3, size, size, generator=torch.Generator().manual_seed(0)),)


def tokens(length: int = 12, end: int | None = None) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 100, (6, length), generator=torch.Generator().manual_seed(0))
    if end is not None:
        ids[:, -1] = end
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def declare_operators() -> torch.library.Library:
    """Torchvision's wheel is built for CUDA: beside the CPU build of torch its operators need a schema."""
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    sizes = (
        "Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
    )
    library.define(f"roi_align({sizes}, int sampling_ratio, bool aligned) -> Tensor")
    library.define(
        "_roi_align_backward(Tensor grad, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt "
        "pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width, int sampling_ratio, "
        "bool aligned) -> Tensor"
    )
    for name in ("ps_roi_align", "roi_pool", "ps_roi_pool", "deform_conv2d"):
        library.define(f"{name}(Tensor a) -> Tensor")
        library.define(f"_{name}_backward(Tensor a) -> Tensor")
    library.define("qroi_align(Tensor a) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def _timm() -> Iterator[tuple[str, Callable[[], Given]]]:
    import timm

    small = {"img_size": 64}
    networks: dict[str, tuple[dict[str, Any], int]] = {
        "resnet18": ({}, 64),
        "resnetv2_50": ({}, 64),
        "convnext_atto": ({}, 64),
        "efficientnet_b0": ({}, 64),
        "mobilenetv3_small_050": ({}, 64),
        "densenet121": ({}, 64),
        "regnetx_002": ({}, 64),
        "vgg11": ({}, 64),
        "ghostnet_100": ({}, 64),
        "hrnet_w18_small": ({}, 64),
        "inception_v3": ({}, 96),
        "repvgg_a0": ({}, 64),
        "poolformer_s12": ({}, 64),
        "mixer_s32_224": (small, 64),
        "vit_tiny_patch16_224": (small, 64),
        "deit_tiny_distilled_patch16_224": (small, 64),
        "swin_tiny_patch4_window7_224": (small | {"window_size": 2}, 64),
        "levit_128s": ({}, 224),
        "xcit_nano_12_p16_224": (small, 64),
        "coatnet_nano_rw_224": (small, 64),
    }
    for name, (options, size) in networks.items():

        def make(name: str = name, options: Any = options, size: int = size) -> Given:
            return Given(timm.create_model(name, num_classes=C, **options), images(size))

        yield f"timm/{name}", make


def _torchvision() -> Iterator[tuple[str, Callable[[], Given]]]:
    import torchvision.models as zoo

    networks: dict[str, dict[str, Any]] = {
        "alexnet": {},
        "squeezenet1_1": {},
        "googlenet": {"aux_logits": False, "init_weights": False},
        "mobilenet_v2": {},
        "shufflenet_v2_x0_5": {},
        "vit_b_32": {"image_size": 64},
    }
    for name, options in networks.items():

        def make(name: str = name, options: Any = options) -> Given:
            return Given(getattr(zoo, name)(num_classes=C, **options), images())

        yield f"torchvision/{name}", make


def _transformers() -> Iterator[tuple[str, Callable[[], Given]]]:
    import transformers as hf

    small = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "num_labels": C,
    }
    text = small | {"vocab_size": 100}
    networks: dict[str, tuple[str, dict[str, Any], Any]] = {
        "BertForSequenceClassification": ("BertConfig", text, tokens()),
        "RobertaForSequenceClassification": ("RobertaConfig", text, tokens()),
        "ElectraForSequenceClassification": (
            "ElectraConfig",
            text | {"embedding_size": 16},
            tokens(),
        ),
        "DistilBertForSequenceClassification": (
            "DistilBertConfig",
            {
                "dim": 32,
                "n_layers": 3,
                "n_heads": 2,
                "hidden_dim": 64,
                "vocab_size": 100,
                "num_labels": C,
            },
            tokens(),
        ),
        "GPT2ForSequenceClassification": (
            "GPT2Config",
            {
                "n_embd": 32,
                "n_layer": 3,
                "n_head": 2,
                "vocab_size": 100,
                "num_labels": C,
                "pad_token_id": 0,
            },
            tokens(),
        ),
        "LlamaForSequenceClassification": (
            "LlamaConfig",
            text | {"num_key_value_heads": 2, "pad_token_id": 0},
            tokens(),
        ),
        "ViTForImageClassification": (
            "ViTConfig",
            small | {"image_size": 64, "patch_size": 16},
            {"pixel_values": images()[0]},
        ),
        "SwinForImageClassification": (
            "SwinConfig",
            {
                "image_size": 64,
                "embed_dim": 16,
                "depths": [1, 1],
                "num_heads": [2, 2],
                "window_size": 4,
                "num_labels": C,
            },
            {"pixel_values": images()[0]},
        ),
        "ConvNextForImageClassification": (
            "ConvNextConfig",
            {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 2, 1], "num_labels": C},
            {"pixel_values": images()[0]},
        ),
        "ResNetForImageClassification": (
            "ResNetConfig",
            {
                "embedding_size": 8,
                "hidden_sizes": [8, 16],
                "depths": [1, 1],
                "num_labels": C,
            },
            {"pixel_values": images()[0]},
        ),
    }
    for name, (config, options, inputs) in networks.items():

        def make(
            name: str = name, config: str = config, options: Any = options, inputs: Any = inputs
        ) -> Given:
            return Given(getattr(hf, name)(getattr(hf, config)(**options)), inputs)

        yield f"transformers/{name}", make

    def tagger() -> Given:
        net = hf.BertForTokenClassification(hf.BertConfig(**text))
        return Given(net, tokens(), labels=(6, 12))

    yield "transformers/BertForTokenClassification", tagger


def networks() -> dict[str, Callable[[], Given]]:
    """Return how to make each network, by its name."""
    global _operators
    _operators = declare_operators()  # before torchvision is imported, and as long as it is used
    return dict([*_timm(), *_torchvision(), *_transformers()])


def small() -> dict[str, Callable[[], Given]]:
    """Return the networks that are hard to read: heads declared first, twice, as functions, on several features."""
    from ..collapsemeter_torch import running_networks as nets

    vectors = (torch.randn(12, 4, generator=torch.Generator().manual_seed(0)),)
    of_rows = [nets.PlainNet, nets.Scaled, nets.Capped, nets.Adjusted, nets.Permuted]
    of_rows += [nets.Functional, nets.Averaged, nets.Repeated, nets.DependsOnData]

    def maker(kind: type[nn.Module], inputs: tuple[torch.Tensor, ...], rows: int) -> Any:
        return lambda: Given(kind(), inputs, labels=(rows,), classes=3)

    found = {f"small/{kind.__name__}": maker(kind, vectors, 12) for kind in of_rows}
    found["small/ResNet"] = maker(nets.ResNet, images(16), 6)
    found["small/VisionTransformer"] = maker(nets.VisionTransformer, images(16), 6)
    return found


def of_transformers() -> dict[str, Callable[[], Given]]:
    """Return those that need no library but transformers: small enough for the default tests."""
    return dict(_transformers())
