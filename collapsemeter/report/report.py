"""The report of a measurement: named numbers, and in words why one is missing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..metrics.layer import LayerReport, to_json_value
from ..system.escaping import printable
from ..system.suggest import did_you_mean
from ..version import __version__
from .criteria import Criteria, pinv_words, sentences
from .depth_profile import BOUND, DepthProfile, depth_profile, separation_fit
from .file import FORMAT, VERSION, Fields, read_json, report_fields
from .imbalance_words import imbalance_words
from .report_table import TABLE as TABLE
from .report_table import table_lines
from .tags import Tags, chosen_metrics, of_report
from .training_error import RECORDED_ERROR, checked_error
from .trust_notes import cautions

LayerT = TypeVar("LayerT")


class NamedLayers(Mapping[str, LayerT]):
    """The layers of a network in order, by name: what reports and comparisons are."""

    layers: dict[str, LayerT]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)


@dataclass(frozen=True, eq=False, repr=False)
class CollapseReport(NamedLayers[LayerReport]):
    """The layers of a network in order, by name: ``report["fc"]["nc1_pinv"]``.

    Attributes
    ----------
    layers : dict of str to LayerReport
    phase : str
        ``live`` (statistics of the training stream), ``frozen-train`` or ``frozen-eval``.
    skipped : dict of str to str
        Layers that were not watched, with the reason.
    warnings : tuple of str
        What the reader must know before trusting a number.
    provenance : dict
        Rows, steps and settings of the whole measurement.

    Examples
    --------
    >>> report = CollapseReport({"fc": LayerReport({"nc1_pinv": 0.25})})
    >>> report["fc"]["nc1_pinv"], list(report)
    (0.25, ['fc'])
    """

    layers: dict[str, LayerReport]
    phase: str = "frozen-eval"
    skipped: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, layer: str) -> LayerReport:
        try:
            return self.layers[layer]
        except KeyError:
            why = f" (skipped: {self.skipped[layer]})" if layer in self.skipped else ""
            raise KeyError(
                f"no layer is named {layer!r}{why}; measured: {', '.join(self.layers)}"
                f"{did_you_mean(str(layer), self.layers)}"
            ) from None

    def __repr__(self) -> str:
        return f"<CollapseReport {self.summary()}>"

    @property
    def final(self) -> LayerReport:
        """The last layer: the one the head reads, where there is a head."""
        if not self.layers:
            raise KeyError("the report has no layer")
        return self.layers[list(self.layers)[-1]]

    def separation_law(self) -> tuple[float, float]:
        r"""Fit a line to :math:`\log D` against depth, D the separation fuzziness of each layer.

        Returns
        -------
        slope, r : float
            Change of the natural logarithm per layer, and the correlation coefficient; NaN with fewer
            than three layers that have a positive ``nc1_fuzziness``.

        References
        ----------
        He & Su 2023.

        Examples
        --------
        >>> import math
        >>> layers = {f"l{i}": LayerReport({"nc1_fuzziness": 0.5**i}) for i in range(4)}
        >>> slope, r = CollapseReport(layers).separation_law()
        >>> round(slope / math.log(0.5), 12), round(r, 12)
        (1.0, -1.0)
        """
        line = separation_fit(self.layers).line
        return line.slope, line.r

    def depth_profile(
        self, layers: Sequence[str] | None = None, bound: float = BOUND
    ) -> DepthProfile:
        r"""Say what depth does: collapse depth, effective depth, and the law of data separation with its interval.

        Collapse depth is the number of the first layer whose share of variance within classes,
        :math:`\operatorname{tr} S_W / (\operatorname{tr} S_W + \operatorname{tr} S_B)`, is at most the last layer's plus the bound;
        effective depth is that of the first layer whose share of rows with another nearest class centre is.

        Parameters
        ----------
        layers : sequence of str, optional
            Layers that lie on one path, in order; all if left out. Layers on parallel branches have no
            order among them, and stand in that of their calls.
        bound : float
            How far a share may be from the last layer's.

        Returns
        -------
        DepthProfile
            Layers without a value, and later layers beyond the bound, are named; with fewer than three
            layers there is no depth.

        Raises
        ------
        ValueError
            If the bound is no share.
        KeyError
            If no layer has such a name.

        References
        ----------
        Galanti, Galanti & Ben-Shaul 2022 (effective depth); He & Su 2023 (the law).

        Examples
        --------
        >>> ratios = {"conv1": 9.0, "conv2": 0.03, "fc": 0.01}
        >>> report = CollapseReport({n: LayerReport({"nc1_trace_ratio": t}) for n, t in ratios.items()})
        >>> report.depth_profile().collapse.layer
        'conv2'
        """
        names = list(self.layers) if layers is None else list(layers)
        return depth_profile({name: self[name] for name in names}, bound=bound)

    def with_training_error(self, error: float) -> CollapseReport:
        """Return the report with the training error of its epoch, a share of rows, which `History.terminal_phase` reads.

        Parameters
        ----------
        error : float
            Of all training rows, as your loop counted them.

        Raises
        ------
        ValueError
            If it is no share.

        Examples
        --------
        >>> CollapseReport({}).with_training_error(0.02).provenance["training_error"]
        0.02
        """
        return replace(self, provenance={**self.provenance, RECORDED_ERROR: checked_error(error)})

    def summary(self, criteria: Criteria | None = None) -> str:
        """Return one line in words about the final layer, with its worst classes named.

        Parameters
        ----------
        criteria : Criteria, optional
            What counts as collapsed.

        Examples
        --------
        >>> CollapseReport({"fc": LayerReport({"nc1_trace_ratio": 0.25})}).summary()
        'fc (frozen-eval): NC1 partly collapsed: 20 % of the variance is within classes; NC2, NC3 and NC4 not judged: not measured'
        """
        criteria = Criteria.chosen(criteria)
        if not self.layers:
            return "no layer was measured"
        name, layer = list(self.layers)[-1], self.final
        parts = [*sentences(criteria.judge(layer).values()), pinv_words(layer)]
        worst = layer.worst_classes()
        if worst and len(layer.per_class["variance"]) > 2:
            parts.append(f"least collapsed classes {', '.join(map(str, worst))}")
        parts.append(imbalance_words(layer))
        flags = f" [{', '.join(layer.flags)}]" if layer.flags else ""
        return printable(f"{name} ({self.phase}): {'; '.join(filter(None, parts))}{flags}")

    def table(self, metrics: Sequence[str] = TABLE, width: int = 80) -> str:
        """Return a table of layers against metrics as text: values, and what is known of their noise.

        ``0.689 (est. 1.16, 0.98 to 1.36)`` is the value, its estimate without the noise in the class means,
        and the 95 % interval.

        Parameters
        ----------
        metrics : sequence of str
            The columns.
        width : int
            Characters a line at most.

        Raises
        ------
        ValueError
            If no metric has that name.

        Examples
        --------
        >>> layers = {"conv1": LayerReport({"nc1_pinv": 1.5}), "fc": LayerReport({"nc1_pinv": 0.25})}
        >>> print(CollapseReport(layers).table(["nc1_pinv", "nc4_mismatch"]))
        layer  nc1_pinv  nc4_mismatch
        ─────────────────────────────
        conv1       1.5             -
        fc         0.25             -
        """
        notes = [*cautions(self.layers, metrics), *self.warnings]
        return "\n".join(table_lines(self.layers, notes, metrics, width))

    def scalars(
        self, prefix: str = "", metrics: Sequence[str] | Literal["all"] = "all"
    ) -> dict[str, float]:
        """Return the values by tag, for ``self.log_dict`` of a trainer or any logger.

        Tags are the same in every run: ``nc1_pinv/fc``, and ``nc1_pinv/head`` for what the head reads.
        A value that is not finite is left out.

        Parameters
        ----------
        prefix : str
            What every tag begins with, such as ``"train/"``: training and validation are two curves.
            ``{phase}`` in it is the report's phase.
        metrics : sequence of str, or "all"

        Returns
        -------
        dict of str to float

        Raises
        ------
        ValueError
            If no metric has such a name.

        Examples
        --------
        >>> report = CollapseReport({"fc": LayerReport({"nc1_pinv": 0.25, "nc2_etf_error": float("nan")})})
        >>> report.scalars("val/")
        {'val/nc1_pinv/fc': 0.25}
        """
        values = Tags(chosen_metrics(metrics)).of(self)
        return {of_report(prefix, self.phase) + tag: value for tag, value in values.items()}

    def to_dict(self, matrices: bool = False) -> dict[str, Any]:
        """Return plain Python values, NaN as None, ready for JSON and for `from_dict`.

        Parameters
        ----------
        matrices : bool
            Whether the C x C matrices of every layer are in it, which `compare` needs.
        """
        return {
            "format": FORMAT,
            "version": VERSION,
            "collapsemeter": __version__,
            "provenance": to_json_value(self.provenance),
            "phase": self.phase,
            "summary": self.summary(),
            "warnings": list(self.warnings),
            "skipped": dict(self.skipped),
            "depth": to_json_value(self.depth_profile().to_dict()),
            "layers": {name: layer.to_dict(matrices) for name, layer in self.layers.items()},
        }

    def to_json(self, indent: int | None = None, matrices: bool = False) -> str:
        """Return the report as strict JSON (undefined values are null, with their reason).

        Parameters
        ----------
        indent : int, optional
            Spaces a level; one line if left out.
        matrices : bool
            See `to_dict`.

        Examples
        --------
        >>> report = CollapseReport({"fc": LayerReport({"nc1_pinv": float("nan")}, {"nc1_pinv": "one_class"})})
        >>> json.loads(report.to_json())["layers"]["fc"]["metrics"]
        {'nc1_pinv': None}
        """
        return json.dumps(self.to_dict(matrices), indent=indent, allow_nan=False)

    @classmethod
    def from_dict(cls, record: Any) -> CollapseReport:
        """Return the report that `to_dict` wrote, null as NaN and lists as arrays.

        Parameters
        ----------
        record : dict
            As read from JSON.

        Raises
        ------
        ValueError
            If it is not a report, is damaged, or was written by a newer version; in one sentence.

        Examples
        --------
        >>> report = CollapseReport({"fc": LayerReport({"nc1_pinv": 0.25})})
        >>> CollapseReport.from_dict(report.to_dict())["fc"]["nc1_pinv"]
        0.25
        """
        return built(report_fields(record))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CollapseReport:
        """Return the report in a file that holds what `to_json` returned.

        Parameters
        ----------
        path : str or path

        Raises
        ------
        ValueError
            As `from_dict`, with the path; also if the file is not JSON.
        OSError
            If the file cannot be read.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "report.json"
        >>> _ = path.write_text(CollapseReport({"fc": LayerReport({"nc1_pinv": 0.25})}).to_json())
        >>> CollapseReport.load(path)["fc"]["nc1_pinv"]
        0.25
        """
        return built(read_json(Path(path).read_bytes(), os.fspath(path), report_fields))


def built(fields: Fields) -> CollapseReport:
    """Return the report of the arguments that `report_fields` or `line_fields` checked."""
    layers = {name: LayerReport(**layer) for name, layer in fields["layers"].items()}
    return CollapseReport(**{**fields, "layers": layers})
