"""Which layers of a toy network are watched, and what is said of the others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from collapsemeter.adapter.network import Network
from collapsemeter.adapter.selection import Selection, select_layers

# Declared in another order than the data flow; `spare` never runs.
NAMED = {"fc": 3, "spare": 5, "body": "b", "body.lin": 16, "stem": 8, "drop": "d"}
NETWORK = Network(
    order=("stem", "body", "body.lin", "drop", "fc"),
    points=("stem", "body"),
    head="fc",
    width=3,
    skipped={"drop": "passes its input on"},
)


def select(layers="auto", head="auto", network=NETWORK, **options) -> Selection:
    return select_layers(
        network, NAMED, layers, head, head_kind="a Linear", model_name="Toy", **options
    )


def test_auto_watches_the_cut_points_and_the_head_and_every_other_layer_has_a_reason():
    chosen = select()
    assert (chosen.watched, chosen.head) == (["stem", "body", "fc"], "fc")
    assert chosen.skipped == {
        "body.lin": "inside body, which is watched",
        "drop": "passes its input on",
        "spare": "it did not run",
    }
    assert select(max_layers=2).watched == ["body", "fc"]
    assert "max_layers=" in select(max_layers=2).skipped["stem"]
    assert select(max_layers=2, head=None).watched == ["stem", "body"]
    with pytest.raises(ValueError, match="max_layers=0: watch at least one layer"):
        select(max_layers=0)


def test_layers_are_in_the_order_of_the_data_however_they_are_named():
    assert select(["body", "st*"]).layers == ("stem", "body")
    assert select(["spare", "stem"]).layers == ("stem", "spare")  # it may run later
    named = select(lambda name, kind: kind == "int", predicate_argument=lambda x: type(x).__name__)
    assert named.layers == ("stem", "body.lin", "spare")
    assert named.skipped["body"] == "its parts are watched"
    assert select("stem").skipped["body"] == "not chosen by layers="


def test_a_head_is_the_networks_or_named():
    assert select(head="body.lin").head == "body.lin"
    assert select(head=None).no_head == "no_head"
    two = replace(NETWORK, head=None, no_head="no_single_head")
    assert select(network=two).no_head == "no_single_head"
    with pytest.raises(ValueError, match=r"head='fcc' is not a layer .* did you mean 'fc'\?"):
        select(head="fcc")


def test_what_cannot_be_watched_is_refused_by_name():
    unseen = {"stem": "is inside a loop: watch 'body' instead"}
    assert select(unseen=unseen).layers == ("body",)
    assert select(unseen=unseen).skipped["stem"] == unseen["stem"]
    with pytest.raises(ValueError, match="layer 'stem' is inside a loop: watch 'body' instead"):
        select("stem", unseen=unseen)
    with pytest.raises(
        ValueError, match=r"layers=\[\] selects nothing of Toy; its modules: fc, spare"
    ):
        select([], None)


@pytest.mark.parametrize(
    ("width", "num_classes", "classes"), [(10, None, 10), (1, None, 2), (1, 2, 2), (None, 7, 7)]
)
def test_classes_are_the_width_of_the_scores(width, num_classes, classes):
    assert Selection((), width=width).classes(num_classes) == classes


def test_classes_that_nobody_knows_or_that_disagree_are_an_error():
    with pytest.raises(ValueError, match="no scores to count classes by: pass num_classes="):
        Selection(()).classes(None)
    with pytest.raises(ValueError, match="the output holds scores of width 3 and num_classes=10"):
        Selection((), width=3).classes(10)


def test_a_selection_says_what_is_watched_and_what_is_not():
    skipped = {"x": "inside a, which is watched", "y": "inside b, which is watched", "z": "why"}
    selection = Selection(("a\nb",), skipped=skipped, head_kind="a Linear", note="by calls")
    assert selection.describe(9, notes=["4 MiB"]).splitlines() == [
        "collapsemeter watches 9 classes in: a\\nb",
        "  no head: no classifier head belongs to this layer; NC3 is not measured; name a Linear with head=",
        "  by calls",
        "  4 MiB",
        "  not watched: 2 inside of a watched layer, 1 why; describe(full=True) lists them",
    ]
    assert "  not x: inside a, which is watched\n" in selection.describe(9, full=True)
    assert "fc (input of the head)" in Selection((), "fc").describe(2)


def test_the_message_is_short_however_large_the_model():
    names = tuple(f"a.rather.long.name.of.a.block.{number}" for number in range(400))
    selection = Selection(names, skipped={str(number): f"reason {number}" for number in range(900)})
    lines = selection.describe(10).splitlines()
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 100


def test_equal_selections_are_one_key_whatever_modules_they_hold():
    assert hash(Selection(("a",), modules={"a": []})) == hash(Selection(("a",)))
    assert Selection(("a",), skipped={"b": "why"}) == Selection(("a",))
