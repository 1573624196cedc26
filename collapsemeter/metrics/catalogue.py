"""The catalogue: a metric is the function of its name in the file of its property, and one entry here."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

Property = Literal["NC1", "NC2", "NC3", "NC4", "depth", "imbalance"]
# What a metric is computed from: parts of the moments, what `measure` is given besides, and of the
# decisions the network's own ("network").
Need = Literal["means", "traces", "scatter", "head", "weight", "incoming", "decisions", "network"]
Unit = Literal["", "share of rows", "directions", "logits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric; ``formula`` is in the notation of `NOTATION`, ``source`` a key of `PAPERS`, ``range`` holds whatever the data."""

    property: Property
    meaning: str
    formula: str
    source: str
    needs: tuple[Need, ...] = ("means",)
    range: tuple[float, float] = (0.0, math.inf)
    at_collapse: float | None = 0.0
    unit: Unit = ""
    figure: str = ""


NOTATION = (
    "N rows with a valid label, n_c of class c; C classes that are present; μ_c class means; "
    "m = (1/C) Σ_c μ_c; g = (1/N) Σ_i h_i; M has the rows μ_c − m (or μ_c − g); W, b the head; "
    "v_c = (1/n_c) Σ_{i∈c} |h_i − μ_c|²; S_W and S_B the within- and between-class scatter; "
    "⁺ Moore-Penrose; P = (I − 11ᵀ/C)/√(C−1), the Gram matrix of a simplex ETF with Frobenius norm 1; "
    "|·| the Frobenius or Euclidean norm."
)

PAPERS: dict[str, str] = {
    "Papyan, Han & Donoho 2020": "https://doi.org/10.1073/pnas.2015509117",
    "Zhu et al. 2021": "https://arxiv.org/abs/2105.02375",
    "Galanti, György & Hutter 2021": "https://arxiv.org/abs/2112.15121",
    "Tirer & Bruna 2022": "https://arxiv.org/abs/2202.08087",
    "Ben-Shaul & Dekel 2022": "https://arxiv.org/abs/2201.08924",
    "He & Su 2023": "https://arxiv.org/abs/2210.17020",
    "Chen et al. 2010": "https://doi.org/10.1109/TSP.2010.2053029",
    "Xu & Liu 2023": "https://arxiv.org/abs/2306.03440",
    "Liu et al. 2023": "https://arxiv.org/abs/2303.06484",
    "Dang et al. 2023": "https://arxiv.org/abs/2301.00437",
    "Súkeník, Mondelli & Lampert 2023": "https://arxiv.org/abs/2305.13165",
    "Súkeník, Lampert & Mondelli 2024": "https://arxiv.org/abs/2405.14468",
    "Fang et al. 2021": "https://arxiv.org/abs/2101.12699",
    "Thrampoulidis et al. 2022": "https://arxiv.org/abs/2208.05512",
    "Wu & Papyan 2024": "https://arxiv.org/abs/2405.17767",
    "Roy & Vetterli 2007": "https://ieeexplore.ieee.org/document/7098875",
}

_PAPYAN = "Papyan, Han & Donoho 2020"
_ZHU = "Zhu et al. 2021"
_LIU = "Liu et al. 2023"
_SUKENIK = "Súkeník, Mondelli & Lampert 2023"
_FANG = "Fang et al. 2021"
_SELI = "Thrampoulidis et al. 2022"
_ROY = "Roy & Vetterli 2007"

_nc1, _nc2, _nc3, _nc4, _depth, _imbalance = (
    partial(Metric, property=each) for each in get_args(Property)
)

METRICS: dict[str, Metric] = {
    "nc1_pinv": _nc1(
        meaning="within-class variability, tr(S_W S_B^+)/C",
        formula="tr(S_W S_B⁺)/C",
        source=_PAPYAN,
        needs=("means", "scatter"),
    ),
    "nc1_trace_ratio": _nc1(
        meaning="tr S_W / tr S_B",
        formula="tr S_W / tr S_B",
        source="Tirer & Bruna 2022",
        needs=("means", "traces"),
    ),
    "nc1_cdnv": _nc1(
        meaning="class-distance normalised variance",
        formula="mean over pairs of (v_a + v_b) / (2 |μ_a − μ_b|²)",
        source="Galanti, György & Hutter 2021",
        needs=("means", "traces"),
    ),
    "nc1_fuzziness": _nc1(
        meaning="separation fuzziness tr(S_W S_B^+), by rows",
        formula="tr(S_W S_B⁺), both weighted by rows (under he_su2023 by classes), about g",
        source="He & Su 2023",
        needs=("means", "scatter"),
    ),
    "nc1_vci": _nc1(
        meaning="variability collapse index",
        formula="1 − tr((S_B + S_W)⁺ S_B)/rank(S_B)",
        source="Xu & Liu 2023",
        needs=("means", "scatter"),
        range=(0.0, 1.0),
    ),
    "separation": _nc1(
        meaning="tr S_B / tr S_W, the reciprocal of nc1_trace_ratio",
        formula="tr S_B / tr S_W",
        source="Tirer & Bruna 2022",
        needs=("means", "traces"),
        at_collapse=None,
    ),
    "nc1_vci_shrunk": _nc1(
        meaning="variability collapse index of a shrunk covariance",
        formula="mean over j < C of 1/(1 + max(l_j − d/(nC), 0)), l_j eigenvalues of M S*⁻¹ Mᵀ/C, "
        "S* = (1 − a) S + a (tr S/d) I, S pooled, n the harmonic mean of n_c",
        source="Chen et al. 2010",
        needs=("means", "scatter"),
        range=(0.0, 1.0),
    ),
    "nc2_equinorm": _nc2(
        meaning="spread of the norms of the class means",
        formula="std_c |μ_c − m| / mean_c |μ_c − m|, ddof = 1",
        source=_PAPYAN,
        figure="figure 2",
    ),
    "nc2_equiangular": _nc2(
        meaning="spread of the cosines between class means",
        formula="population std over pairs of cos(μ_a − m, μ_b − m)",
        source=_PAPYAN,
        range=(0.0, 1.0),
        figure="figure 3",
    ),
    "nc2_max_angle": _nc2(
        meaning="mean distance of the cosines from -1/(C-1)",
        formula="mean over pairs of |cos(μ_a − m, μ_b − m) + 1/(C−1)|",
        source=_PAPYAN,
        range=(0.0, 2.0),
        figure="figure 4",
    ),
    "nc2_etf_error": _nc2(
        meaning="distance of the class means to a simplex ETF",
        formula="|G/|G| − P|, G = M Mᵀ",
        source=_ZHU,
        range=(0.0, math.sqrt(2.0)),
    ),
    "nc2_of_error": _nc2(
        meaning="distance of the uncentred class means to an orthogonal frame",
        formula="|G/|G| − I/√C|, G of the uncentred means",
        source=_SUKENIK,
        range=(0.0, math.sqrt(2.0)),
        at_collapse=None,
    ),
    "gnc2_log_mean": _nc2(
        meaning="mean log inverse distance of mean directions",
        formula="mean over pairs of −log|u_a − u_b|, u the unit rows of M",
        source=_LIU,
        range=(-math.log(2.0), math.inf),
        at_collapse=None,
    ),
    "gnc2_log_var": _nc2(
        meaning="variance of the log inverse distances",
        formula="population variance over pairs of −log|u_a − u_b|",
        source=_LIU,
    ),
    "nc2_equinorm_head": _nc2(
        meaning="spread of the norms of the head's rows",
        formula="std_c |w_c| / mean_c |w_c|, ddof = 1",
        source=_PAPYAN,
        needs=("head",),
        figure="figure 2",
    ),
    "nc2_equiangular_head": _nc2(
        meaning="spread of the cosines between the head's rows",
        formula="population std over pairs of cos(w_a, w_b)",
        source=_PAPYAN,
        needs=("head",),
        range=(0.0, 1.0),
        figure="figure 3",
    ),
    "nc2_max_angle_head": _nc2(
        meaning="the same cosines' mean distance from -1/(C-1)",
        formula="mean over pairs of |cos(w_a, w_b) + 1/(C−1)|",
        source=_PAPYAN,
        needs=("head",),
        range=(0.0, 2.0),
        figure="figure 4",
    ),
    "nc2_etf_error_head": _nc2(
        meaning="distance of the head to a simplex ETF",
        formula="|G/|G| − P|, G = W Wᵀ",
        source=_ZHU,
        needs=("head",),
        range=(0.0, math.sqrt(2.0)),
    ),
    "nc3_self_duality": _nc3(
        meaning="squared distance of head and class means",
        formula="|W/|W| − M/|M||²",
        source=_PAPYAN,
        needs=("means", "head"),
        range=(0.0, 4.0),
        figure="figure 5",
    ),
    "nc3_etf_error": _nc3(
        meaning="distance of W M^T to a simplex ETF's Gram",
        formula="|W Mᵀ/|W Mᵀ| − P|",
        source=_ZHU,
        needs=("means", "head"),
        range=(0.0, 2.0),
    ),
    "nc3_cosine": _nc3(
        meaning="mean cosine of head rows and class means",
        formula="mean_c cos(w_c, μ_c − m)",
        source=_PAPYAN,
        needs=("means", "head"),
        range=(-1.0, 1.0),
        at_collapse=1.0,
    ),
    "nc3_uniform": _nc3(
        meaning="variance of those cosines",
        formula="variance over c (ddof = 1) of cos(w_c, μ_c − m)",
        source="Wu & Papyan 2024",
        needs=("means", "head"),
        range=(0.0, 2.0),
    ),
    "nc3_bias": _nc3(
        meaning="norm of the head's output at the sample mean",
        formula="|W g + b|",
        source=_ZHU,
        needs=("means", "head"),
        at_collapse=None,
        unit="logits",
    ),
    "nc4_agreement": _nc4(
        meaning="share decided as the nearest class centre",
        formula="share of rows with decision = argmin_c |h − μ_c|",
        source=_PAPYAN,
        needs=("means", "decisions", "network"),
        range=(0.0, 1.0),
        at_collapse=1.0,
        unit="share of rows",
    ),
    "nc4_mismatch": _nc4(
        meaning="share not decided as the nearest class centre",
        formula="1 − nc4_agreement",
        source=_PAPYAN,
        needs=("means", "decisions", "network"),
        range=(0.0, 1.0),
        unit="share of rows",
        figure="figure 7",
    ),
    "ncc_accuracy": _nc4(
        meaning="accuracy of the nearest class centre",
        formula="share of rows with label = argmin_c |h − μ_c|",
        source="Ben-Shaul & Dekel 2022",
        needs=("means", "decisions"),
        range=(0.0, 1.0),
        at_collapse=1.0,
        unit="share of rows",
    ),
    "ncc_accuracy_loo": _nc4(
        meaning="accuracy of the nearest class centre, made without the row",
        formula="share of rows with (n/(n−1))² |h − μ_y|² − σ²/(n_y−1) < min over c ≠ y of |h − μ_c|² − σ²/n_c, "
        "σ² the pooled tr S_W",
        source="Ben-Shaul & Dekel 2022",
        needs=("means", "decisions"),
        range=(0.0, 1.0),
        at_collapse=1.0,
        unit="share of rows",
    ),
    "means_effective_rank": _depth(
        meaning="effective rank of the centred class means",
        formula="exp of the entropy of the singular values of M",
        source=_ROY,
        range=(1.0, math.inf),
        at_collapse=None,
        unit="directions",
    ),
    "means_stable_rank": _depth(
        meaning="|M|^2 / s_1^2",
        formula="|M|² / s₁²",
        source="Súkeník, Lampert & Mondelli 2024",
        range=(1.0, math.inf),
        at_collapse=None,
        unit="directions",
    ),
    "features_effective_rank": _depth(
        meaning="effective rank of S_W + S_B",
        formula="exp of the entropy of the eigenvalues of S_W + S_B, S_W by rows and S_B by classes under every convention",
        source=_ROY,
        needs=("means", "scatter"),
        range=(1.0, math.inf),
        at_collapse=None,
        unit="directions",
    ),
    "means_condition": _depth(
        meaning="s_1/s_C of the uncentred means",
        formula="s₁/s_C of the uncentred class means",
        source=_SUKENIK,
        range=(1.0, math.inf),
        at_collapse=None,
    ),
    "dnc3_sine": _depth(
        meaning="sine between weight rows and class means",
        formula="norm-weighted mean sine of weight rows to the closest uncentred class mean",
        source=_SUKENIK,
        needs=("means", "weight"),
        range=(0.0, 1.0),
        at_collapse=None,
    ),
    "weight_balance": _depth(
        meaning="relative distance of the Gram matrices of weights in and out",
        formula="|A − B|/(|A| + |B|), A = λ_in W_in W_inᵀ, B = λ_out W_outᵀ W_out",
        source="Dang et al. 2023",
        needs=("incoming", "weight"),
        range=(0.0, 1.0),
        at_collapse=None,
    ),
    "nc2_worst_cosine": _imbalance(
        meaning="largest cosine between two class means",
        formula="max over pairs of cos(μ_a − m, μ_b − m)",
        source=_FANG,
        range=(-1.0, 1.0),
        at_collapse=None,
    ),
    "nc2_worst_cosine_head": _imbalance(
        meaning="largest cosine between two rows of the head",
        formula="max over pairs of cos(w_a, w_b)",
        source=_FANG,
        needs=("head",),
        range=(-1.0, 1.0),
        at_collapse=None,
    ),
    "means_norm_slope": _imbalance(
        meaning="slope of log|mu_c - m| on log n_c",
        formula="least squares over classes of log|μ_c − m| on log n_c: the slope",
        source=_FANG,
        range=(-math.inf, math.inf),
        at_collapse=None,
    ),
    "means_norm_r": _imbalance(
        meaning="correlation of log|mu_c - m| and log n_c",
        formula="correlation coefficient over classes of log|μ_c − m| and log n_c",
        source=_FANG,
        range=(-1.0, 1.0),
        at_collapse=None,
    ),
    "nc2_seli_error": _imbalance(
        meaning="distance of the class means to SELI",
        formula="|G/|G| − T/|T||, G = M Mᵀ, T = ((J D J)⁺)^½, D = diag(n_c), J = I − 11ᵀ/C",
        source=_SELI,
        range=(0.0, 2.0),
    ),
    "nc2_seli_error_head": _imbalance(
        meaning="distance of the head to SELI",
        formula="|G/|G| − T/|T||, G = W Wᵀ, T = (J D J)^½",
        source=_SELI,
        needs=("means", "head"),
        range=(0.0, 2.0),
    ),
}
