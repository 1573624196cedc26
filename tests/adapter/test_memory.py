"""What a meter holds stays within its budget, and the last layer gives way last."""

from __future__ import annotations

import pytest

from collapsemeter.adapter.memory import MIB, Holding, memory_plan
from collapsemeter.adapter.settings import Settings

WIDTHS = {f"block{number}": 768 for number in range(15)} | {"head": 768}


def plan(widths=WIDTHS, classes=10, memory="auto", parameters=100 * MIB, **options):
    settings = Settings(classes, **options)
    return memory_plan(widths, settings, parameter_bytes=parameters, memory=memory)


def test_bytes_are_those_of_the_arrays():
    settings = Settings(10, sketch_rows=7)
    sums, rows, apart = 2 * 10 * 30, 5 * 30, 4 * 10 + 4 * 5
    for kind, scatter in {"class": 9000, "pooled": 900, "trace": 0, "sketch": 7 * 40}.items():
        held = Holding(kind, 5).nbytes(30, settings)
        assert held == 4 * (sums + rows + apart + scatter)


def test_groups_take_their_sums_and_counts():
    settings = Settings(10)
    without, held = (Holding("trace", 5, groups).nbytes(30, settings) for groups in (0, 16))
    assert held - without == 4 * 150 * (30 + 4)


def test_hidden_layers_lose_their_groups_before_most_of_their_rows():
    widths = dict.fromkeys(WIDTHS, 64)
    asked = {"widths": widths, "classes": 1000, "groups": 16}
    ample = plan(memory=None, **asked)
    assert {holding.groups for holding in ample.holdings.values()} == {16}
    assert "no intervals" not in str(ample)
    tight = plan(memory=40, **asked)
    assert tight.nbytes <= tight.budget
    assert tight.holdings["head"].groups == 16
    assert {tight.holdings[name].groups for name in widths if name != "head"} == {0}
    assert tight.holdings["block0"].sample_rows >= 256
    assert "no intervals for 15 of 16 layers" in str(tight)
    assert "no intervals for 16 of 16 layers" in str(plan(**asked | {"memory": 1}))
    assert plan(widths, 1000, memory=None).ungrouped == 0


def test_a_layer_of_many_classes_and_features_has_fewer_groups():
    settings = Settings(1000)
    assert [settings.afforded_groups(d) for d in (256, 512, 1024, 2048)] == [16, 8, 4, 0]
    assert Settings(1000, groups=0).afforded_groups(8) == 0
    with pytest.raises(ValueError, match="groups=3: pass 16, 8, 4, or 0"):
        Settings(10, groups=3)


def test_a_small_network_keeps_all_that_is_of_use():
    small = plan({"a": 64, "head": 64}, parameters=0)
    assert set(small.holdings.values()) == {Holding("class", 4096, 16)}
    assert small.nbytes < small.budget == 64 * MIB


def test_hidden_layers_give_way_before_the_last():
    chosen = plan()
    assert chosen.nbytes <= chosen.budget == 64 * MIB
    assert chosen.holdings["head"] == Holding("pooled", 4096, 16)
    assert chosen.holdings["block0"].sample_rows < 4096
    wide = plan(WIDTHS, parameters=2000 * MIB)
    assert wide.holdings["block0"] == Holding("pooled", 4096, 16)


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("memory", [8, 30, 100, 300, 1000])
def test_more_memory_never_keeps_less(classes, memory):
    less, more = plan(classes=classes, memory=memory), plan(classes=classes, memory=2 * memory)
    assert less.nbytes <= more.nbytes
    assert all(less.holdings[n].sample_rows <= more.holdings[n].sample_rows for n in WIDTHS)


def test_what_was_asked_for_by_name_stays_and_too_little_memory_is_said():
    asked = plan(memory=1, scatter="class")
    assert {holding.kind for holding in asked.holdings.values()} == {"class"}
    assert "more than memory=1: watch fewer layers with max_layers=" in str(asked)
    assert str(plan()).startswith("memory: ")
    assert plan(memory=None).holdings["block0"].sample_rows == 4096
    for memory in (0, -1, "1 GB", float("nan")):
        with pytest.raises(ValueError, match=r"memory=.*: pass MiB, 'auto' or None"):
            plan(memory=memory)


def test_scatters_of_classes_are_kept_where_they_cost_no_more_than_a_few_products():
    settings = Settings(10)
    assert settings.kind(64) == "class"
    assert settings.kind(64, class_products=10) == "pooled"
    assert settings.kind(28, class_products=10) == "class"  # 10 x 28 x 28 entries are little
    assert Settings(4).kind(64, class_products=4) == "class"
    assert Settings(10, scatter="class").kind(64, class_products=10) == "class"
    needed = Settings(10, convention="he_su2023")
    assert needed.named_convention.within == "class"
    assert needed.kind(64, class_products=10) == "class"


def test_a_plan_knows_what_scatters_of_classes_cost():
    settings = Settings(10)
    dear = memory_plan({"a": 64, "b": 8}, settings, parameter_bytes=0, class_products=10)
    assert [holding.kind for holding in dear.holdings.values()] == ["pooled", "class"]
