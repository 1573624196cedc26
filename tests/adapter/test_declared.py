"""Which layers of a toy model are watched, and what is said of the others."""

from __future__ import annotations

import pytest

from collapsemeter.adapter.declared import select_layers
from collapsemeter.adapter.selection import Selection, matching

# A model as names of layers: the linear ones with their outputs, all others with None.
MODEL = {"stem": 8, "body": None, "body.lin": 16, "drop": None, "fc": 3}


def select(layers="auto", head="auto", num_classes=None, model=MODEL, **options) -> Selection:
    return select_layers(
        model,
        layers,
        head,
        num_classes,
        blocks=lambda head: (["body"], {"drop": f"its output is the input of {head}"}),
        outputs=lambda outputs: outputs,
        head_kind="a Linear",
        model_name="Toy",
        **options,
    )


def test_blocks_and_the_head_are_watched_and_every_other_layer_has_a_reason():
    chosen = select()
    assert (chosen.layers, chosen.head, chosen.width) == (("body",), "fc", 3)
    assert chosen.watched == ["body", "fc"]
    assert chosen.skipped == {
        "drop": "its output is the input of fc",
        "stem": "not the end of a block; name it in layers= to watch it",
        "body.lin": "inside body, which is watched",
    }


def test_reasons_tell_the_place_of_a_layer():
    named = select("body.lin", "body.lin", passes_on=lambda outputs: outputs is None)
    assert named.skipped["body"] == "it holds the head"
    assert named.skipped["drop"] == "passes its input on"
    assert named.skipped["stem"] == "not chosen by layers="
    assert select("body.*").skipped["body"] == "its parts are watched"
    model = MODEL | {"drop.in": None}
    assert select(model=model).skipped["drop.in"] == "inside drop: its output is the input of fc"
    assert select(never_ran={"stem": "it never ran"}).skipped["stem"] == "it never ran"


def test_patterns_keep_the_order_of_the_model_and_predicates_get_what_is_theirs():
    assert select(["fc", "st*", "body"]).layers == ("stem", "body")
    chosen = select(lambda name, kind: kind == "int", predicate_argument=lambda x: type(x).__name__)
    assert chosen.layers == ("stem", "body.lin")
    with pytest.raises(ValueError, match=r"layers=\['bdy'\]: 'bdy' matches no module; .* 'body'\?"):
        matching(MODEL, ["bdy"])
    with pytest.raises(ValueError, match="3 is a int, and names are strings; the model has stem"):
        matching(MODEL, [3])


def test_a_head_is_found_by_its_outputs_or_by_name():
    assert select(num_classes=16).head == "body.lin"
    assert select(num_classes=2, model={"score": 1}).head == "score"
    assert select(head=None).watched == ["body"]
    with pytest.raises(ValueError, match=r"head='fcc' is not a layer .* did you mean 'fc'\?"):
        select(head="fcc")
    with pytest.raises(ValueError, match="head='drop' is a NoneType: name a Linear, or pass head="):
        select(head="drop")
    with pytest.warns(RuntimeWarning, match="no head is watched.*'fc'.*pass num_classes=3, name"):
        chosen = select(num_classes=10)
    assert chosen.skipped["fc"] == "it has 3 outputs, which is no head of num_classes=10"


def test_what_cannot_be_watched_is_refused_by_name_and_never_the_head():
    unseen = {"fc": "is inside a loop: watch 'body' instead"}
    assert select(unseen=unseen).head == "body.lin"
    assert select(unseen=unseen).skipped["fc"] == unseen["fc"]
    with pytest.raises(ValueError, match="layer 'fc' is inside a loop: watch 'body' instead"):
        select("fc", None, unseen=unseen)
    with pytest.raises(ValueError, match=r"layers=\[\] selects nothing of Toy; its modules: stem"):
        select([], None)
