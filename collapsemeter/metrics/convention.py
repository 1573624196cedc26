"""The named choices in which papers differ, so that one metric name means one formula."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

Center = Literal["class", "sample"]
Weighting = Literal["class", "sample"]


@dataclass(frozen=True, slots=True)
class Convention:
    r"""How class means are centred and how scatters are weighted.

    Parameters
    ----------
    center : {"class", "sample"}
        The centre of the class means in NC1, NC2 and NC3: the mean of the class means
        :math:`m`, or the mean of the samples :math:`g`.
    within : {"sample", "class"}
        :math:`S_W` as :math:`\frac1N \sum_i`, or as :math:`\frac1C \sum_c \frac1{n_c} \sum_{i \in c}`.
    between : {"class", "sample"}
        :math:`S_B` with weights :math:`1/C`, or :math:`n_c/N`.
    divide_by_classes : bool
        Whether ``nc1_pinv`` is divided by the number of classes.

    Raises
    ------
    ValueError
        If a switch has another value.

    References
    ----------
    Papyan, Han & Donoho 2020 (``papyan2020``); Zhu et al. 2021 (``zhu2021``); He & Su 2023
    (``he_su2023``, ``he_su2023_imbalanced``).

    Examples
    --------
    >>> Convention.named("zhu2021")
    Convention(center='sample', within='sample', between='class', divide_by_classes=True)
    """

    center: Center = "class"
    within: Weighting = "sample"
    between: Weighting = "class"
    divide_by_classes: bool = True

    def __post_init__(self) -> None:
        for switch in ("center", "within", "between"):
            value = getattr(self, switch)
            if value not in get_args(Weighting):
                raise ValueError(f"{switch}={value!r}: choose 'class' or 'sample'")

    @classmethod
    def named(cls, convention: Convention | str) -> Convention:
        """Return the preset of that name (a `Convention` is returned as it is)."""
        if isinstance(convention, Convention):
            return convention
        if convention not in PRESETS:
            raise ValueError(
                f"convention={convention!r}: choose one of {', '.join(PRESETS)}, "
                "or pass a Convention(center=, within=, between=, divide_by_classes=)"
            )
        return PRESETS[convention]

    @property
    def name(self) -> str:
        """The preset's name, or ``custom``."""
        return next((name for name, preset in PRESETS.items() if preset == self), "custom")


PRESETS: dict[str, Convention] = {
    "papyan2020": Convention(),
    "zhu2021": Convention(center="sample"),
    "he_su2023": Convention(center="sample", within="class", divide_by_classes=False),
    "he_su2023_imbalanced": Convention(center="sample", between="sample", divide_by_classes=False),
}


class Switch(NamedTuple):
    """One choice in which papers differ: an argument, what it chooses, and who chooses what."""

    name: str
    meaning: str
    papers: str


SWITCHES = (
    Switch(
        "center",
        "the centre of M in NC1, NC2 and NC3: class (m) or sample (g)",
        "m: Papyan, Han & Donoho 2020, Wu & Papyan 2024; g: Zhu et al. 2021, Zhou et al. 2022, "
        "Rangamani et al. 2023",
    ),
    Switch(
        "within",
        "S_W as sample, (1/N) Σ_i, or class, (1/C) Σ_c (1/n_c) Σ_{i∈c}",
        "class: He & Su 2023, balanced form",
    ),
    Switch(
        "between",
        "S_B weighted by class (1/C) or sample (n_c/N)",
        "sample: He & Su 2023, imbalanced form",
    ),
    Switch("divide_by_classes", "whether nc1_pinv is divided by C", "not: He & Su 2023"),
    Switch(
        "center_head",
        "whether the head's rows are centred over classes in NC3 and the _head metrics",
        "not: Papyan, Han & Donoho 2020, Zhu et al. 2021",
    ),
)
