"""Cases: networks as people write them, whose head and order only a forward pass tells."""

import numpy as np

from .driver import Case, Make, attached, case, feed
from .oracle import Oracle, agrees, expect
from .streams import spec_of, stream_of

CASES: list[Case] = []
_NO_HEAD = ("no_single_head", "scores_are_not_the_heads")


@case(CASES)
def head_declared_first(make: Make) -> None:
    """The head is what makes the scores, not what is declared last."""
    spec = spec_of(form="head_first")
    agrees(make, spec, stream_of(spec))


@case(CASES)
def functional_tail(make: Make) -> None:
    """A log-softmax by a function after the head keeps the order of its scores: the head stays the head."""
    spec = spec_of(form="functional_tail")
    agrees(make, spec, stream_of(spec))


@case(CASES)
def one_score_behind_a_sigmoid(make: Make) -> None:
    """A single probability decides between two classes at one half, not at zero."""
    spec = spec_of(num_classes=2, form="one_score")
    agrees(make, spec, stream_of(spec, counts=(56, 40)))


@case(CASES)
def a_sequence_with_one_label(make: Make) -> None:
    """A sequence with one label is averaged over its positions, without a word from the user."""
    spec = spec_of(positions=(4,), form="one_label")
    agrees(make, spec, stream_of(spec))


@case(CASES)
def layers_declared_in_reverse(make: Make) -> None:
    """Layers are reported in the order in which data reach them, not in that of their declaration."""
    spec = spec_of(form="reversed")
    stream = stream_of(spec)
    with attached(make, spec, stream) as driver:
        report, truth = driver.report(), Oracle(spec, stream)
        truth.check_moments(driver.moments())
        variance = truth.layer(final=False).per_class["variance"]
        scales = [
            float(np.nanmax(layer.per_class["variance"] / variance)) for layer in report.values()
        ]
        expect(
            scales in ([4.0, 1.0], [4.0, 1.0, 1.0]) or np.allclose(scales[:2], [4, 1], rtol=1e-4),
            f"layers {list(report)} have variances of {scales} times what the head reads: the layer that doubles "
            "its input is the first to run",
        )
        expect(len(report) in (2, 3), f"the report has the layers {list(report)}")


@case(CASES)
def two_heads(make: Make) -> None:
    """Where two maps make the scores together no weight is the head's: NC4 is of the scores, NC3 is absent
    and says why.
    """
    spec = spec_of(form="two_heads")
    stream = stream_of(spec)
    with attached(make, spec) as driver:
        feed(driver, stream)
        report, truth = driver.report(), Oracle(spec, stream).layer(final=True)
        name, layer = list(report.items())[-1]
        measured = [metric for metric in layer if metric.startswith("nc3")]
        expect(not measured, f"layer {name!r} has {', '.join(measured)}, and no one head")
        code = layer.reason("nc3_cosine")
        expect(
            code in _NO_HEAD,
            f"NC3 of layer {name!r} is absent because of {code!r}, not of {_NO_HEAD}",
        )
        for metric in ("nc4_mismatch", "ncc_accuracy"):
            expect(
                layer.get(metric) == truth[metric],
                f"{metric} of layer {name!r} is {layer.get(metric)!r}, the scores decide {truth[metric]!r}",
            )


@case(CASES)
def a_repeated_layer(make: Make) -> None:
    """A layer that runs twice in one forward is reported once for each call, in their order."""
    spec = spec_of(form="repeated")
    stream = stream_of(spec)
    with attached(make, spec, stream) as driver:
        truth = Oracle(spec, stream)
        report = truth.check(driver)
        calls = [name.partition("#")[2] for name in report][:-1]
        expect(calls == ["0", "1"], f"the report has the layers {list(report)}: expected two calls")
