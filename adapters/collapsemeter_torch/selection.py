"""Which layers, which head, how many classes: what a meter chooses when the first forward has run."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from collapsemeter.adapter.memory import Memory
from collapsemeter.adapter.network import Scores
from collapsemeter.adapter.reduction import check_reduction, reduction_of, row_width
from collapsemeter.adapter.selection import Layers, Selection, listed, matching, select_layers
from collapsemeter.adapter.settings import Settings
from collapsemeter.system.suggest import did_you_mean

from .layers import innermost, named_layers
from .learnt import Learnt
from .memory import plan_of, restored_plan
from .sharding import whole_shapes
from .study import Study, study
from .weights import Getter, weights_of

_HEAD_KIND = "an nn.Linear"
_NO_END = "not the end of a block; name it in layers= to watch it"
HeadOption = str | None | tuple[str | nn.Module, Getter]


@dataclass(frozen=True, eq=False)
class Learner:
    """The user's choices, until the network has run and they can be resolved."""

    model: nn.Module
    layers: Layers
    head: HeadOption
    num_classes: int | None
    settings: Settings  # but for the number of classes
    scores: Scores
    max_layers: int
    memory: Memory = "auto"
    criterion: nn.Module | None = None
    wide_sums: bool = False

    def check(self) -> None:
        """Raise ValueError where names alone tell that what was asked for does not fit the model."""
        named = named_layers(self.model)
        if not callable(self.layers) and self.layers != "auto":
            matching(named, [self.layers] if isinstance(self.layers, str) else list(self.layers))
        name, getter = self._named_head(named)
        if name is None or name == "auto":
            return
        if name not in named:
            raise ValueError(
                f"head={name!r} is not a layer of the model; it has {listed(named)}"
                f"{did_you_mean(name, named)}"
            )
        with whole_shapes(self.model):
            weight, _ = weights_of(named[name], getter)
            _check_outputs(name, named[name], weight, self.num_classes)

    def learn(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Learnt:
        """Run the network once without a trace, and choose what to watch.

        Raises
        ------
        ValueError
            If what was asked for does not fit the network.
        """
        with whole_shapes(self.model):
            return self._learn(args, kwargs)

    def _learn(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Learnt:
        root, named = innermost(self.model), named_layers(self.model)
        told = self._study(root, named, args, kwargs)
        name, getter = self._named_head(named)
        network = told.network
        if (name is None or network.head is None) and not self._fits(network.width):
            network = replace(network, width=None)  # features, and no scores of these classes
        if network.width is not None and self.criterion is not None:
            _check_criterion(self.criterion, network.width)
        selection = select_layers(
            network,
            named,
            self.layers,
            name,
            max_layers=self.max_layers,
            head_kind=_HEAD_KIND,
            model_name=type(self.model).__name__,
        )
        modules = {name: named[name] for name in selection.watched}
        inner = {
            name: _NO_END
            if why.startswith("not all of the signal") and name in told.passed
            else why
            for name, why in selection.skipped.items()
        }
        selection = replace(selection, modules=modules, skipped=inner)
        settings = replace(self.settings, num_classes=selection.classes(self.num_classes))
        labelled = kwargs.get("labels") is not None
        learnt = Learnt(
            selection,
            settings,
            told.layouts,
            self.scores,
            getter,
            channels_first=told.channels_first,
            selects=told.selects,
            sequences=tuple(
                name
                for name in selection.layers
                if name in told.sequences and reduction_of(settings.reduction, name) == "auto"
            ),
            turned=told.turned,
            reordered=told.reordered,
            labelled=labelled,
        )
        if name not in ("auto", None):
            _check_head(learnt, told)
        check_reduction(settings.reduction, selection.watched)
        return self._within_memory(learnt, told)

    def _within_memory(self, learnt: Learnt, told: Study) -> Learnt:
        """Choose what every layer keeps, from the widths that the forward told."""
        widths, unknown = {}, []
        for name in learnt.selection.layers:
            how = reduction_of(learnt.settings.reduction, name)
            width = row_width(told.shapes.get(name, ()), told.layouts.get(name), how)
            if width is None:
                unknown.append(name)
            else:
                widths[name] = width
        head, width = learnt.selection.head, learnt.head_width()
        if head is not None and width is not None:
            widths[head] = width
        plan, costs = plan_of(
            widths,
            unknown,
            learnt.settings,
            self.memory,
            self.model,
            told,
            wide_sums=self.wide_sums,
        )
        return replace(learnt, plan=plan, costs=costs)

    def _study(
        self,
        root: nn.Module,
        named: Mapping[str, nn.Module],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Study:
        learn = partial(
            study,
            root,
            named,
            args,
            scores=self.scores,
            num_classes=self.num_classes,
            with_head=self.head is not None,
        )
        if "labels" in kwargs:  # with labels some models return a loss alone
            unlabelled = {name: value for name, value in kwargs.items() if name != "labels"}
            with contextlib.suppress(Exception):  # some need them
                return learn(unlabelled)
        return learn(kwargs)

    def _fits(self, width: int | None) -> bool:
        """Whether scores of a width may be those of the classes that the user named."""
        return self.num_classes in (None, width) or (self.num_classes, width) == (2, 1)

    def restored(self, saved: Mapping[str, Any], num_classes: int) -> Learnt:
        """Return what an earlier meter knew, for a report before the network has run."""
        named = named_layers(self.model)
        layers, head = tuple(saved["layers"]), saved["head"]
        modules = {name: named[name] for name in (*layers, head) if name in named}
        known = {name: saved[name] for name in ("no_head", "width", "threshold", "place")}
        selection = Selection(layers, head, modules=modules, head_kind=_HEAD_KIND, **known)
        settings = replace(self.settings, num_classes=num_classes)
        plan = restored_plan(saved, settings)
        getter = self._named_head(named)[1]
        return Learnt(selection, settings, {}, self.scores, getter, plan=plan)

    def _named_head(self, named: Mapping[str, nn.Module]) -> tuple[str | None, Getter | None]:
        if not isinstance(self.head, tuple):
            return self.head, None
        module, getter = self.head
        if isinstance(module, str):
            return module, getter
        names = [name for name, layer in named.items() if layer is module]
        if not names:
            raise ValueError(f"head=({type(module).__name__}, ...): the model has no such module")
        return names[0], getter


def _check_outputs(
    name: str, module: nn.Module, weight: Tensor | None, num_classes: int | None
) -> None:
    """Raise unless a head that the user named has one output a class."""
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise ValueError(
            f"head={name!r} is a {type(module).__name__}: name {_HEAD_KIND}, or pass head=None"
        )
    if num_classes is not None and len(weight) not in (
        {1, 2} if num_classes == 2 else {num_classes}
    ):
        raise ValueError(
            f"head {name!r} has {len(weight)} outputs and num_classes={num_classes}: they must agree; pass "
            "head=None to measure without a head"
        )


def _check_criterion(criterion: nn.Module, width: int) -> None:
    """Raise ValueError if the loss itself has the weights that make scores of what the network returns."""
    for name, parameter in criterion.named_parameters():
        shape = () if nn.parameter.is_lazy(parameter) else tuple(parameter.shape)
        if len(shape) == 2 and width in shape and shape[0] != shape[1]:
            raise ValueError(
                f"criterion {type(criterion).__name__} has a parameter {name!r} of shape {shape} for the {width} columns that the "
                "network returns, which are features then, and no scores: pass num_classes= and head=None"
            )


def _check_head(learnt: Learnt, told: Study) -> None:
    """Raise unless the head that the user named makes the scores."""
    name, module = learnt.selection.head, learnt.selection.head_module
    assert name is not None
    if name not in told.network.order:
        raise ValueError(f"head={name!r} did not run: name the layer that makes the scores")
    weight = weights_of(module, learnt.getter)[0]
    _check_outputs(name, module, weight, learnt.settings.num_classes)
    if learnt.getter is None and told.nearest and name not in told.nearest:
        raise ValueError(
            f"head={name!r} does not make {told.network.place}, but {', '.join(sorted(told.nearest))} "
            "does: name that, or choose other scores with scores="
        )
