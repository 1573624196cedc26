"""Knowledge of a network that one forward gives: its scores, head and layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from collapsemeter import Head
from collapsemeter.adapter.network import Scores
from collapsemeter.adapter.reduction import Layout
from collapsemeter.adapter.selection import Selection
from collapsemeter.adapter.settings import Settings
from collapsemeter.adapter.tally import classifier

from .layers import named_layers
from .memory import UNPLANNED, Plan
from .outputs import scores_of
from .sharding import gathered, local, whole
from .weights import Getter, gives_otherwise, weights_of


@dataclass(frozen=True, eq=False)
class Learnt:
    """A network's scores, head and layers, once it has run.

    ``layouts`` say where layers have their channels, ``weights`` read the head's.
    """

    selection: Selection
    settings: Settings
    layouts: Mapping[str, Layout | None]
    asked: Scores
    getter: Getter | None = None
    channels_first: bool = False  # classes are on axis 1 of the scores
    selects: bool = False  # the scores are those that the head gave at some positions
    plan: Plan = UNPLANNED
    costs: tuple[str, ...] = ()  # memory and time, in words
    sequences: tuple[str, ...] = ()  # layers that give (B, T, d), by the rule of their own
    turned: frozenset[str] = frozenset()  # layers that give (T, B, d)
    reordered: frozenset[str] = frozenset()  # layers whose samples may have another order
    labelled: bool = False  # the model is given its labels, and may return nothing but a loss

    def head(self, model: nn.Module) -> Head | None:
        """Return the head's weights on the host, as they are now; None where they do not make the scores any more.

        Where they are spread, all ranks must ask.
        """
        module = self.selection.head_module
        if module is None:
            return None
        # Another one may have its name now, with its hooks, as where layers are quantised.
        module = named_layers(model).get(self.selection.head or "", module)
        with gathered(model, module):
            weight, bias = weights_of(module, self.getter)
            if weight is None or (self.getter is None and gives_otherwise(module, weight, bias)):
                return None
            return classifier(_host(weight), None if bias is None else _host(bias))

    @cached_property
    def scores_are_rows(self) -> bool:
        """Whether a tensor (B, C) that the model returns is the scores, one row for each decision."""
        return self.asked == "auto" and not self.channels_first and self.selection.width is not None

    def describe(self, full: bool = False) -> str:
        """Return in words what is watched, and why the rest is not."""
        notes = list(self.costs)
        if self.sequences:
            notes.append(
                "where a sequence has one label, the mean over its positions is taken (under the attention "
                f"mask) of {', '.join(self.sequences)}; reduction= takes others"
            )
        return self.selection.describe(self.settings.num_classes, full=full, notes=notes)

    def saved(self) -> dict[str, Any]:
        """Return what `Learner.restored` needs, as plain values."""
        selection = self.selection
        return {
            "layers": list(selection.layers),
            "head": selection.head,
            "no_head": selection.no_head,
            "width": selection.width,
            "threshold": selection.threshold,
            "place": selection.place,
            **self.plan.saved(),
        }

    def provenance(self) -> dict[str, Any]:
        """Return what a report says of how features were made of sequences."""
        if not self.sequences:
            return {}
        rule = "mean over positions, under the attention mask, where a sequence has one label"
        return {"sequences": {"rule": rule, "layers": list(self.sequences)}}

    def head_width(self) -> int | None:
        """Return how many features the head reads."""
        known = self.plan.widths.get(self.selection.head or "")
        if known is not None:
            return known
        module = self.selection.head_module
        weight = None if module is None else weights_of(module, self.getter)[0]
        return None if weight is None else int(weight.shape[1])

    def head_layout(self) -> Layout:
        """Return where the head's input has its channels."""
        convolves = isinstance(self.selection.head_module, nn.modules.conv._ConvNd)
        return Layout(channels_first=convolves, width=self.head_width())

    def tensors_of_scores(self, output: Any) -> list[Tensor]:
        """Return the scores among what the model returned; where they are not told apart, all of its tensors."""
        try:
            return [scores_of(output, self.asked, self.settings.num_classes)[0]]
        except ValueError:
            return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]

    def rows_of_scores(self, output: Any) -> Tensor | None:
        """Return the scores among what the model returned, one row of C for each decision."""
        if self.selection.width is None or output is None:
            return None
        classes = self.settings.num_classes
        among, _ = scores_of(output, self.asked, classes)
        scores: Tensor = local(among.detach())
        if scores.ndim == 0:  # a loss
            return None
        if scores.ndim == 1:
            return scores[:, None]
        classes_last = scores.movedim(1, -1) if self.channels_first else scores
        return classes_last.flatten(0, -2)


def _host(parameter: Tensor) -> Any:
    return whole(parameter.detach()).to("cpu", torch.float64).numpy()
