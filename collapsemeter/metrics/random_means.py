"""How near random class means are to a simplex ETF: the wider the layer, the nearer."""

import math


def random_etf_error(classes: int, width: int) -> float:
    r"""Return about what ``nc2_etf_error`` is of random class means, :math:`\sqrt{2 - 2\sqrt{d/(d+C)}}`."""
    return math.sqrt(2 - 2 * math.sqrt(width / (width + classes)))


def is_generic(values: dict[str, float], classes: int, width: int, phase: str) -> bool:
    """Say whether class means are no nearer to a simplex ETF, which exists, than random ones."""
    if not 2 < classes <= width + 1 or phase == "reference":
        return False
    return values.get("nc2_etf_error", math.nan) >= random_etf_error(classes, width)
