"""Settings that all adapters take in the same words, checked once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from ..metrics.convention import Convention
from ..stats.groups import GROUP_ENTRIES, GROUPS, affordable_groups, check_groups
from ..stats.labels import Mixed, check_mixed
from ..stats.sketch import SKETCH_ROWS
from ..stats.sums import IGNORE_INDEX, Nonfinite, ScatterKind, check_num_classes, scatter_kind
from .reduction import Reduction, check_reduction

WIDE = 4096  # layers wider than this keep a sixteenth of the sampled rows
# Scatters of single classes that cost more pooled products than this are kept only of few, small entries.
CLASS_PRODUCTS, CLASS_ENTRIES = 4, 2**13


@dataclass(frozen=True)
class Settings:
    """How layers are counted and measured.

    Parameters
    ----------
    num_classes : int
        C, at least two.
    reduction : str, callable, or mapping from layer name to one
        How an output becomes one row per label, see `reduction.feature_rows`.
    scatter : {"auto", "class", "pooled", "sketch", "trace"}
        What is kept of the within-class scatter, see `sums.scatter_kind`.
    convention : str or Convention
    ignore_index : int
        Label of rows to leave out.
    nonfinite : {"skip", "raise", "propagate"}
        What to do with rows that hold NaN or Inf; ``raise`` raises when a report is made.
    mixed : {"skip", "hardest"}
        What becomes of a row whose label is parts of several classes, such as those of mixup and label smoothing: it is
        left out and counted, or has the class of its largest part (left out where the largest parts are equal).
    sample_rows : int
        Rows of each layer kept for NC4 (a uniform sample; a sixteenth of it where d > 4096).
    seed : int
        Of the row sample, and of the sketch of a wide layer: streams whose moments are to be merged,
        such as those of several processes, need one each (``seed=rank``).
    sketch_rows : int
        k, the rows of the sketch that a wide layer keeps; the relative standard error is about
        sqrt(2/k) of one direction, and less over many.
    groups : int
        Groups of rows that each layer keeps for intervals: 16, 8, 4, or 0 for none, see
        `collapsemeter.stats.groups`. A layer of many classes and features keeps fewer.

    Raises
    ------
    ValueError
        If a choice is unknown.

    Examples
    --------
    >>> settings = Settings(num_classes=10)
    >>> settings.kind(64), settings.sample_size(64), settings.sample_size(65536)
    ('class', 4096, 256)
    """

    num_classes: int
    reduction: Reduction | Mapping[str, Reduction] = "auto"
    scatter: ScatterKind | Literal["auto"] = "auto"
    convention: Convention | str = "papyan2020"
    ignore_index: int = IGNORE_INDEX
    nonfinite: Nonfinite = "skip"
    sample_rows: int = 4096
    seed: int = 0
    sketch_rows: int = SKETCH_ROWS
    mixed: Mixed = "skip"
    groups: int = GROUPS

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_classes", check_num_classes(self.num_classes, least=2))
        if self.scatter not in ("auto", *get_args(ScatterKind)):
            raise ValueError(
                f"scatter={self.scatter!r}: choose 'auto', 'class', 'pooled', 'sketch' or 'trace'"
            )
        if self.nonfinite not in get_args(Nonfinite):
            raise ValueError(f"nonfinite={self.nonfinite!r}: choose 'skip', 'raise' or 'propagate'")
        check_mixed(self.mixed)
        if self.sample_rows < 1:
            raise ValueError(f"sample_rows={self.sample_rows}: keep at least one row")
        if self.sketch_rows < 2:
            raise ValueError(f"sketch_rows={self.sketch_rows}: a sketch has at least two rows")
        object.__setattr__(self, "groups", check_groups(self.groups))
        if not isinstance(self.reduction, Mapping):  # layers are known when there is a model
            check_reduction(self.reduction)
        object.__setattr__(self, "convention", Convention.named(self.convention))

    @property
    def propagate(self) -> bool:
        """Whether a row that is not finite is counted and makes its class NaN."""
        return self.nonfinite == "propagate"

    @property
    def named_convention(self) -> Convention:
        """The convention, whether it was given by name or not."""
        return Convention.named(self.convention)

    def kind(self, width: int, class_products: int = 1) -> ScatterKind:
        """Return the scatter that a layer of this width keeps.

        ``class_products`` is how many pooled products the scatters of single classes cost: C where shapes
        must be static, 1 where each class has a product of its own rows. Where they are dear, the pooled
        one is kept, unless a scatter was asked for, or the convention needs that of every class.
        """
        if self.scatter != "auto":
            return self.scatter
        kind = scatter_kind(self.num_classes, width)
        is_dear = class_products > CLASS_PRODUCTS and self.num_classes * width**2 > CLASS_ENTRIES
        is_needed = self.named_convention.within == "class"
        return "pooled" if kind == "class" and is_dear and not is_needed else kind

    def afforded_groups(self, width: int) -> int:
        """Return how many groups of rows a layer of this width keeps for intervals."""
        return affordable_groups(self.num_classes, width, self.groups, GROUP_ENTRIES)

    @property
    def sample_sizes(self) -> tuple[int, int]:
        """Rows kept of an ordinary layer, and of one wider than 4096 features."""
        return self.sample_rows, max(1, self.sample_rows // 16)

    def sample_size(self, width: int) -> int:
        """Return how many rows of a layer of this width are kept for NC4."""
        ordinary, wide = self.sample_sizes
        return wide if width > WIDE else ordinary
