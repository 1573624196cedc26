"""The NumPy core as the oracle: what an adapter must say of the batches that it was fed."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..adapter.layer_report import CAUSE_CODES
from ..adapter.tally import classifier
from ..metrics.decisions import decide
from ..metrics.layer import LayerReport
from ..metrics.measure import measure
from ..report.report import CollapseReport
from ..stats.head import Head
from ..stats.moments import ClassMoments
from ..stats.sampling import reservoir_slots
from ..stats.sums import EPS, MIXED, UNLABELLED
from .driver import Batch, Driver, Features, Labels, Make, Spec, attached, feed
from .streams import Stream

FeatureRows = npt.NDArray[np.float64]
LOOSEST = 1e-4
_FIELDS = ("kind", "phase", "feature_dtype", "ignored", "nonfinite", "unlabelled", "mixed")
_LEFT_OUT = ("ignored_rows", "nonfinite_rows", "unlabelled_rows", "mixed_rows")
_COUNTED = ("rows", *_LEFT_OUT, "classes_present")
_DESCRIBED = ("scatter", "sketch_rows", "feature_dtype", "phase")


def tolerance(rows: int) -> float:
    """Bound the relative error of float32 sums: n residuals lose at most n eps of their magnitudes, with a factor for the shift."""
    return min(4 * rows * EPS["float32"], LOOSEST)


def expect(condition: bool, sentence: str) -> None:
    """Raise AssertionError with the sentence, whatever Python's flags are."""
    if not condition:
        raise AssertionError(sentence)


def rows_and_labels(
    features: Features, labels: Labels
) -> tuple[FeatureRows, npt.NDArray[np.int64]]:
    """Return one row and one label for each: maps averaged, sequences token by token."""
    wide = np.asarray(features, np.float64)
    if labels.ndim == 1 and wide.ndim > 2:
        wide = wide.mean(axis=tuple(range(1, wide.ndim - 1)))
    return wide.reshape(-1, wide.shape[-1]), labels.reshape(-1).astype(np.int64)


class Oracle:
    """The core's answer for batches; labels that are neither classes nor codes of rows left out are as if they had not been fed."""

    def __init__(self, spec: Spec, batches: Iterable[Batch]) -> None:
        self.spec, settings = spec, spec.settings
        parts = [rows_and_labels(features, labels) for features, labels in batches]
        parts = [self._valid(rows, labels) for rows, labels in parts]
        rows, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
        moments = ClassMoments.from_batch(
            rows,
            labels,
            spec.num_classes,
            scatter=settings.kind(spec.width),
            phase=spec.phase,
            ignore_index=settings.ignore_index,
            nonfinite="propagate" if settings.propagate else "skip",
            sketch_rows=settings.sketch_rows,
            seed=settings.seed,
            groups=settings.afforded_groups(spec.width),
        )
        self.moments = replace(moments, feature_dtype=spec.dtype)
        self.rtol = tolerance(len(rows))
        sample = sampled_rows(spec, [part_labels for _, part_labels in parts])
        self.decisions = decide(self.moments, rows[sample], labels[sample], head=self.head)

    def _valid(
        self, rows: FeatureRows, labels: npt.NDArray[np.int64]
    ) -> tuple[FeatureRows, npt.NDArray[np.int64]]:
        known = (labels >= 0) & (labels < self.spec.num_classes)
        known |= np.isin(labels, (self.spec.settings.ignore_index, UNLABELLED, MIXED))
        return rows[known], labels[known]

    @property
    def head(self) -> Head:
        """The head, in float64."""
        return classifier(self.spec.weight.astype(np.float64), self.spec.bias.astype(np.float64))

    def layer(self, *, final: bool) -> LayerReport:
        """Measure what the head reads, or a layer before it."""
        return measure(
            self.moments,
            head=self.head if final else None,
            decisions=self.decisions,
            convention=self.spec.settings.named_convention,
        )

    def check(self, driver: Driver, *, moments: bool = True) -> CollapseReport:
        """Hold a driver's report, and its moments, against the core; return the report."""
        report = driver.report()
        self.check_report(report)
        if moments:
            self.check_moments(driver.moments())
        return report

    def check_report(self, report: CollapseReport) -> None:
        """Raise AssertionError unless the report is right in every layer."""
        expect(len(report) > 0, "the report has no layer")
        expect(
            report.phase == self.spec.phase,
            f"the report's phase is {report.phase!r}, these batches were fed {self.spec.phase!r}",
        )
        *before, final = report
        for name in before:
            _check_layer(name, report, self.layer(final=False), self.rtol, final=False)
        _check_layer(final, report, self.layer(final=True), self.rtol, final=True)

    def check_moments(self, moments: ClassMoments) -> None:
        """Raise AssertionError unless the moments are right."""
        truth, rtol = self.moments, self.rtol
        for name in _FIELDS:
            a, b = getattr(moments, name), getattr(truth, name)
            expect(a == b, f"the moments have {name}={a!r}, it should be {b!r}")
        _close("counts of the moments", moments.counts, truth.counts)
        _close("within-class traces of the moments", moments.traces, truth.traces, rtol)
        if moments.sketch is not None and truth.sketch is not None:
            expect(
                moments.seeds == truth.seeds,
                f"the sketch was hashed with the seeds {sorted(moments.seeds)}, it should be {sorted(truth.seeds)}",
            )
            signs, expected = np.asarray(moments.signs), np.asarray(truth.signs)
            _close("sums of signs in the sketch", signs, expected)
        # The features are float32, and so may be a mean that an adapter keeps.
        bounds = {"means": 8 * EPS["float32"], "scatter": rtol, "sketch": rtol}
        for name, bound in bounds.items():
            part, expected = getattr(moments, name), getattr(truth, name)
            if part is not None and expected is not None:
                size = float(np.nanmax(np.abs(expected), initial=0.0))
                _close(f"{name} of the moments", part, expected, atol=bound * size)
        self._check_groups(moments)

    def _check_groups(self, moments: ClassMoments) -> None:
        groups, truth = moments.groups, self.moments.groups
        if groups is None or truth is None:
            numbers = (0 if part is None else part.number for part in (groups, truth))
            expect(groups is truth, "the moments have {} groups, it should be {}".format(*numbers))
            return
        _close("counts of the groups", groups.counts, truth.counts)
        size = float(np.nanmax(truth.squares, initial=0.0))
        _close("squares of the groups", groups.squares, truth.squares, atol=self.rtol * size)
        # A sum of n residuals whose squares sum to q is at most sqrt(n q).
        size = math.sqrt(size * float(truth.counts.max(initial=1)))
        _close("sums of the groups", groups.sums, truth.sums, atol=self.rtol * size)


def agrees(
    make: Make,
    spec: Spec,
    stream: Stream,
    as_given: Callable[[Labels], Labels] = lambda labels: labels,
) -> CollapseReport:
    """Feed a stream to a new driver, its labels in another form, and hold it against the core."""
    with attached(make, spec) as driver:
        feed(driver, [(features, as_given(labels)) for features, labels in stream])
        return Oracle(spec, stream).check(driver)


def sampled_rows(spec: Spec, batches: Iterable[npt.NDArray[np.int64]]) -> list[int]:
    """Return which rows are in the sample that `collapsemeter.stats.sampling` draws, in order of slots."""
    settings = spec.settings
    size = settings.sample_size(spec.width)
    row_of_slot: dict[int, int] = {}
    first = number = 0
    for labels in batches:
        usable = (labels >= 0) & (labels < spec.num_classes) & (labels != settings.ignore_index)
        numbers = np.where(usable, number + np.cumsum(usable) - 1, -1)
        slots = reservoir_slots(numbers, size, settings.seed)
        row_of_slot |= {int(slot): first + row for row, slot in enumerate(slots) if slot < size}
        first, number = first + len(labels), number + int(usable.sum())
    return [row_of_slot[slot] for slot in sorted(row_of_slot)]


def _check_layer(
    name: str, report: CollapseReport, truth: LayerReport, rtol: float, *, final: bool
) -> None:
    layer = report[name]
    said = f" It warns: {'; '.join(report.warnings)}." if report.warnings else ""
    for code in ("degraded", *CAUSE_CODES):
        expect(code not in layer.flags, f"layer {name!r} is not measured ({code}).{said}")
    for key in _COUNTED + _DESCRIBED + (("nc4_rows", "nc4_sampled") if final else ()):
        value, expected = layer.provenance.get(key), truth.provenance[key]
        expect(
            value == expected,
            f"layer {name!r} has provenance {key}={value!r}, it should be {expected!r}.{said}",
        )
    # Whether a layer before the head knows the network's decisions is the adapter's choice.
    optional = () if final else ("nc4", "ncc")
    for metric in truth:
        if metric in layer:
            _check_metric(name, metric, layer, truth, rtol)
        else:
            expect(
                metric.startswith(optional),
                f"layer {name!r} lacks {metric} (reason: {layer.reason(metric)}).{said}",
            )
    errors, expected = layer.standard_errors, truth.standard_errors
    expect(
        errors.keys() == expected.keys(),
        f"layer {name!r} has standard errors of {list(errors)}, expected: {list(expected)}",
    )
    for metric, error in expected.items():
        _close(f"standard error of {metric}", errors[metric], error, rtol)
    for kind in ("estimates", "intervals"):
        actual, ends = getattr(layer, kind), getattr(truth, kind)
        if final:
            what = f"layer {name!r} has {kind} of {sorted(actual)}, expected: {sorted(ends)}"
            expect(actual.keys() == ends.keys(), what)
        for metric in actual.keys() & ends.keys():
            what = f"{kind} of {metric} in layer {name!r}"
            _close(what, actual[metric], ends[metric], rtol, rtol)
    per_class = {"count": 0.0, "variance": rtol} | ({"ncc_accuracy": 0.0} if final else {})
    for part, bound in per_class.items():
        what = f"{part} per class of layer {name!r}"
        _close(what, layer.per_class[part], truth.per_class[part], bound)
    expect(
        layer.flags == truth.flags or not final,
        f"layer {name!r} has flags {layer.flags}, expected: {truth.flags}",
    )


def _check_metric(
    name: str, metric: str, layer: LayerReport, truth: LayerReport, rtol: float
) -> None:
    value, expected = layer[metric], truth[metric]
    if math.isnan(expected):
        expect(
            math.isnan(value) and layer.reason(metric) == truth.reason(metric),
            f"{metric} of layer {name!r} is {value!r} (reason {layer.reason(metric)!r}), it should be "
            f"undefined: {truth.reason(metric)!r}",
        )
        return
    # Fractions of rows are exact; NC1 is small near collapse, so only its ratio means something.
    exact, ratio = metric.startswith(("nc4", "ncc")), metric.startswith("nc1")
    bound = 1e-12 if exact else rtol * (abs(expected) + (0.0 if ratio else 1.0))
    expect(
        abs(value - expected) <= bound,
        f"{metric} of layer {name!r} is {value!r}, the core says {expected!r} of the same features "
        f"(allowed error {bound:.1e})",
    )


def _close(
    what: str, actual: npt.ArrayLike, truth: npt.ArrayLike, rtol: float = 0.0, atol: float = 0.0
) -> None:
    values, expected = np.asarray(actual), np.asarray(truth)
    expect(
        values.shape == expected.shape,
        f"{what}: shape {values.shape}, it should be {expected.shape}",
    )
    if not np.allclose(values, expected, rtol=rtol, atol=atol, equal_nan=True):
        raise AssertionError(
            f"{what}: {np.array2string(values, threshold=20)}, the core says "
            f"{np.array2string(expected, threshold=20)} (allowed error {rtol:.1e} relative, {atol:.1e} absolute)"
        )
