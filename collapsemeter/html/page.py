"""From a history to one HTML page: what is on it, in what order."""

import base64
import hashlib
import json
import os
import re
from importlib.resources import files
from typing import Any

from ..comparison.result import Comparison
from ..metrics.catalogue import NOTATION, PAPERS
from ..metrics.layer import to_json_value
from ..report.criteria import Criteria
from ..report.drawing import evenly
from ..report.figure import checked_history, layer_colours, layer_names
from ..report.history import Entries, History, run_of
from ..report.origin import origin
from ..report.report import CollapseReport
from ..report.trends import began
from ..stats.undefined import FLAGS, REASONS
from ..system.escaping import printable, printable_lines
from ..system.files import write_atomically
from ..version import __version__
from . import class_tables, tables, verdicts
from .class_figures import class_pictures
from .figures import depth_pictures, six_panels

MOST_EMBEDDED = 500_000  # entries of all matrices that the page's JSON may hold: 10 MB
_LISTED = 12  # layers in the legend
_OPEN = 40  # lines of provenance that are not folded


def write_html(
    path: str | os.PathLike[str],
    history: Entries,
    *,
    comparison: Comparison | None = None,
    title: str | None = None,
    criteria: Criteria | None = None,
) -> None:
    """Write what `render` returns; the file is the old one or the new one, never half of one.

    Raises
    ------
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from collapsemeter import LayerReport
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "report.html"
    >>> write_html(path, [(0, CollapseReport({"fc": LayerReport({"nc1_pinv": 0.25})}))])
    >>> path.read_text(encoding="utf-8")[:15]
    '<!doctype html>'
    """
    page = render(history, comparison=comparison, title=title, criteria=criteria)
    write_atomically(path, page.encode())


def render(
    history: Entries,
    *,
    comparison: Comparison | None = None,
    title: str | None = None,
    criteria: Criteria | None = None,
) -> str:
    """Return the HTML report of a run: one page that needs no network and no other file.

    Parameters
    ----------
    history : sequence of (int, CollapseReport)
        Epoch and report, all of one phase; one entry for a single measurement. The last one, of the run
        that wrote last, is what the page is about; the others of its run are its past. See `History`.
    comparison : Comparison, optional
        From `compare`: verdicts per layer, and dashed lines in the figures.
    title : str, optional
    criteria : Criteria, optional
        What counts as collapsed; by default what did for the comparison.

    Returns
    -------
    str
        The same text for the same arguments.

    Raises
    ------
    ValueError
        If the history holds no layer or mixes phases, or the comparison has other criteria.
    ImportError
        If Jinja or matplotlib is missing.

    Examples
    --------
    >>> from collapsemeter import LayerReport
    >>> page = render([(0, CollapseReport({"a<b>": LayerReport({"nc1_pinv": 0.25})}))])
    >>> "a&lt;b&gt;" in page, "a<b>" in page.split('type="application/json"')[0]
    (True, False)
    """
    templates = environment()
    steps = checked_history(history)
    if not steps[-1][1].layers:
        raise ValueError(
            f"the last report, of epoch {steps[-1][0]}, holds no layer: leave it out of the history"
        )
    context = _context(steps, comparison, title, _agreed(criteria, comparison))
    text: str = templates.get_template("report.html.j2").render(context)
    # A lone surrogate, which JSON can carry into a name, has no place in UTF-8.
    return text.encode("utf-8", "backslashreplace").decode()


def environment() -> Any:
    """Return the templates' environment; ImportError where Jinja or matplotlib is missing."""
    try:
        import jinja2
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "the HTML report needs Jinja and matplotlib: pip install 'collapsemeter[report]'"
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_packaged),
        autoescape=True,
        finalize=_printed,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    return environment


def _printed(value: Any) -> Any:
    """Return text as it stands on the page: no character of a name turns or ends the text around it."""
    # Markup, which is text too, is made here or escaped already.
    return printable(value) if type(value) is str else value


def _breakable(name: str) -> Any:
    """Return a name that may go on in the next line after a dot, a slash or an underscore."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([./_])", r"\1<wbr>", str(escape(printable(name)))))


def _packaged(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _agreed(criteria: Criteria | None, comparison: Comparison | None) -> Criteria:
    """Return the criteria of the whole page: it must not say two things of one layer."""
    if comparison is None:
        return Criteria.chosen(criteria)
    if criteria not in (None, comparison.criteria):
        raise ValueError(
            f"criteria={criteria!r}, but the comparison was made with {comparison.criteria!r}: "
            "pass the same to compare"
        )
    return comparison.criteria


def _context(
    history: History, comparison: Comparison | None, title: str | None, criteria: Criteria
) -> dict[str, Any]:
    from markupsafe import Markup, escape

    past = history.last
    report = past[-1][1]
    final = report.final
    style, script = _packaged("style.css"), _packaged("script.js")
    record = to_json_value(report.provenance)
    provenance = printable_lines(json.dumps(record, indent=2, ensure_ascii=False))
    return {
        "title": title or f"Neural collapse at {list(report)[-1]}",
        "version": __version__,
        "policy": _policy(style, script),
        "style": Markup(style),
        "script": Markup(script),
        "report": report,
        "final_name": list(report)[-1],
        "begin": origin(report),
        "steps": [step for step, _ in past],
        "several": len(history) > 1,
        "earlier_runs": history.earlier_runs(),
        "warnings": [*report.warnings, *history.notes],
        "summary": report.summary(criteria),
        "cards": verdicts.cards(past, criteria),
        "bands": verdicts.bands(criteria),
        "cautions": _cautions(report),
        "panels": six_panels(history),
        "trends": tables.log_slopes(history),
        "since": began(history.terminal_phase()),
        "depth_words": report.depth_profile().sentences(),
        "legend": _legend(history),
        "over_depth": depth_pictures(past, comparison),
        "over_classes": class_pictures(report, comparison),
        "counts": class_tables.counts_in_words(final.per_class),
        "pairs": class_tables.worst_pairs(final),
        "classes": class_tables.worst_classes(final),
        "values": tables.all_values(report),
        "meanings": tables.meanings(),
        "notation": NOTATION,
        "conventions": tables.CONVENTIONS,
        "used": final.provenance.get("convention", {}),
        "papers": PAPERS,
        "comparison": comparison,
        "compared": None if comparison is None else tables.compared(comparison),
        "provenance": Markup(escape(provenance)),
        "folded": provenance.count("\n") > _OPEN,
        "origins": tables.layer_origins(report),
        "data": Markup(_embedded(history, criteria)),
        "has_matrices": _few_matrices(report),
    }


def _policy(style: str, script: str) -> str:
    """Return a policy that allows images in the page, its own style and script, and no request whatever."""

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest(style)}'; "
        f"script-src 'sha256-{digest(script)}'; base-uri 'none'; form-action 'none'"
    )


def _cautions(report: CollapseReport) -> list[tuple[str, str]]:
    """Return every flag once, in words, with the layers that have it."""
    layers: dict[str, list[str]] = {}
    for name, layer in report.items():
        for code in layer.flags:
            layers.setdefault(code, []).append(name)
    words = FLAGS | REASONS
    return [(words.get(code, code), ", ".join(names)) for code, names in layers.items()]


def _legend(history: History) -> list[tuple[str, str, bool]]:
    """Return layers, their colours and whether each is the final one: all, or some at even distances."""
    from matplotlib.colors import to_hex

    names = layer_names(history)
    colours = layer_colours(names)
    shown = evenly(len(names), _LISTED)
    return [(names[i], to_hex(colours[names[i]]), i == len(names) - 1) for i in shown]


def _few_matrices(report: CollapseReport) -> bool:
    sizes = [matrix.size for layer in report.values() for matrix in layer.matrices.values()]
    return sum(sizes) <= MOST_EMBEDDED


def _embedded(history: History, criteria: Criteria) -> str:
    """Return the last report, and the metrics of all of them, as one line of JSON for a script element."""
    report = history[-1][1]
    metrics = [
        {
            **({"run": run_of(past)} if run_of(past) else {}),
            "step": step,
            "layers": {name: layer.to_dict()["metrics"] for name, layer in past.items()},
        }
        for step, past in history
    ]
    record = report.to_dict(matrices=_few_matrices(report))
    record |= {"summary": report.summary(criteria), "history": metrics} | history.over_time()
    text = json.dumps(record, allow_nan=False, separators=(",", ":"))
    # No tag or comment can begin in it, so nothing ends the element early.
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
