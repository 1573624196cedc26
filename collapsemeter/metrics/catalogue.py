"""Every metric by name: what it is, its value at collapse, and who defined it."""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """One metric: its meaning in words, its value at collapse (None: none is implied), its source."""

    meaning: str
    at_collapse: float | None
    source: str


_PAPYAN = "Papyan, Han & Donoho 2020"

METRICS: dict[str, Metric] = {
    "nc1_pinv": Metric("within-class variability, tr(S_W S_B^+)/C", 0.0, _PAPYAN),
    "nc1_trace_ratio": Metric("tr S_W / tr S_B", 0.0, "Tirer & Bruna 2022"),
    "nc1_cdnv": Metric("class-distance normalised variance", 0.0, "Galanti et al. 2021"),
    "nc1_fuzziness": Metric("separation fuzziness tr(S_W S_B^+), by rows", 0.0, "He & Su 2023"),
    "nc1_vci": Metric("variability collapse index", 0.0, "Xu & Liu 2023"),
    "nc2_equinorm": Metric("spread of the norms of the class means", 0.0, _PAPYAN),
    "nc2_equiangular": Metric("spread of the cosines between class means", 0.0, _PAPYAN),
    "nc2_max_angle": Metric("mean distance of the cosines from -1/(C-1)", 0.0, _PAPYAN),
    "nc2_etf_error": Metric("distance of the class means to a simplex ETF", 0.0, "Zhu et al. 2021"),
    "nc2_of_error": Metric(
        "distance of the uncentred class means to an orthogonal frame", None, "Sukenik et al. 2023"
    ),
    "gnc2_log_mean": Metric(
        "mean log inverse distance of mean directions", None, "Liu et al. 2023"
    ),
    "gnc2_log_var": Metric("variance of the log inverse distances", 0.0, "Liu et al. 2023"),
    "nc2_equinorm_head": Metric("spread of the norms of the head's rows", 0.0, _PAPYAN),
    "nc2_equiangular_head": Metric("spread of the cosines between the head's rows", 0.0, _PAPYAN),
    "nc2_max_angle_head": Metric("the same cosines' mean distance from -1/(C-1)", 0.0, _PAPYAN),
    "nc2_etf_error_head": Metric("distance of the head to a simplex ETF", 0.0, "Zhu et al. 2021"),
    "nc3_self_duality": Metric("squared distance of head and class means", 0.0, _PAPYAN),
    "nc3_etf_error": Metric("distance of W M^T to a simplex ETF's Gram", 0.0, "Zhu et al. 2021"),
    "nc3_cosine": Metric("mean cosine of head rows and class means", 1.0, _PAPYAN),
    "nc3_uniform": Metric("variance of those cosines", 0.0, "Wu & Papyan 2024"),
    "nc3_bias": Metric("norm of the head's output at the sample mean", None, "Zhu et al. 2021"),
    "nc4_agreement": Metric("share decided as the nearest class centre", 1.0, _PAPYAN),
    "nc4_mismatch": Metric("share not decided as the nearest class centre", 0.0, _PAPYAN),
    "ncc_accuracy": Metric("accuracy of the nearest class centre", 1.0, "Ben-Shaul & Dekel 2022"),
    "means_effective_rank": Metric(
        "effective rank of the centred class means", None, "Roy & Vetterli 2007"
    ),
    "means_stable_rank": Metric("|M|^2 / s_1^2", None, "Sukenik et al. 2024"),
    "features_effective_rank": Metric("effective rank of S_W + S_B", None, "Roy & Vetterli 2007"),
    "means_condition": Metric("s_1/s_C of the uncentred means", None, "Sukenik et al. 2023"),
    "dnc3_sine": Metric("sine between weight rows and class means", None, "Sukenik et al. 2023"),
    "weight_balance": Metric(
        "relative distance of the Gram matrices of weights in and out", None, "Dang et al. 2023"
    ),
}
