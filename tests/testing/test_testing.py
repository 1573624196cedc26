"""The conformance kit: a third party's adapter passes it, and every case can fail.

`Net` is the toy framework of adapters/README.md, and `ToyMeter` the adapter for it.
Each `sabotage` is the toy with one fault that real adapters have had, and is caught by a named case.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

import collapsemeter as cm
from collapsemeter import testing
from collapsemeter.adapter.selection import Selection
from collapsemeter.stats import sampling
from collapsemeter.stats.moments import ClassMoments
from collapsemeter.stats.namespace import Numpy
from collapsemeter.stats.sketch import row_hashes
from collapsemeter.stats.sums import Sums
from collapsemeter.testing import streams
from collapsemeter.testing.oracle import Oracle, rows_and_labels

README = Path(__file__).parents[2] / "adapters" / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)

# The toy framework and its adapter are those of the guide: the last two blocks run the cases.
_toy: dict = {"__name__": "collapsemeter_toy"}
exec(compile("\n".join(BLOCKS[:-2]), README.name, "exec"), _toy)
Net, ToyLayer, ToyMeter, ToyDriver = (
    _toy[name] for name in ("Net", "ToyLayer", "ToyMeter", "ToyDriver")
)


# Passing


@pytest.mark.parametrize("case", testing.CASES)
def test_a_third_partys_adapter_passes(case):
    case(ToyDriver)


# Failing: the toy with one fault each

SABOTAGES = {}


def sabotage(*cases):
    """List a driver, or a meter for the toy driver, that these cases must catch."""

    def listed(cls):
        if issubclass(cls, ToyMeter):
            cls = type(cls.__name__, (ToyDriver,), {"meter_class": cls, "__doc__": cls.__doc__})
        SABOTAGES.update({(cls.__name__, case): cls for case in cases})
        return cls

    return listed


class RawMoments(Numpy):
    """No shift is ever set: the sums are raw first and second moments."""

    settled = True


@sabotage("near_collapse_under_an_offset", "merge", "save_and_load", "reset")
class RawSecondMoments(ToyMeter):
    xp = RawMoments(np.float32)


class ShiftOnce(Numpy):
    def if_any(self, flags, change, table):
        is_shift = not isinstance(table, tuple)
        return table if is_shift and table.any() else change(table)


@sabotage("near_collapse_under_an_offset")
class ShiftsOfTheFirstBatchOnly(ToyMeter):
    """Classes that first come later are summed about zero."""

    xp = ShiftOnce(np.float32)


class Product(Numpy):
    def residuals(self, rows, table, labels, used):
        with np.errstate(invalid="ignore"):
            return (rows - table[labels]) * used[:, None]


@sabotage("ignored_labels", "nonfinite_rows_skipped", "tokens", "many_classes")
class MaskByProduct(ToyMeter):
    xp = Product(np.float32)


class HalfCounters(Numpy):
    def add_counts(self, total, labels, flags):
        return super().add_counts(total.astype(np.float16), labels, flags).astype(np.float16)


@sabotage("many_rows")
class CountersInHalfPrecision(ToyMeter):
    xp = HalfCounters(np.float32)


class HalfSums(Numpy):
    def to_float(self, rows):
        return super().to_float(np.asarray(rows).astype(np.float16))


@sabotage("near_collapse_under_an_offset")
class HalfPrecisionArithmetic(ToyMeter):
    xp = HalfSums(np.float32)

    def see(self, layer, output):
        with np.errstate(over="ignore", invalid="ignore"):
            super().see(layer, output)


class HalfSquares(Numpy):
    def square_norms(self, rows):
        with np.errstate(over="ignore"):
            return super().square_norms(rows.astype(np.float16)).astype(np.float32)


@sabotage("float16")
class SquaresInHalfPrecision(ToyMeter):
    xp = HalfSquares(np.float32)


class CountsEveryRow(Numpy):
    def add_counts(self, total, labels, flags):
        return super().add_counts(total, labels, np.ones_like(flags))


@sabotage("many_classes", "ignored_labels")
class LeftOutRowsCountForTheFirstClass(ToyMeter):
    xp = CountsEveryRow(np.float32)


class NeverEmpty(Numpy):
    def add_counts(self, total, labels, flags):
        return np.maximum(super().add_counts(total, labels, flags), 1)


@sabotage("absent_class")
class AbsentClassesCountedOnce(ToyMeter):
    xp = NeverEmpty(np.float32)


@sabotage("imbalance")
class SingleRowsHaveNoClass(ToyMeter):
    """A variance needs two rows, so a class of one is left out."""

    def tally(self, layer):
        tally = super().tally(layer)
        counts = np.where(tally.sums.counts == 1, 0, tally.sums.counts)
        return replace(tally, sums=with_parts(tally.sums, counts=counts))


def with_parts(sums, **parts):
    return Sums(**{part.name: getattr(sums, part.name) for part in fields(Sums)} | parts)


@sabotage("one_class")
class NeedsTwoClasses(ToyMeter):
    def compute(self, phase):
        if (self.layers["head"].sums.counts > 0).sum() < 2:
            raise ZeroDivisionError("no between-class scatter")
        return super().compute(phase)


@sabotage("more_classes_than_features")
class AsManyClassesAsFeatures(ToyMeter):
    """The axes of the head's weight taken for each other."""

    def head(self):
        head = super().head()
        rows = np.arange(head.weight.shape[0]) % head.weight.shape[1]
        return cm.Head(head.weight[rows], head.bias[rows])


@sabotage("one_batch", "near_collapse_under_an_offset")
class HeadWithoutBias(ToyMeter):
    def head(self):
        return cm.Head(super().head().weight)


@sabotage("one_batch")
class HeadTransposed(ToyMeter):
    def head(self):
        return cm.Head(super().head().weight.T.copy())


@sabotage("ignored_labels", "ignore_index_of_a_class", "tokens", "same_sample")
class ForgetsIgnoreIndex(ToyDriver):
    def feed(self, features, labels):
        chosen = self.meter.settings.ignore_index
        super().feed(
            features,
            np.where(labels == chosen, 1, labels) if labels.ndim == 1 else np.maximum(labels, 0),
        )


@sabotage("ignore_index_of_a_class")
class KnowsNoOtherIgnoreIndex(ToyDriver):
    def attach(self):
        options = {k: v for k, v in self.spec.options.items() if k != "ignore_index"}
        self.meter = ToyMeter(self.net, self.spec.num_classes, **options)


def without(*options):
    """A driver that does not pass these options on."""

    class Forgetful(ToyDriver):
        def attach(self):
            remaining = {k: v for k, v in self.spec.options.items() if k not in options}
            self.meter = ToyMeter(self.net, self.spec.num_classes, **remaining)

    Forgetful.__name__ = f"Ignores_{'_'.join(options)}"
    return Forgetful


sabotage("every_scatter")(without("scatter"))


@sabotage("every_scatter")
class SketchesEveryBatchAlike(ToyMeter):
    """Row numbers that begin again with every batch: equal signs, so that the sum is biased."""

    def hashes(self):
        self.numbers = self.numbers - self.next_row
        try:
            return super().hashes()
        finally:
            self.numbers = self.numbers + self.next_row


@sabotage("every_number_of_groups")
class DealsByTheBatch(ToyMeter):
    """The place of a row in its batch says in which group it is."""

    def groups(self, number):
        return np.arange(len(self.numbers)) % number if number else None


sabotage("every_number_of_groups")(without("groups"))
sabotage("every_convention")(without("convention"))
sabotage("nonfinite_rows_raise", "nonfinite_rows_propagated")(without("nonfinite"))
sabotage("same_sample")(without("seed"))


@sabotage("nonfinite_rows_skipped", "ignored_labels")
class RefusesNonfinite(ToyDriver):
    def feed(self, features, labels):
        if not np.isfinite(features).all():
            raise ValueError("NaN or Inf")
        super().feed(features, labels)


# Batches


@sabotage("one_batch", "ragged_batches")
class CountsTwice(ToyMeter):
    """The conservation check of the core notices."""

    def __init__(self, net, num_classes, **options):
        super().__init__(net, num_classes, **options)
        net.watchers.append(self.see)

    def close(self):
        super().close()
        super().close()


@sabotage("one_batch", "ragged_batches", "frozen_pass")
class CountsAndExpectsTwice(ToyDriver):
    """A fault that no check of the adapter's own can see."""

    def feed(self, features, labels):
        super().feed(features, labels)
        super().feed(features, labels)


@sabotage("ragged_batches", "tokens")
class DropsTheLastPartialBatch(ToyDriver):
    def feed(self, features, labels):
        self.full = max(getattr(self, "full", 0), len(features))
        if len(features) == self.full:
            super().feed(features, labels)


@sabotage("single_rows")
class SkipsBatchesOfOne(ToyDriver):
    def feed(self, features, labels):
        if len(features) > 1:
            super().feed(features, labels)


@sabotage("images")
class AveragesOverChannels(ToyMeter):
    def see(self, layer, output):
        super().see(layer, np.moveaxis(output, -1, 1) if output.ndim == 4 else output)


@sabotage("tokens")
class TokensInAnotherOrder(ToyMeter):
    def see(self, layer, output):
        super().see(layer, output[:, ::-1] if output.ndim == 3 else output)


@sabotage("bfloat16", "float16")
class NamesTheDtypeOfTheSums(ToyMeter):
    def tally(self, layer):
        return replace(super().tally(layer), feature_dtype="float32")


# Networks


@sabotage("two_heads")
class TakesOneOfTwoHeads(ToyMeter):
    def selection(self):
        return Selection(tuple(self.net.calls), "head")


@sabotage("layers_declared_in_reverse")
class OrdersByDeclaration(ToyMeter):
    def selection(self):
        return Selection(tuple(reversed(self.net.calls)), "head")


@sabotage("one_score_behind_a_sigmoid")
class DecidesAtZero(ToyMeter):
    def see(self, layer, output):
        if layer == "scores" and output.shape[-1] == 1:
            output = output + 0.5
        super().see(layer, output)


@sabotage("a_repeated_layer")
class AddsCallsTogether(ToyMeter):
    def see(self, layer, output):
        super().see(layer.partition("#")[0], output)

    def selection(self):
        return Selection(("body",), "head")


@sabotage("a_sequence_with_one_label")
class RefusesSequences(ToyMeter):
    def see(self, layer, output):
        if output.ndim == 3 and len(self.shape) == 1 and layer != "scores":
            raise ValueError("which row of the sequence?")
        super().see(layer, output)


@sabotage("head_declared_first", "functional_tail")
class FindsNoHead(ToyMeter):
    def selection(self):
        return Selection((*self.net.calls, "head"))


# Labels


@sabotage("one_hot_labels")
class TakesIntegersOnly(ToyDriver):
    def feed(self, features, labels):
        if labels.dtype.kind == "f":
            raise TypeError("labels must be integers")
        super().feed(features, labels)


@sabotage("float_labels", "binary_labels")
class RefusesFloats(ToyDriver):
    def feed(self, features, labels):
        if labels.dtype.kind == "f" and labels.shape[-1] != self.spec.num_classes:
            raise TypeError("labels must be integers")
        super().feed(features, labels)


@sabotage("displaced_first_rows")
class CallsItsSumsExact(ToyMeter):
    """Float32 sums are handed over as float64, and so without bounds of their rounding."""

    def tally(self, layer):
        tally = super().tally(layer)
        if tally is None:
            return None
        wide = {part.name: getattr(tally.sums, part.name) for part in fields(Sums)}
        wide |= {k: v.astype(np.float64) for k, v in wide.items() if getattr(v, "ndim", 0) > 0}
        wide["counts"] = tally.sums.counts
        return replace(tally, sums=Sums(**wide))


@sabotage("rows_of_zeros")
class TakesZerosForTheFirstClass(ToyDriver):
    def feed(self, features, labels):
        super().feed(features, labels.argmax(1) if labels.dtype.kind == "f" else labels)


@sabotage("rows_of_zeros")
class DropsRowsOfZeros(ToyDriver):
    def feed(self, features, labels):
        remaining = labels.any(axis=1)
        super().feed(features[remaining], labels[remaining])


@sabotage("column_labels")
class TakesColumnsForTokens(ToyDriver):
    def feed(self, features, labels):
        if labels.shape == (len(features), 1):
            labels = np.broadcast_to(labels, (len(features), features.shape[-1]))
        super().feed(features, labels)


@sabotage("narrow_labels")
class TakesLabelsForUnsigned(ToyDriver):
    def feed(self, features, labels):
        super().feed(features, labels.view(np.uint8) if labels.dtype == np.int8 else labels)


@sabotage("labels_out_of_range")
class WrapsLabels(ToyDriver):
    def feed(self, features, labels):
        wrong = (labels != -100) & ((labels < 0) | (labels >= self.spec.num_classes))
        super().feed(features, np.where(wrong, labels % self.spec.num_classes, labels))


@sabotage("labels_out_of_range")
class DropsWrongLabels(ToyDriver):
    def feed(self, features, labels):
        wrong = (labels < 0) | (labels >= self.spec.num_classes)
        super().feed(features[~wrong], labels[~wrong])


@sabotage("soft_labels")
class TakesTheLargestPart(ToyDriver):
    def feed(self, features, labels):
        super().feed(features, labels.argmax(1) if labels.dtype.kind == "f" else labels)


@sabotage("largest_parts")
class TakesTheFirstOfEqualParts(ToyDriver):
    def feed(self, features, labels):
        super().feed(features, labels.argmax(1) if labels.dtype.kind == "f" else labels)


@sabotage("labels_of_another_length")
class CutsToTheShorter(ToyDriver):
    def feed(self, features, labels):
        length = min(len(features), len(labels))
        super().feed(features[:length], labels[:length])


@sabotage("labels_of_another_length")
class CountsWhatItRefuses(ToyDriver):
    """The part that fits is counted before the error is raised."""

    def feed(self, features, labels):
        length = min(len(features), len(labels))
        super().feed(features[:length], labels[:length])
        if len(features) != len(labels):
            raise ValueError("features and labels differ in length")


# The sample


@sabotage("same_sample", "reset", "save_and_load")
class KeepsTheFirstRows(ToyMeter):
    def hashes(self):
        """Where the rows go in the sketch of a wide layer, and with which sign."""
        chosen = self.settings
        return row_hashes(self.numbers, chosen.sketch_rows, chosen.seed, sampling.low_32_bits)

    def slots(self, size):
        fits = (self.numbers >= 0) & (self.numbers < size)
        return np.where(fits, self.numbers, size)


@sabotage("same_sample")
class DrawsAnother(ToyMeter):
    def hashes(self):
        """Where the rows go in the sketch of a wide layer, and with which sign."""
        chosen = self.settings
        return row_hashes(self.numbers, chosen.sketch_rows, chosen.seed, sampling.low_32_bits)

    def slots(self, size):
        return sampling.reservoir_slots(self.numbers, size, self.settings.seed + 1)


@sabotage("sample_spans_a_batch")
class TheEarlierRowStays(ToyMeter):
    def hashes(self):
        """Where the rows go in the sketch of a wide layer, and with which sign."""
        chosen = self.settings
        return row_hashes(self.numbers, chosen.sketch_rows, chosen.seed, sampling.low_32_bits)

    def slots(self, size):
        drawn = sampling.drawn_slots(np.maximum(self.numbers, 0).astype(np.uint32), 0)
        slots = np.where(self.numbers < size, self.numbers, drawn.astype(np.int64))
        slots[(self.numbers < 0) | (slots > size)] = size
        _, first = np.unique(slots, return_index=True)
        return np.where(np.isin(np.arange(len(slots)), first), slots, size)


@sabotage("same_sample")
class NumbersEveryRow(ToyMeter):
    @contextmanager
    def batch(self, labels):
        with super().batch(labels):
            self.numbers = np.where(
                self.flat >= 0, self.expected_rows + np.arange(len(self.flat)), -1
            )
            yield


# Life


@sabotage("report_midway")
class ReportsAndForgets(ToyDriver):
    def report(self):
        report = super().report()
        self.meter.next_row = 0
        return report


@sabotage("reset")
class ResetForgetsTheSample(ToyMeter):
    """The sums start again, and the sample of before stays."""

    def reset(self):
        for state in self.layers.values():
            state.sums = ToyLayer(state.rows.shape[1], self.settings).sums
        self.expected_rows = self.batches = self.next_row = 0


@sabotage("reset")
class ResetKeepsShifts(ToyMeter):
    def reset(self):
        shifts = {name: state.sums.shift for name, state in self.layers.items()}
        super().reset()
        self.xp = RawMoments(np.float32)
        for name, shift in shifts.items():
            self.layers[name] = ToyLayer(shift.shape[1], self.settings)
            self.layers[name].sums.shift = shift


@sabotage("reset")
class ResetKeepsNumbering(ToyMeter):
    def reset(self):
        self.layers, self.expected_rows, self.batches = {}, 0, 0


@sabotage("merge")
class AddsSumsOfOtherShifts(ToyDriver):
    def merge(self, other):
        a, b = (driver.meter.layers["head"].sums for driver in (self, other))
        added = {
            part.name: getattr(a, part.name) + getattr(b, part.name)
            for part in fields(Sums)
            if part.name != "shift"
        }
        return ClassMoments.from_sums(with_parts(a, **added), "float32", "live")


@sabotage("merge_with_nothing")
class MergeNeedsRows(ToyDriver):
    def merge(self, other):
        a, b = self.moments(), other.moments()
        share = a.rows / b.rows
        return replace(a.merge(b), means=(a.means * share + b.means) / (1 + share))


@sabotage("merge")
class MergeChangesItsOperand(ToyDriver):
    def moments(self):
        return getattr(self, "merged", None) or super().moments()

    def merge(self, other):
        self.merged = super().merge(other)
        return self.merged


@sabotage("save_and_load")
class LoadForgetsNumbering(ToyMeter):
    def load(self, path):
        super().load(path)
        self.next_row = 0


@sabotage("save_and_load")
class SavesInHalfPrecision(ToyMeter):
    def load(self, path):
        super().load(path)
        for state in self.layers.values():
            state.sums.squares = state.sums.squares.astype(np.float16).astype(np.float32)


@sabotage("frozen_pass")
class AlwaysLive(ToyDriver):
    def report(self):
        return self.meter.compute("live")


@sabotage("no_trace")
class LeavesAHook(ToyMeter):
    def close(self):
        pass


@sabotage("no_trace")
class LeavesAnAttribute(ToyMeter):
    def __init__(self, net, num_classes, **options):
        super().__init__(net, num_classes, **options)
        net.collapse_meter = self


@sabotage("no_trace")
class MovesTheWeights(ToyDriver):
    def feed(self, features, labels):
        super().feed(features, labels)
        self.net.weight = self.net.weight + np.float32(1e-3)


BY_NAME = {case.__name__: case for case in testing.CASES}


@pytest.mark.parametrize(("name", "case"), SABOTAGES, ids=str)
def test_every_sabotage_is_caught_by_its_case(name, case):
    with pytest.raises(AssertionError) as caught:
        testing.check_adapter(SABOTAGES[name, case], [BY_NAME[case]])
    assert str(caught.value).startswith(f"1 of 1 cases failed\n\n{case}: ")


def test_every_case_is_known_to_be_able_to_fail():
    assert {case for _, case in SABOTAGES} == set(BY_NAME)


@pytest.mark.parametrize(
    ("name", "case", "told"),
    [
        (
            "HeadWithoutBias",
            "one_batch",
            "one_batch: nc3_bias of layer 'head' is .*, the core says .* of the same features",
        ),
        (
            "CountsTwice",
            "one_batch",
            "layer 'body' is not measured .rows_counted_twice.. It warns: layer 'body' saw 192 of 96",
        ),
        (
            "CountsAndExpectsTwice",
            "one_batch",
            "has provenance rows=192, it should be 96",
        ),
        (
            "HeadTransposed",
            "one_batch",
            "lacks nc2_equinorm_head .reason: no_head.",
        ),
        (
            "DropsWrongLabels",
            "labels_out_of_range",
            "labels that name no class were taken, and no warning of the report speaks of labels",
        ),
        ("CutsToTheShorter", "labels_of_another_length", "23 rows came with 24 labels, without"),
        ("LeavesAHook", "no_trace", "before attach the model was .*, after close .*watchers"),
        ("AlwaysLive", "frozen_pass", "phase is 'live', these batches were fed 'frozen-eval'"),
        ("NeedsTwoClasses", "one_class", "adapter raised ZeroDivisionError: no between-class"),
        (
            "AbsentClassesCountedOnce",
            "absent_class",
            "layer .body. saw 97 of 96 label rows.*This case: A class without",
        ),
        ("MergeChangesItsOperand", "merge", "the moments have ignored=2, it should be 1"),
    ],
)
def test_a_failure_says_what_the_adapter_did(name, case, told):
    with pytest.raises(AssertionError) as caught:
        testing.check_adapter(SABOTAGES[name, case], [BY_NAME[case]])
    assert re.search(told, str(caught.value), re.DOTALL), str(caught.value)


# `check_adapter` itself


def test_all_cases_at_once():
    assert testing.check_adapter(ToyDriver) == dict.fromkeys(BY_NAME, "passed")


def test_what_is_not_supported_is_printed_with_its_reason(capsys):
    outcome = testing.check_adapter(without("scatter"), unsupported={"every_scatter": "too slow"})
    assert outcome.pop("every_scatter") == "unsupported: too slow"
    assert set(outcome.values()) == {"passed"}
    assert capsys.readouterr().out == "every_scatter is not checked: too slow\n"


def test_every_failure_is_told_and_the_rest_runs():
    faulty = SABOTAGES["RefusesNonfinite", "nonfinite_rows_skipped"]
    with pytest.raises(AssertionError, match=f"^[0-9]+ of {len(BY_NAME)} cases failed") as caught:
        testing.check_adapter(faulty)
    told = "nonfinite_rows_skipped: the driver or its adapter raised ValueError: NaN or Inf"
    assert told in str(caught.value).splitlines()
    assert "\n\nignored_labels: " in str(caught.value)


@pytest.mark.parametrize(
    ("unsupported", "message"),
    [
        (
            {"complex64": "none"},
            "unsupported names 'complex64', which is no case: a_repeated_layer, ",
        ),
        ({"float16": ""}, "unsupported={'float16': ''}: give the reason in words"),
    ],
)
def test_unsupported_must_name_a_case_and_a_reason(unsupported, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        testing.check_adapter(ToyDriver, unsupported=unsupported)


# The data


def every_stream(monkeypatch):
    """Every (spec, batches) that the cases hold an adapter against."""
    seen = []
    true_init = Oracle.__init__

    def noted(self, spec, batches):
        batches = list(batches)
        seen.append((spec, batches))
        true_init(self, spec, batches)

    monkeypatch.setattr(Oracle, "__init__", noted)
    testing.check_adapter(ToyDriver)
    monkeypatch.undo()
    return seen


def test_no_decision_is_left_to_rounding(monkeypatch):
    """Fractions of rows are compared exactly, so no row may be near a tie, by the head or by means."""
    for spec, batches in every_stream(monkeypatch):
        oracle = Oracle(spec, batches)
        rows = np.concatenate([rows_and_labels(*batch)[0] for batch in batches])
        rows = rows[np.isfinite(rows).all(axis=1)]
        assert not streams.in_doubt(spec, rows).any()
        centres = oracle.moments.means[oracle.moments.counts > 0]
        centres = centres[np.isfinite(centres).all(axis=1)]
        if len(centres) > 1:
            distances = ((rows[:, None] - centres) ** 2).sum(axis=2)
            first, second = np.sort(distances, axis=1)[:, :2].T
            # A mean in float32 is off by less than 1e-5 of the spread; so is a distance.
            assert (second - first > 1e-5 * (first + second)).all()


def test_every_stream_names_few_shapes(monkeypatch):
    """A compiling framework makes a graph for each."""
    shapes = {
        (spec.num_classes, spec.dtype, features.shape)
        for spec, batches in every_stream(monkeypatch)
        for features, _ in batches
    }
    assert len(shapes) <= 24


def test_bfloat16_rounds_to_nearest_even():
    spec = streams.spec_of(dtype="bfloat16")
    eps = 2.0**-7
    given = np.array([1.0, 1 + eps * 0.49, 1 + eps * 0.5, 1 + eps * 1.5, -1 - eps * 0.51])
    expected = [1.0, 1.0, 1.0, 1 + 2 * eps, -1 - eps]
    np.testing.assert_array_equal(streams.representable(given, spec), expected)


def test_maps_have_their_row_as_an_exact_mean():
    spec = streams.spec_of(positions=(2, 2))
    stream = streams.stream_of(spec)
    rows = stream.features.mean(axis=(1, 2), dtype=np.float32)
    np.testing.assert_array_equal(rows, stream.features.mean(axis=(1, 2), dtype=np.float64))
    assert np.ptp(stream.features, axis=(1, 2)).min() > 0


def test_float16_squares_overflow_in_their_case():
    spec = streams.spec_of(dtype="float16")
    rows = streams.stream_of(spec, scale=512.0).features.astype(np.float16)
    assert np.isfinite(rows).all()
    with np.errstate(over="ignore"):
        assert np.isinf(rows * rows).any()


# The documentation


def test_the_readme_runs(capsys):
    exec(compile("\n".join(BLOCKS), README.name, "exec"), {"__name__": "collapsemeter_toy"})
    assert capsys.readouterr().out == f"{len(testing.CASES)} cases passed\n"


def test_the_readme_names_every_case():
    text = README.read_text()
    assert [name for name in BY_NAME if f"`{name}`" not in text] == []
