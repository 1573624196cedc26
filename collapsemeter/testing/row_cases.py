"""Cases: batches, classes, rows that are left out, dtypes, shapes, and the sample of rows."""

from dataclasses import replace

import numpy as np

from ..metrics.rounding_errors import CODE, FLAGGED
from .driver import Case, Make, attached, case, feed
from .oracle import Oracle, agrees, expect
from .streams import NEAR, OFFSET, RAGGED, SIZES, spec_of, stream_of

CASES: list[Case] = []


# Any split of the rows into batches


@case(CASES)
def one_batch(make: Make) -> None:
    """All rows in one batch, with nothing that calls for a warning."""
    spec = spec_of()
    report = agrees(make, spec, stream_of(spec, sizes=(sum(SIZES),)))
    expect(not report.warnings, f"a clean batch raised a warning: {'; '.join(report.warnings)}")


@case(CASES)
def ragged_batches(make: Make) -> None:
    """Batches of 24, 24, 24, 23 and 1 rows.

    A last batch that is dropped or padded shows here, and so does a layer counted twice.
    """
    spec = spec_of()
    agrees(make, spec, stream_of(spec, sizes=RAGGED))


@case(CASES)
def single_rows(make: Make) -> None:
    """Row by row at first.

    Statistics of a batch of one (a mean with no scatter) must be those of a row.
    """
    spec = spec_of()
    agrees(make, spec, stream_of(spec, sizes=(1,) * 24 + (24,) * 3))


@case(CASES)
def near_collapse_under_an_offset(make: Make) -> None:
    """Features at 1000 with a within-class std of 0.001, shuffled and sorted by class.

    Raw second moments in float32, products in TF32 or bfloat16, or a shift set before the class was
    seen, leave no digit of NC1.
    """
    spec = spec_of(offset=OFFSET)
    stream = stream_of(spec, std=NEAR, offset=OFFSET)
    agrees(make, spec, stream)
    agrees(make, spec, stream.sorted())


@case(CASES)
def displaced_first_rows(make: Make) -> None:
    """The first rows of each class lie up to a million standard deviations from the rest.

    A shift that stays among them takes digits from float32 sums: every metric is right to a hundredth, or
    the layer is flagged, or the metric is NaN, with the reason.
    """
    for far in (1e2, 1e4, 1e6):
        spec = spec_of()
        stream = stream_of(spec, std=0.1, sizes=(8, 8, 8, 24, 24, 24))
        stream = replace(stream, features=stream.features + 0)
        stream.features[:8] += np.float32(0.1 * far) * np.arange(1, 7, dtype=np.float32)
        with attached(make, spec, stream) as driver:
            *_, layer = driver.report().values()
        truth = Oracle(spec, stream).layer(final=True)
        for name, value in truth.items():
            refused = layer.reasons.get(name) in (CODE, "within_scatter_rank_deficient")
            if name.startswith(("nc4", "ncc")) or refused or CODE in layer.flags:
                continue
            expect(
                abs(layer[name] - value) <= FLAGGED * abs(value),
                f"{name} is {layer[name]!r}, not {value!r}, and nothing is said of it",
            )


@case(CASES)
def every_scatter(make: Make) -> None:
    """The option scatter= as 'class', 'pooled', 'sketch' and 'trace'.

    What is not kept must be NaN with its reason. Buckets and signs of a sketch are those of
    collapsemeter.stats.sketch, for every seed, by the row numbers of the sample: over all batches, of rows that
    have a class.
    """
    for kind in ("class", "pooled", "trace"):
        spec = spec_of(scatter=kind)
        agrees(make, spec, stream_of(spec))
    for seed in range(2):
        spec = spec_of(scatter="sketch", sketch_rows=16, seed=seed)
        stream = stream_of(spec, sizes=SIZES if seed else RAGGED)
        agrees(make, spec, stream.with_labels(slice(0, 96, 9), -100))


@case(CASES)
def every_number_of_groups(make: Make) -> None:
    """The option groups=: of 4 groups, and of none, over batches of different size.

    Groups are those of collapsemeter.stats.sampling, by the row numbers of the sample, and each keeps its own sums: only
    then are intervals those of the same rows in any other split.
    """
    for groups in (4, 0):
        spec = spec_of(groups=groups, seed=1)
        stream = stream_of(spec, sizes=RAGGED if groups else SIZES)
        agrees(make, spec, stream.with_labels(slice(0, 96, 9), -100))


@case(CASES)
def every_convention(make: Make) -> None:
    """The option convention= must reach the metrics."""
    for convention in ("zhu2021", "he_su2023"):
        spec = spec_of(convention=convention)
        agrees(make, spec, stream_of(spec))


@case(CASES)
def many_rows(make: Make) -> None:
    """More than 4096 rows, then some alone.

    Counters in a half-precision float stick at 256 or 2048, and NC4 is of a sample now.
    """
    spec = spec_of()
    agrees(make, spec, stream_of(spec, (4000, 70, 20, 9), (4096, 1, 1, 1)))


# Classes


@case(CASES)
def imbalance(make: Make) -> None:
    """Classes of 84, 8, 3 and 1 rows: each class needs its own count, and one with a single row has
    no scatter.
    """
    spec = spec_of()
    agrees(make, spec, stream_of(spec, (84, 8, 3, 1)))


@case(CASES)
def absent_class(make: Make) -> None:
    """A class without rows must be absent from every mean over classes, not a class mean of zeros."""
    spec = spec_of()
    agrees(make, spec, stream_of(spec, (50, 30, 0, 16)))


@case(CASES)
def one_class(make: Make) -> None:
    """Rows of a single class: metrics are undefined, with the reason, and nothing is raised."""
    spec = spec_of()
    agrees(make, spec, stream_of(spec, (0, 96, 0, 0)))


@case(CASES)
def more_classes_than_features(make: Make) -> None:
    """Nine classes in four features. A pair of axes taken for each other shows here."""
    spec = spec_of(9, 4)
    agrees(make, spec, stream_of(spec, (20, 15, 12, 11, 10, 9, 8, 7, 4)))


@case(CASES)
def many_classes(make: Make) -> None:
    """A hundred and twenty classes, where native class sums take over: they must drop -100 and rows
    that hold NaN, not wrap them to the last class.
    """
    spec = spec_of(120)
    stream = stream_of(spec, (4,) * 120, (160, 160, 160))
    stream = stream.with_labels(slice(0, 480, 7), -100).with_features((3, 0), np.nan)
    agrees(make, spec, stream.with_features((7, 0), np.nan))


# Rows that are left out


@case(CASES)
def ignored_labels(make: Make) -> None:
    """Rows labelled -100, one of which holds NaN, are left out and counted as ignored.

    A mask by product fails: 0 * NaN is NaN.
    """
    spec = spec_of()
    stream = stream_of(spec).with_labels(slice(0, 96, 5), -100)
    agrees(make, spec, stream.with_features(([10, 45], [2, 3]), np.nan))


@case(CASES)
def ignore_index_of_a_class(make: Make) -> None:
    """The option ignore_index=0, a padding token's label: class 0 is not counted, and not sampled."""
    spec = spec_of(ignore_index=0, sample_rows=24)
    agrees(make, spec, stream_of(spec))


@case(CASES)
def nonfinite_rows_skipped(make: Make) -> None:
    """Rows that hold NaN or Inf are left out and counted; by default they change nothing else."""
    spec = spec_of()
    stream = stream_of(spec).with_features(([3, 40], [0, 5]), np.nan)
    agrees(make, spec, stream.with_features((70, 1), -np.inf))


@case(CASES)
def nonfinite_rows_propagated(make: Make) -> None:
    """Under nonfinite='propagate' such a row is counted and makes its own class NaN, and no other."""
    spec = spec_of(nonfinite="propagate", scatter="class")
    agrees(make, spec, stream_of(spec).with_features((40, 1), np.nan))


@case(CASES)
def nonfinite_rows_raise(make: Make) -> None:
    """Under nonfinite='raise' feed or report raises ValueError on such a row, and not without one."""
    spec = spec_of(nonfinite="raise")
    clean = stream_of(spec)
    agrees(make, spec, clean)
    with attached(make, spec) as driver:
        try:
            feed(driver, clean.with_features((40, 1), np.inf))
            driver.report()
        except ValueError:
            return
    raise AssertionError("a row held Inf under nonfinite='raise', and nothing was raised")


# What the network computes in, and shapes


@case(CASES)
def bfloat16(make: Make) -> None:
    """A network in bfloat16: the cast to float32 comes before any arithmetic, and the report names
    the dtype.
    """
    spec = spec_of(dtype="bfloat16")
    agrees(make, spec, stream_of(spec))


@case(CASES)
def float16(make: Make) -> None:
    """A network in float16, with features whose squares overflow it."""
    spec = spec_of(dtype="float16")
    agrees(make, spec, stream_of(spec, scale=512.0))


@case(CASES)
def images(make: Make) -> None:
    """Maps of 2 x 2 positions: a row is the mean over positions, not over channels."""
    spec = spec_of(positions=(2, 2))
    agrees(make, spec, stream_of(spec))


@case(CASES)
def tokens(make: Make) -> None:
    """Sequences with a label for each token, some -100: every token is a row, in the order of the
    labels.
    """
    spec = spec_of(positions=(4,))
    stream = stream_of(spec, sizes=(9, 9, 6))
    agrees(make, spec, stream)
    padded = stream.with_labels((slice(None), 3), -100)
    agrees(make, spec, padded.with_features((2, 3, 0), np.nan))


# The sample of rows that NC4 is decided on


@case(CASES)
def same_sample(make: Make) -> None:
    """A sample of 20 rows must be that of collapsemeter.stats.sampling, for every seed: drawn over all
    batches, numbering only rows that have a class. The first rows, or a framework's own random
    numbers, are another sample.
    """
    for seed in range(3):
        spec = spec_of(sample_rows=20, seed=seed)
        stream = stream_of(spec, std=2.0, sizes=SIZES if seed else RAGGED)
        agrees(make, spec, stream.with_labels(slice(0, 96, 9), -100))


@case(CASES)
def sample_spans_a_batch(make: Make) -> None:
    """A sample smaller than a batch: of two rows drawn for one slot the later stays."""
    spec = spec_of(sample_rows=7)
    agrees(make, spec, stream_of(spec, std=2.0, sizes=(96,)))
