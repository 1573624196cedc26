import pathlib
def sub(path,*pairs):
    p=pathlib.Path(path); s=p.read_text()
    for a,b in pairs:
        assert s.count(a)==1,(path,s.count(a),a)
        s=s.replace(a,b)
    p.write_text(s)
sub("collapsemeter/verdict.py",
('''        return "not judged", f"not judged: NC1 has no value, as {nc1.words}"''','''        return "not judged", str(nc1)'''),
('''    words = f"{band} to {seen.name}{below}: {seen.nc1.words}; {seen.geometry.words}"
    return cast("Status", band), words
''','''    return band, f"{band} to {seen.name}{below}: {seen.nc1.words}; {seen.geometry.words}"
'''),
('''    """Whether the rank is below that at collapse: K, or K - 1 of a simplex ETF."""
    whole = seen.predicted_rank == seen.classes
    return seen.rank < min(seen.classes - 1, seen.classes if whole else seen.classes - 1)
''','''    """Whether the rank is below that at collapse: K, or K - 1 of a simplex ETF."""
    return seen.rank < seen.classes - 1
'''),
("from typing import NamedTuple, cast, get_args","from typing import NamedTuple, get_args"),
('_WORST_LAST = get_args(Band)\n','_WORST_LAST: tuple[Band, ...] = get_args(Band)\n'),
)
sub("collapsemeter/comparison.py",
('''Status = Literal["collapsed", "below DNC rank", "not collapsed", "free", "infeasible", "unmeasured"]
''','''Status: TypeAlias = (
    Band
    | Literal[
        "below DNC rank", "other geometry", "free", "infeasible", "nothing learned", "unmeasured"
    ]
)
'''),
('''from typing import Any, Literal, NamedTuple
''','''from typing import Any, Literal, NamedTuple, TypeAlias
'''),
('''from .report import plain, printable
''','''from .criteria import Band, Criteria
from .report import plain, printable
'''),
('''        ``collapsed``, ``below DNC rank``, ``not collapsed``, ``free``, ``infeasible``, ``unmeasured``.
''','''        ``collapsed``, ``nearly collapsed`` or ``partly collapsed`` to the reference, the worse of NC1
        and geometry; ``not collapsed`` or ``not judged`` within classes; ``below DNC rank``; ``other
        geometry``; ``free``; ``infeasible``; ``nothing learned``; ``unmeasured``.
'''),
('''    low_rank : str
        Name of the best low-rank structure of the problem; empty if none is known.

    Examples''','''    low_rank : str
        Name of the best low-rank structure of the problem; empty if none is known.
    criteria : Criteria
        What counted as collapsed.

    Examples'''),
('''    2 (reference layer 2): collapsed to dnc, NC1 is 0 and the Gram matrix 0 away
''','''    2 (reference layer 2): collapsed to dnc: 0 % of the variance is within classes; class means are 0 % as far from dnc as random ones from a simplex ETF
'''),
('''    low_rank: str = ""
    last_hidden''','''    low_rank: str = ""
    criteria: Criteria = field(default_factory=Criteria)
    last_hidden'''),
)
sub("collapsemeter/comparing.py",
('''from .comparison import Comparison, Gap, LayerComparison, Ranks
''','''from .comparison import Comparison, Gap, LayerComparison, Ranks
from .criteria import Criteria
'''),
('''    tolerance: float = TOLERANCE,
) -> Comparison:''','''    tolerance: float = TOLERANCE,
    criteria: Criteria | None = None,
) -> Comparison:'''),
('''        Up to this NC1 (``nc1_trace_ratio``) and Gram distance count as collapsed; singular values
        below this fraction of the largest are not counted in the rank.
''','''        Singular values below this fraction of the largest are not counted in the rank.
    criteria : Criteria, optional
        What counts as collapsed: NC1 as in every summary, and the larger of the two Gram distances
        over what NC2 is divided by.
'''),
('''    below DNC rank: rank 5 of 10 classes (dnc has 10); NC1 is 0 and the Gram matrix 0.86 away
''','''    below DNC rank: rank 5 of 10 classes (dnc has 10); NC1 collapsed: 0 % of the variance is within
    classes; class means are 190 % as far from dnc as random ones from a simplex ETF
'''),
('''        raise ValueError(f"tolerance={tolerance}: pass a positive number, such as {TOLERANCE}")
''','''        raise ValueError(f"tolerance={tolerance}: pass a positive number, such as {TOLERANCE}")
    criteria = Criteria.chosen(criteria)
'''),
('''        name: _compare_layer(name, other, found, wanted, before_activation, tolerance)
''','''        name: _compare_layer(name, other, found, wanted, before_activation, tolerance, criteria)
'''),
('''        low_rank="" if wanted.low_rank is None else wanted.low_rank.name,
''','''        low_rank="" if wanted.low_rank is None else wanted.low_rank.name,
        criteria=criteria,
'''),
('''    name: str, other: str, found: Side, wanted: Side, before_activation: bool, tolerance: float
) -> LayerComparison:''','''    name: str,
    other: str,
    found: Side,
    wanted: Side,
    before_activation: bool,
    tolerance: float,
    criteria: Criteria,
) -> LayerComparison:'''),
('''    evidence = Evidence(
        name=wanted.name,
        nc1=layer.get("nc1_trace_ratio", math.nan),
        gram=gram,
''','''    away = max(gram, centred)
    evidence = Evidence(
        name=wanted.name,
        nc1=criteria.judge(layer)["NC1"],
        geometry=criteria.beside(wanted.name, away, layer),
        gram=away,
'''),
('''    status, verdict = say(evidence, tolerance)
''','''    status, verdict = say(evidence)
'''),
)
